//! The 4-bit formats: the value of each code, and the code nearest to a value.
//!
//! A format is a codebook of 16 values and a rule for its scales. Everything else in this crate
//! (packing, kernels, the packed product) is shared by all formats.

use serde::{Deserialize, Serialize};

/// A 4-bit float format. A weight is stored as `codebook[code] * scale`, with one scale per block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// NormalFloat: the quantiles of a normal distribution (QLoRA, arXiv:2305.14314), with
    /// bitsandbytes' codes.
    Nf4,
    /// The 4-bit float of bitsandbytes, which is *not* the OCP's E2M1: its magnitudes are
    /// {0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1}.
    Fp4,
    /// OCP Microscaling MXFP4: E2M1 values, blocks of 32, a power of two (E8M0) as scale.
    Mxfp4,
    /// NVIDIA's NVFP4: E2M1 values, blocks of 16, an E4M3 scale times one float32 per tensor.
    Nvfp4,
}

/// Magnitudes of E2M1, by code.
const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// Magnitudes of bitsandbytes' FP4, by code.
const FP4: [f32; 8] =
    [0.0, 0.005_208_333_5, 0.666_666_7, 1.0, 0.333_333_34, 0.5, 0.166_666_67, 0.25];

const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl Format {
    /// All formats, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Nf4, Self::Fp4, Self::Mxfp4, Self::Nvfp4];

    /// Name in configuration files: `nf4`, `fp4`, `mxfp4`, `nvfp4`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Value of each code, before the scale.
    ///
    /// ```
    /// use burn_lora_quant::Format;
    /// assert_eq!(Format::Nf4.codebook()[15], 1.0);
    /// assert_eq!(Format::Mxfp4.codebook()[0b1111], -6.0);
    /// ```
    pub const fn codebook(self) -> [f32; 16] {
        let magnitudes = match self {
            Self::Nf4 => return NF4,
            Self::Fp4 => FP4,
            Self::Mxfp4 | Self::Nvfp4 => E2M1,
        };
        let mut codebook = [0.0; 16];
        let mut code = 0;
        while code < 8 {
            codebook[code] = magnitudes[code];
            codebook[code + 8] = -magnitudes[code];
            code += 1;
        }
        codebook
    }

    /// Largest magnitude of the codebook.
    pub const fn max(self) -> f32 {
        match self {
            Self::Nf4 | Self::Fp4 => 1.0,
            Self::Mxfp4 | Self::Nvfp4 => 6.0,
        }
    }

    /// Returns `true` if the code's highest bit is a sign and the lower three a magnitude.
    pub const fn is_signed_magnitude(self) -> bool {
        !matches!(self, Self::Nf4)
    }

    /// Decision points between neighbouring values, ascending: the rank of a value is the number of
    /// points that it is strictly greater than. For a [signed magnitude](Self::is_signed_magnitude)
    /// they are the points of the magnitude.
    ///
    /// They are midpoints. E2M1 rounds halves to even: where the upper neighbour is the even one,
    /// the point is the float just below the midpoint.
    pub const fn decision_points(self) -> &'static [f32] {
        // As in bitsandbytes' kernels, in decimal.
        #[expect(clippy::excessive_precision, reason = "the decimals of the source")]
        const NF4_POINTS: [f32; 15] = [
            -0.8480964004993439,
            -0.6106329262256622,
            -0.4599952697753906,
            -0.33967943489551544,
            -0.23460740596055984,
            -0.13791173323988914,
            -0.045525018125772476,
            0.03979014977812767,
            0.1202552504837513,
            0.2035212516784668,
            0.2920137718319893,
            0.3893125355243683,
            0.5016634166240692,
            0.6427869200706482,
            0.8614784181118011,
        ];
        const FP4_POINTS: [f32; 7] =
            [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333];
        const E2M1_POINTS: [f32; 7] =
            [0.25, 0.75f32.next_down(), 1.25, 1.75f32.next_down(), 2.5, 3.5f32.next_down(), 5.0];
        match self {
            Self::Nf4 => &NF4_POINTS,
            Self::Fp4 => &FP4_POINTS,
            Self::Mxfp4 | Self::Nvfp4 => &E2M1_POINTS,
        }
    }

    /// Code of each rank, four bits each, rank 0 lowest.
    pub const fn code_of_rank(self) -> u64 {
        match self {
            Self::Fp4 => 0x3254_7610,
            _ => 0xfedc_ba98_7654_3210,
        }
    }

    /// Returns the code nearest to a value that was divided by its scale.
    ///
    /// ```
    /// use burn_lora_quant::Format;
    /// assert_eq!(Format::Nf4.encode(0.5), 12); // 0.4407 is nearer than 0.5626
    /// assert_eq!(Format::Fp4.encode(-0.3), 0b1000 | 4); // -1/3
    /// ```
    pub fn encode(self, value: f32) -> u8 {
        let signed = self.is_signed_magnitude();
        let magnitude = if signed { value.abs() } else { value };
        let rank = self.decision_points().iter().filter(|&&point| magnitude > point).count();
        let code = (self.code_of_rank() >> (4 * rank) & 0xf) as u8;
        code | u8::from(signed && value < 0.0) << 3
    }

    /// Default block size of the format.
    pub const fn default_block_size(self) -> usize {
        match self {
            Self::Nf4 | Self::Fp4 => 64,
            Self::Mxfp4 => 32,
            Self::Nvfp4 => 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden vectors of bitsandbytes: 2·linspace(-1, 1, 64), absmax 2.
    #[test]
    fn golden_vectors() {
        for (format, expected) in [
            (Format::Nf4, "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff"),
            (Format::Fp4, "bbbbbbaaaaaaaadddddccccffeeee99911166667744445555522222222333333"),
        ] {
            let codes: String = (0..64)
                .map(|i| -1.0 + 2.0 * i as f32 / 63.0)
                .map(|x| char::from_digit(format.encode(x).into(), 16).unwrap())
                .collect();
            assert_eq!(codes, expected, "{}", format.name());
        }
    }

    #[test]
    fn decision_points_are_midpoints() {
        for format in Format::ALL {
            let mut values =
                format.codebook()[..if format == Format::Nf4 { 16 } else { 8 }].to_vec();
            values.sort_by(f32::total_cmp);
            let points = format.decision_points();
            assert_eq!(points.len(), values.len() - 1);
            for (pair, point) in values.windows(2).zip(points) {
                assert!(((pair[0] + pair[1]) / 2.0 - point).abs() < 4e-7, "{pair:?} {point}");
            }
        }
    }

    #[test]
    fn every_value_encodes_to_itself() {
        for format in Format::ALL {
            for (code, value) in format.codebook().into_iter().enumerate() {
                let nearest = format.codebook()[usize::from(format.encode(value))];
                assert_eq!(nearest, value, "{} code {code}", format.name());
            }
        }
    }

    #[test]
    fn e2m1_rounds_halves_to_even() {
        let halves = [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6)];
        for (value, code) in halves {
            assert_eq!(Format::Mxfp4.encode(value), code, "{value}");
            assert_eq!(Format::Mxfp4.encode(-value), code | 8, "-{value}");
        }
    }

    #[test]
    fn values_past_the_ends_and_nan() {
        for format in Format::ALL {
            let max = format.codebook()[usize::from(format.encode(f32::INFINITY))];
            assert_eq!(max, format.max());
            format.encode(f32::NAN);
        }
    }
}
