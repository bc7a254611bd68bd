//! What the tests of the crates share: the device and the golden files. Each includes this file.

use burn::tensor::Device;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The device under test: the CPU, or the GPU that `BURN_LORA_GPU` names.
pub fn device() -> Device {
    match std::env::var("BURN_LORA_GPU").as_deref() {
        #[cfg(feature = "cuda")]
        Ok("cuda") => Device::cuda(0),
        #[cfg(feature = "vulkan")]
        Ok("vulkan") => Device::vulkan(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "wgpu")]
        Ok("wgpu") => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        Ok(other) => panic!("BURN_LORA_GPU is `{other}`, which this build has not"),
        #[cfg(feature = "cpu")]
        Err(_) => Device::flex(),
        #[cfg(not(feature = "cpu"))]
        Err(_) => panic!("BURN_LORA_GPU is not set"),
    }
}

/// A folder of golden files, or one of them.
pub fn golden(name: &str) -> PathBuf {
    PathBuf::from("../../testdata").join(name)
}

/// Shape and values by name.
pub type Host = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A safetensors file of float32 and integers; these as floats.
pub fn tensors(path: &Path) -> Host {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &TensorView<'_>| match view.dtype() {
        Dtype::I64 => bytemuck::pod_collect_to_vec::<u8, i64>(view.data())
            .into_iter()
            .map(|value| value as f32)
            .collect(),
        _ => bytemuck::pod_collect_to_vec::<u8, f32>(view.data()),
    };
    let tensors = file.iter();
    tensors.map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view)))).collect()
}
