//! Results of a sweep: tables and plots.

use crate::table::{table, thousands};
use burn_lora::train::{Report, watch::plot_lines};
use std::{error::Error, fs, path::Path};

/// Result of one run.
pub struct Outcome {
    /// Value of the varied option.
    pub label: String,
    pub rank: usize,
    pub parameters: usize,
    /// Training and validation loss of each epoch.
    pub epochs: Vec<Losses>,
    pub seconds: f64,
    /// Median over the lines of the log, as is `tokens_per_second`.
    pub step_seconds: f64,
    pub tokens_per_second: f64,
}

#[derive(Clone, Copy)]
pub struct Losses {
    /// Mean over the epoch, while the model changed (and with dropout, if there is any).
    pub training: f64,
    /// Validation loss at the end of the epoch.
    pub validation: f64,
}

impl Outcome {
    pub fn new(label: &str, rank: usize, parameters: usize, report: &Report) -> Self {
        let epochs = report.evaluations.iter().zip(1..).map(|(evaluation, epoch)| {
            let (mut sum, mut steps, mut before) = (0.0, 0, 0);
            for line in &report.log {
                // An evaluation ends a line of the log: none reaches over two epochs.
                if line.epoch > f64::from(epoch - 1) && line.epoch <= f64::from(epoch) {
                    sum += line.loss * (line.step - before) as f64;
                    steps += line.step - before;
                }
                before = line.step;
            }
            Losses { training: sum / steps as f64, validation: evaluation.loss }
        });
        // The first line includes what a device compiles and tunes.
        let lines = &report.log[usize::from(report.log.len() > 1)..];
        Self {
            label: label.to_owned(),
            rank,
            parameters,
            epochs: epochs.collect(),
            seconds: report.finished.seconds,
            step_seconds: median(lines.iter().map(|line| line.step_seconds)),
            tokens_per_second: median(lines.iter().map(|line| line.tokens_per_second)),
        }
    }

    /// Epoch with the lowest validation loss, and its losses: what a run would keep.
    pub fn best(&self) -> (usize, Losses) {
        let epochs = (1..).zip(self.epochs.iter().copied());
        epochs
            .min_by(|(_, a), (_, b)| a.validation.total_cmp(&b.validation))
            .expect("there is an evaluation after each epoch")
    }

    /// Fraction by which the validation loss is lower than that of another run.
    pub fn gain(&self, before: &Self) -> f64 {
        1.0 - self.best().1.validation / before.best().1.validation
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Tables of the runs and of their epochs.
pub fn tables(varied: &str, outcomes: &[Outcome]) -> String {
    let rows: Vec<_> = outcomes
        .iter()
        .enumerate()
        .map(|(place, outcome)| {
            let (epoch, losses) = outcome.best();
            let gain = place.checked_sub(1).map(|before| outcome.gain(&outcomes[before]));
            let mut row = vec![
                outcome.label.clone(),
                thousands(outcome.parameters),
                format!("{:.4}", losses.training),
                format!("{:.4}", losses.validation),
                gain.map_or_else(String::new, |gain| format!("{:+.1} %", 100.0 * gain)),
                epoch.to_string(),
                format!("{:.0}", outcome.seconds),
                format!("{:.1}", 1e3 * outcome.step_seconds),
                format!("{:.0}", outcome.tokens_per_second),
            ];
            if varied != "rank" {
                row.insert(1, outcome.rank.to_string());
            }
            row
        })
        .collect();
    let mut header = vec![
        varied,
        "parameters",
        "training loss",
        "validation loss",
        "gain",
        "epoch",
        "seconds",
        "ms/step",
        "tokens/s",
    ];
    if varied != "rank" {
        header.insert(1, "rank");
    }
    let mut text = table(&header, &rows) + "\n";

    let epochs = outcomes.iter().map(|outcome| outcome.epochs.len()).max().unwrap_or(0);
    if epochs > 1 {
        let names: Vec<_> = (1..=epochs).map(|epoch| format!("epoch {epoch}")).collect();
        let header: Vec<_> = [varied].into_iter().chain(names.iter().map(String::as_str)).collect();
        let rows = outcomes.iter().map(|outcome| {
            let losses = outcome
                .epochs
                .iter()
                .map(|Losses { training, validation }| format!("{training:.4}, {validation:.4}"));
            [outcome.label.clone()].into_iter().chain(losses).collect()
        });
        text += "\nTraining and validation loss by epoch:\n\n";
        text += &(table(&header, &rows.collect::<Vec<_>>()) + "\n");
    }
    text
}

/// Writes tables and plots into a folder: the loss by the varied option, if its values are numbers,
/// and by epoch, if there are several.
pub fn save(varied: &str, outcomes: &[Outcome], folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let file = folder.join("sweep.md");
    fs::write(&file, tables(varied, outcomes)).map_err(|e| format!("{}: {e}", file.display()))?;

    let values: Result<Vec<f64>, _> = outcomes.iter().map(|it| it.label.parse()).collect();
    if let Ok(values) = values {
        let line = |loss: fn(Losses) -> f64| -> Vec<_> {
            values.iter().zip(outcomes).map(|(x, it)| (*x, loss(it.best().1))).collect()
        };
        let lines = [
            ("training", line(|losses| losses.training)),
            ("validation", line(|losses| losses.validation)),
        ];
        let title = format!("Loss by {varied}");
        plot_lines(&title, varied, "loss", &lines, &folder.join("sweep.svg"))?;
    }
    if outcomes.iter().any(|outcome| outcome.epochs.len() > 1) {
        let lines = outcomes.iter().map(|outcome| {
            let points = (1..).zip(&outcome.epochs);
            let points = points.map(|(epoch, losses)| (f64::from(epoch), losses.validation));
            (format!("{varied} {}", outcome.label), points.collect())
        });
        let lines: Vec<(String, Vec<(f64, f64)>)> = lines.collect();
        let path = folder.join("epochs.svg");
        plot_lines("Validation loss by epoch", "epoch", "validation loss", &lines, &path)?;
    }
    Ok(())
}
