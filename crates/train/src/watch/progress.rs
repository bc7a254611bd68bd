//! Progress bar on the terminal.

use super::{EvalMetrics, Finished, Observer, Started, StepMetrics};
use crate::error::TrainError;
use burn_lora_io::is_drawn_on;
use indicatif::{FormattedDuration, HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::{Write, stderr},
    path::Path,
    time::Duration,
};

/// An observer that shows a bar on standard error: steps, loss, speed, memory, time left.
/// Evaluations and checkpoints are printed above it.
///
/// If standard error is not a terminal, there is no bar, and nothing is printed unless
/// [`lines`](Self::lines) asks for it.
///
/// ```
/// use burn_lora_train::watch::{Observer, Progress, Started, StepMetrics};
///
/// let mut progress = Progress::new();
/// progress.started(&Started { steps: 100, ..Default::default() })?;
/// progress.step(&StepMetrics { step: 1, loss: 2.5, ..Default::default() })?;
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: Option<usize>,
    logged: usize,
    steps: usize,
}

impl Progress {
    /// Creates a bar on standard error.
    pub fn new() -> Self {
        Self::on(match is_drawn_on(&stderr()) {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        })
    }

    /// Prints every `n`-th logged step, evaluations and checkpoints as lines if standard error is
    /// not a terminal.
    pub fn lines(mut self, n: usize) -> Self {
        self.lines = Some(n.max(1));
        self
    }

    fn on(target: ProgressDrawTarget) -> Self {
        let style = ProgressStyle::with_template("{pos}/{len} {bar:24} {msg}, {eta} left");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        Self { bar, lines: None, logged: 0, steps: 0 }
    }

    /// Prints above the bar, or as a line.
    fn say(&self, message: &str) {
        if !self.bar.is_hidden() {
            self.bar.println(message);
        } else if self.lines.is_some() {
            print(message);
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Progress {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        self.steps = run.steps;
        self.logged = 0;
        self.bar.set_length(run.steps as u64);
        self.bar.set_position(run.resumed_from.unwrap_or(0) as u64);
        // The steps before the resumption took no time.
        self.bar.reset_eta();
        let resumed = run.resumed_from.map(|step| format!(", from step {step}"));
        self.say(&format!(
            "{} steps ({} epochs of {} examples), {} trainable parameters{}",
            run.steps,
            (100.0 * run.epochs).round() / 100.0,
            run.examples,
            run.trainable_parameters,
            resumed.unwrap_or_default(),
        ));
        if run.compiles {
            const NOTE: &str = "kernels are compiled in the first steps";
            self.bar.set_message(NOTE);
            if self.bar.is_hidden() {
                self.say(NOTE);
            }
        }
        Ok(())
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let message = message(metrics);
        if self.bar.is_hidden() {
            self.logged += 1;
            if self.lines.is_some_and(|n| self.logged.is_multiple_of(n)) {
                print(&format!("step {}/{}: {message}", metrics.step, self.steps));
            }
        } else {
            self.bar.set_message(message);
            self.bar.set_position(metrics.step as u64);
        }
        Ok(())
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        let EvalMetrics { step, loss, metrics, .. } = metrics;
        let mut line = format!("step {step}: validation loss {loss:.4}");
        for (name, value) in metrics.iter() {
            line += &match name {
                "mean_token_accuracy" => format!(", accuracy {:.1} %", 100.0 * value),
                "perplexity" => format!(", perplexity {value:.2}"),
                name => format!(", {name} {value:.4}"),
            };
        }
        self.say(&line);
        Ok(())
    }

    fn saved(&mut self, folder: &Path) -> Result<(), TrainError> {
        self.say(&format!("saved {}", folder.display()));
        Ok(())
    }

    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        let best = run.best.map(|(step, value)| {
            format!(", best validation {} {value:.4} after step {step}", run.best_metric)
        });
        self.say(&format!(
            "{} after {} steps and {}: loss {:.4}{}",
            run.reason,
            run.steps,
            FormattedDuration(Duration::try_from_secs_f64(run.seconds).unwrap_or_default()),
            run.loss,
            best.unwrap_or_default(),
        ));
        self.bar.finish_and_clear();
        Ok(())
    }
}

fn message(metrics: &StepMetrics) -> String {
    let memory = metrics.memory.map(|bytes| format!(", {}", HumanBytes(bytes)));
    format!(
        "loss {:.4}, {:.0} tokens/s{}",
        metrics.loss,
        metrics.tokens_per_second,
        memory.unwrap_or_default(),
    )
}

fn print(message: &str) {
    // A closed standard error is no reason to end a run.
    _ = writeln!(stderr(), "{message}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::StopReason;
    use indicatif::TermLike;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    /// A terminal that keeps what is written to it.
    #[derive(Clone, Debug, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            200
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_sees_the_bar_and_what_is_above_it() {
        let screen = Screen::default();
        let mut progress =
            Progress::on(ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255));
        let shows = |text: &str| {
            let shown = std::mem::take(&mut *screen.0.lock().unwrap());
            assert!(shown.contains(text), "`{text}` is not in `{shown}`");
        };
        let run =
            Started { steps: 10, resumed_from: Some(4), compiles: true, ..Default::default() };
        progress.started(&run).unwrap();
        shows("from step 4");
        progress.bar.force_draw();
        shows("kernels are compiled in the first steps");
        let memory = Some(3 << 30);
        let metrics = StepMetrics {
            step: 5,
            loss: 1.25,
            tokens_per_second: 1234.5,
            memory,
            ..Default::default()
        };
        progress.step(&metrics).unwrap();
        progress.bar.force_draw();
        shows("loss 1.2500, 1234 tokens/s, 3.00 GiB");
        progress.bar.force_draw();
        shows("5/10");
        progress.evaluated(&EvalMetrics { step: 5, loss: 1.5, ..Default::default() }).unwrap();
        shows("step 5: validation loss 1.5000");
        progress.saved(Path::new("out/step-5")).unwrap();
        shows("saved out/step-5");
        let reason = StopReason::EarlyStopping;
        let (best, best_metric) = (Some((5, 1.5)), "loss".into());
        let run = Finished { steps: 5, seconds: 61.0, reason, best, best_metric, loss: 1.25 };
        progress.finished(&run).unwrap();
        shows(
            "early stopping after 5 steps and 00:01:01: loss 1.2500, best validation loss 1.5000 after step 5",
        );
        assert!(progress.bar.is_finished());
    }
}
