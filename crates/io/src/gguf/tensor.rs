//! GGUF's tensors: their places in a file, and their types.

use std::ops::Range;

/// Shape, type and place of a tensor.
pub struct TensorInfo {
    /// The shape, outermost dimension first: the reverse of GGUF's order.
    pub shape: Vec<usize>,
    /// The type, or the id of an unsupported one.
    pub dtype: Result<TensorType, u32>,
    /// Its bytes in the file; empty for an unsupported type.
    pub(super) range: Range<usize>,
}

impl TensorInfo {
    /// llama.cpp's name of the type, supported or not.
    pub fn type_name(&self) -> String {
        self.dtype.map_or_else(type_name, TensorType::name)
    }

    /// Bytes in the file; 0 for an unsupported type.
    pub fn bytes(&self) -> usize {
        self.range.len()
    }
}

/// The supported types, for messages.
pub const SUPPORTED: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q4_K, Q5_K, \
                             Q6_K, IQ4_NL, IQ4_XS or MXFP4";

/// A supported type, by llama.cpp's name.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2K = 10,
    Q3K = 11,
    Q4K = 12,
    Q5K = 13,
    Q6K = 14,
    Iq4Nl = 20,
    Iq4Xs = 23,
    BF16 = 30,
    Mxfp4 = 39,
}

/// Returns the name of a type by its id, supported or not.
pub fn type_name(id: u32) -> String {
    const NAMES: [&str; 40] = [
        "F32",
        "F16",
        "Q4_0",
        "Q4_1",
        "Q4_2",
        "Q4_3",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q8_1",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "Q8_K",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ3_XXS",
        "IQ1_S",
        "IQ4_NL",
        "IQ3_S",
        "IQ2_S",
        "IQ4_XS",
        "I8",
        "I16",
        "I32",
        "I64",
        "F64",
        "IQ1_M",
        "BF16",
        "Q4_0_4_4",
        "Q4_0_4_8",
        "Q4_0_8_8",
        "TQ1_0",
        "TQ2_0",
        "IQ4_NL_4_4",
        "IQ4_NL_4_8",
        "IQ4_NL_8_8",
        "MXFP4",
    ];
    NAMES.get(id as usize).map_or(format!("of type {id}"), |name| name.to_string())
}

impl TensorType {
    /// Returns the type with an id, if it is supported.
    pub fn from_id(id: u32) -> Option<Self> {
        const ALL: [TensorType; 16] = [
            TensorType::F32,
            TensorType::F16,
            TensorType::Q4_0,
            TensorType::Q4_1,
            TensorType::Q5_0,
            TensorType::Q5_1,
            TensorType::Q8_0,
            TensorType::Q2K,
            TensorType::Q3K,
            TensorType::Q4K,
            TensorType::Q5K,
            TensorType::Q6K,
            TensorType::Iq4Nl,
            TensorType::Iq4Xs,
            TensorType::BF16,
            TensorType::Mxfp4,
        ];
        ALL.into_iter().find(|known| *known as u32 == id)
    }

    /// llama.cpp's name of the type.
    pub fn name(self) -> String {
        type_name(self as u32)
    }

    /// Number of values and of bytes in a block.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Mxfp4 => (32, 17),
            Self::Q4_0 | Self::Iq4Nl => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Iq4Xs => (256, 136),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Returns the number of bytes of a tensor.
    ///
    /// # Errors
    /// The reason, if the rows are no whole number of blocks or the tensor exceeds the address
    /// space.
    pub fn bytes(self, shape: &[usize]) -> Result<usize, String> {
        let (values, bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(values) {
            return Err(format!("rows of {row} values, {} has blocks of {values}", self.name()));
        }
        let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
        // Its values in float32 have to fit as well.
        count
            .filter(|count| count.checked_mul(4).is_some_and(|size| isize::try_from(size).is_ok()))
            .and_then(|count| (count / values).checked_mul(bytes))
            .ok_or_else(|| format!("{shape:?} is larger than memory can be"))
    }
}
