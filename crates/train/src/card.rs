//! Model cards: the README.md of an adapter or a model on the hub.

use crate::{
    error::TrainError,
    watch::{MetricsLog, Record},
};
use serde_json::Value;
use std::{fmt::Write, path::Path};

/// Writes a model card for the output folder of a run, or for another folder of an adapter or a model: base,
/// method and settings from `adapter_config.json`, and the last figures of `metrics.jsonl`, as far as
/// these files are there.
///
/// ```
/// let card = burn_lora_train::model_card("../../testdata/gqa/lora_qv".as_ref())?;
/// assert!(card.contains("library_name: peft") && card.contains("| r | 4 |"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
///
/// # Errors
/// [`TrainError::Io`] or [`TrainError::Format`] if one of the files is there and cannot be read.
pub fn model_card(folder: &Path) -> Result<String, TrainError> {
    let json = |name: &str| {
        let path = folder.join(name);
        if !path.is_file() {
            return Ok(Value::Null);
        }
        let bytes = burn_lora_io::read(&path).map_err(|error| TrainError::io(&path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| TrainError::format(&path, error.to_string()))
    };
    let adapter: Value = json("adapter_config.json")?;
    let base = adapter["base_model_name_or_path"].as_str().unwrap_or_default();
    let mut card = String::from("---\n");
    // Ids only: the hub refuses a card whose base is a path on somebody's disk.
    if burn_lora_io::hub::is_model_id(base) && !Path::new(base).exists() {
        writeln!(card, "base_model: {base}").ok();
    }
    if !adapter.is_null() {
        card += "library_name: peft\n";
    }
    card += "pipeline_tag: text-generation\ntags:\n- burn-lora\n";
    if !adapter.is_null() {
        card += "- lora\n";
    }
    card += "---\n\n";
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    writeln!(card, "# {}\n", burn_lora_io::escaped(&name)).ok();
    match (adapter.is_null(), base) {
        (true, _) => card += "A language model, written by burn-lora.\n",
        (false, "") => card += "An adapter in PEFT's format, trained by burn-lora.\n",
        (false, base) => {
            let base = burn_lora_io::escaped(base);
            writeln!(card, "An adapter in PEFT's format for `{base}`, trained by burn-lora.").ok();
        }
    }
    if let Value::Object(fields) = &adapter {
        card += "\n## Settings\n\n| setting | value |\n|---|---|\n";
        for name in [
            "peft_type",
            "r",
            "lora_alpha",
            "lora_dropout",
            "use_rslora",
            "use_dora",
            "target_modules",
        ] {
            if let Some(value) = fields.get(name) {
                let value =
                    burn_lora_io::escaped(&value.to_string()).to_string().replace('|', "\\|");
                writeln!(card, "| {name} | {value} |").ok();
            }
        }
    }
    let metrics = folder.join("metrics.jsonl");
    if metrics.is_file() {
        let records = MetricsLog::read(&metrics)?;
        let step = records.iter().rev().find_map(|record| match record {
            Record::Step(metrics) => Some(metrics),
            Record::Evaluation(_) => None,
        });
        let valid = records.iter().rev().find_map(|record| match record {
            Record::Evaluation(metrics) => Some(metrics),
            Record::Step(_) => None,
        });
        card += "\n## Figures\n\n| | |\n|---|---|\n";
        if let Some(step) = step {
            writeln!(
                card,
                "| steps | {} |\n| training loss at the end | {:.4} |",
                step.step, step.loss
            )
            .ok();
        }
        if let Some(valid) = valid {
            writeln!(card, "| validation loss (step {}) | {:.4} |", valid.step, valid.loss).ok();
        }
    }
    Ok(card)
}
