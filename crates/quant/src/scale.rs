//! Scales of blocks: storage and values.
//!
//! A scale is a float32 (the block's absmax), or an 8-bit code into a map of 256 values that is
//! multiplied by an outer float32 and shifted by an offset:
//!
//! | rule | map | outer float32 | offset |
//! |---|---|---|---|
//! | double quantization (bitsandbytes) | signed dynamic map | absmax of 256 scales | mean of all scales |
//! | E8M0 (MXFP4) | powers of two | 1 | 0 |
//! | E4M3 (NVFP4) | the 8-bit float | one per tensor | 0 |

use burn_lora_kernels::dynamic;

/// Storage rule of a weight's scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The block's absmax as a float32.
    Absmax,
    /// bitsandbytes' double quantization: `map[code] * nested_absmax[block / 256] + offset`.
    DoubleQuant,
    /// A power of two: `2^(code - 127)`.
    E8m0,
    /// An 8-bit float times a float32 of the whole tensor.
    E4m3,
}

/// Scales that share one outer float32 under double quantization.
pub(crate) const NESTED_BLOCK: usize = 256;

/// The largest E4M3 value.
pub(crate) const E4M3_MAX: f32 = 448.0;

impl ScaleRule {
    /// Returns `true` if scales are 8-bit codes.
    pub const fn is_coded(self) -> bool {
        !matches!(self, Self::Absmax)
    }

    /// Returns the value of each 8-bit code; empty for float32 scales.
    pub fn map(self) -> Vec<f32> {
        match self {
            Self::Absmax => vec![],
            Self::DoubleQuant => dynamic::map(true),
            Self::E8m0 => (0..=255).map(e8m0).collect(),
            Self::E4m3 => (0..=255).map(e4m3).collect(),
        }
    }

    /// Number of codes, from 0, with ascending values: those that [`nearest`](dynamic::nearest)
    /// searches.
    pub(crate) const fn ascending(self) -> usize {
        match self {
            Self::E4m3 => 127,
            _ => 256,
        }
    }
}

/// Returns the E8M0 code of a block: the largest power of two that is at most `absmax`, divided by
/// the largest power of two in E2M1 (4). 255 stands for NaN.
pub(crate) fn encode_e8m0(absmax: f32) -> u8 {
    let exponent = (absmax.to_bits() >> 23) as u8; // absmax has no sign
    if exponent == u8::MAX { exponent } else { exponent.saturating_sub(2) }
}

/// Outer float32 of an NVFP4 tensor: it maps the largest block scale to the end of E4M3's range.
pub(crate) fn nvfp4_global(absmax: f32) -> f32 {
    let global = absmax / (6.0 * E4M3_MAX);
    if global > 0.0 { global } else { 1.0 }
}

fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000), // 2^-127 is subnormal
        255 => f32::NAN,
        code => f32::from_bits(u32::from(code) << 23),
    }
}

fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (code >> 3 & 0xf, f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 8.0 / 64.0,
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(i32::from(exponent) - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynamic::nearest;

    #[test]
    fn e4m3_is_the_ocp_float() {
        let map = ScaleRule::E4m3.map();
        assert_eq!((map[0x7e], map[0x38], map[1]), (448.0, 1.0, 2f32.powi(-9)));
        assert!(map[0x7f].is_nan());
        assert!(map[..127].is_sorted());
        // halves go to the even code: 17 lies between 16 (0x58) and 18 (0x59)
        assert_eq!(nearest(&map[..127], 17.0, true), 0x58);
        assert_eq!(nearest(&map[..127], 19.0, true), 0x5a);
        assert_eq!(nearest(&map[..127], 1e9, true), 0x7e);
    }

    #[test]
    fn e8m0_is_a_power_of_two() {
        let map = ScaleRule::E8m0.map();
        assert_eq!(map[127], 1.0);
        for (absmax, scale) in
            [(6.0, 1.0), (4.0, 1.0), (3.9, 0.5), (1.0, 0.25), (0.0, 2f32.powi(-127))]
        {
            assert_eq!(map[usize::from(encode_e8m0(absmax))], scale, "{absmax}");
        }
        assert!(map[usize::from(encode_e8m0(f32::INFINITY))].is_nan());
    }
}
