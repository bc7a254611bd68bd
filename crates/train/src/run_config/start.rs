//! From settings to a run.

use super::{
    Compute, RunConfig, RunModel,
    heads::{Head, OF_TOKENS},
};
use crate::{
    data::Dataset,
    error::TrainError,
    plan::MemoryPlan,
    recompute::Recompute,
    trainer::{Report, Trainer},
    watch::Progress,
};
use burn::tensor::Device;
use burn_lora_adapter::{AdaptableExt, LoraConfig, Method, saved_method};
use burn_lora_llama::{GenerateExt, Llama, LlamaConfig};
use burn_lora_text::Tokenizer;
use std::sync::Arc;

/// Data of a run, with the tokenizer that read them.
#[derive(Clone, Debug)]
pub struct RunData {
    /// Tokenizer of the model.
    pub tokenizer: Tokenizer,
    /// Data to train on.
    pub train: Dataset,
    /// Data to validate on.
    pub valid: Option<Dataset>,
}

impl RunConfig {
    /// Runs all of it, from nothing to the adapter in the output folder, and [shows](burn_lora_io::progress)
    /// the progress on standard error.
    ///
    /// A run that is to be resumed or interrupted, or that is shown otherwise, consists of the same
    /// parts. The output folder is claimed first, and the data are read before the model, so that
    /// errors show early:
    ///
    /// ```no_run
    /// # fn main() -> Result<(), burn_lora_train::TrainError> {
    /// use burn_lora_train::{Interrupt, Progress, RunConfig};
    ///
    /// let run = RunConfig::from_file("run.toml")?;
    /// run.validate()?;
    /// let trainer = run.trainer()?.resume(true).claim()?;
    /// run.begin()?;
    /// let mut data = run.load_data()?;
    /// println!("{}", data.train.report());
    /// let device = run.devices()?.swap_remove(0);
    /// run.teach(&mut data, &device)?;
    /// let mut model = run.load_model(&device)?;
    /// let trainer = trainer.observe(Progress::new()).interrupt(Interrupt::on_ctrl_c()?);
    /// let report = run.fit(trainer, &mut model, &data)?;
    /// run.push(&report)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`validate`](Self::validate), [`trainer`](Self::trainer), [`begin`](Self::begin),
    /// [`load_data`](Self::load_data), [`teach`](Self::teach), [`load_model`](Self::load_model),
    /// [`html_report`](Self::html_report), [`Trainer::fit`] and [`push`](Self::push).
    pub fn run(&self) -> Result<Report, TrainError> {
        burn_lora_io::progress::show();
        self.validate()?;
        let trainer = self.trainer()?.claim()?;
        self.begin()?;
        let mut data = self.load_data()?;
        let device = self.devices()?.swap_remove(0);
        self.teach(&mut data, &device)?;
        let mut model = self.load_model(&device)?;
        model.decoder().check_tokenizer(&data.tokenizer);
        let fitted = self.within_budget(model.decoder(), data.train.report().longest)?;
        let trainer = trainer.recompute(fitted.train.recompute);
        let mut report = fitted.html_report(&data)?;
        let trainer = trainer.observe(Progress::new()).html_report(&mut report);
        let report = self.fit(trainer, &mut model, &data)?;
        self.push(&report)?;
        Ok(report)
    }

    /// Returns the devices of the run: one at least, that of the model first.
    ///
    /// # Errors
    /// [`TrainError::Device`] for one that is not there or whose backend is not compiled in;
    /// [`TrainError::Missing`] if none is named.
    pub fn devices(&self) -> Result<Vec<Device>, TrainError> {
        if self.devices.is_empty() {
            let needed = "name one at least, such as `auto`";
            return Err(TrainError::Missing { name: "devices", needed });
        }
        self.devices.iter().map(|place| place.device()).collect()
    }

