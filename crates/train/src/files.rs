//! Files that show a run: errors of writing them only warn, and do not end it.

use crate::{
    TrainConfig, TrainError,
    data::{Dataset, Report},
    watch::{EvalMetrics, Finished, HtmlReport, MetricsLog, Observer, Started, StepMetrics},
};
use burn_lora_adapter::AdaptableExt;
use burn_lora_llama::CausalLm;

/// A metrics log. That it cannot be begun is an error.
pub(crate) struct Metrics(pub MetricsLog);

impl Observer for Metrics {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        self.0.started(run)
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        warned(self.0.step(metrics))
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        warned(self.0.evaluated(metrics))
    }
}

fn warned(written: Result<(), TrainError>) -> Result<(), TrainError> {
    if let Err(error) = written {
        burn_lora_io::warn!("metrics are missing, the run goes on: {error}");
    }
    Ok(())
}

/// A report with tables of model and data.
pub(crate) struct Page<'a> {
    report: &'a mut HtmlReport,
    /// A warning for each update would be too many.
    warned: bool,
}

impl<'a> Page<'a> {
    pub fn new<M: CausalLm>(
        report: &'a mut HtmlReport,
        config: &TrainConfig,
        model: &M,
        (train, valid): (&Dataset, Option<&Dataset>),
    ) -> Self {
        report.facts("Model", facts_of_model(model));
        report.facts("Training data", facts_of_data(&train.report()));
        if let Some(valid) = valid {
            report.facts("Validation data", facts_of_data(&valid.report()));
        }
        if !report.has_settings() {
            match toml::to_string(config) {
                Ok(text) => _ = report.settings(&text),
                Err(error) => burn_lora_io::warn!("the report has no settings: {error}"),
            }
        }
        Self { report, warned: false }
    }

    fn warn(&mut self, written: Result<(), TrainError>) -> Result<(), TrainError> {
        match written {
            Err(error) if !self.warned => {
                burn_lora_io::warn!("the report is not written, the run goes on: {error}");
                self.warned = true;
            }
            Err(_) => {}
            Ok(()) => self.warned = false,
        }
        Ok(())
    }
}

impl Observer for Page<'_> {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        let written = self.report.started(run);
        self.warn(written)
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let written = self.report.step(metrics);
        self.warn(written)
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        let written = self.report.evaluated(metrics);
        self.warn(written)
    }

    fn finished(&mut self, run: &Finished) -> Result<(), TrainError> {
        let written = self.report.finished(run);
        self.warn(written)
    }

    fn failed(&mut self, error: &TrainError) {
        self.report.failed(error);
    }
}

fn facts_of_model<M: CausalLm>(model: &M) -> Vec<(&'static str, String)> {
    let summary = model.summary();
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let share = 100.0 * summary.trainable as f64 / summary.total.max(1) as f64;
    let mut facts = vec![
        ("parameters", thousands(summary.total)),
        ("trained", format!("{} ({share:.2} %)", thousands(summary.trainable))),
    ];
    if summary.code_bytes > 0 {
        let bytes = summary.code_bytes + summary.scale_bytes;
        facts.push(("quantized weights", mib(bytes)));
    }
    facts.push(("other weights", mib(summary.dense_bytes)));
    facts.push(("adapter", mib(summary.adapter_bytes)));
    facts.push(("vocabulary", thousands(model.vocabulary())));
    facts.push(("device", format!("{:?}", model.device().inner())));
    facts
}

fn facts_of_data(report: &Report) -> Vec<(&'static str, String)> {
    let Report { tokens, target_tokens, .. } = report;
    let share = 100.0 * *target_tokens as f64 / (*tokens).max(1) as f64;
    let mut facts = vec![
        ("examples", thousands(report.examples)),
        ("tokens", thousands(*tokens)),
        ("trained tokens", format!("{} ({share:.1} %)", thousands(*target_tokens))),
        ("longest example", format!("{} tokens", thousands(report.longest))),
        ("mean example", format!("{:.1} tokens", report.mean_length())),
    ];
    let counts = [
        ("truncated", report.truncated),
        ("left out: too long", report.too_long),
        ("left out: malformed", report.malformed),
        ("left out: nothing to train on", report.empty),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    facts.extend(counts.map(|(name, count)| (name, thousands(count))));
    facts.extend(report.first_left_out.clone().map(|first| ("first left out", first)));
    facts
}

/// Formats a count with a comma for each thousand.
fn thousands(count: usize) -> String {
    indicatif::HumanCount(count as u64).to_string()
}
