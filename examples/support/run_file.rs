//! Run files: all settings of a fine-tuning run as TOML.
//!
//! A run is made of layers, each of which overrides those before: the defaults, a file, settings of
//! the command line. An unknown name is an error that says where it came from.

use super::{precision::Precision, weights::WeightFormat};
use burn_lora::{
    prelude::*,
    train::data::{Format, OnError, TrainOn, Truncation},
};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use toml::{Table, Value};

/// Settings of a run: the sections of its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunFile {
    /// `[model]`
    pub model: ModelSettings,
    /// `[adapter]`
    pub adapter: AdapterSettings,
    /// `[data]`
    pub data: DataSettings,
    /// `[train]`: the settings of the trainer.
    pub train: TrainConfig,
}

/// `[model]`: the base, and how it is loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSettings {
    /// A folder in Hugging Face's layout, a GGUF file, or with the feature `hub` an id.
    pub path: Option<PathBuf>,
    /// Storage format of the linear layers.
    pub format: WeightFormat,
    /// `true` if the scales of NF4 and FP4 are quantized too, which is the default.
    pub double_quant: Option<bool>,
    /// Number of weights that share a scale; by default that of the format.
    pub block_size: Option<usize>,
    /// Dtype of the computation and of what is not packed; by default by checkpoint and device.
    pub dtype: Option<Precision>,
    /// `true` if the embeddings stay in host memory.
    pub host_embeddings: bool,
    /// Folder of an adapter in PEFT's format to continue training, in place of a new one:
    /// `[adapter]` is not used then.
    pub adapter: Option<PathBuf>,
}

/// `[adapter]`: targets and initialization of the adapter, under PEFT's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterSettings {
    /// Rank.
    pub r: usize,
    /// Alpha: the update is scaled by alpha / rank.
    pub lora_alpha: f64,
    /// Layers to adapt: names, a regular expression, or `all-linear`.
    pub target_modules: Names,
    /// Layers to leave out.
    pub exclude_modules: Option<Names>,
    /// Layers of the decoder to adapt, by number; by default all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list that these numbers index.
    pub layers_pattern: Option<Names>,
    /// Probability that an input of the adapter is zeroed in training.
    pub lora_dropout: f64,
    /// `true` if alpha is divided by the root of the rank.
    pub use_rslora: bool,
    /// `true` if each output has a trained magnitude.
    pub use_dora: bool,
    /// Biases of the base model that are trained.
    pub bias: Bias,
    /// Layers that are trained whole: `lm_head`, `embed_tokens`.
    pub modules_to_save: Option<Vec<String>>,
    /// Initialisation: `true`, `false`, `gaussian`, `pissa`, `olora`, ..
    pub init_lora_weights: Value,
    /// Seed of the random initialisation.
    pub seed: u64,
    /// Name of the base model in the adapter's file; by default the model's path.
    pub base_model_name_or_path: Option<String>,
    /// Task in the adapter's file; by default `CAUSAL_LM`.
    pub task_type: Option<String>,
    /// Other ranks, by the end of a layer's path.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// `loftq_iter`, for LoftQ.
    pub loftq_config: Option<Table>,
}

/// One or several names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// `all-linear`, or a regular expression.
    One(String),
    /// Names of layers.
    Many(Vec<String>),
}

/// `[data]`: the examples, and how they become samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// Files to train on: `.jsonl`, `.json`, `.csv`, `.parquet`.
    pub files: Vec<PathBuf>,
    /// Files to validate on.
    pub valid: Vec<PathBuf>,
    /// Fraction of the examples to keep for validation, if no file is named; 0 is none.
    pub valid_split: f64,
    /// Seed of this split.
    pub split_seed: u64,
    /// Format of the files; by default detected from the columns.
    pub format: Option<Format>,
    /// Maximum number of tokens per example; 0 is no limit.
    pub max_length: usize,
    /// Handling of longer examples.
    pub truncation: Truncation,
    /// Tokens that are trained on; by default depends on the format.
    pub train_on: Option<TrainOn>,
    /// Handling of lines that cannot be read.
    pub on_error: OnError,
    /// Handling of examples of which no token is trained on.
    pub on_empty: OnError,
    /// `true` if prompts and instructions that are text become messages.
    pub apply_chat_template: bool,
    /// Name of the chat template, if the tokenizer has several.
    pub chat_template: Option<String>,
    /// Folder for tokens while the run lasts; by default the system's temporary folder.
    pub temp_dir: Option<PathBuf>,
    /// Variables of the chat template, such as `enable_thinking`.
    pub chat_variables: BTreeMap<String, Value>,
    /// Columns by the name that the format has for them: `prompt = "question"`.
    pub columns: BTreeMap<String, String>,
    /// Roles by their name in the data: `bard = "assistant"`.
    pub roles: BTreeMap<String, String>,
}

