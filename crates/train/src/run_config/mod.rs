//! All settings of a run in one value: model, adapter, data, training.

mod adapter;
mod data;
mod file;
mod head_objectives;
mod heads;
mod hub;
mod metrics;
mod model;
mod objective;
mod report;
mod start;
mod teach;
mod teacher;
mod tokens;

pub(crate) use file::with_nearest;
#[cfg(feature = "hub")]
pub(crate) use hub::wrong as wrong_id;

pub use data::DataConfig;
pub use heads::{ClassesConfig, LabelsConfig, RewardConfig, RunModel, TargetsConfig};
pub use hub::HubConfig;
pub use metrics::MetricsConfig;
pub use model::{Compute, ModelConfig, Precision};
pub use objective::ObjectiveConfig;
pub use start::RunData;
pub use teacher::TeacherConfig;
pub use tokens::{TokensConfig, TrainTokens};

use crate::{
    config::{Every, TrainConfig},
    error::TrainError,
    place::Place,
    plan::MemoryBudget,
    schedule::Warmup,
};
use burn_lora_adapter::LoraConfig;
use burn_lora_llama::GenerateConfig;
use serde::{Deserialize, Serialize};

/// Settings of a fine-tuning run: the sections of a run file, in TOML.
///
/// A run is made of layers, each of which overrides those before: the [default](Self::default), a
/// [file](Self::with_file), [single settings](Self::with_setting). An unknown name is an error that
/// says where it is and which name is nearest. [`run`](Self::run) does all that a run needs; the
/// methods that it consists of are public, for programs that want to show something in between.
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let [file, data, out] = ["run.toml", "data.jsonl", "out"].map(|name| folder.path().join(name));
/// # let line = "{\"prompt\": \"hello\", \"completion\": \" world\"}\n";
/// # std::fs::write(&data, line.repeat(4)).unwrap();
/// # let line = "{\"prompt\": \"hello\", \"completion\": \" world\"}\n";
/// std::fs::write(&file, "
///     devices = ['cpu']
///     [model]
///     path = '../../testdata/quickstart/model'
///     [adapter]
///     r = 8
///     target_modules = ['q_proj', 'v_proj']
///     [train]
///     epochs = 2
/// ").unwrap();
///
/// let mut run = RunConfig::from_file(&file)?.with_setting("train.learning_rate=1e-3")?;
/// run.data.files = vec![data];
/// run.train.output = Some(out.clone());
/// let report = run.run()?; // the adapter is in `out`
/// assert_eq!(report.finished.steps, 2);
/// # assert!(out.join("adapter_model.safetensors").exists());
///
/// let error = run.with_setting("train.learning_rte=1e-3").unwrap_err();
/// assert!(error.to_string().contains("nearest: `learning_rate`"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Devices to train on: several are used side by side
    /// ([`Trainer::devices`](crate::Trainer::devices)).
    pub devices: Vec<Place>,
    /// Memory that a step may take: with one, layers whose activations fit are not run again, as
    /// many as [`within_budget`](Self::within_budget) finds. It decides in place of
    /// [`TrainConfig::recompute`].
    pub memory_budget: Option<MemoryBudget>,
    /// `[model]`: the base, and how it is loaded.
    pub model: ModelConfig,
    /// `[tokens]`: tokens that the vocabulary gets.
    pub tokens: TokensConfig,
    /// `[adapter]`: a new adapter. In a file it has PEFT's names, and an unknown one is an error.
    #[serde(with = "adapter")]
    pub adapter: LoraConfig,
    /// `[data]`: the examples, and how they become samples.
    pub data: DataConfig,
    /// `[objective]`: what is trained on.
    pub objective: ObjectiveConfig,
    /// `[metrics]`: what evaluations compute beside the loss.
    pub metrics: MetricsConfig,
    /// `[train]`: the settings of the trainer.
    pub train: TrainConfig,
    /// `[generate]`: how the model answers when it is shown.
    pub generate: GenerateConfig,
    /// `[hub]`: where the output folder is uploaded.
    pub hub: HubConfig,
}

/// Name of the file of a run's settings in its output folder.
pub(crate) const RUN: &str = "run.toml";

impl Default for RunConfig {
    /// QLoRA of rank 16 on all linear layers, three epochs in steps of 16 examples, with a
    /// checkpoint each 100 steps.
    fn default() -> Self {
        Self {
            devices: vec![Place::default()],
            memory_budget: None,
            model: ModelConfig::default(),
            tokens: TokensConfig::default(),
            adapter: LoraConfig::new(16, 32).all_linear(),
            data: DataConfig::default(),
            objective: ObjectiveConfig::default(),
            metrics: MetricsConfig::default(),
            train: TrainConfig::new(2e-4)
                .epochs(3)
                .batch_size(4)
                .gradient_accumulation_steps(4)
                .warmup(Self::WARMUP)
                .save(Every::Steps(100)),
            generate: GenerateConfig::default(),
            hub: HubConfig::default(),
        }
    }
}

