//! What the tests of this crate share.

use burn::tensor::{Device, FloatDType};
use burn_lora_llama::{Llama, Loader};
use burn_lora_train::{Dataset, data::Sample};
use safetensors::SafeTensors;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

/// The device under test.
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

pub fn golden(variant: &str) -> PathBuf {
    PathBuf::from("../../testdata").join(variant)
}

pub fn loader(folder: &Path) -> Loader {
    Llama::from_pretrained(folder).dtype(FloatDType::F32)
}

/// Shape and values by name; integers as floats.
pub fn tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |view: &safetensors::tensor::TensorView<'_>| match view.dtype() {
        safetensors::Dtype::I64 => bytemuck::pod_collect_to_vec::<u8, i64>(view.data())
            .into_iter()
            .map(|value| value as f32)
            .collect(),
        _ => bytemuck::pod_collect_to_vec::<u8, f32>(view.data()),
    };
    let tensors = file.iter();
    tensors.map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), values(&view)))).collect()
}

/// The batch of the goldens, row by row without padding.
pub fn golden_samples(variant: &str) -> Vec<Sample> {
    let io = tensors(&golden(variant).join("io.safetensors"));
    let length = io["input_ids"].0[1];
    let rows = |name: &str| io[name].1.chunks(length).map(<[f32]>::to_vec).collect::<Vec<_>>();
    let (ids, mask, labels) = (rows("input_ids"), rows("attention_mask"), rows("labels"));
    (0..ids.len())
        .map(|row| {
            let kept: Vec<usize> = (0..length).filter(|at| mask[row][*at] > 0.0).collect();
            Sample {
                ids: kept.iter().map(|at| ids[row][*at] as u32).collect(),
                trained: kept.iter().map(|at| labels[row][*at] >= 0.0).collect(),
            }
        })
        .collect()
}

pub fn golden_data(variant: &str) -> Dataset {
    Dataset::from_samples(golden_samples(variant)).unwrap()
}

/// The largest absolute difference.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

/// For tests that draw random numbers on the device: a process has one generator for all threads.
pub fn the_generator() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
