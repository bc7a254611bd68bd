//! Model cards: the README.md of an adapter or a model on the hub.

use crate::{
    error::TrainError,
    run_config::{RUN, RunConfig},
    watch::{MetricsLog, Record},
};
use burn_lora_io::hub;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Write,
    path::{Path, PathBuf},
};

/// Writes a model card for the output folder of a run, or for another folder of an adapter or a model: base,
/// method and settings from `adapter_config.json`, data and settings of the training from `run.toml`, and
/// the last figures of `metrics.jsonl`, as far as these files are there. Of files of this machine only the
/// names are told.
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
    let run = folder.join(RUN);
    let run = run.is_file().then(|| RunConfig::from_file(&run)).transpose()?;
    let mut card = String::from("---\n");
    // Ids only: the hub refuses a card whose base is a path on somebody's disk.
    let id = hub::is_model_id(base) && !Path::new(base).exists();
    if id {
        writeln!(card, "base_model: {base}").ok();
    }
    let files = run.iter().flat_map(|run| [&run.data.files, &run.data.valid]).flatten();
    let datasets: BTreeSet<_> = files.filter_map(|file| dataset(file)).collect();
    if !datasets.is_empty() {
        card += "datasets:\n";
        card.extend(datasets.iter().map(|name| format!("- {name}\n")));
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
            let base = if id { base.into() } else { name_of(base.as_ref()) };
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
                row(&mut card, name, &value.to_string());
            }
        }
    }
    if let Some(run) = &run {
        training(&mut card, run);
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

/// The data and the settings of a run.
fn training(card: &mut String, run: &RunConfig) {
    let RunConfig { data, train, model, .. } = run;
    *card += "\n## Training\n\n| | |\n|---|---|\n";
    let named = |files: &[PathBuf]| {
        let names = files.iter().map(|file| match dataset(file) {
            Some(_) => file.display().to_string(),
            None => name_of(file),
        });
        names.collect::<Vec<_>>().join(", ")
    };
    row(card, "data", &named(&data.files));
    if data.limit > 0 {
        row(card, "examples at most", &data.limit.to_string());
    }
    if !data.valid.is_empty() {
        row(card, "validation", &named(&data.valid));
    } else if data.valid_split > 0.0 {
        row(card, "validation", &format!("{} of the data", data.valid_split));
    }
    let packing = train
        .batches
        .packing
        .map_or(String::new(), |tokens| format!(" of {tokens} tokens, packed"));
    for (name, value) in [
        ("tokens of an example at most", data.max_length.to_string()),
        ("epochs", train.epochs.to_string()),
        ("learning rate", train.learning_rate.to_string()),
        ("schedule", serde_json::to_string(&train.schedule).unwrap_or_default().replace('"', "")),
        (
            "rows of a step",
            format!("{} × {}{packing}", train.batches.size, train.gradient_accumulation_steps),
        ),
        ("format of the base", model.format.to_string()),
        ("seed", train.seed.to_string()),
    ] {
        row(card, name, &value);
    }
}

fn row(card: &mut String, name: &str, value: &str) {
    let value = burn_lora_io::escaped(value).to_string().replace('|', "\\|");
    writeln!(card, "| {name} | {value} |").ok();
}

/// The `owner/name` of a dataset on the hub.
fn dataset(file: &Path) -> Option<String> {
    file.to_str().filter(|_| !file.exists()).and_then(hub::dataset_name)
}

/// The name of a file or folder, without where it lies.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    burn_lora_io::escaped(&name.to_string_lossy()).to_string()
}
