//! The error type of this crate.

/// Error of configuring, creating or reading quantized weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A block size that the format does not have.
    #[error("{format} has no blocks of {block_size}: use {allowed}")]
    BlockSize {
        /// Name of the format.
        format: &'static str,
        /// The block size found.
        block_size: usize,
        /// Block sizes of the format.
        allowed: &'static str,
    },

    /// Double quantization of a format whose scales are 8 bits already.
    #[error("{format} stores 8-bit scales already: leave double_quant out (it is for nf4 and fp4)")]
    DoubleQuant {
        /// Name of the format.
        format: &'static str,
    },

    /// A name that no storage format has.
    #[error("`{found}` is not a storage format: it has to be one of {known}")]
    Name {
        /// The name found.
        found: String,
        /// Names of all formats.
        known: String,
    },

    /// A missing tensor of a quantized weight.
    #[error("tensor `{tensor}` is missing: the weight was not saved whole, or not as {expected}")]
    MissingTensor {
        /// Full name of the tensor.
        tensor: String,
        /// What was being read.
        expected: &'static str,
    },

    /// A tensor with a dtype that the layout does not allow.
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    DType {
        /// Full name of the tensor.
        tensor: String,
        /// The dtype found.
        found: String,
        /// The dtypes allowed.
        expected: &'static str,
    },

    /// A tensor whose number of elements does not fit the weight's shape and block size.
    #[error("tensor `{tensor}` has {found} elements, expected {expected} ({why})")]
    Length {
        /// Full name of the tensor.
        tensor: String,
        /// The number of elements found.
        found: usize,
        /// The number of elements expected.
        expected: usize,
        /// Derivation of the expected number.
        why: String,
    },

    /// A value of a tensor or a field that is not supported.
    #[error("`{tensor}`: {field} is {found}, expected {expected}")]
    Value {
        /// Full name of the tensor.
        tensor: String,
        /// The field, or the part of the tensor.
        field: String,
        /// The value found.
        found: String,
        /// The values allowed.
        expected: String,
    },

    /// A quantization state that is no JSON document of bitsandbytes.
    #[error("`{tensor}` is not bitsandbytes' JSON: {reason}")]
    QuantState {
        /// Full name of the tensor.
        tensor: String,
        /// Error of the JSON parser.
        reason: String,
    },

    /// A weight, or a device, without products in FP8.
    #[error("no products in FP8: {reason}")]
    Fp8 {
        /// What is missing.
        reason: String,
    },

    /// A device that failed to return a tensor.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// Full name of the tensor.
        tensor: String,
        /// Burn's error.
        reason: String,
    },
}
