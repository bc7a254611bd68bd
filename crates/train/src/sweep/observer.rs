//! Observation of a sweep.

use super::{results::TrialResult, trial::Trial};
use crate::{
    error::TrainError,
    watch::{Observer, Progress},
};
use std::io::{Write, stderr};

/// Observer of the trials of a sweep. An error ends it.
///
/// `()` observes nothing; [`SweepProgress`] shows a line for each trial, and a bar.
///
/// ```
/// use burn_lora_train::{TrainError, sweep::{SweepObserver, TrialResult}};
///
/// /// Keeps the losses.
/// struct Losses(Vec<Option<f64>>);
///
/// impl SweepObserver for Losses {
///     fn trial_ended(&mut self, result: &TrialResult) -> Result<(), TrainError> {
///         self.0.push(result.loss);
///         Ok(())
///     }
/// }
/// ```
#[allow(unused_variables)]
pub trait SweepObserver {
    /// Called before a trial is trained, up to a step or to its end (`None`). Returns the observers of its steps. A trial
    /// that has been trained already is not announced.
    fn trial_started(
        &mut self,
        trial: &Trial,
        goal: Option<usize>,
    ) -> Result<Vec<Box<dyn Observer>>, TrainError> {
        Ok(vec![])
    }

    /// Called after a trial was trained, interrupted or failed.
    fn trial_ended(&mut self, result: &TrialResult) -> Result<(), TrainError> {
        Ok(())
    }
}

impl SweepObserver for () {}

/// Shows the trials on standard error.
#[derive(Clone, Debug, Default)]
pub struct SweepProgress {
    lines: Option<usize>,
}

impl SweepProgress {
    /// Creates an observer that shows a line for each trial, and on a terminal a bar.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prints every `n`-th logged step of a trial if standard error is not a terminal.
    pub fn lines(mut self, n: usize) -> Self {
        self.lines = Some(n);
        self
    }
}

impl SweepObserver for SweepProgress {
    fn trial_started(
        &mut self,
        trial: &Trial,
        goal: Option<usize>,
    ) -> Result<Vec<Box<dyn Observer>>, TrainError> {
        let goal = goal.map(|step| format!(", up to step {step}")).unwrap_or_default();
        say(&format!("{}{goal}", trial.name));
        let progress = Progress::new();
        let progress = match self.lines {
            Some(n) => progress.lines(n),
            None => progress,
        };
        Ok(vec![Box::new(progress)])
    }

    fn trial_ended(&mut self, result: &TrialResult) -> Result<(), TrainError> {
        let TrialResult { name, loss, steps, of_steps, reason, .. } = result;
        say(&match (reason, loss) {
            (Some(reason), _) => format!("{name}: {reason}"),
            (None, Some(loss)) => {
                format!("{name}: validation loss {loss:.4} after {steps} of {of_steps} steps")
            }
            (None, None) => format!("{name}: interrupted after {steps} of {of_steps} steps"),
        });
        Ok(())
    }
}

fn say(line: &str) {
    // A closed standard error is no reason to end a sweep.
    _ = writeln!(stderr(), "{}", burn_lora_io::escaped(line));
}
