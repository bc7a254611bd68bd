//! Learning rate schedules.

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

mod rate;

pub use rate::{LearningRate, Plateau};

/// Learning rate schedule after the warm-up, by its name in transformers.
///
/// With base rate `b`, warm-up `w`, `n` steps in all and `p = (step - w) / (n - w)`, the completed
/// fraction of the decay. In configuration files it is a name (`"linear"`) or, with settings,
/// `{"polynomial": {"power": 2.0}}`.
///
/// ```
/// use burn_lora_train::schedule::Schedule;
///
/// assert_eq!("cosine_with_restarts".parse::<Schedule>()?, Schedule::CosineWithRestarts { cycles: 1 });
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Schedule {
    /// `b·(1 - p)`.
    #[default]
    Linear,
    /// `b·(1 + cos πp) / 2`.
    Cosine,
    /// `b·(1 + cos π·frac(cycles·p)) / 2`.
    CosineWithRestarts {
        /// Number of cycles in which the rate falls from `b` to 0; default: 1.
        #[serde(default = "one")]
        cycles: usize,
    },
    /// `(b - end)·(1 - p)^power + end`.
    Polynomial {
        /// Exponent; default: 1.
        #[serde(default = "one_float")]
        power: f64,
        /// Final rate; default: 1e-7.
        #[serde(default = "polynomial_end")]
        end: f64,
    },
    /// `b`, without a warm-up.
    Constant,
    /// `b` after the warm-up.
    ConstantWithWarmup,
    /// `b / √((step + t - w) / t)`.
    InverseSqrt {
        /// `t`, in steps; default: the warm-up, or 10000 without one.
        #[serde(default)]
        timescale: Option<usize>,
    },
    /// `b`, times `factor` whenever the validation loss has stopped falling; without a warm-up. See
    /// [`Plateau`].
    ReduceLrOnPlateau {
        /// Factor of a reduction; default: 0.1.
        #[serde(default = "tenth")]
        factor: f64,
        /// Number of consecutive evaluations without improvement that are tolerated; default: 10.
        #[serde(default = "ten")]
        patience: usize,
        /// Relative decrease below the best loss that counts as an improvement; default: 1e-4.
        #[serde(default = "plateau_threshold")]
        threshold: f64,
        /// Number of evaluations after a reduction that do not count against the rate; default: 0.
        #[serde(default)]
        cooldown: usize,
        /// Lowest rate; default: 0.
        #[serde(default)]
        min: f64,
    },
    /// `(b - min)·(1 + cos πp) / 2 + min`.
    CosineWithMinLr {
        /// Final rate; default: a tenth of `b`.
        #[serde(default)]
        min: MinLr,
    },
    /// `b`, and over the last `decay` steps a decay to `min_ratio·b`; the warm-up starts at
    /// `min_ratio·b`, too.
    WarmupStableDecay {
        /// Length of the decay; default: a tenth of all steps.
        #[serde(default = "tenth_of_run")]
        decay: Span,
        /// Final rate as a fraction of `b`; default: 0.
        #[serde(default)]
        min_ratio: f64,
        /// Shape of the decay; default: cosine.
        #[serde(default)]
        kind: DecayKind,
    },
}

/// Number of optimizer steps of a warm-up or a decay.
///
/// ```
/// use burn_lora_train::schedule::Warmup;
///
/// assert_eq!(Warmup::Steps(20).of(1000), 20);
/// assert_eq!(Warmup::Ratio(0.03).of(110), 4);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Number of steps.
    Steps(usize),
    /// Fraction of all steps, rounded up.
    Ratio(f64),
}

/// Length of the linear warm-up of the learning rate, from 0.
pub type Warmup = Span;

/// Lowest rate of [`Schedule::CosineWithMinLr`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MinLr {
    /// Absolute learning rate.
    Rate(f64),
    /// Fraction of the base rate.
    Ratio(f64),
}

/// Shape of the decay of [`Schedule::WarmupStableDecay`]; `p` is its completed fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayKind {
    /// `1 - p`.
    Linear,
    /// `(1 + cos πp) / 2`.
    #[default]
    Cosine,
    /// `1 - √p`.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

impl Schedule {
    /// Returns `true` if there is a warm-up: transformers has none for these two, whatever is set.
    pub(crate) fn warms_up(&self) -> bool {
        !matches!(self, Self::Constant | Self::ReduceLrOnPlateau { .. })
    }

