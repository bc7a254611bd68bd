//! Checks of the values of tensors.

use super::bytes::largest;
use crate::error::LlamaError;
use burn::tensor::{DType, FloatDType, TensorData};
use half::{bf16, f16};
use std::path::Path;

/// Limit beyond which the product of two values is infinite in float32.
const LARGE: f32 = 1e19;

/// Rejects values that are not finite, or would not be in the dtype of the model: otherwise they
/// show only in the loss, where the learning rate is blamed. Tensors that are no floats pass. If
/// only `some_rows` are used, as of an embedding, values that are not finite are a warning: rows
/// that no text uses may hold anything.
///
/// # Errors
/// [`LlamaError::Format`], which names the file, the tensor and the values.
pub(super) fn check_values(
    path: &Path,
    name: &str,
    data: &TensorData,
    dtype: FloatDType,
    some_rows: bool,
) -> Result<(), LlamaError> {
    let bytes = data.as_bytes();
    let largest = match data.dtype() {
        DType::F32 => largest_32(bytes),
        DType::F16 => f16::from_bits(largest_16(bytes)).to_f32(),
        DType::BF16 => bf16::from_bits(largest_16(bytes)).to_f32(),
        _ => return Ok(()),
    };
    if !largest.is_finite() {
        let what = if largest.is_nan() { "NaN" } else { "infinite values" };
        if some_rows {
            burn_lora_io::warn!(
                "{}: `{name}` has {what}: a text with a token of these rows has no finite loss",
                path.display()
            );
            return Ok(());
        }
        let reason = format!("`{name}` has {what}: the file is damaged, or was saved so");
        return Err(LlamaError::format(path, reason));
    }
    if dtype == FloatDType::F16 && largest > f16::MAX.to_f32() {
        let reason = format!(
            "`{name}` has values up to {largest:e}, which float16 does not reach: load it in bfloat16 \
             or float32"
        );
        return Err(LlamaError::format(path, reason));
    }
    if largest > LARGE {
        burn_lora_io::warn!(
            "{}: `{name}` has values up to {largest:e}: what is computed with them may be infinite",
            path.display()
        );
    }
    Ok(())
}

/// Largest absolute value of float32s; NaN if there is one. Without the sign, the bits of floats
/// are in the order of their values, infinity after all numbers and NaN after that.
fn largest_32(bytes: &[u8]) -> f32 {
    let of = |bytes: &[u8]| {
        let bits = bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes) & 0x7fff_ffff);
        // Signed: every CPU compares vectors of signed integers.
        bits.fold(0, |largest: i32, bits| largest.max(bits as i32))
    };
    f32::from_bits(largest(bytes, of).unwrap_or(0) as u32)
}

/// [`largest_32`] for float16 or bfloat16, as bits.
fn largest_16(bytes: &[u8]) -> u16 {
    let of = |bytes: &[u8]| {
        let bits = bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes) & 0x7fff);
        bits.fold(0, |largest: i16, bits| largest.max(bits as i16))
    };
    largest(bytes, of).unwrap_or(0) as u16
}
