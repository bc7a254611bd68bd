//! Training of a model.

use crate::{
    OptimizerConfig, Recompute, TrainConfig, TrainError,
    data::Dataset,
    files::{Metrics, Page},
    interrupt::Interrupt,
    metric::Validation,
    objective::Objective,
    output::Output,
    reference::prepare,
    run::{Observers, Run},
    setup,
    watch::{
        EvalMetrics, Finished, HtmlReport, MetricsLog, Observer, StepMetrics, StopReason,
        plot_metrics,
    },
};
use burn::tensor::Device;
use burn_lora_llama::CausalLm;
use std::{path::PathBuf, sync::Arc};

/// Results of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// End of the run.
    pub finished: Finished,
    /// Lines of the log.
    pub log: Vec<StepMetrics>,
    /// Evaluations.
    pub evaluations: Vec<EvalMetrics>,
    /// Last checkpoint written.
    pub checkpoint: Option<PathBuf>,
}

/// Trainer of the parameters of a model that require gradients: its adapters.
///
/// ```no_run
/// # use burn::tensor::Device;
/// # use burn_lora_adapter::{Adaptable, AdaptableExt, LoraConfig};
/// # use burn_lora_llama::{Llama, Tokenizer};
/// # use burn_lora_quant::QuantConfig;
/// use burn_lora_train::{Dataset, Progress, TrainConfig, Trainer};
///
/// let folder = "models/Llama-3.2-1B-Instruct";
/// let tokenizer = Tokenizer::from_pretrained(folder)?;
/// let mut model = Llama::from_pretrained(folder)
///     .quantize(QuantConfig::nf4().double_quant(true))
///     .load(&Device::default())?
///     .with_adapter(&LoraConfig::new(16, 32).all_linear())?;
/// let data = Dataset::from_files(["train.jsonl"]).max_length(1024).load(&tokenizer)?;
///
/// let config = TrainConfig::new(2e-4).epochs(1).batch_size(4).output("out");
/// let report = Trainer::new(config).observe(Progress::new()).fit(&mut model, &data, None)?;
/// println!("{:?}", report.finished); // the adapter is in out/
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Trainer<'a> {
    config: TrainConfig,
    observers: Vec<Box<dyn Observer + 'a>>,
    interrupt: Interrupt,
    devices: Vec<Device>,
    resume: bool,
    pause: Option<usize>,
    output: Option<Output>,
    page: Option<&'a mut HtmlReport>,
}

impl<'a> Trainer<'a> {
    /// Creates a trainer with these settings.
    pub fn new(config: TrainConfig) -> Self {
        let (observers, interrupt) = (Vec::new(), Interrupt::default());
        let devices = Vec::new();
        Self {
            config,
            observers,
            interrupt,
            devices,
            resume: false,
            pause: None,
            output: None,
            page: None,
        }
    }

    /// Sets which layers are run again, in place of what the settings say.
    pub fn recompute(mut self, recompute: Recompute) -> Self {
        self.config.recompute = recompute;
        self
    }

    /// Adds an observer of the run. Without one, no progress is printed.
    pub fn observe(mut self, observer: impl Observer + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Sets the report that the run is written to, in place of `report.html` in the output folder:
    /// one that has more to show than the trainer knows, or to which more is added afterwards. The
    /// trainer adds tables of the model and the data.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), burn_lora_train::TrainError> {
    /// use burn_lora_train::{RunConfig, watch::HtmlReport};
    ///
    /// let run = RunConfig::from_file("run.toml")?;
    /// let data = run.load_data()?;
    /// let mut model = run.load_model(&run.devices()?[0])?;
    /// let mut report = HtmlReport::new("out/report.html");
    /// report.example(&data.train.source(0), data.train.spans(0, &data.tokenizer)?);
    /// run.fit(run.trainer()?.html_report(&mut report), &mut model, &data)?;
    /// report.answer("After training", "Where is my parcel?", "May I have its number?");
    /// report.write()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn html_report(mut self, report: &'a mut HtmlReport) -> Self {
        self.page = Some(report);
        self
    }