    /// Checks the schedule with a warm-up and a base rate, as far as that does not depend on the
    /// length of the run.
    ///
    /// ```
    /// use burn_lora_train::{Schedule, Warmup};
    ///
    /// let polynomial = Schedule::Polynomial { power: -1.0, end: 0.0 };
    /// let error = polynomial.validate(Warmup::Steps(0), 1e-4).unwrap_err();
    /// assert_eq!(error.to_string(), "`power` is -1: it has to be above 0");
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is out of its range.
    pub fn validate(&self, warmup: Warmup, base: f64) -> Result<(), TrainError> {
        warmup.check("warmup")?;
        let part = |name, value| {
            check(name, value, (0.0..=1.0).contains(&value), "it has to be between 0 and 1")
        };
        let rate = |name, value| {
            let reason = format!("it has to be between 0 and the learning rate, {base}");
            check(name, value, (0.0..=base).contains(&value), reason)
        };
        if !self.warms_up() {
            let reason = "this schedule has no warm-up: set it to 0, or the schedule to \
                          `constant_with_warmup`";
            let length = match warmup {
                Span::Steps(steps) => steps as f64,
                Span::Ratio(ratio) => ratio,
            };
            check("warmup", length, length == 0.0, reason)?;
        }
        match *self {
            Self::CosineWithRestarts { cycles } => {
                check("cycles", cycles as f64, cycles > 0, "it has to be 1 or more")
            }
            Self::Polynomial { power, end } => {
                let positive = power > 0.0 && power.is_finite();
                check("power", power, positive, "it has to be above 0")?;
                rate("end", end)
            }
            Self::InverseSqrt { timescale: Some(0) } => {
                check("timescale", 0.0, false, "it has to be 1 or more")
            }
            Self::ReduceLrOnPlateau { factor, threshold, min, .. } => {
                let fraction = factor > 0.0 && factor < 1.0;
                check("factor", factor, fraction, "it has to be above 0 and below 1")?;
                let fraction = (0.0..1.0).contains(&threshold);
                check("threshold", threshold, fraction, "it has to be 0 or more and below 1")?;
                rate("min", min)
            }
            Self::CosineWithMinLr { min: MinLr::Rate(min) } => rate("min", min),
            Self::CosineWithMinLr { min: MinLr::Ratio(min) } => part("min", min),
            Self::WarmupStableDecay { decay, min_ratio, .. } => {
                decay.check("decay")?;
                part("min_ratio", min_ratio)
            }
            _ => Ok(()),
        }
    }

    /// Checks that the schedule fits into a run.
    fn check_length(&self, warmup: usize, total_steps: usize) -> Result<(), TrainError> {
        let Self::WarmupStableDecay { decay, .. } = self else { return Ok(()) };
        let decay = decay.of(total_steps);
        let reason =
            format!("with a warm-up of {warmup} it is longer than the {total_steps} steps");
        check("decay", decay as f64, warmup.saturating_add(decay) <= total_steps, reason)
    }
}

impl FromStr for Schedule {
    type Err = TrainError;

    /// Parses the name of a schedule, with default settings.
    fn from_str(name: &str) -> Result<Self, TrainError> {
        let parse = serde_json::from_value;
        parse(name.into())
            .or_else(|_| parse(serde_json::json!({ name: {} })))
            .map_err(|error| TrainError::setting("schedule", name, error.to_string()))
    }
}

impl Span {
    /// Returns the number of steps in a run of `total_steps`.
    pub fn of(self, total_steps: usize) -> usize {
        match self {
            Self::Steps(steps) => steps,
            Self::Ratio(ratio) => (total_steps as f64 * ratio).ceil() as usize,
        }
    }

    fn check(self, name: &'static str) -> Result<(), TrainError> {
        match self {
            Self::Steps(_) => Ok(()),
            Self::Ratio(ratio) => {
                let part = (0.0..=1.0).contains(&ratio);
                check(name, ratio, part, "a ratio has to be between 0 and 1")
            }
        }
    }
}

impl Default for Span {
    fn default() -> Self {
        Self::Steps(0)
    }
}

impl Default for MinLr {
    fn default() -> Self {
        Self::Ratio(0.1)
    }
}

fn check(
    name: &'static str,
    value: f64,
    holds: bool,
    reason: impl Into<String>,
) -> Result<(), TrainError> {
    if holds { Ok(()) } else { Err(TrainError::setting(name, value, reason)) }
}

fn one() -> usize {
    1
}

fn ten() -> usize {
    10
}

fn one_float() -> f64 {
    1.0
}

fn tenth() -> f64 {
    0.1
}

fn tenth_of_run() -> Span {
    Span::Ratio(0.1)
}

fn polynomial_end() -> f64 {
    1e-7
}

fn plateau_threshold() -> f64 {
    1e-4
}
