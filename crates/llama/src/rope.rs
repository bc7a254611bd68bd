//! Rotary position embedding (arXiv:2104.09864), half-split as in transformers.

use crate::{error::LlamaError, fields::ConfigFields};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::Value;
use std::f64::consts::TAU;

/// Settings of rotary position embedding.
///
/// The frequencies are `theta^(-2i / dim)` for `i` in `0..dim / 2`, then changed by `scaling`.
/// Angles are position times frequency.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of the part of a head that is rotated: the whole head, except with
    /// `partial_rotary_factor`.
    pub dim: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Scaling of the frequencies for long contexts.
    pub scaling: RopeScaling,
}

/// Scaling of the frequencies for contexts longer than trained on, by transformers' names.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No scaling.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// Base that grows with the length of the sequence, once it exceeds the original one (NTK).
    Dynamic {
        /// Factor of the context length.
        factor: f64,
        /// Context length trained on, in tokens.
        original: f64,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, those between blended.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context length trained on, in tokens.
        original: f64,
    },
    /// YaRN (arXiv:2309.00071).
    Yarn {
        /// Factor of the context length.
        factor: f64,
        /// Context length trained on, in tokens.
        original: f64,
        /// Rotations over the original length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original length below which a frequency is divided by the factor.
        beta_slow: f64,
        /// `true` if the bounds between them are rounded to whole dimensions.
        truncate: bool,
        /// Factor of cosine and sine; by default computed from the other fields.
        attention_factor: Option<f64>,
        /// DeepSeek's `mscale`.
        mscale: Option<f64>,
        /// DeepSeek's `mscale_all_dim`.
        mscale_all_dim: Option<f64>,
    },
    /// LongRoPE (arXiv:2402.13753): a divisor of each frequency. llama.cpp's `rope_freqs.weight` is
    /// one list for all lengths.
    LongRope {
        /// Divisors for sequences of at most the original length.
        short: Vec<f32>,
        /// Divisors for longer sequences.
        long: Vec<f32>,
        /// Context length trained on, in tokens.
        original: f64,
        /// Factor of cosine and sine.
        attention_factor: f64,
    },
}

/// What a family says of rotary positions beside `config.json`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    /// `rope_theta`.
    pub theta: f64,
    /// `original_max_position_embeddings`; `None` is `max_position_embeddings`.
    pub original: Option<usize>,
    /// `true` if the family has `partial_rotary_factor`.
    pub partial: bool,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, original: None, partial: false }
    }
}

impl RopeScaling {
    fn read(
        config: &ConfigFields<'_>,
        fields: &ConfigFields<'_>,
        (dim, max_positions): (usize, usize),
        default_original: Option<usize>,
    ) -> Result<Self, LlamaError> {
        let positive = |name: &str| {
            let missing = || fields.wrong(name, "missing", "this rope type needs it");
            fields.positive(name)?.ok_or_else(missing)
        };
        let original = || {
            let field = "original_max_position_embeddings";
            let given = config.positive(field)?.or(fields.positive(field)?);
            let default = default_original.unwrap_or(max_positions);
            Ok::<_, LlamaError>(given.unwrap_or(default as f64))
        };
        let field = if fields.has("rope_type") { "rope_type" } else { "type" };
        let kind = fields.get::<String>(field)?;
        // Names of older files for the last.
        let long = matches!(kind.as_deref(), Some("longrope" | "su"))
            || kind.as_deref() == Some("yarn") && fields.has("short_factor");
        match kind.as_deref() {
            _ if long => Self::read_long(fields, dim, max_positions, original()?),
            None | Some("default") => Ok(Self::Default),
            Some("linear") => Ok(Self::Linear { factor: positive("factor")? }),
            // transformers does not read the original length here.
            Some("dynamic") => {
                Ok(Self::Dynamic { factor: positive("factor")?, original: max_positions as f64 })
            }
            Some("llama3") => {
                let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if high <= low {
                    let reason = format!("expected more than `low_freq_factor`, which is {low}");
                    return Err(fields.wrong("high_freq_factor", high, &reason));
                }
                Ok(Self::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original: original()?,
                })
            }
            Some("yarn") => {
                let original = original()?;
                Ok(Self::Yarn {
                    factor: fields.positive("factor")?.unwrap_or(max_positions as f64 / original),
                    original,
                    beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
                    beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
                    truncate: fields.get("truncate")?.unwrap_or(true),
                    attention_factor: fields.get("attention_factor")?,
                    mscale: fields.get("mscale")?,
                    mscale_all_dim: fields.get("mscale_all_dim")?,
                })
            }
            Some(other) => {
                let reason = "supported are default, linear, dynamic, llama3, yarn and longrope";
                Err(fields.wrong(field, format!("\"{other}\""), reason))
            }
        }
    }
}