impl Default for RunFile {
    /// QLoRA on all linear layers, in steps of 16 examples.
    fn default() -> Self {
        Self {
            model: ModelSettings::default(),
            adapter: AdapterSettings::default(),
            data: DataSettings::default(),
            train: TrainConfig::new(2e-4)
                .epochs(3)
                .batch_size(4)
                .gradient_accumulation_steps(4)
                .warmup(Warmup::Ratio(0.03))
                .save(Every::Steps(100)),
        }
    }
}

impl Default for ModelSettings {
    fn default() -> Self {
        Self {
            path: None,
            format: WeightFormat::Nf4,
            double_quant: None,
            block_size: None,
            dtype: None,
            host_embeddings: false,
            adapter: None,
        }
    }
}

impl Default for AdapterSettings {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            target_modules: Names::One("all-linear".into()),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            bias: Bias::None,
            modules_to_save: None,
            init_lora_weights: true.into(),
            seed: 0,
            base_model_name_or_path: None,
            task_type: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            loftq_config: None,
        }
    }
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            files: vec![],
            valid: vec![],
            valid_split: 0.0,
            split_seed: 42,
            format: None,
            max_length: 2048,
            truncation: Truncation::default(),
            train_on: None,
            on_error: OnError::default(),
            on_empty: OnError::default(),
            apply_chat_template: false,
            chat_template: None,
            temp_dir: None,
            chat_variables: BTreeMap::new(),
            columns: BTreeMap::new(),
            roles: BTreeMap::new(),
        }
    }
}

/// Settings that are one of several alternatives: a layer replaces them whole. Of other tables it
/// replaces the entries that it has.
const CHOICES: [&str; 6] = ["evaluate", "optimizer", "recompute", "save", "schedule", "warmup"];

impl RunFile {
    /// Returns this run with the settings of a file.
    pub fn with_file(&self, path: &Path) -> Result<Self, String> {
        let said = |error: String| format!("{}: {error}", path.display());
        let text = fs::read_to_string(path).map_err(|error| said(error.to_string()))?;
        // Parsed from the text, since errors of the table have no lines.
        toml::from_str::<Self>(&text).map_err(|error| said(error.to_string()))?;
        let table = text.parse().map_err(|error: toml::de::Error| said(error.to_string()))?;
        self.with(&path.display().to_string(), table)
    }

    /// Returns this run with a setting, as in `train.learning_rate=1e-4`: TOML, or else text.
    pub fn with_setting(&self, setting: &str) -> Result<Self, String> {
        let origin = format!("--set {setting}");
        let Some((name, value)) = setting.split_once('=') else {
            return Err(format!("{origin}: it has to be NAME=VALUE, as in train.epochs=2"));
        };
        let text = Value::from(value.trim());
        let table = [format!("{name} = {value}"), format!("{name} = {text}")]
            .iter()
            .find_map(|line| line.parse::<Table>().ok())
            .ok_or_else(|| format!("{origin}: `{name}` is not the name of a setting"))?;
        self.with(&origin, table)
    }

    /// Returns this run with the settings of a table, which comes from `origin`.
    pub fn with(&self, origin: &str, settings: Table) -> Result<Self, String> {
        let mut table = Table::try_from(self).map_err(|error| format!("{origin}: {error}"))?;
        overlay(&mut table, settings);
        let run = table.try_into();
        run.map_err(|error| {
            format!("{origin}: {}", error.to_string().trim_end().replace('\n', " "))
        })
    }

    /// Returns the whole run as a file. Settings without a value are in comments.
    pub fn to_toml(&self) -> Result<String, String> {
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        let json = serde_json::to_value(self).map_err(|error| error.to_string())?;
        let mut out = String::new();
        for line in text.lines() {
            out += line;
            out.push('\n');
            let header = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
            let Some(name) = header else { continue };
            let section = json.pointer(&format!("/{}", name.replace('.', "/")));
            let fields = section.and_then(Json::as_object).into_iter().flatten();
            let unset: Vec<_> = fields
                .filter(|(_, value)| value.is_null())
                .map(|(name, _)| name.as_str())
                .collect();
            if !unset.is_empty() {
                out += &format!("# Not set: {}\n", unset.join(", "));
            }
        }
        Ok(out)
    }

