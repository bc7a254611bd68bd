//! Weights that 8 bits hold as they are.

use super::{EightBitConfig, EightBitFormat, EightBitWeight};
use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

/// Elements of a row that share a scale.
const BLOCK: usize = 32;

impl EightBitWeight {
    /// Stores a weight in 8 bits if that keeps its values but for a rounding to float32, as it does with those that were stored
    /// so before (llama.cpp's Q8_0); `None` otherwise.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use burn_lora_quant::EightBitWeight;
    ///
    /// let weight = Tensor::<2>::ones([4, 64], &Device::default()) * 0.375;
    /// assert!(EightBitWeight::exact(weight.clone()).is_some());
    /// assert!(EightBitWeight::exact(weight.random_like(Distribution::Default)).is_none());
    /// ```
    pub fn exact(weight: Tensor<2>) -> Option<Self> {
        let (shape, device) = (weight.dims(), weight.device());
        if shape[0] == 0 || !shape[1].is_multiple_of(BLOCK) || weight.dtype() != DType::F32 {
            return None;
        }
        let read = |weight: Tensor<2>| weight.try_into_data().ok();
        let weight = weight.inner();
        // Most weights are not so: a row says it, without a copy of them all.
        let first = read(weight.clone().narrow(0, 0, 1))?;
        scales(first.as_slice().ok()?)?;
        let data = read(weight)?;
        let values = data.as_slice::<f32>().ok()?;
        let scales = scales(values)?;
        let mut codes = vec![0u8; values.len()];
        let blocks = codes.par_chunks_exact_mut(BLOCK).zip(values.par_chunks_exact(BLOCK));
        blocks.zip(&scales).with_min_len(64).for_each(|((codes, values), most)| {
            for (to, value) in codes.iter_mut().zip(values) {
                *to = code(*value, most / 127.0) as u8;
            }
        });
        let config = EightBitConfig { format: EightBitFormat::Int8, block: [1, BLOCK] };
        Self::from_bytes(&codes, &scales, config.layout(shape), &device).ok()
    }
}

/// The largest magnitude of each block, which is 127 times its step, if all values are multiples of that.
fn scales(values: &[f32]) -> Option<Vec<f32>> {
    let scales = values.par_chunks_exact(BLOCK).with_min_len(64).map(|block| {
        let most = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let step = most / 127.0;
        let near = most * (2.0 * f32::EPSILON);
        let holds = |value: &f32| (value - code(*value, step) as f32 * step).abs() <= near;
        block.iter().all(holds).then_some(most)
    });
    scales.collect()
}

/// The nearest multiple of a step.
fn code(value: f32, step: f32) -> i8 {
    if step == 0.0 { 0 } else { (value / step).round() as i8 }
}
