//! What tests of kernels share: every device, numbers for it, and how far off they are.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};

/// Every device that this build has and this machine offers: the CPU, and a GPU.
pub fn devices() -> Vec<Device> {
    #[allow(unused_mut)]
    let mut devices = vec![];
    #[cfg(feature = "cpu")]
    devices.push(Device::flex());
    devices.extend(gpu());
    devices
}

/// The GPU to test on: named by `BURN_LORA_GPU` (`cuda`, `vulkan`, `wgpu`), or none.
fn gpu() -> Option<Device> {
    let name = std::env::var("BURN_LORA_GPU").ok()?;
    match name.as_str() {
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(0)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        other => panic!("BURN_LORA_GPU is `{other}`, which this build has not"),
    }
}

/// Values that every dtype holds exactly, so that the only error is the product's.
pub fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761 + seed * 40_503) >> 9 & 63) as f32 / 32.0 - 1.0).collect()
}

/// A tensor of [`values`].
pub fn tensor<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    let values = values(shape.iter().product(), seed);
    Tensor::from_data(TensorData::new(values, shape), device)
}

pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(FloatDType::F32).into_data().try_into_vec().unwrap()
}

/// Views of tensors of this shape that are not laid out row after row, or do not begin their memory.
pub fn views([rows, columns]: [usize; 2], device: &Device) -> Vec<(&'static str, Tensor<2>)> {
    let of = |shape| tensor::<2>(shape, 5, device);
    vec![
        ("transposed", of([columns, rows]).transpose()),
        ("rows of a longer one", of([rows + 64, columns]).slice([64..64 + rows, 0..columns])),
        ("columns of a wider one", of([rows, columns + 64]).slice([0..rows, 64..64 + columns])),
        ("one row again and again", of([1, columns]).expand([rows, columns])),
        ("one column again and again", of([rows, 1]).expand([rows, columns])),
        ("the other way round", of([rows, columns]).flip([0])),
    ]
}

/// The same values, row after row in memory of their own.
pub fn copied(view: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(view.to_data(), &view.device())
}

/// `|found - expected| / |expected|`; an infinity where something is no number.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |value: f64| value * value;
    let difference: f64 =
        found.iter().zip(expected).map(|(f, e)| square(f64::from(*f) - f64::from(*e))).sum();
    let norm: f64 = expected.iter().map(|e| square(f64::from(*e))).sum();
    let error = (difference / norm).sqrt();
    if error.is_nan() { f64::INFINITY } else { error }
}
