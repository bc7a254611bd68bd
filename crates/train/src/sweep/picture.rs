//! Pictures of a sweep.

use super::{
    axis::Axis,
    results::TrialResult,
    trial::{label, short},
};
use crate::{
    error::TrainError,
    watch::{Scale, plot_lines_on},
};
use std::path::Path;

type Points = Vec<(f64, f64)>;

/// Plots the validation loss by the values of an axis, the last one whose values are numbers, with a line for each
/// combination of the other values. `at`: after this step, where trials were trained to different lengths.
pub(super) fn plot_axis(
    trials: &[TrialResult],
    axes: &[Axis],
    at: Option<usize>,
    path: &Path,
) -> Result<(), TrainError> {
    let varies = |axis: &&Axis| axis.len() > 1;
    let chosen = axes.iter().rev().filter(varies).find(|axis| axis.numbers().is_some());
    let Some(axis) = chosen.or_else(|| axes.iter().rev().find(varies)) else { return Ok(()) };
    let name = short(&axis.names[0], axes);
    let own: Vec<_> = axis.names.iter().map(|name| short(name, axes)).collect();
    // Values that are no numbers have places: those of their first trial.
    let mut places: Vec<&str> = vec![];
    let mut lines: Vec<(String, Points)> = vec![];
    let numeric = axis.numbers().is_some();
    for trial in trials {
        let loss = at.and_then(|step| trial.evaluations.get(&step).copied()).or(trial.loss);
        let value = trial.settings.iter().find(|(other, _)| *other == name);
        let (Some(loss), Some((_, value))) = (loss, value) else { continue };
        let x = match value.parse() {
            Ok(number) if numeric => number,
            _ => {
                let place = places.iter().position(|other| other == value);
                place.unwrap_or_else(|| {
                    places.push(value);
                    places.len() - 1
                }) as f64
                    + 1.0
            }
        };
        let others: Vec<_> =
            trial.settings.iter().filter(|(other, _)| !own.contains(other)).cloned().collect();
        let others = label(&others);
        match lines.iter_mut().find(|(line, _)| *line == others) {
            Some((_, points)) => points.push((x, loss)),
            None => lines.push((others, vec![(x, loss)])),
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    lines.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    let numbers = places.iter().zip(1..).map(|(value, place)| format!("{place} {value}"));
    let x_label = match places.is_empty() {
        true => name.clone(),
        false => format!("{name}: {}", numbers.collect::<Vec<_>>().join(", ")),
    };
    let title = match at {
        Some(step) => format!("Validation loss by {name}, after {step} steps"),
        None => format!("Validation loss by {name}"),
    };
    let scale = if numeric { scale(&axis.numbers().unwrap_or_default()) } else { Scale::Linear };
    plot_lines_on(scale, &title, &x_label, "validation loss", &lines, path)
}

/// Ranks and learning rates are multiples of each other.
fn scale(values: &[f64]) -> Scale {
    let (low, high) =
        values.iter().fold((f64::INFINITY, 0.0f64), |all, x| (all.0.min(*x), all.1.max(*x)));
    if low > 0.0 && high / low >= 4.0 { Scale::Logarithmic } else { Scale::Linear }
}

/// Plots the validation loss of each trial by step, if one has several evaluations.
pub(super) fn plot_curves(trials: &[TrialResult], path: &Path) -> Result<(), TrainError> {
    let line = |trial: &TrialResult| {
        let points = trial.evaluations.iter().map(|(step, loss)| (*step as f64, *loss));
        (trial.name.clone(), points.collect())
    };
    let lines: Vec<(String, Points)> = trials.iter().map(line).collect();
    if lines.iter().all(|(_, points)| points.len() < 2) {
        return Ok(());
    }
    let title = "Validation loss by step";
    plot_lines_on(Scale::Linear, title, "step", "validation loss", &lines, path)
}