impl RopeScaling {
    fn read_long(
        fields: &ConfigFields<'_>,
        dim: usize,
        max_positions: usize,
        original: f64,
    ) -> Result<Self, LlamaError> {
        let list = |name: &str| {
            let list: Vec<f32> = fields.required(name)?;
            let expected = dim / 2;
            if list.len() != expected || !list.iter().all(|value| value.is_finite() && *value > 0.0)
            {
                let reason = format!("expected {expected} numbers above 0");
                return Err(fields.wrong(name, format!("a list of {}", list.len()), &reason));
            }
            Ok(list)
        };
        let factor = fields.positive("factor")?.unwrap_or(max_positions as f64 / original);
        let computed = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
        Ok(Self::LongRope {
            short: list("short_factor")?,
            long: list("long_factor")?,
            original,
            attention_factor: fields.positive("attention_factor")?.unwrap_or(computed),
        })
    }
}

impl RopeConfig {
    /// Reads `rope_scaling` and `rope_theta`, or the newer `rope_parameters`.
    ///
    /// If a file has both, `rope_scaling` is used and nothing of the other, as in transformers; a
    /// `rope_theta` inside takes precedence over the one beside it.
    pub(crate) fn read(
        config: &ConfigFields<'_>,
        head_dim: usize,
        max_positions: usize,
        defaults: RopeDefaults,
    ) -> Result<Self, LlamaError> {
        let newer = config.object("rope_parameters")?;
        let older = config.object("rope_scaling")?.filter(|fields| fields.iter().next().is_some());
        let outer = config.positive("rope_theta")?;
        let mut thetas = vec![];
        for fields in [&older, &newer].into_iter().flatten() {
            thetas.push(fields.positive("rope_theta")?);
            // Parameters per type of layer, of a family that has them.
            if let Some((name, value)) = fields.iter().find(|(_, value)| value.is_object()) {
                return Err(fields.wrong(name, value, "expected a number"));
            }
        }
        let name = if older.is_some() { "rope_scaling" } else { "rope_parameters" };
        let parameters = older.as_ref().or(newer.as_ref());
        let inner = thetas.first().copied().flatten();
        let theta = inner.or(outer).unwrap_or(defaults.theta);
        if thetas.len() == 2 && config.value("rope_scaling") != config.value("rope_parameters") {
            config.warn(format_args!(
                "`rope_scaling` and `rope_parameters` differ: as in transformers it is the former, \
                 with a `rope_theta` of {theta}"
            ));
        } else if inner.zip(outer).is_some_and(|(inner, outer)| inner != outer) {
            config.warn(format_args!(
                "there are two `rope_theta`: as in transformers it is the one in `{name}`, {theta}"
            ));
        }
        let mut partial = 1.0;
        for fields in [Some(config), newer.as_ref(), older.as_ref()].into_iter().flatten() {
            if !defaults.partial {
                fields.equals("partial_rotary_factor", 1.0)?;
            } else if let Some(factor) = fields.positive("partial_rotary_factor")? {
                partial = factor;
            }
        }
        let dim = (head_dim as f64 * partial) as usize;
        if !(2..=head_dim).contains(&dim) || !dim.is_multiple_of(2) {
            let reason = format!("it gives {dim} of {head_dim} values of a head, not an even part");
            return Err(config.wrong("partial_rotary_factor", partial, &reason));
        }
        Self { theta, dim, max_positions, scaling: RopeScaling::Default }.with_parameters(
            config,
            name,
            parameters,
            defaults.original,
        )
    }

    /// Reads the scaling from the parameters in the field `name`.
    pub(crate) fn with_parameters(
        self,
        config: &ConfigFields<'_>,
        name: &str,
        parameters: Option<&ConfigFields<'_>>,
        default_original: Option<usize>,
    ) -> Result<Self, LlamaError> {
        let sizes = (self.dim, self.max_positions);
        let scaling = match parameters {
            Some(fields) => RopeScaling::read(config, fields, sizes, default_original)?,
            None => RopeScaling::Default,
        };
        let rope = Self { scaling, ..self };
        let (frequencies, factor) = rope.frequencies(rope.max_positions);
        if !(factor.is_finite() && frequencies.iter().all(|frequency| frequency.is_finite())) {
            let found = config.value(name).unwrap_or(&Value::Null);
            let reason =
                format!("with a `rope_theta` of {} it gives infinite frequencies", rope.theta);
            return Err(config.wrong(name, found, &reason));
        }
        Ok(rope)
    }

