//! Metadata values, and the type ids of their bytes.

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of any width.
    U64(u64),
    /// A signed integer of any width.
    I64(i64),
    /// A float32, kept as such: its decimal form is shorter than that of a float64.
    F32(f32),
    /// A float64.
    F64(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    String(String),
    /// An array of text.
    Strings(Vec<String>),
    /// An array of floats.
    F32s(Vec<f32>),
    /// An array of integers or booleans: their type id, and their bytes as in the file.
    Ints(u32, Vec<u8>),
    /// An array of arrays, which is not kept.
    Nested,
}

impl Value {
    /// Returns the text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the integer, if it is one and not negative, of any stored width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(value) => Some(value),
            Self::I64(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// Returns the number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            Self::U64(value) => Some(value as f64),
            Self::I64(value) => Some(value as f64),
            _ => None,
        }
    }

    /// Returns the boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the array of text, if it is one.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Strings(values) => Some(values),
            _ => None,
        }
    }

    /// Returns the array of floats, if it is one.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::F32s(values) => Some(values),
            _ => None,
        }
    }

    /// Returns the array of integers, if it is one and all of them fit.
    pub fn as_i32s(&self) -> Option<Vec<i32>> {
        let Self::Ints(kind, bytes) = self else { return None };
        let values = bytes.chunks_exact(width(*kind)?);
        values.map(|bytes| i32::try_from(integer(*kind, bytes)).ok()).collect()
    }

    /// Formats the value for a message.
    pub fn brief(&self) -> String {
        match self {
            Self::Strings(_) | Self::F32s(_) | Self::Ints(..) | Self::Nested => "an array".into(),
            Self::String(text) => text.chars().take(40).collect(),
            Self::U64(number) => number.to_string(),
            Self::I64(number) => number.to_string(),
            Self::F32(number) => number.to_string(),
            Self::F64(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
        }
    }
}

/// GGUF's type ids.
pub(super) mod kind {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

/// Size in bytes of a value, if its type has a fixed size.
pub(super) fn width(kind: u32) -> Option<usize> {
    Some(match kind {
        kind::U8 | kind::I8 | kind::BOOL => 1,
        kind::U16 | kind::I16 => 2,
        kind::U32 | kind::I32 | kind::F32 => 4,
        kind::U64 | kind::I64 | kind::F64 => 8,
        _ => return None,
    })
}

/// Decodes an integer of any type from its bytes.
pub(super) fn integer(kind: u32, bytes: &[u8]) -> i128 {
    let unsigned = bytes.iter().rev().fold(0, |value, byte| value << 8 | i128::from(*byte));
    let bits = 8 * bytes.len();
    let signed = matches!(kind, kind::I8 | kind::I16 | kind::I32 | kind::I64);
    if signed && unsigned >> (bits - 1) != 0 { unsigned - (1 << bits) } else { unsigned }
}

pub(super) fn float(bytes: &[u8]) -> f32 {
    f32::from_bits(integer(kind::U32, bytes) as u32)
}

pub(super) fn double(bytes: &[u8]) -> f64 {
    f64::from_bits(integer(kind::U64, bytes) as u64)
}
