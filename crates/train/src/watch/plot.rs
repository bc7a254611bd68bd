//! Plots of a run.

use super::{
    MetricsLog, Record,
    chart::{Chart, Line, PALETTE, Scale, draw},
};
use crate::error::TrainError;
use std::path::Path;

/// Plots the losses and the learning rate of a [`MetricsLog`] as SVG.
///
/// ```
/// use burn_lora_train::watch::{MetricsLog, Observer, StepMetrics, plot_metrics};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("metrics.jsonl");
/// # let svg = folder.path().join("loss.svg");
/// let mut log = MetricsLog::new(&path);
/// for step in 1..=20 {
///     log.step(&StepMetrics { step, loss: 1.0 / step as f64, ..Default::default() })?;
/// }
/// plot_metrics(&path, &svg)?;
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
///
/// # Errors
/// [`TrainError::Io`] if the log cannot be read or the plot cannot be written,
/// [`TrainError::Format`] if the log is invalid or has no line yet.
pub fn plot_metrics(metrics: &Path, svg: &Path) -> Result<(), TrainError> {
    let (mut training, mut rate, mut validation) = (Vec::new(), Vec::new(), Vec::new());
    for record in MetricsLog::read(metrics)? {
        let step = record.step() as f64;
        match record {
            Record::Step(metrics) => {
                training.push((step, metrics.loss));
                rate.push((step, metrics.learning_rate));
            }
            Record::Evaluation(metrics) => validation.push((step, metrics.loss)),
        }
    }
    if training.is_empty() && validation.is_empty() {
        return Err(TrainError::format(metrics, "it has no metrics yet"));
    }
    let [blue, orange, green, ..] = PALETTE;
    let smoothed = smoothed(&training);
    let losses = Chart {
        title: "Loss",
        x_label: "",
        y_label: "loss",
        x_scale: Scale::Linear,
        height: 400,
        lines: vec![
            Line { name: "training", points: training, color: blue, light: true, marks: false },
            Line::new("training, smoothed", smoothed, blue),
            Line::new("validation", validation, orange).marked(),
        ],
    };
    let rates = Chart {
        title: "",
        x_label: "step",
        y_label: "learning rate",
        x_scale: Scale::Linear,
        height: 180,
        lines: vec![Line::new("", rate, green)],
    };
    draw(svg, &[losses, rates])
}

/// Plots named lines as SVG. A value that is not finite is a gap.
///
/// ```
/// use burn_lora_train::watch::plot_lines;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let svg = folder.path().join("ranks.svg");
/// let series = [("LoRA", vec![(4.0, 1.31), (8.0, 1.27)]), ("DoRA", vec![(4.0, 1.30), (8.0, 1.26)])];
/// plot_lines("Loss by rank", "rank", "validation loss", &series, &svg)?;
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
///
/// # Errors
/// [`TrainError::Setting`] if there are no points, [`TrainError::Io`] if the plot cannot be
/// written.
pub fn plot_lines<S: AsRef<str>>(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[(S, Vec<(f64, f64)>)],
    path: &Path,
) -> Result<(), TrainError> {
    plot_lines_on(Scale::Linear, title, x_label, y_label, series, path)
}

/// Plots as [`plot_lines`], on a scale for x.
pub(crate) fn plot_lines_on<S: AsRef<str>>(
    x_scale: Scale,
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[(S, Vec<(f64, f64)>)],
    path: &Path,
) -> Result<(), TrainError> {
    if series.iter().all(|(_, points)| points.is_empty()) {
        return Err(TrainError::setting("series", title, "there are no points to draw"));
    }
    let colors = PALETTE.iter().cycle();
    let lines = series.iter().zip(colors).map(|((name, points), &color)| {
        let line = Line::new(name.as_ref(), points.clone(), color);
        if points.len() <= 40 { line.marked() } else { line }
    });
    let lines = lines.collect();
    draw(path, &[Chart { title, x_label, y_label, x_scale, height: 500, lines }])
}

/// Exponential moving average over about a fiftieth of the points, without a bias towards the
/// start.
pub(super) fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let span = (points.len() as f64 / 50.0).max(5.0);
    let keep = 1.0 - 2.0 / (span + 1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let finite = points.iter().filter(|point| point.1.is_finite());
    finite
        .map(|&(x, y)| {
            sum = keep * sum + y;
            weight = keep * weight + 1.0;
            (x, sum / weight)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::smoothed;

    #[test]
    fn smoothing() {
        let level: Vec<_> = (0..9).map(|x| (x as f64, 3.0)).collect();
        assert!(smoothed(&level).iter().all(|&(_, y)| (y - 3.0).abs() < 1e-12));
        let gap = [(0.0, 1.0), (1.0, f64::NAN), (2.0, 2.0)];
        // Five points: each counts two thirds of the next.
        assert_eq!(smoothed(&gap), [(0.0, 1.0), (2.0, (2.0 / 3.0 + 2.0) / (2.0 / 3.0 + 1.0))]);
    }
}
