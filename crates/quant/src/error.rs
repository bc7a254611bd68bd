//! The one error type of this crate.

/// What can go wrong when 4-bit weights are configured, made or read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A block size that the format does not have.
    #[error("{format} has no blocks of {block_size}: use {allowed}")]
    BlockSize {
        /// The format that was asked for.
        format: &'static str,
        /// The block size that was asked for.
        block_size: usize,
        /// The block sizes that the format has.
        allowed: &'static str,
    },

    /// Double quantization of a format whose scales are 8 bits already.
    #[error("{format} stores 8-bit scales already: leave double_quant out (it is for nf4 and fp4)")]
    DoubleQuant {
        /// The format that was asked for.
        format: &'static str,
    },

    /// A tensor that a quantized weight consists of is not among those given.
    #[error("tensor `{tensor}` is missing: the weight was not saved whole, or not as {expected}")]
    MissingTensor {
        /// The tensor's full name.
        tensor: String,
        /// What was being read.
        expected: &'static str,
    },

    /// A tensor has another dtype than the layout asks for.
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    DType {
        /// The tensor's full name.
        tensor: String,
        /// The dtype found.
        found: String,
        /// The dtypes that would do.
        expected: &'static str,
    },

    /// A tensor has another number of elements than the weight's shape and block size ask for.
    #[error("tensor `{tensor}` has {found} elements, expected {expected} ({why})")]
    Length {
        /// The tensor's full name.
        tensor: String,
        /// The number of elements found.
        found: usize,
        /// The number of elements expected.
        expected: usize,
        /// What the expected number follows from.
        why: String,
    },

    /// A tensor or a field holds a value that is not supported.
    #[error("`{tensor}`: {field} is {found}, expected {expected}")]
    Value {
        /// The tensor's full name.
        tensor: String,
        /// The field, or the part of the tensor.
        field: String,
        /// The value found.
        found: String,
        /// The values that would do.
        expected: String,
    },

    /// A quantization state that is not the JSON that bitsandbytes writes.
    #[error("`{tensor}` is not bitsandbytes' JSON: {reason}")]
    QuantState {
        /// The tensor's full name.
        tensor: String,
        /// What the JSON parser said.
        reason: String,
    },

    /// The device could not hand back what it holds.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// The tensor's full name.
        tensor: String,
        /// What Burn said.
        reason: String,
    },
}
