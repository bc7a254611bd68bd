//! Work that a GPU records once and replays in one launch (CUDA graphs), by Burn's capture of graphs.

use burn::{
    backend::{Backend, BackendTypes, Dispatch},
    tensor::Device,
};

/// Returns `true` if a device can [record](record()): CUDA.
pub fn records(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    if let Some(client) = crate::cube::client(device) {
        return crate::cuda::runs(&client);
    }
    let _ = device;
    false
}

/// Recorded work.
#[derive(Debug)]
pub struct Recorded {
    device: Device,
    graph: <Dispatch as BackendTypes>::GraphPrimitive,
}

/// Prepares a device for [`record()`]: the same work has to run a few times from here on, so that all kernels are compiled and
/// there is memory for all that it creates.
pub fn prepare_recording(device: &Device) {
    // One that is prepared already says so.
    let _ = Dispatch::graph_prepare(device.as_dispatch());
}

/// Ends what [`prepare_recording`] began, without a recording.
pub fn abandon_recording(device: &Device) {
    let _ = Dispatch::graph_stop_capture(device.as_dispatch());
}

/// Records work, which is not done yet. It may not read or upload anything, and has to write in place what is to be different
/// the next time. No other thread of the process may read from a GPU, wait for one or take new memory there meanwhile: CUDA
/// refuses it, and the recording fails.
///
/// # Errors
/// The reason why the device cannot record it. What the work would have written is lost then.
pub fn record<T>(device: &Device, work: impl FnOnce() -> T) -> Result<(T, Recorded), String> {
    Dispatch::graph_start_capture(device.as_dispatch()).map_err(|error| error.to_string())?;
    let found = work();
    let graph = Dispatch::graph_stop_capture(device.as_dispatch());
    let graph = graph.map_err(|error| error.to_string())?;
    Ok((found, Recorded { device: device.clone(), graph }))
}

impl Recorded {
    /// Does the work, with the memory that it was recorded with.
    ///
    /// # Errors
    /// The reason why the device cannot do it.
    ///
    /// # Safety
    /// All tensors that the work read or wrote are there still, and nothing else uses them at the same time; they are written
    /// and read by the thread that recorded the work.
    pub unsafe fn replay(&self) -> Result<(), String> {
        // SAFETY: as required of the caller.
        unsafe { Dispatch::graph_replay(self.device.as_dispatch(), &self.graph) }
            .map_err(|error| error.to_string())
    }
}