    /// Checks, before anything is loaded, that all settings that a run needs are there.
    pub fn check(&self) -> Result<(), String> {
        let Self { model, data, train, .. } = self;
        let missing = |name: &str, flag: &str| format!("`{name}` is not set: give {flag}");
        if model.path.is_none() {
            return Err(missing("model.path", "--model FOLDER"));
        }
        if data.files.is_empty() {
            return Err(missing("data.files", "--data FILE"));
        }
        if train.output.is_none() {
            return Err(missing("train.output", "--output FOLDER"));
        }
        let split = data.valid_split;
        if !(0.0..1.0).contains(&split) {
            return Err(format!("`data.valid_split` is {split}: it has to be in [0, 1)"));
        }
        if split > 0.0 && !data.valid.is_empty() {
            return Err("`data.valid` and `data.valid_split` are both set: leave one out".into());
        }
        if train.evaluate.is_some() && split == 0.0 && data.valid.is_empty() {
            return Err(
                "`train.evaluate` is set, and there is nothing to evaluate on: give --valid \
                        FILE or --valid-split 0.05, or leave it out"
                    .into(),
            );
        }
        if data.max_length == 1 {
            let reason = "a sample needs two tokens at least, one to predict the other from";
            return Err(format!("`data.max_length` is 1: {reason}; 0 is any number"));
        }
        self.model.quantize().map_err(|error| format!("[model]: {error}"))?;
        if model.adapter.is_none() {
            let lora = self.lora().and_then(|lora| lora.validate().map_err(|e| e.to_string()));
            lora.map_err(|error| format!("[adapter]: {error}"))?;
        }
        train.validate().map_err(|error| format!("[train]: {error}"))
    }

    /// Returns the settings of the adapter.
    pub fn lora(&self) -> Result<LoraConfig, String> {
        // The names are PEFT's, so its reader takes them. By way of TOML, which has NaN and leaves
        // out what is not set.
        let table = Table::try_from(&self.adapter).map_err(|error| error.to_string())?;
        let lora: LoraConfig = table.try_into().map_err(|error| error.to_string())?;
        Ok(match (&self.adapter.base_model_name_or_path, &self.model.path) {
            (None, Some(path)) => lora.base_model(path.display().to_string()),
            _ => lora,
        })
    }
}

/// Lays the settings `above` over those `below`.
fn overlay(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above))
                if !CHOICES.contains(&name.as_str()) =>
            {
                overlay(below, above);
            }
            (_, value) => _ = below.insert(name, value),
        }
    }
}

impl ModelSettings {
    /// How the linear layers are quantized, if they are.
    pub fn quantize(&self) -> Result<Option<Arc<dyn StorageFormat>>, String> {
        let Some(mut config) = self.format.four_bits() else {
            let set = [
                ("double_quant", self.double_quant.is_some()),
                ("block_size", self.block_size.is_some()),
            ];
            let format = self.format.quantize();
            return match set.into_iter().find(|(_, set)| *set && format.is_some()) {
                Some((name, _)) => Err(format!("`{name}` goes with a format of 4 bits")),
                None => Ok(format),
            };
        };
        if let Some(twice) = self.double_quant {
            config = config.double_quant(twice);
        }
        if let Some(size) = self.block_size {
            config = config.block_size(size);
        }
        config.validate().map_err(|error| error.to_string())?;
        Ok(Some(Arc::new(config)))
    }
}

impl DataSettings {
    /// Reads files of examples with these settings.
    pub fn load(&self, files: &[PathBuf], tokenizer: &Tokenizer) -> Result<Dataset, TrainError> {
        let mut chat = ChatOptions::new();
        for (name, value) in &self.chat_variables {
            chat = chat.variable(name, value);
        }
        if let Some(name) = &self.chat_template {
            chat = chat.template(name);
        }
        let mut data = Dataset::from_files(files)
            .truncation(self.truncation)
            .on_error(self.on_error)
            .on_empty(self.on_empty)
            .apply_chat_template(self.apply_chat_template)
            .chat_options(chat);
        for (name, from) in &self.columns {
            data = data.column(name, from);
        }
        for (name, role) in &self.roles {
            data = data.role(name, role);
        }
        if self.max_length > 0 {
            data = data.max_length(self.max_length);
        }
        if let Some(format) = self.format {
            data = data.format(format);
        }
        if let Some(train_on) = self.train_on {
            data = data.train_on(train_on);
        }
        if let Some(folder) = &self.temp_dir {
            data = data.temp_dir(folder);
        }
        data.load(tokenizer)
    }
}