impl RunConfig {
    /// Warm-up of a schedule that has one, if nothing is said of it.
    const WARMUP: Warmup = Warmup::Ratio(0.03);

    /// Returns these settings with what follows from others: with validation data, and nothing said
    /// of evaluations, one per epoch; no default warm-up of a schedule that has none. [`trainer`](Self::trainer) does so by itself.
    ///
    /// ```
    /// use burn_lora_train::{Every, RunConfig};
    ///
    /// let run = RunConfig::default().with_setting("data.valid_split=0.05")?;
    /// assert_eq!(run.completed().train.evaluate, Some(Every::Epochs(1)));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn completed(&self) -> Self {
        let mut run = self.clone();
        if run.data.has_validation() && run.train.evaluate.is_none() {
            run.train.evaluate = Some(Every::Epochs(1));
        }
        if run.train.warmup == Self::WARMUP && !run.train.schedule.warms_up() {
            run.train.warmup = Warmup::Steps(0);
        }
        run
    }

    /// Checks, before anything is loaded, that all settings are there that a run needs, and that
    /// they are valid.
    ///
    /// ```
    /// use burn_lora_train::RunConfig;
    ///
    /// let error = RunConfig::default().validate().unwrap_err();
    /// assert!(error.to_string().starts_with("`model.path` is not set"));
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Missing`] for the first setting that a run needs and that is not set
    /// - [`TrainError::Setting`] for the first setting of `[data]` that is invalid, or contradicts
    ///   another
    /// - [`TrainError::Settings`] for the first of another section
    pub fn validate(&self) -> Result<(), TrainError> {
        let Self { devices, model, data, train, .. } = self;
        let missing = |name, needed| Err(TrainError::Missing { name, needed });
        if devices.is_empty() {
            return missing("devices", "name one at least, such as `auto`");
        }
        if model.path.is_none() {
            return missing("model.path", "name a folder, a .gguf file or a model id");
        }
        if data.files.is_empty() {
            return missing("data.files", "name a file at least");
        }
        if train.output.is_none() {
            return missing("train.output", "name a folder");
        }
        data.validate()?;
        self.objective.validate()?;
        if let (Some(needed), Some(format)) = (self.objective.format(), data.format)
            && format != needed
        {
            let reason =
                "the objective compares two answers, `chosen` and `rejected`: leave it out";
            return Err(TrainError::setting("data.format", format!("{format:?}"), reason));
        }
        if let (ObjectiveConfig::Distillation(teacher), Some(budget)) =
            (&self.objective, self.memory_budget)
            && teacher.loss_top_k == 0
        {
            let reason = "it does not know the teacher, which is in memory all the time: set \
                `objective.loss_top_k`, such as 64, or leave it out";
            return Err(TrainError::setting("memory_budget", budget, reason));
        }
        if train.evaluate.is_some() && !data.has_validation() {
            let reason = "there is nothing to evaluate on: set `data.valid` or `data.valid_split`, \
                or leave it out";
            return Err(TrainError::setting("train.evaluate", "set", reason));
        }
        if train.label_smoothing != 0.0 && !matches!(self.objective, ObjectiveConfig::NextToken(_))
        {
            let reason =
                "only the next-token loss has it (`dpo` and `cpo` have their own): leave it out";
            return Err(TrainError::setting(
                "train.label_smoothing",
                train.label_smoothing,
                reason,
            ));
        }
        if self.objective.head().is_some() {
            let wrong = |name, reason| Err(TrainError::setting(name, "set", reason));
            if self.metrics.exact_match {
                return wrong(
                    "metrics.exact_match",
                    "a model with a head of its own does not answer",
                );
            }
            if !self.tokens.is_empty() {
                return wrong("tokens", "a model with a head of its own gets no new tokens");
            }
        }
        if self.metrics.exact_match && !data.has_validation() {
            let reason = "there is nothing to answer: set `data.valid` or `data.valid_split`";
            return Err(TrainError::setting("metrics.exact_match", true, reason));
        }
        model.validate().map_err(|error| TrainError::settings("[model]", error))?;
        if model.adapter.is_none() {
            let lora = self.adapter.validate();
            lora.map_err(|error| TrainError::settings("[adapter]", error))?;
            self.tokens.validate(&self.adapter)?;
        }
        self.hub.validate()?;
        self.generate.validate().map_err(|error| TrainError::settings("[generate]", error))?;
        // An evaluation that validation data bring is one that `early_stopping` can rely on.
        let train = self.completed().train.validate();
        train.map_err(|error| TrainError::settings("[train]", error))
    }
}
