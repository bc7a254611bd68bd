//! Options of a run: those of `train`, `preview`, `sweep` and, of the data, `eval`.

use crate::options;
use burn_lora::{prelude::*, train::ObjectiveConfig};
use clap::Args;
use serde_json::json;
use std::{error::Error, path::PathBuf};

fn set<T: Clone, S: From<T>>(setting: &mut S, given: &Option<T>) {
    if let Some(value) = given {
        *setting = value.clone().into();
    }
}

/// A run file, and the options over it that say which data are read, and how.
#[derive(Args)]
pub struct DataOptions {
    /// Run file; examples/configs has some
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Files with data: .jsonl, .json, .csv, .parquet
    #[arg(long, value_name = "FILE", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Maximum number of tokens per example
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<usize>,
    /// Maximum number of examples of the data, the first ones
    #[arg(long, value_name = "EXAMPLES")]
    limit: Option<usize>,
    /// Any setting of the run file, as in train.neftune=5; may be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
}

impl DataOptions {
    /// Reads the run file, if one is given.
    pub fn file(&self) -> Result<RunConfig, TrainError> {
        match &self.config {
            Some(file) => RunConfig::from_file(file),
            None => Ok(RunConfig::default()),
        }
    }

    /// Returns `true` if a run file is given.
    pub fn has_file(&self) -> bool {
        self.config.is_some()
    }

    /// Files that the options name.
    pub fn files(&self) -> &[PathBuf] {
        &self.data
    }

    /// Returns a run with the options and `--set` over it.
    pub fn over(&self, mut run: RunConfig) -> Result<RunConfig, Box<dyn Error>> {
        if !self.data.is_empty() {
            run.data.files.clone_from(&self.data);
        }
        set(&mut run.data.max_length, &self.max_length);
        set(&mut run.data.limit, &self.limit);
        for setting in &self.set {
            run = run.with_setting(setting).map_err(|error| format!("--set {error}"))?;
        }
        Ok(run)
    }
}

/// A run file, and options over it.
#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    data: DataOptions,
    /// A folder in Hugging Face's layout, a .gguf file, or a model id (feature `hub`)
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Files to validate on
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "valid_split")]
    valid: Vec<PathBuf>,
    /// Fraction of the data to keep for validation, such as 0.05
    #[arg(long, value_name = "PART")]
    valid_split: Option<f64>,
    /// Folder for adapter, checkpoints, metrics and report
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// auto, cuda, cuda:1, vulkan, wgpu, metal or cpu; cuda:0,cuda:1 trains on both [default: auto]
    #[arg(long, value_delimiter = ',')]
    device: Vec<Place>,
    /// Passes over the data
    #[arg(long)]
    epochs: Option<f64>,
    /// Maximum number of optimizer steps
    #[arg(long)]
    max_steps: Option<usize>,
    /// Peak learning rate
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Rank of the adapter
    #[arg(long)]
    rank: Option<usize>,
    /// Alpha of the adapter: the update is scaled by alpha / rank
    #[arg(long)]
    alpha: Option<f64>,
    /// Rows per micro-batch
    #[arg(long, value_name = "ROWS")]
    batch_size: Option<usize>,
    /// Micro-batches per optimizer step
    #[arg(long, value_name = "COUNT")]
    gradient_accumulation_steps: Option<usize>,
    /// What is trained on: next_token; of pairs of answers dpo, orpo or cpo; of single answers kto; of a teacher's
    /// predictions distillation [default: next_token]
    #[arg(long, value_name = "NAME")]
    objective: Option<String>,
    /// Teacher of a distillation
    #[arg(long, value_name = "MODEL")]
    teacher: Option<PathBuf>,
    /// Storage format of the linear layers
    #[arg(long, value_parser = options::format())]
    format: Option<WeightFormat>,
    /// Seed of everything random
    #[arg(long)]
    seed: Option<u64>,
    /// Folder of an adapter to continue training, in place of a new one
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
}

impl RunOptions {
    /// Builds the run from its layers: defaults, file, options, `--set`.
    pub fn run(&self) -> Result<RunConfig, Box<dyn Error>> {
        Ok(self.over(self.file()?)?.completed())
    }

    /// Reads the run file, if one is given.
    pub fn file(&self) -> Result<RunConfig, TrainError> {
        self.data.file()
    }

    /// Returns a run with the options and `--set` over it.
    pub fn over(&self, mut run: RunConfig) -> Result<RunConfig, Box<dyn Error>> {
        if let Some(rank) = self.rank {
            run = run.with("adapter.r", rank)?;
        }
        if let Some(alpha) = self.alpha {
            run = run.with("adapter.lora_alpha", alpha)?;
        }
        self.apply(&mut run);
        if let Some(name) = &self.objective {
            // The settings of the file stay if they are those of this objective.
            let known = serde_json::to_value(&run.objective)?["name"] == name.as_str();
            if !known {
                run.objective = serde_json::from_value(json!({ "name": name }))
                    .map_err(|error| format!("--objective {name}: {error}"))?;
            }
        }
        let mut run = self.data.over(run)?;
        if let Some(teacher) = &self.teacher {
            let ObjectiveConfig::Distillation(config) = &mut run.objective else {
                return Err("--teacher: only `--objective distillation` has one".into());
            };
            config.teacher_model_name_or_path = Some(teacher.clone());
        }
        Ok(run)
    }

    /// Applies the options to a run.
    fn apply(&self, run: &mut RunConfig) {
        let RunConfig { devices, model, adapter, data, train, .. } = run;
        if !self.device.is_empty() {
            devices.clone_from(&self.device);
        }
        set(&mut model.path, &self.model);
        set(&mut model.format, &self.format);
        set(&mut model.adapter, &self.adapter);
        if let Some(seed) = self.seed {
            *adapter = adapter.clone().seed(seed);
            *train = train.clone().seed(seed);
        }
        if !self.valid.is_empty() {
            (data.valid, data.valid_split) = (self.valid.clone(), 0.0);
        }
        if let Some(part) = self.valid_split {
            (data.valid, data.valid_split) = (vec![], part);
        }
        set(&mut train.output, &self.output);
        set(&mut train.epochs, &self.epochs);
        set(&mut train.max_steps, &self.max_steps);
        set(&mut train.learning_rate, &self.lr);
        set(&mut train.batches.size, &self.batch_size);
        set(&mut train.gradient_accumulation_steps, &self.gradient_accumulation_steps);
    }
}

/// An error of the settings, with the option that sets what is missing.
pub fn with_option(error: TrainError) -> Box<dyn Error> {
    let option = match &error {
        TrainError::Missing { name: "model.path", .. } => "--model FOLDER",
        TrainError::Missing { name: "data.files", .. } => "--data FILE",
        TrainError::Missing { name: "train.output", .. } => "--output FOLDER",
        TrainError::Missing { name: "objective.teacher_model_name_or_path", .. } => {
            "--teacher MODEL"
        }
        TrainError::Missing { name: "over", .. } => "--over NAME=VALUE,VALUE",
        _ => return error.into(),
    };
    format!("{error} ({option})").into()
}
