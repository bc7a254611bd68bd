//! The scale of a block: how it is stored and what it means.
//!
//! A scale is a float32 (the block's absmax), or an 8-bit code into a map of 256 values that is
//! multiplied by an outer float32 and shifted by an offset:
//!
//! | rule | map | outer float32 | offset |
//! |---|---|---|---|
//! | double quantization (bitsandbytes) | signed dynamic map | absmax of 256 scales | mean of all scales |
//! | E8M0 (MXFP4) | powers of two | 1 | 0 |
//! | E4M3 (NVFP4) | the 8-bit float | one a tensor | 0 |

/// How the scales of a weight are stored.
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
    /// Whether scales are 8-bit codes.
    pub const fn is_coded(self) -> bool {
        !matches!(self, Self::Absmax)
    }

    /// The value of each 8-bit code; empty for float32 scales.
    pub fn map(self) -> Vec<f32> {
        match self {
            Self::Absmax => vec![],
            Self::DoubleQuant => dynamic_map().to_vec(),
            Self::E8m0 => (0..=255).map(e8m0).collect(),
            Self::E4m3 => (0..=255).map(e4m3).collect(),
        }
    }

    /// How many codes, from 0, have ascending values: those that [`nearest`] searches.
    pub(crate) const fn ascending(self) -> usize {
        match self {
            Self::E4m3 => 127,
            _ => 256,
        }
    }
}

/// The index of the value in an ascending `map` that is nearest to `value`. Of two that are
/// equally near it is the lower one, or with `ties_to_even` the one with the even index.
pub(crate) fn nearest(map: &[f32], value: f32, ties_to_even: bool) -> u8 {
    let below = map.partition_point(|&entry| entry < value).max(1) - 1;
    let Some(&above) = map.get(below + 1) else { return below as u8 };
    let middle = (map[below] + above) * 0.5;
    let up = value > middle || (ties_to_even && value == middle && below % 2 == 1);
    (below + usize::from(up)) as u8
}

/// The E8M0 code of a block: the largest power of two that `absmax` holds, over the largest power
/// of two that E2M1 holds (4). 255 says not a number.
pub(crate) fn encode_e8m0(absmax: f32) -> u8 {
    let exponent = (absmax.to_bits() >> 23) as u8; // absmax has no sign
    if exponent == u8::MAX { exponent } else { exponent.saturating_sub(2) }
}

/// The float32 of an NVFP4 tensor: it puts the largest block scale at the end of E4M3's range.
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

/// bitsandbytes' signed dynamic map (`create_dynamic_map`), ascending; zero is at index 127.
pub(crate) fn dynamic_map() -> [f32; 256] {
    std::array::from_fn(|code| match code {
        0..127 => -DYNAMIC[127 - code],
        _ => DYNAMIC[code - 127],
    })
}

/// The values of the dynamic map from zero up, as bitsandbytes 0.50.2 over torch 2.15 makes them:
/// torch's float32 arithmetic is not that of the formula in the last bit.
#[rustfmt::skip]
const DYNAMIC: [f32; 129] = [
    0.0, 0.000_000_550_000_04, 0.000_003_250_000_2, 0.000_007_75, 0.000_021_249_998, 0.000_043_75,
    0.000_066_25, 0.000_088_75, 0.000_156_250_01, 0.000_268_750_04, 0.000_381_250_02, 0.000_493_750_03,
    0.000_606_250_1, 0.000_718_750_06, 0.000_831_25, 0.000_943_750_1, 0.001_281_249_9, 0.001_843_75,
    0.002_406_25, 0.002_968_75, 0.003_531_249_7, 0.004_093_75, 0.004_656_249_7, 0.005_218_750_3,
    0.005_781_25, 0.006_343_75, 0.006_906_25, 0.007_468_75, 0.008_031_25, 0.008_593_75,
    0.009_156_249, 0.009_718_75, 0.011_406_25, 0.014_218_75, 0.017_031_25, 0.019_843_752,
    0.022_656_25, 0.025_468_75, 0.028_281_251, 0.031_093_75, 0.033_906_25, 0.036_718_752,
    0.039_531_25, 0.042_343_747, 0.045_156_25, 0.047_968_75, 0.050_781_25, 0.053_593_75,
    0.056_406_25, 0.059_218_753, 0.062_031_25, 0.064_843_75, 0.067_656_256, 0.070_468_746,
    0.073_281_25, 0.076_093_75, 0.078_906_25, 0.081_718_76, 0.084_531_25, 0.087_343_75,
    0.090_156_25, 0.092_968_754, 0.095_781_26, 0.098_593_75, 0.107_031_256, 0.121_093_75,
    0.135_156_24, 0.149_218_75, 0.163_281_25, 0.177_343_76, 0.191_406_25, 0.205_468_74,
    0.219_531_25, 0.233_593_75, 0.247_656_24, 0.261_718_75, 0.275_781_27, 0.289_843_74,
    0.303_906_26, 0.317_968_73, 0.332_031_25, 0.346_093_74, 0.360_156_24, 0.374_218_76,
    0.388_281_23, 0.402_343_75, 0.416_406_24, 0.430_468_74, 0.444_531_26, 0.458_593_73,
    0.472_656_25, 0.486_718_7, 0.500_781_24, 0.514_843_7, 0.528_906_2, 0.542_968_75,
    0.557_031_3, 0.571_093_8, 0.585_156_26, 0.599_218_7, 0.613_281_25, 0.627_343_8,
    0.641_406_3, 0.655_468_76, 0.669_531_2, 0.683_593_75, 0.697_656_3, 0.711_718_8,
    0.725_781_26, 0.739_843_7, 0.753_906_25, 0.767_968_8, 0.782_031_24, 0.796_093_76,
    0.810_156_2, 0.824_218_75, 0.838_281_3, 0.852_343_74, 0.866_406_26, 0.880_468_7,
    0.894_531_25, 0.908_593_8, 0.922_656_24, 0.936_718_76, 0.950_781_2, 0.964_843_75,
    0.978_906_3, 0.992_968_74, 1.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_map_follows_its_formula() {
        let mut expected = vec![0.0, 1.0];
        for i in 0..7 {
            let (count, power) = (1 << i, 10f64.powi(i - 6));
            for j in 0..count {
                let mean = 0.1 + 0.9 * (f64::from(j) + 0.5) / f64::from(count);
                expected.extend([power * mean, -power * mean]);
            }
        }
        expected.sort_by(f64::total_cmp);
        for (found, expected) in dynamic_map().into_iter().zip(expected) {
            assert!(
                (f64::from(found) - expected).abs() <= 2e-7 * expected.abs(),
                "{found} {expected}"
            );
        }
    }

    #[test]
    fn nearest_finds_the_nearest() {
        let map = dynamic_map();
        for i in 0..=2000 {
            let value = i as f32 / 1000.0 - 1.0;
            let best = map.iter().map(|m| (m - value).abs()).fold(f32::INFINITY, f32::min);
            let found = map[usize::from(nearest(&map, value, false))];
            assert!((found - value).abs() <= best + 1e-7, "{value}: {found}");
        }
        assert_eq!(nearest(&map, -1.0, false), 0);
        assert_eq!(nearest(&map, 0.0, false), 127);
        assert_eq!(nearest(&map, 1.0, false), 255);
    }

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
