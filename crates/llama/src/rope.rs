//! Rotary position embedding (arXiv:2104.09864), half-split as in transformers.

use crate::{error::LlamaError, fields::Fields};
use burn::tensor::{DType, Device, Tensor, TensorData};
use serde_json::Value;
use std::f64::consts::TAU;

/// Settings of rotary position embedding.
///
/// The frequencies are `theta^(-2i / head_dim)` for `i` in `0..head_dim / 2`, then changed by
/// `scaling`. Angles are position times frequency.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of a head.
    pub head_dim: usize,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// Scaling of the frequencies for long contexts.
    pub scaling: RopeScaling,
    /// Divisors of the frequencies, in place of `scaling`: llama.cpp's `rope_freqs.weight`, and
    /// transformers' `longrope` with one list for all lengths.
    pub divisors: Option<Vec<f32>>,
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
}

impl RopeScaling {
    fn read(
        config: &Fields<'_>,
        fields: &Fields<'_>,
        max_positions: usize,
    ) -> Result<Self, LlamaError> {
        let positive = |name: &str| {
            let missing = || fields.wrong(name, "missing", "this rope type needs it");
            fields.positive(name)?.ok_or_else(missing)
        };
        let original = || {
            let field = "original_max_position_embeddings";
            let given = config.positive(field)?.or(fields.positive(field)?);
            Ok::<_, LlamaError>(given.unwrap_or(max_positions as f64))
        };
        let field = if fields.has("rope_type") { "rope_type" } else { "type" };
        let kind = fields.get::<String>(field)?;
        match kind.as_deref() {
            None | Some("default" | "longrope") => Ok(Self::Default),
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

/// Divisors of the frequencies, if the type is `longrope`.
fn divisors(fields: &Fields<'_>, head_dim: usize) -> Result<Option<Vec<f32>>, LlamaError> {
    let kind = fields.get::<String>("rope_type")?.or(fields.get("type")?);
    if kind.as_deref() != Some("longrope") {
        return Ok(None);
    }
    let list = |name: &str| {
        let list: Vec<f32> = fields.required(name)?;
        let expected = head_dim / 2;
        if list.len() != expected || !list.iter().all(|value| value.is_finite() && *value > 0.0) {
            let reason = format!("expected {expected} numbers above 0");
            return Err(fields.wrong(name, format!("a list of {}", list.len()), &reason));
        }
        Ok(list)
    };
    let short = list("short_factor")?;
    if list("long_factor")? != short {
        let reason = "supported is the same list as in `short_factor`";
        return Err(fields.wrong("long_factor", "another list", reason));
    }
    match fields.get("attention_factor")? {
        Some(1.0) => Ok(Some(short)),
        other => {
            let found = other.map_or("missing".into(), |factor: f64| factor.to_string());
            Err(fields.wrong("attention_factor", found, "supported with `longrope` is 1"))
        }
    }
}

impl RopeConfig {
    /// Reads `rope_scaling` and `rope_theta`, or the newer `rope_parameters`.
    ///
    /// If a file has both, `rope_scaling` is used and nothing of the other, as in transformers; a
    /// `rope_theta` inside takes precedence over the one beside it.
    pub(crate) fn read(
        config: &Fields<'_>,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self, LlamaError> {
        let newer = config.object("rope_parameters")?;
        let older = config.object("rope_scaling")?.filter(|fields| fields.iter().next().is_some());
        let outer = config.positive("rope_theta")?;
        config.equals("partial_rotary_factor", 1.0)?;
        let mut thetas = vec![];
        for fields in [&older, &newer].into_iter().flatten() {
            thetas.push(fields.positive("rope_theta")?);
            fields.equals("partial_rotary_factor", 1.0)?;
            // Parameters per type of layer: no family here has that.
            if let Some((name, value)) = fields.iter().find(|(_, value)| value.is_object()) {
                return Err(fields.wrong(name, value, "expected a number"));
            }
        }
        let name = if older.is_some() { "rope_scaling" } else { "rope_parameters" };
        let (scaling, divisors) = match older.as_ref().or(newer.as_ref()) {
            Some(fields) => {
                let scaling = RopeScaling::read(config, fields, max_positions)?;
                (scaling, divisors(fields, head_dim)?)
            }
            None => (RopeScaling::Default, None),
        };
        let inner = thetas.first().copied().flatten();
        let theta = inner.or(outer).unwrap_or(10_000.0);
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
        let rope = Self { theta, head_dim, max_positions, scaling, divisors };
        let (frequencies, factor) = rope.frequencies(max_positions);
        if !(factor.is_finite() && frequencies.iter().all(|frequency| frequency.is_finite())) {
            let found = config.value(name).unwrap_or(&Value::Null);
            let reason = format!("with a `rope_theta` of {theta} it gives infinite frequencies");
            return Err(config.wrong(name, found, &reason));
        }
        Ok(rope)
    }

    /// Returns the frequencies for a sequence of `length` tokens, and the factor of cosine and
    /// sine.
    ///
    /// Source: transformers, `modeling_rope_utils.py`.
    pub fn frequencies(&self, length: usize) -> (Vec<f32>, f32) {
        let dim = self.head_dim as f64;
        let powers = |theta: f64| -> Vec<f64> {
            let exponents = (0..self.head_dim / 2).map(|i| (2 * i) as f64 / dim);
            exponents.map(|exponent| 1.0 / theta.powf(exponent)).collect()
        };
        let plain = powers(self.theta);
        if let Some(divisors) = &self.divisors {
            let divided =
                plain.iter().zip(divisors).map(|(f, divisor)| (f / *divisor as f64) as f32);
            return (divided.collect(), 1.0);
        }
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
        let dim = self.head_dim as f64;
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
        match self.scaling {
            RopeScaling::Dynamic { .. } if self.divisors.is_none() => {
                length.max(self.max_positions)
            }
            _ => self.max_positions,
        }
    }

    /// Table of cosines and sines of the positions below `positions` in a sequence of `length`
    /// tokens: `[positions, head_dim]`, the cosines in the first half of a row. Computed in float32
    /// from float32 frequencies, as in transformers.
    pub(crate) fn table(&self, positions: usize, length: usize, device: &Device) -> Tensor<2> {
        let (frequencies, factor) = self.frequencies(length);
        let mut table = Vec::with_capacity(positions * self.head_dim);
        for position in 0..positions {
            let angles = || frequencies.iter().map(|frequency| position as f32 * frequency);
            table.extend(angles().map(|angle| angle.cos() * factor));
            table.extend(angles().map(|angle| angle.sin() * factor));
        }
        let data = TensorData::new(table, [positions, self.head_dim]);
        Tensor::from_data(data, (device, DType::F32))
    }
}
