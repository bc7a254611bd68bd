//! What a sweep has found.

use super::{
    axis::Axis,
    picture::{plot_axis, plot_curves},
    results::{Status, TrialResult},
};
use serde::Serialize;
use std::{
    fmt::{self, Display, Formatter},
    path::Path,
};

/// Results of a sweep. `Display` is a table in Markdown, which can be read in a terminal, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SweepReport {
    /// Name of the finished trial with the lowest validation loss.
    pub best: Option<String>,
    /// Trials that have been trained: finished ones by their loss, then the others, those that came furthest first.
    pub trials: Vec<TrialResult>,
    /// Names of the trials that have not begun: the sweep was interrupted, or a gain was small.
    pub skipped: Vec<String>,
    /// `true` if the sweep was interrupted: it goes on with the same settings.
    pub interrupted: bool,
}

impl SweepReport {
    pub(super) fn new(mut trials: Vec<TrialResult>, skipped: Vec<String>) -> Self {
        let order = |trial: &TrialResult| match trial.status {
            Status::Finished => 0,
            Status::Halted | Status::Interrupted => 1,
            Status::Diverged | Status::Failed => 2,
        };
        let steps = |trial: &TrialResult| match trial.status {
            // Some settings make longer runs than others.
            Status::Finished => 0,
            _ => trial.steps,
        };
        trials.sort_by(|a, b| {
            let loss = |trial: &TrialResult| trial.loss.unwrap_or(f64::INFINITY);
            let by_steps = steps(b).cmp(&steps(a));
            order(a).cmp(&order(b)).then(by_steps).then(loss(a).total_cmp(&loss(b)))
        });
        let best = trials.first().filter(|trial| trial.status == Status::Finished);
        let best = best.map(|trial| trial.name.clone());
        Self { best, trials, skipped, interrupted: false }
    }

    /// Returns the report as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("all keys are text or numbers")
    }

    /// Writes table and pictures. Only a warning if that fails: the results are in a file of their own.
    pub(super) fn save(&self, folder: &Path, axes: &[Axis], at: Option<usize>) {
        let table = burn_lora_io::replace(&folder.join("sweep.md"), self.to_string().as_bytes());
        if let Err(error) = table {
            burn_lora_io::warn!("the table of the sweep is missing: {error}");
        }
        let pictures = plot_axis(&self.trials, axes, at, &folder.join("sweep.svg"))
            .and_then(|()| plot_curves(&self.trials, &folder.join("curves.svg")));
        if let Err(error) = pictures {
            burn_lora_io::warn!("a picture of the sweep is missing: {error}");
        }
    }

    /// Header and rows of the table.
    fn cells(&self) -> Vec<Vec<String>> {
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.4}"));
        let names = self.trials.first().map_or(&[][..], |trial| &trial.settings);
        let mut header: Vec<String> = names.iter().map(|(name, _)| name.clone()).collect();
        let has_memory = self.trials.iter().any(|trial| trial.memory.is_some());
        header.extend(
            ["validation loss", "training loss", "steps", "seconds", "tokens/s"].map(Into::into),
        );
        header.extend(has_memory.then(|| "GiB".into()));
        header.extend(["parameters", "status"].map(Into::into));
        let mut rows = vec![header];
        for trial in &self.trials {
            let mut row: Vec<String> =
                trial.settings.iter().map(|(_, value)| value.clone()).collect();
            row.extend([
                number(trial.loss),
                number(trial.training_loss),
                trial.steps.to_string(),
                format!("{:.0}", trial.seconds),
                trial.tokens_per_second.map_or("-".into(), |speed| format!("{speed:.0}")),
            ]);
            let gib = |bytes: u64| format!("{:.2}", bytes as f64 / (1u64 << 30) as f64);
            row.extend(has_memory.then(|| trial.memory.map_or("-".into(), gib)));
            row.push(thousands(trial.parameters));
            row.push(match trial.status {
                Status::Finished => "finished".into(),
                Status::Halted => format!("halted of {}", trial.of_steps),
                Status::Interrupted => format!("interrupted of {}", trial.of_steps),
                Status::Diverged => "diverged".into(),
                Status::Failed => "failed".into(),
            });
            rows.push(row);
        }
        rows
    }
}

impl Display for SweepReport {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let rows = self.cells();
        let width =
            |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..rows[0].len()).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                // What is between bars must have none.
                write!(formatter, "| {:>width$} ", in_table(cell))?;
            }
            writeln!(formatter, "|")?;
            if number == 0 {
                let rule = widths.iter().map(|width| format!("|{}:", "-".repeat(width + 1)));
                writeln!(formatter, "{}|", rule.collect::<String>())?;
            }
        }
        for trial in &self.trials {
            if let Some(reason) = &trial.reason {
                write!(formatter, "\n{}: {}", trial.name, burn_lora_io::escaped(reason))?;
            }
        }
        match &self.best {
            Some(best) => writeln!(formatter, "\nThe lowest validation loss: {best}"),
            None => writeln!(formatter, "\nNo trial has finished yet."),
        }?;
        match self.skipped.as_slice() {
            [] => Ok(()),
            skipped => writeln!(formatter, "Not tried: {}", skipped.join(" ")),
        }
    }
}

/// Text for a cell: a bar would end it.
fn in_table(text: &str) -> String {
    burn_lora_io::escaped(text).to_string().replace('|', "/")
}

/// `1234567` as `1,234,567`.
fn thousands(number: usize) -> String {
    match number / 1000 {
        0 => number.to_string(),
        rest => format!("{},{:03}", thousands(rest), number % 1000),
    }
}
