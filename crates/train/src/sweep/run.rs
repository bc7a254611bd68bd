//! A sweep as it runs.

use super::{
    observer::SweepObserver,
    report::SweepReport,
    results::{Identity, Results, Status, TrialResult},
    settings::{Strategy, Sweep},
    train::{remove_checkpoints, train},
    trial::Trial,
};
use crate::{
    error::TrainError,
    identity::{contents, weights_hash},
    interrupt::Interrupt,
    output::Output,
    run_config::{RunConfig, RunData},
    setup,
};
use burn_lora_llama::{GenerateExt, Llama};
use serde_json::{Value, json};
use std::rc::Rc;

impl Sweep {
    /// Trains the trials, and writes their results into the folder of the sweep: `results.json` (whole or absent), the
    /// table in `sweep.md`, pictures in `sweep.svg` (validation loss by the values of an axis) and `curves.svg` (by step),
    /// and a folder for each trial.
    ///
    /// In a folder with results of this sweep it goes on: finished trials are not trained again, an interrupted one resumes
    /// from its checkpoint. Axes may have got more values since; other settings, and the data, have to be those of before.
    /// A trial ends bit for bit as its run alone would, on a CPU. A base that several trials share is read once. The checkpoints
    /// of a trial are removed when it is done.
    ///
    /// A trial whose loss is not finite, or that fails otherwise, does not end the sweep. The interrupt ends it after the
    /// current step.
    ///
    /// # Errors
    /// - as [`trials`](Self::trials)
    /// - [`TrainError::Format`] if the folder has results of other settings or data, or a damaged file
    /// - [`TrainError::Setting`] if another sweep writes into the folder
    /// - [`TrainError::Settings`] if no trial could be trained to its end, with the reason of the first
    /// - those of reading the data and the model, and of writing files
    /// - the error of the observer
    pub fn run(
        &self,
        observer: &mut dyn SweepObserver,
        interrupt: &Interrupt,
    ) -> Result<SweepReport, TrainError> {
        let trials = self.trials()?;
        let folder = self.run.train.output.as_deref().expect("checked with the trials");
        let _claim = Output::claim(folder, true)?;
        let results = Results::read(folder)?;
        let mut runner = Runner {
            sweep: self,
            trials,
            plans: vec![],
            results,
            observer,
            interrupt,
            data: None,
            base: None,
            shown_at: None,
        };
        runner.plan()?;
        let interrupted = !match self.strategy {
            Strategy::Grid => runner.grid()?,
            Strategy::Halving { factor, min_steps } => runner.halving(factor, min_steps)?,
        };
        let report = SweepReport { interrupted, ..runner.report() };
        report.save(folder, &self.over, runner.shown_at);
        let failed = report.trials.iter().find_map(|trial| {
            trial.reason.as_ref().map(|reason| format!("{}: {reason}", trial.name))
        });
        match failed {
            Some(failed) if report.best.is_none() && !interrupted => {
                let reason = format!("no trial could be trained to its end; {failed}");
                Err(TrainError::settings("the sweep", reason))
            }
            _ => Ok(report),
        }
    }
}

/// What is known of a trial before it is trained.
struct Plan {
    /// Optimizer steps of the whole run.
    steps: usize,
    /// Hashes of the data.
    data: Value,
}

struct Runner<'a> {
    sweep: &'a Sweep,
    trials: Vec<Trial>,
    plans: Vec<Plan>,
    results: Results,
    observer: &'a mut dyn SweepObserver,
    interrupt: &'a Interrupt,
    /// The data of the last trial, and the settings that they were read with.
    data: Option<(RunConfig, Rc<RunData>)>,
    /// The base of the last trial, with its settings and hash.
    base: Option<(RunConfig, Llama, String)>,
    /// Step whose losses are compared, in the picture.
    shown_at: Option<usize>,
}

