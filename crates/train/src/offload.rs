//! Tensors that wait in host memory, and are copied there and back beside the computation.

use burn::tensor::{Device, Tensor, TensorData};
use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// Thread that copies: it has a stream of its own. What it has copied to the host stays in the pinned
/// memory that the device has written to, and goes back from there.
pub(crate) struct Offload(SyncSender<Job>);

type Job = Box<dyn FnOnce() + Send>;

/// Tensor in host memory, or on its way there.
pub(crate) struct OnHost(Receiver<Result<TensorData, String>>);

/// Tensor on its way back to the device.
pub(crate) struct Coming(Receiver<Result<Tensor<3>, String>>);

impl Offload {
    /// Starts the thread, which ends with the value.
    pub fn start() -> Self {
        // Few tensors wait for their copy, whose memory the device would like to have back.
        let (send, jobs) = sync_channel::<Job>(1);
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        Self(send)
    }

    /// Copies a tensor to the host.
    pub fn keep(&self, tensor: Tensor<3>) -> OnHost {
        // One of its own: Burn's fusion loses a tensor that two threads use at the same time.
        let tensor = tensor * 1.0;
        OnHost(self.run(move || tensor.try_into_data().map_err(|error| error.to_string())))
    }

    /// Copies a tensor back to a device.
    pub fn bring(&self, OnHost(kept): OnHost, device: &Device) -> Coming {
        let device = device.clone();
        Coming(self.run(move || {
            let data = kept.recv().unwrap_or_else(|_| Err(ENDED.to_owned()))?;
            let dtype = data.dtype();
            Ok(Tensor::from_data(data, (&device, dtype)))
        }))
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
        let (send, result) = sync_channel(1);
        // Nobody listens any more if the step has failed.
        let job = Box::new(move || drop(send.send(job())));
        // If the thread has panicked, the result never comes, which `wait` says.
        let _ = self.0.send(job);
        result
    }
}

const ENDED: &str = "the thread that copies ended";

impl Coming {
    /// Returns the tensor.
    ///
    /// # Panics
    /// If a copy failed.
    pub fn wait(self) -> Tensor<3> {
        let tensor = self.0.recv().unwrap_or_else(|_| Err(ENDED.to_owned()));
        tensor.unwrap_or_else(|error| panic!("offloaded inputs of a layer: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_in_any_order() {
        let device = Device::default();
        let offload = Offload::start();
        let tensors = [1.0, 2.0, 3.0].map(|value| Tensor::<3>::ones([2, 3, 4], &device) * value);
        let [a, b, c] = tensors.clone().map(|tensor| offload.keep(tensor));
        let back = [c, a, b].map(|kept| offload.bring(kept, &device));
        let [c, a, b] = back.map(Coming::wait);
        for (found, expected) in [a, b, c].into_iter().zip(tensors) {
            found.into_data().assert_eq(&expected.into_data(), true);
        }
    }
}