    /// Returns the frequencies for a sequence of `length` tokens, and the factor of cosine and
    /// sine.
    ///
    /// Source: transformers, `modeling_rope_utils.py`.
    pub fn frequencies(&self, length: usize) -> (Vec<f32>, f32) {
        let dim = self.dim as f64;
        let powers = |theta: f64| -> Vec<f64> {
            let exponents = (0..self.dim / 2).map(|i| (2 * i) as f64 / dim);
            exponents.map(|exponent| 1.0 / theta.powf(exponent)).collect()
        };
        let plain = powers(self.theta);
        let (frequencies, factor) = match &self.scaling {
            RopeScaling::Default => (plain, 1.0),
            RopeScaling::Linear { factor } => (plain.iter().map(|f| f / factor).collect(), 1.0),
            RopeScaling::Dynamic { factor, original } => {
                let length = (length as f64).max(*original);
                let stretch = factor * length / original - (factor - 1.0);
                (powers(self.theta * stretch.powf(dim / (dim - 2.0))), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let stretch = |f: &f64| {
                    let wavelength = TAU / f;
                    if wavelength < original / high_freq_factor {
                        *f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (plain.iter().map(stretch).collect(), 1.0)
            }
            yarn @ RopeScaling::Yarn { .. } => self.yarn(yarn, &plain),
            RopeScaling::LongRope { short, long, original, attention_factor } => {
                let divisors = if length as f64 > *original { long } else { short };
                let divided =
                    plain.iter().zip(divisors).map(|(f, divisor)| f / f64::from(*divisor));
                (divided.collect(), *attention_factor)
            }
        };
        (frequencies.into_iter().map(|f| f as f32).collect(), factor as f32)
    }

    fn yarn(&self, yarn: &RopeScaling, plain: &[f64]) -> (Vec<f64>, f64) {
        let RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
            mscale,
            mscale_all_dim,
        } = yarn
        else {
            unreachable!("the caller matched")
        };
        let scale = |mscale: f64| {
            if *factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
        };
        let attention = attention_factor.unwrap_or(match (mscale, mscale_all_dim) {
            (Some(mscale), Some(all)) if *mscale != 0.0 && *all != 0.0 => {
                scale(*mscale) / scale(*all)
            }
            _ => scale(1.0),
        });
        let dim = self.dim as f64;
        // The dimension whose frequency makes so many rotations over the original length.
        let dimension =
            |rotations: f64| dim * (original / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
        if *truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretched = plain.iter().enumerate().map(|(i, f)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            f / factor * ramp + f * (1.0 - ramp)
        });
        (stretched.collect(), attention)
    }

    /// Returns the same number for all sequence lengths that have the same frequencies.
    pub(crate) fn length(&self, length: usize) -> usize {
        match &self.scaling {
            RopeScaling::Dynamic { .. } => length.max(self.max_positions),
            RopeScaling::LongRope { short, long, .. } if short == long => self.max_positions,
            RopeScaling::LongRope { original, .. } if length as f64 <= *original => {
                *original as usize
            }
            RopeScaling::LongRope { original, .. } => {
                self.max_positions.max(*original as usize + 1)
            }
            _ => self.max_positions,
        }
    }

    /// Returns `true` if keys rotated for a sequence of `before` tokens cannot be used for one of
    /// `length`: LongRoPE changes all frequencies at once. Those of `dynamic` grow with the length,
    /// and keys stay as they are, as in transformers.
    ///
    /// Source: transformers, `prepare_inputs_for_generation` of Phi-3.
    pub(crate) fn outdates_keys(&self, before: usize, length: usize) -> bool {
        matches!(self.scaling, RopeScaling::LongRope { .. })
            && self.length(before) != self.length(length)
    }

    /// Table of cosines and sines of the positions below `positions` in a sequence of `length`
    /// tokens: `[positions, dim]`, the cosines in the first half of a row. Computed in float32
    /// from float32 frequencies, as in transformers.
    pub(crate) fn table(&self, positions: usize, length: usize, device: &Device) -> Tensor<2> {
        let (frequencies, factor) = self.frequencies(length);
        let mut table = Vec::with_capacity(positions * self.dim);
        for position in 0..positions {
            let angles = || frequencies.iter().map(|frequency| position as f32 * frequency);
            table.extend(angles().map(|angle| angle.cos() * factor));
            table.extend(angles().map(|angle| angle.sin() * factor));
        }
        let data = TensorData::new(table, [positions, self.dim]);
        Tensor::from_data(data, (device, DType::F32))
    }
}