impl Runner<'_> {
    /// Reads the data of all trials: what is wrong with them shows before a model is read.
    fn plan(&mut self) -> Result<(), TrainError> {
        let mut hashes: Option<(Rc<RunData>, Value)> = None;
        for index in 0..self.trials.len() {
            let data = self.data(index)?;
            let found = match &hashes {
                Some((hashed, found)) if Rc::ptr_eq(hashed, &data) => found.clone(),
                _ => json!({
                    "training": contents(&data.train),
                    "validation": data.valid.as_ref().map(contents),
                }),
            };
            hashes = Some((data.clone(), found.clone()));
            let trial = &self.trials[index];
            let micro_batches =
                trial.run.train.gradient_accumulation_steps * trial.run.devices.len();
            let (_, steps) = setup::steps(&trial.run.train, &data.train, micro_batches)?;
            self.results.check(trial, &found)?;
            self.plans.push(Plan { steps, data: found });
        }
        let validation = |plan: &Plan| plan.data["validation"].clone();
        if self.plans.iter().any(|plan| validation(plan) != validation(&self.plans[0])) {
            burn_lora_io::warn!(
                "the trials validate on different data, since settings of `data` vary: their losses are not \
                 comparable as they are; files in `data.valid` that all settings leave alike would be"
            );
        }
        Ok(())
    }

    /// Trains all trials whole. Returns `false` if it was interrupted.
    fn grid(&mut self) -> Result<bool, TrainError> {
        let row = self.sweep.over.last().map_or(1, |axis| axis.len());
        for first in (0..self.trials.len()).step_by(row) {
            let mut before: Option<f64> = None;
            for index in first..first + row {
                if !self.train(index, None)? {
                    return Ok(false);
                }
                let Some(loss) = self.loss(index, None) else { continue };
                let gain = before.map(|before| 1.0 - loss / before);
                if self.sweep.min_gain.zip(gain).is_some_and(|(least, gain)| gain < least) {
                    break;
                }
                before = Some(loss);
            }
        }
        Ok(true)
    }

    /// Trains all trials up to a step, the best of them further. Returns `false` if it was interrupted.
    fn halving(&mut self, factor: usize, min_steps: Option<usize>) -> Result<bool, TrainError> {
        let steps = self.plans.iter().map(|plan| plan.steps).max().unwrap_or(0);
        let mut left: Vec<usize> = (0..self.trials.len()).collect();
        for goal in rungs(factor, min_steps, left.len(), steps) {
            self.shown_at = self.shown_at.or(Some(goal));
            if left.len() < 2 {
                break;
            }
            for index in &left {
                if !self.train(*index, Some(goal))? {
                    return Ok(false);
                }
            }
            left = self.best_of(&left, goal, factor);
        }
        for index in left {
            if !self.train(index, None)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the best trials of a rung, in the order of the trials.
    fn best_of(&self, trials: &[usize], goal: usize, factor: usize) -> Vec<usize> {
        let loss = |index: &usize| Some((self.loss(*index, Some(goal))?, *index));
        let mut ranked: Vec<_> = trials.iter().filter_map(loss).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dropped = ranked.split_off(ranked.len().div_ceil(factor));
        for (_, index) in dropped {
            remove_checkpoints(&folder(&self.trials[index]));
        }
        let mut best: Vec<_> = ranked.into_iter().map(|(_, index)| index).collect();
        best.sort_unstable();
        best
    }

    /// Step of a rung in a trial, which may be shorter than others.
    fn goal(&self, index: usize, goal: Option<usize>) -> Option<usize> {
        goal.filter(|goal| *goal < self.plans[index].steps)
    }

    fn loss(&self, index: usize, goal: Option<usize>) -> Option<f64> {
        self.results.get(&self.trials[index].name)?.loss_at(self.goal(index, goal))
    }

    /// Trains a trial up to a step, or to its end. Returns `false` if it was interrupted.
    fn train(&mut self, index: usize, goal: Option<usize>) -> Result<bool, TrainError> {
        let goal = self.goal(index, goal);
        let before = self.results.get(&self.trials[index].name).cloned();
        if before.as_ref().is_some_and(|before| before.has_reached(goal)) {
            return Ok(true);
        }
        if self.interrupt.is_raised() {
            return Ok(false);
        }
        let data = self.data(index)?;
        let (model, base) = self.base(index)?;
        let trial = &self.trials[index];
        let Plan { steps, data: hashes } = &self.plans[index];
        let mut result = before.unwrap_or_else(|| TrialResult::new(trial, *steps));
        result.folder = folder(trial);
        let observers = self.observer.trial_started(trial, goal)?;
        let interrupt = self.interrupt;
        let trained = burn_lora_io::caught(|| {
            train(trial, model, &data, goal, observers, interrupt, &mut result)
        });
        match trained {
            Ok(Ok(())) => {}
            Ok(Err(error)) if is_of_sweep(&error) => return Err(error),
            Ok(Err(error)) => {
                let diverged = matches!(error, TrainError::NotFinite { .. });
                result.status = if diverged { Status::Diverged } else { Status::Failed };
                result.reason = Some(error.to_string());
            }
            Err(panic) => {
                (result.status, result.reason) = (Status::Failed, Some(panic));
            }
        }
        let interrupted = result.status == Status::Interrupted;
        let identity = Identity { run: trial.run.clone(), data: hashes.clone(), base };
        self.results.set(result.clone(), identity)?;
        if matches!(result.status, Status::Finished | Status::Diverged) {
            remove_checkpoints(&result.folder);
        }
        self.observer.trial_ended(&result)?;
        if let Some(folder) = &self.sweep.run.train.output {
            // What there is so far stays if the rest has to be stopped.
            self.report().save(folder, &self.sweep.over, self.shown_at);
        }
        Ok(!interrupted)
    }

    /// Returns the data of a trial, which several have in common as a rule.
    fn data(&mut self, index: usize) -> Result<Rc<RunData>, TrainError> {
        let run = &self.trials[index].run;
        match &self.data {
            Some((with, data))
                if (&with.data, &with.model.path) == (&run.data, &run.model.path)
                    && with.objective.reads_as(&run.objective) =>
            {
                Ok(data.clone())
            }
            _ => {
                let mut data = run.load_data()?;
                // Two models would not fit.
                self.base = None;
                run.teach(&mut data, &run.devices()?.swap_remove(0))?;
                let data = Rc::new(data);
                self.data = Some((run.clone(), data.clone()));
                Ok(data)
            }
        }
    }

    /// Returns the base of a trial, whose weights are shared, and its hash.
    fn base(&mut self, index: usize) -> Result<(Llama, String), TrainError> {
        let trial = &self.trials[index];
        let run = &trial.run;
        let is_base = |with: &RunConfig| {
            let mut model = with.model.clone();
            model.adapter.clone_from(&run.model.adapter);
            model == run.model && with.devices == run.devices
        };
        if self.base.as_ref().is_none_or(|(with, ..)| !is_base(with)) {
            // Two would not fit.
            self.base = None;
            let model = run.model.loader()?.load(&run.devices()?.swap_remove(0))?;
            if let Some((_, data)) = &self.data {
                model.check_tokenizer(&data.tokenizer);
            }
            let hash = weights_hash(&model)?;
            self.base = Some((run.clone(), model, hash));
        }
        let (_, model, hash) = self.base.as_ref().expect("it was loaded");
        self.results.check_base(trial, hash)?;
        Ok((model.clone(), hash.clone()))
    }

    fn report(&self) -> SweepReport {
        let names = self.trials.iter().map(|trial| trial.name.as_str());
        let (trained, rest): (Vec<_>, Vec<_>) =
            names.partition(|name| self.results.get(name).is_some());
        let trials = trained.iter().filter_map(|name| self.results.get(name).cloned());
        SweepReport::new(trials.collect(), rest.into_iter().map(str::to_owned).collect())
    }
}

fn folder(trial: &Trial) -> std::path::PathBuf {
    trial.run.train.output.clone().expect("each trial has one")
}

/// Returns `true` for errors that all trials would have, or that must not be passed over.
fn is_of_sweep(error: &TrainError) -> bool {
    match error {
        TrainError::Setting { name, .. } => *name == "output",
        TrainError::NotFinite { .. }
        | TrainError::Device { .. }
        | TrainError::Adapter(_)
        | TrainError::Example { .. } => false,
        _ => true,
    }
}

/// Steps of the rungs before the last one, which is the whole run.
fn rungs(factor: usize, min_steps: Option<usize>, trials: usize, steps: usize) -> Vec<usize> {
    let least = min_steps.unwrap_or_else(|| {
        let (mut left, mut least) = (trials, steps as f64);
        while left > 1 {
            left = left.div_ceil(factor);
            least /= factor as f64;
        }
        (least.round() as usize).max(1)
    });
    let next = |rung: &usize| rung.checked_mul(factor);
    std::iter::successors(Some(least), next).take_while(|rung| *rung < steps).collect()
}

#[cfg(test)]
mod tests {
    use super::rungs;

    #[test]
    fn rungs_grow_by_the_factor_up_to_the_whole_run() {
        assert_eq!(rungs(3, Some(50), 9, 1000), [50, 150, 450]);
        assert_eq!(rungs(3, None, 9, 900), [100, 300]);
        assert_eq!(rungs(2, None, 5, 80), [10, 20, 40]);
        assert!(rungs(3, Some(50), 9, 50).is_empty());
        assert!(rungs(3, None, 1, 100).is_empty());
        assert_eq!(rungs(3, None, 9, 2), [1]);
        assert_eq!(rungs(2, Some(usize::MAX / 2 + 1), 9, usize::MAX), [usize::MAX / 2 + 1]);
    }
}