    /// Returns the trainer.
    ///
    /// # Errors
    /// As [`devices`](Self::devices).
    pub fn trainer(&self) -> Result<Trainer<'static>, TrainError> {
        let devices = self.devices()?;
        let trainer = Trainer::new(self.completed().train);
        Ok(if devices.len() > 1 { trainer.devices(devices) } else { trainer })
    }

    /// Loads the tokenizer of the model, or of the adapter that is trained on, with the new
    /// [tokens](Self::tokens).
    ///
    /// # Errors
    /// [`TrainError::Missing`] without a model; [`TrainError::Text`] if the tokenizer cannot be read, or
    /// a token cannot be added.
    pub fn tokenizer(&self) -> Result<Tokenizer, TrainError> {
        self.extended_tokenizer().map(|(tokenizer, _)| tokenizer)
    }

    /// Returns the tokenizer, and the ids of the tokens that were added.
    fn extended_tokenizer(&self) -> Result<(Tokenizer, Vec<u32>), TrainError> {
        let needed = "its tokenizer reads the data";
        let path = self.model.path.as_ref();
        let path = path.ok_or(TrainError::Missing { name: "model.path", needed })?;
        let mut tokenizer = match &self.model.adapter {
            Some(adapter) => Tokenizer::from_adapter(adapter, path)?,
            None => Tokenizer::from_pretrained(path)?,
        };
        let ids = self.tokens.add_to(&mut tokenizer)?;
        Ok((tokenizer, ids))
    }

    /// Reads the data, with the model's tokenizer, and splits off what is to validate on.
    ///
    /// # Errors
    /// - [`TrainError::Missing`] without a model
    /// - [`TrainError::Text`] if the tokenizer cannot be read
    /// - [`TrainError::Setting`] if the split leaves one side empty
    /// - those of [`DatasetBuilder::load`](crate::data::DatasetBuilder::load)
    pub fn load_data(&self) -> Result<RunData, TrainError> {
        let tokenizer = self.tokenizer()?;
        let builder = |files| self.objective.builder(self.data.builder(files));
        let mut data = builder(&self.data.files);
        if self.data.limit > 0 {
            data = data.limit(self.data.limit);
        }
        let data = data.load(&tokenizer)?;
        let (train, valid) = match self.data.valid.as_slice() {
            [] if self.data.valid_split == 0.0 => (data, None),
            [] => {
                let (train, valid) = data.split(self.data.valid_split, self.data.split_seed);
                if valid.is_empty() || train.is_empty() {
                    let reason = format!("of {} examples this leaves one side empty", data.len());
                    let part = self.data.valid_split;
                    return Err(TrainError::setting("data.valid_split", part, reason));
                }
                (train, Some(valid))
            }
            _ => (data, Some(builder(&self.data.valid).load(&tokenizer)?)),
        };
        let of_answers = self.objective.of_answers();
        let share = self.train.batches.share_prompts && self.model.shares_prompts();
        let ready = |data: Dataset| match of_answers {
            true => data.unpaired(),
            false => data.sharing_prompts(share),
        };
        Ok(RunData { tokenizer, train: ready(train), valid: valid.map(ready) })
    }

    /// Loads the model with its adapter, which is named `default`, and with the head that the
    /// [objective](Self::objective) needs.
    ///
    /// # Errors
    /// [`TrainError::Llama`] if the model cannot be loaded, [`TrainError::Adapter`] if the adapter
    /// cannot be added, and as [`ModelConfig::loader`](super::ModelConfig::loader).
    pub fn load_model(&self, device: &Device) -> Result<RunModel, TrainError> {
        let loader = self.model.loader()?;
        let Some(head) = self.objective.head() else {
            let mut model = loader.load(device)?;
            self.add_adapter(&mut model)?;
            return Ok(RunModel::Llama(model));
        };
        let mut model = match head.task {
            OF_TOKENS => loader.load_token_classifier(head.labels, device)?,
            _ => loader.load_classifier(head.labels, device)?,
        };
        match &self.model.adapter {
            Some(folder) => {
                model.load_adapter("default", folder)?;
                Head::check(&model, folder)?;
            }
            None => _ = model.add_adapter("default", &head.adapter(self.lora()))?,
        }
        Ok(RunModel::Classifier(model))
    }

    /// Adds the adapter to a loaded model, as `default`: a new one, or that of
    /// [`ModelConfig::adapter`](super::ModelConfig::adapter). The vocabulary grows to that of the new
    /// [tokens](Self::tokens).
    ///
    /// # Errors
    /// [`TrainError::Adapter`] if the adapter matches no layer of the model, or cannot be read;
    /// [`TrainError::Llama`] if the vocabulary of the adapter cannot grow; those of
    /// [`tokenizer`](Self::tokenizer) if there are new tokens.
    pub fn add_adapter(&self, model: &mut Llama) -> Result<(), TrainError> {
        if let Some(folder) = &self.model.adapter {
            model.load_adapter("default", folder)?;
        }
        let mut ids = vec![];
        if !self.tokens.is_empty() {
            let tokenizer;
            (tokenizer, ids) = self.extended_tokenizer()?;
            model.fit_tokenizer(&tokenizer)?;
        }
        if self.model.adapter.is_none() {
            let tied = model.config.tie_word_embeddings;
            model.add_adapter("default", &self.tokens.adapter(self.lora(), &ids, tied))?;
        }
        Ok(())
    }

    /// Returns the settings of the new adapter, with the model's path as the name of its base if
    /// they have none, and without what is trained of new [tokens](Self::tokens).
    pub fn lora(&self) -> LoraConfig {
        let lora = self.adapter.clone();
        let fields = serde_json::to_value(&lora).unwrap_or_default();
        match &self.model.path {
            Some(path) if fields["base_model_name_or_path"].is_null() => {
                lora.base_model(path.display().to_string())
            }
            _ => lora,
        }
    }

    /// Memory estimate of a training step of a model, with samples of `longest` tokens at most.
    ///
    /// ```
    /// use burn_lora_llama::LlamaConfig;
    /// use burn_lora_train::RunConfig;
    ///
    /// let config = LlamaConfig::from_file("../../testdata/gqa/config.json")?;
    /// let plan = RunConfig::default().plan(&config, 1024)?;
    /// assert!(plan.fits(24 << 30));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Settings`] or [`TrainError::Setting`] for invalid settings of the model
    /// - [`TrainError::Adapter`] if the adapter matches no layer of the model, or that of
    ///   [`ModelConfig::adapter`](super::ModelConfig::adapter) cannot be read
    pub fn plan(&self, config: &LlamaConfig, longest: usize) -> Result<MemoryPlan, TrainError> {
        let method: Arc<dyn Method> = match &self.model.adapter {
            None => {
                // Rows of any tokens take the same memory.
                let ids: Vec<u32> = (0..self.tokens.count() as u32).collect();
                let tied = config.tie_word_embeddings;
                Arc::new(self.tokens.adapter(self.lora(), &ids, tied))
            }
            Some(folder) => saved_method(folder)?,
        };
        let method = if self.objective.has_head() { Head::without(method) } else { method };
        let mut plan = MemoryPlan::new(config)
            .fp8(self.model.compute == Some(Compute::Fp8))
            .host_embeddings(self.model.host_embeddings)
            .adapter(&*method)?
            .train(&self.train)
            .length(self.train.batches.packing.unwrap_or(longest));
        let batches = &self.train.batches;
        if self.objective.of_pairs() && batches.packing.is_none() {
            plan = match batches.share_prompts && config.shares_prompts() {
                true => plan.length(2 * longest),
                false => plan.rows(2 * batches.size),
            };
        }
        plan = plan.at_loss(self.objective.bytes_at_loss(config, &self.train, longest));
        if let Some(dtype) = self.model.dtype {
            plan = plan.dtype(dtype.into());
        }
        if let Some(format) = self.model.storage()? {
            plan = plan.quantize(format);
        }
        Ok(plan)
    }

    /// Returns these settings with as little computed again as the [memory
    /// budget](Self::memory_budget) allows, for samples of `longest` tokens at most.
    ///
    /// # Errors
    /// - [`TrainError::Setting`] if a step does not fit even if all layers run again, or if the
    ///   budget is that of a device whose memory is not known
    /// - as [`plan`](Self::plan)
    pub fn within_budget(&self, model: &Llama, longest: usize) -> Result<Self, TrainError> {
        let mut run = self.clone();
        if let Some(budget) = self.memory_budget {
            let device = model.device().inner();
            let bytes = budget.bytes(&device)?;
            let plan = self.plan(&model.config, longest)?.dtype(model.dtype).on(&device);
            run.train = plan.train_within(bytes).ok_or_else(|| {
                let plan = plan.clone().train(&self.train.clone().recompute(Recompute::EveryLayer));
                let needed = plan.needed() as f64 / (1u64 << 30) as f64;
                let reason = format!(
                    "a step needs {needed:.2} GiB even if all layers run again: set a smaller \
                     `train.batches.size` or `data.max_length`, or a larger budget"
                );
                TrainError::setting("memory_budget", budget, reason)
            })?;
        }
        Ok(run)
    }

    /// Number of optimizer steps of an epoch of the run's data.
    ///
    /// # Errors
    /// As [`Dataset::epoch`].
    pub fn steps_per_epoch(&self, train: &Dataset) -> Result<usize, TrainError> {
        let a_step = self.train.gradient_accumulation_steps * self.devices.len();
        Ok(train.epoch(&self.train.batches, 0)?.len().div_ceil(a_step))
    }
}
