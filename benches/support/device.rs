//! Device of a bench by its name, and the dtype that is measured on it.

use burn::tensor::{Device, FloatDType};

/// # Panics
/// If the build lacks the device.
pub fn device(name: &str) -> (Device, FloatDType) {
    match name {
        #[cfg(feature = "cpu")]
        "cpu" => (Device::flex(), FloatDType::F32),
        #[cfg(feature = "cuda")]
        "cuda" => (Device::cuda(0), FloatDType::BF16),
        #[cfg(feature = "vulkan")]
        "vulkan" => (Device::vulkan(burn::tensor::DeviceKind::DefaultDevice), FloatDType::F16),
        #[cfg(feature = "wgpu")]
        "wgpu" => (Device::wgpu(burn::tensor::DeviceKind::DefaultDevice), FloatDType::F32),
        other => panic!("this build has no device `{other}`: cpu, cuda, vulkan, wgpu by feature"),
    }
}
