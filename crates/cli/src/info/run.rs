//! Facts of runs: their output folders, checkpoints and files.

use super::facts::Facts;
use burn_lora::{
    prelude::RunConfig,
    train::watch::{MetricsLog, Record},
};
use serde_json::Value;
use std::{error::Error, fs, path::Path};

/// Returns `true` for a folder that a run writes into.
pub fn is_output(folder: &Path) -> bool {
    !checkpoints(folder).is_empty() || folder.join("metrics.jsonl").is_file()
}

/// Adds what a run has written into a folder, if one has.
pub fn add(folder: &Path, facts: &mut Facts) {
    let checkpoints = checkpoints(folder);
    if !checkpoints.is_empty() {
        facts.add("checkpoints", checkpoints);
    }
    let log = folder.join("metrics.jsonl");
    if log.is_file() {
        match MetricsLog::read(&log) {
            Ok(records) => metrics(&records, facts),
            Err(error) => facts.warn(&error.to_string()),
        }
    }
    let state = folder.join("trainer_state.json");
    let Ok(json) = burn_lora_io::read(&state) else { return };
    match serde_json::from_slice::<Value>(&json) {
        Ok(state) => {
            facts.add("step", state["step"].clone());
            facts.add("steps", state["steps"].clone());
            facts.add("epoch", state["epoch"].clone());
            facts.add("tokens", state["tokens"].clone());
            facts.add("best", state["best"].clone());
        }
        Err(error) => facts.warn(&format!("{}: {error}", state.display())),
    }
}

/// Last figures of a log.
fn metrics(records: &[Record], facts: &mut Facts) {
    let steps = records.iter().rev().find_map(|record| match record {
        Record::Step(metrics) => Some(metrics),
        Record::Evaluation(_) => None,
    });
    if let Some(last) = steps {
        facts.add("trained_steps", last.step);
        facts.add_as("loss", last.loss, format!("{:.4}", last.loss));
    }
    let best = records.iter().filter_map(|record| match record {
        Record::Evaluation(metrics) => Some((metrics.loss, metrics.step)),
        Record::Step(_) => None,
    });
    if let Some((loss, step)) = best.min_by(|a, b| a.0.total_cmp(&b.0)) {
        facts.add_as("validation_loss", loss, format!("{loss:.4} after step {step}"));
    }
}

/// Names of the checkpoints in a folder, by step.
fn checkpoints(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let steps = entries.filter_map(|entry| {
        entry.file_name().to_str()?.strip_prefix("checkpoint-")?.parse::<usize>().ok()
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort_unstable();
    steps.into_iter().map(|step| format!("checkpoint-{step}")).collect()
}

/// Reads the facts of a run file.
pub fn file(path: &Path) -> Result<Facts, Box<dyn Error>> {
    let run = RunConfig::from_file(path)?;
    let fields = serde_json::to_value(&run)?;
    let mut facts = Facts::new("run file");
    for (name, section, field) in [
        ("model", "model", "path"),
        ("format", "model", "format"),
        ("rank", "adapter", "r"),
        ("alpha", "adapter", "lora_alpha"),
        ("target_modules", "adapter", "target_modules"),
        ("data", "data", "files"),
        ("validation", "data", "valid"),
        ("validation_split", "data", "valid_split"),
        ("max_length", "data", "max_length"),
        ("epochs", "train", "epochs"),
        ("max_steps", "train", "max_steps"),
        ("learning_rate", "train", "learning_rate"),
        ("batches", "train", "batches"),
        ("gradient_accumulation_steps", "train", "gradient_accumulation_steps"),
        ("output", "train", "output"),
    ] {
        let value = fields[section][field].clone();
        if !value.as_array().is_some_and(Vec::is_empty) {
            facts.add(name, value);
        }
    }
    facts.verdict("complete", run.validate());
    Ok(facts)
}
