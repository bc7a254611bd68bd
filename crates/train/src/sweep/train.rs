//! Training of one trial.

use super::{
    results::{Status, TrialResult},
    trial::Trial,
};
use crate::{
    checkpoint,
    error::TrainError,
    interrupt::Interrupt,
    run_config::RunData,
    watch::{MetricsLog, Observer, Record, StopReason},
};
use burn_lora_adapter::AdaptableExt;
use burn_lora_llama::Llama;
use std::{fs, path::Path};

/// Trains a trial from its last checkpoint, up to a step or to its end. `result` has the state before, and
/// afterwards that of now.
///
/// The model has to be the base, without an adapter: it is that of the trial afterwards.
pub(super) fn train(
    trial: &Trial,
    mut model: Llama,
    data: &RunData,
    goal: Option<usize>,
    observers: Vec<Box<dyn Observer>>,
    interrupt: &Interrupt,
    result: &mut TrialResult,
) -> Result<(), TrainError> {
    let run = &trial.run;
    let valid = data.valid.as_ref().expect("a sweep has validation data");
    let trainer = run.trainer()?.resume(true).claim()?;
    run.add_adapter(&mut model)?;
    let valid = &run.compared(&model, valid, &run.train.batches)?;
    result.parameters = model.summary().trainable;
    let fitted = run.within_budget(&model, data.train.report().longest)?;
    let trainer = trainer.recompute(fitted.train.recompute);
    let trainer = trainer.pause_at(goal).interrupt(interrupt.clone()).observe(observers);
    let report = run.fit_on(trainer, &mut model, data, Some(valid))?;

    result.steps = report.finished.steps;
    let reason = report.finished.reason;
    result.status = match reason {
        StopReason::Interrupted => Status::Interrupted,
        StopReason::Paused => Status::Halted,
        StopReason::Done | StopReason::MaxSteps | StopReason::EarlyStopping => Status::Finished,
    };
    result.reason = None;
    add_metrics(&result.folder.clone(), result)?;
    if reason == StopReason::Interrupted {
        return Ok(());
    }
    // The model is now what the trial leaves: with `load_best_at_end` the best of its evaluations.
    let is_last = reason == StopReason::Paused || !run.train.load_best_at_end;
    let last = report.evaluations.last().filter(|last| is_last && last.step == result.steps);
    let loss = match last {
        Some(last) => last.loss,
        None => run.evaluate(&model, valid, &run.train.batches)?.loss,
    };
    if !loss.is_finite() {
        result.status = Status::Diverged;
        result.reason = Some(format!("step {}: the validation loss is {loss}", result.steps));
        return Ok(());
    }
    result.loss = Some(loss);
    if is_last {
        result.evaluations.insert(result.steps, loss);
    }
    Ok(())
}

/// Adds what the trial's log says: a resumed run has the lines of those before.
fn add_metrics(folder: &Path, result: &mut TrialResult) -> Result<(), TrainError> {
    let path = folder.join("metrics.jsonl");
    let (mut before, mut seconds, mut speeds) = (0, 0.0, vec![]);
    for record in MetricsLog::read(&path)? {
        match record {
            Record::Step(line) => {
                seconds += line.step_seconds * line.step.saturating_sub(before) as f64;
                before = line.step;
                speeds.push(line.tokens_per_second);
                result.training_loss = Some(line.loss).filter(|loss| loss.is_finite());
                result.memory = result.memory.max(line.memory);
            }
            Record::Evaluation(found) if found.loss.is_finite() => {
                result.evaluations.insert(found.step, found.loss);
            }
            Record::Evaluation(_) => {}
        }
    }
    result.seconds = seconds;
    // The first line includes what a device compiles and tunes.
    if speeds.len() > 1 {
        speeds.remove(0);
    }
    speeds.sort_by(f64::total_cmp);
    result.tokens_per_second = speeds.get(speeds.len() / 2).copied();
    Ok(())
}

/// Removes the checkpoints of a trial that will not go on: its adapter is beside them.
pub(super) fn remove_checkpoints(folder: &Path) {
    let Ok(found) = checkpoint::list(folder) else { return };
    for path in found.values() {
        if let Err(error) = fs::remove_dir_all(path) {
            burn_lora_io::warn!("{} could not be removed: {error}", path.display());
        }
    }
}
