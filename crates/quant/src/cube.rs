//! What the kernels of these crates share on CubeCL's runtimes.

use burn::{
    backend::{BackendTypes, Dispatch, TensorMetadata},
    tensor::Device,
};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{client::Client, prelude::BufferArg};

/// The client of a device, if it is one of CubeCL's.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_quant::cube::client;
///
/// if let Some(client) = client(&Device::default()) {
///     println!("{:?}", client.properties().memory.max_memory());
/// }
/// ```
pub fn client(device: &Device) -> Option<Client> {
    type AnyDevice = <Dispatch as BackendTypes>::Device;
    match device.clone().inner().as_dispatch() {
        AnyDevice::Cube(device) => Some(device.client()),
        #[allow(unreachable_patterns, reason = "the only one, by features")]
        _ => None,
    }
}

/// A contiguous tensor to write into: itself where nothing else holds its buffer, else a copy.
pub fn own(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    // The rows of a copy can be padded, on CUDA.
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// A contiguous tensor's buffer as a kernel argument, in vectors of this many elements.
pub fn buffer(tensor: &CubeTensor, vector: usize) -> BufferArg {
    let len = tensor.shape().num_elements() / vector;
    // SAFETY: a contiguous tensor has so many elements.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len) }
}