    /// Sets the interrupt: raising it ends the run after the current step, with a checkpoint.
    pub fn interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Sets further devices for data-parallel training, beside the model's own: each takes
    /// [`gradient_accumulation_steps`](TrainConfig::gradient_accumulation_steps) micro-batches per
    /// step, and the gradients of the adapters are summed over all devices by Burn's collective
    /// operations, which are NCCL's. Supports the GPUs of one host, through CUDA. A device that
    /// fails ends the run with its error; if the others wait for it and nothing can wake them, it
    /// ends the process.
    pub fn devices(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.devices = devices.into_iter().map(Device::inner).collect();
        self
    }

    /// Sets whether to resume from the newest complete checkpoint in the output folder, if there is
    /// one. Nothing that affects what a step learns may have changed: settings, adapter, base
    /// model, data.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Sets a step after which the run ends with a checkpoint, [`StopReason::Paused`](crate::watch::StopReason::Paused) and
    /// the parameters of this step, whatever [`load_best_at_end`](TrainConfig::load_best_at_end) says. Unlike
    /// [`max_steps`](TrainConfig::max_steps) it does not shorten the run: the learning rate follows the course of the whole
    /// one, and a run that is [resumed](Self::resume) ends as one that never paused.
    ///
    /// ```
    /// # use burn::tensor::Device;
    /// # use burn_lora_adapter::{AdaptableExt, LoraConfig};
    /// # use burn_lora_llama::Llama;
    /// # use burn_lora_train::{Dataset, data::Sample};
    /// use burn_lora_train::{TrainConfig, Trainer, watch::StopReason};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let base = Llama::from_pretrained("../../testdata/gqa").load(&Device::default())?;
    /// # let mut model = base.with_adapter(&LoraConfig::new(4, 8).all_linear())?;
    /// # let sample = Sample { ids: (1..20).collect(), loss_mask: vec![true; 19] };
    /// # let data = Dataset::from_samples(vec![sample; 4])?;
    /// let config = TrainConfig::new(1e-3).epochs(1).output(folder.path()); // four steps
    /// let report = Trainer::new(config.clone()).pause_at(3).fit(&mut model, &data, None)?;
    /// assert_eq!((report.finished.steps, report.finished.reason), (3, StopReason::Paused));
    /// let report = Trainer::new(config).resume(true).fit(&mut model, &data, None)?;
    /// assert_eq!((report.finished.steps, report.finished.reason), (4, StopReason::Done));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn pause_at(mut self, step: impl Into<Option<usize>>) -> Self {
        self.pause = step.into();
        self
    }

    /// Claims the output folder now, rather than in [`fit`](Self::fit): errors of the folder or the
    /// settings show before data and model are loaded. From here on no other run can write into it,
    /// until this one is over.
    ///
    /// ```
    /// use burn_lora_train::{TrainConfig, Trainer};
    ///
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let folder = folder.path();
    /// let trainer = Trainer::new(TrainConfig::new(2e-4).output(folder)).claim()?;
    /// let second = Trainer::new(TrainConfig::new(2e-4).output(folder)).claim();
    /// assert!(second.err().unwrap().to_string().contains("another run"));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Setting`] if a setting is invalid, or if another run has claimed the folder or
    /// the folder has checkpoints and is not to be [resumed](Self::resume); [`TrainError::Io`] if
    /// the folder cannot be written; [`TrainError::Format`] if its `run.lock` is not a file.
    pub fn claim(mut self) -> Result<Self, TrainError> {
        self.config.validate()?;
        if let (None, Some(output)) = (&self.output, &self.config.output) {
            self.output = Some(Output::claim(output, self.resume)?);
        }
        Ok(self)
    }

    /// Trains the model, which is left without a graph, ready to generate. With an output folder,
    /// the adapter, `metrics.jsonl`, `loss.svg` and `report.html` are in it afterwards. `valid` is
    /// `None`, a data set, or one with [metrics](Validation).
    ///
    /// # Errors
    /// - [`TrainError::Setting`] if a setting is invalid, the model has no trained parameters, or
    ///   the data give no batch
    /// - [`TrainError::Example`] if a token is not in the model's vocabulary, or a sample is longer
    ///   than a packed row
    /// - [`TrainError::NotFinite`] if a loss or a gradient is not finite
    /// - [`TrainError::Device`] if a device fails
    /// - [`TrainError::Format`] if the checkpoint to resume from is damaged or does not match the
    ///   run
    /// - [`TrainError::Io`] if a file cannot be read or written
    /// - [`TrainError::Adapter`] or [`TrainError::Text`] if the adapter or its
    ///   `generation_config.json` cannot be saved
    /// - the error of an [`Observer`]
    pub fn fit<'v, M: CausalLm>(
        self,
        model: &mut M,
        train: &Dataset,
        valid: impl Into<Validation<'v, M>>,
    ) -> Result<Report, TrainError> {
        let objective = self.config.next_token();
        self.fit_with(objective, model, train, valid)
    }

    /// Trains a model on another objective than the next-token loss.
    ///
    /// # Errors
    /// As [`fit`](Self::fit), and those of [`Objective::check`].
    pub fn fit_with<'v, M: CausalLm>(
        self,
        objective: impl Objective<M> + 'static,
        model: &mut M,
        train: &Dataset,
        valid: impl Into<Validation<'v, M>>,
    ) -> Result<Report, TrainError> {
        self.fit_boxed(Arc::new(objective), model, train, valid.into())
    }

    pub(crate) fn fit_boxed<M: CausalLm>(
        self,
        objective: Arc<dyn Objective<M>>,
        model: &mut M,
        train: &Dataset,
        given: Validation<'_, M>,
    ) -> Result<Report, TrainError> {
        let Self { config, mut observers, interrupt, devices, resume, pause, output, page } =
            self.claim()?;
        config.warn_of_rate();
        for data in std::iter::once(train).chain(given.data) {
            data.check_vocabulary(model.vocabulary())?;
            objective.check(data)?;
        }
        objective.check_training(train);
        let prepare = |data| prepare(&*objective, &*model, data, &config.batches);
        let (train, examples) = (&prepare(train)?, given.data.map(prepare).transpose()?);
        let valid = Validation { data: examples.as_ref(), metrics: given.metrics };
        if let Some(output) = &config.output {
            observers.push(Box::new(Metrics(MetricsLog::new(output.join("metrics.jsonl")))));
        }
        let mut own = match (&config.output, &page) {
            (Some(output), None) => Some(HtmlReport::new(output.join("report.html"))),
            _ => None,
        };
        let mut observers = Observers(observers);
        if let Some(report) = page.or(own.as_mut()) {
            observers.0.push(Box::new(Page::new(report, &config, &*model, (train, valid.data))));
        }
        *model = model.clone().train();
        if let OptimizerConfig::LoraFa { .. } = config.optimizer {
            setup::freeze_a(model)?;
        }
        let mut run =
            Run::new(&config, objective, model, (train, &valid), &devices, output, resume)?;
        run.pause = pause;
        let team = run.replica.start_others(run.resumed.as_ref());
        let gone = run.go(&mut observers, &interrupt, team).and_then(|finished| {
            run.write_adapter(finished.reason != StopReason::Paused).map(|()| finished)
        });
        let finished = gone.inspect_err(|error| observers.failed(error))?;
        if let Some(output) = run.output.as_ref().map(Output::path) {
            train.save_generation_config(output)?;
            let plotted = plot_metrics(&output.join("metrics.jsonl"), &output.join("loss.svg"));
            if let Err(error) = plotted {
                burn_lora_io::warn!("there is no picture of the loss: {error}");
            }
        }
        let Run { log, evaluations, checkpoint, replica, output, .. } = run;
        *replica.model = replica.model.valid();
        observers.tell(|observer| observer.finished(&finished))?;
        drop(output);
        Ok(Report { finished, log, evaluations, checkpoint })
    }
}
