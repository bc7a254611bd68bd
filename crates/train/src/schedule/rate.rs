//! Learning rate of a step.

use super::{DecayKind, MinLr, Schedule, Warmup, check};
use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Learning rate of each step of a run: a [`Schedule`] with its base rate, warm-up and length.
///
/// The values are those of transformers' schedulers; with a warm-up the first step has rate 0.
///
/// ```
/// use burn_lora_train::schedule::{LearningRate, Schedule, Warmup};
///
/// let rate = LearningRate::new(Schedule::Linear, Warmup::Steps(2), 1e-3, 6)?;
/// let rates: Vec<_> = (0..6).map(|step| rate.rate(step)).collect();
/// assert_eq!(rates, [0.0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4]);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LearningRate {
    schedule: Schedule,
    warmup: usize,
    base: f64,
    total_steps: usize,
    plateau: Plateau,
}

/// State of [`Schedule::ReduceLrOnPlateau`] over the evaluations so far, to be saved with a
/// checkpoint and passed to [`LearningRate::resume`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// Current learning rate.
    pub rate: f64,
    /// Lowest validation loss.
    pub best: Option<f64>,
    /// Number of consecutive evaluations without improvement.
    pub bad: usize,
    /// Number of evaluations that will not count against the rate.
    pub cooldown: usize,
}

impl LearningRate {
    /// Creates a schedule with a peak rate of `base` for `total_steps` optimizer steps.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if a setting is out of its range.
    pub fn new(
        schedule: Schedule,
        warmup: Warmup,
        base: f64,
        total_steps: usize,
    ) -> Result<Self, TrainError> {
        check("learning_rate", base, base > 0.0 && base.is_finite(), "it has to be above 0")?;
        schedule.validate(warmup, base)?;
        let plateau = Plateau { rate: base, best: None, bad: 0, cooldown: 0 };
        let warmup = warmup.of(total_steps);
        schedule.check_length(warmup, total_steps)?;
        if warmup > total_steps {
            burn_lora_io::warn!(
                "the warm-up of {warmup} steps is longer than the run of {total_steps}: the learning \
                 rate never gets to {base}"
            );
        }
        Ok(Self { schedule, warmup, base, total_steps, plateau })
    }

    /// Returns the same schedule for a run of another length.
    pub(crate) fn with_length(&self, warmup: Warmup, total_steps: usize) -> Self {
        Self { warmup: warmup.of(total_steps), total_steps, ..self.clone() }
    }

    /// Returns the learning rate at a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        match self.schedule {
            Schedule::ReduceLrOnPlateau { .. } => self.plateau.rate,
            _ => self.base * self.factor(step),
        }
    }

    /// Records a validation loss: [`Schedule::ReduceLrOnPlateau`] may lower the rate, the other
    /// schedules ignore it.
    pub fn evaluated(&mut self, loss: f64) {
        if let Schedule::ReduceLrOnPlateau { factor, patience, threshold, cooldown, min } =
            self.schedule
        {
            let lower = (self.plateau.rate * factor).max(min);
            self.plateau.evaluated(loss, threshold, patience, lower, cooldown);
        }
    }

    /// Returns the state to save with a checkpoint.
    pub fn state(&self) -> &Plateau {
        &self.plateau
    }

    /// Resumes from a saved state.
    pub fn resume(&mut self, state: Plateau) {
        self.plateau = state;
    }

    /// Checks that this schedule can have a state after so many steps; the error is the reason.
    pub(crate) fn check(&self, state: &Plateau, step: usize) -> Result<(), String> {
        let Schedule::ReduceLrOnPlateau { min, cooldown, .. } = self.schedule else {
            let same = *state == Plateau { rate: self.base, best: None, bad: 0, cooldown: 0 };
            return if same { Ok(()) } else { Err("this schedule has no such state".into()) };
        };
        if !(min..=self.base).contains(&state.rate) {
            return Err(format!("the rate has to be between {min} and {}", self.base));
        }
        if state.best.is_some_and(|best| !best.is_finite()) {
            return Err("the best loss has to be a number".into());
        }
        if state.bad > step || state.cooldown > cooldown {
            return Err(format!("there were no more evaluations than steps, {step}"));
        }
        Ok(())
    }

    /// Returns the learning rate at a step as a fraction of the base rate.
    fn factor(&self, step: usize) -> f64 {
        let (warmup, total) = (self.warmup as f64, self.total_steps as f64);
        let (step, floor) = (step as f64, self.floor());
        if step < warmup && self.schedule.warms_up() {
            return match self.schedule {
                Schedule::WarmupStableDecay { .. } => above(floor, step / warmup),
                _ => step / warmup,
            };
        }
        let progress = (step - warmup) / (total - warmup).max(1.0);
        match self.schedule {
            Schedule::Linear => ((total - step) / (total - warmup).max(1.0)).max(0.0),
            Schedule::Cosine | Schedule::CosineWithMinLr { .. } => {
                above(floor, cosine(progress)).max(0.0)
            }
            Schedule::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts { cycles } => cosine((cycles as f64 * progress) % 1.0),
            Schedule::Polynomial { end, .. } if step > total => end / self.base,
            Schedule::Polynomial { power, end } => {
                ((self.base - end) * (1.0 - progress).powf(power) + end) / self.base
            }
            Schedule::Constant
            | Schedule::ConstantWithWarmup
            | Schedule::ReduceLrOnPlateau { .. } => 1.0,
            Schedule::InverseSqrt { timescale } => {
                let default = if self.warmup == 0 { 10_000 } else { self.warmup };
                let timescale = timescale.unwrap_or(default) as f64;
                1.0 / ((step + (timescale - warmup)) / timescale).sqrt()
            }
            Schedule::WarmupStableDecay { decay, kind, .. } => {
                let decay = decay.of(self.total_steps) as f64;
                let done = (step - (total - decay)) / decay.max(1.0);
                match done {
                    ..0.0 => 1.0,
                    0.0..1.0 => above(floor, kind.left(done)),
                    _ => floor,
                }
            }
        }
    }

    /// Returns the lowest factor of the schedules that have one.
    fn floor(&self) -> f64 {
        match self.schedule {
            Schedule::CosineWithMinLr { min: MinLr::Rate(rate) } => rate / self.base,
            Schedule::CosineWithMinLr { min: MinLr::Ratio(ratio) } => ratio,
            Schedule::WarmupStableDecay { min_ratio, .. } => min_ratio,
            _ => 0.0,
        }
    }
}

impl Plateau {
    /// `torch.optim.lr_scheduler.ReduceLROnPlateau.step`, with a relative threshold.
    fn evaluated(
        &mut self,
        loss: f64,
        threshold: f64,
        patience: usize,
        lower: f64,
        cooldown: usize,
    ) {
        // PyTorch's `eps`: a smaller reduction is none.
        const SMALLEST: f64 = 1e-8;
        if loss.is_finite() && loss < self.best.unwrap_or(f64::INFINITY) * (1.0 - threshold) {
            self.best = Some(loss);
            self.bad = 0;
        } else {
            self.bad += 1;
        }
        if self.cooldown > 0 {
            self.cooldown -= 1;
            self.bad = 0;
        }
        if self.bad > patience {
            if self.rate - lower > SMALLEST {
                self.rate = lower;
            }
            self.cooldown = cooldown;
            self.bad = 0;
        }
    }
}

impl DecayKind {
    fn left(self, done: f64) -> f64 {
        match self {
            Self::Linear => 1.0 - done,
            Self::Cosine => cosine(done),
            Self::OneMinusSqrt => 1.0 - done.sqrt(),
        }
    }
}

/// `(1 + cos πp) / 2`.
fn cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (PI * progress).cos())
}

/// Maps `[0, 1]` to `[floor, 1]`.
fn above(floor: f64, factor: f64) -> f64 {
    factor * (1.0 - floor) + floor
}
