//! Training a model.

use crate::{
    TrainConfig, TrainError,
    data::Dataset,
    interrupt::Interrupt,
    model::CausalLm,
    objective::Objective,
    output::Output,
    run::{Observers, Run},
    watch::{EvalMetrics, Finished, MetricsLog, Observer, Started, StepMetrics, plot_metrics},
};
use burn::tensor::Device;
use std::{path::PathBuf, sync::Arc};

/// What a run did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub finished: Finished,
    /// The lines of the log.
    pub log: Vec<StepMetrics>,
    /// The evaluations.
    pub evaluations: Vec<EvalMetrics>,
    /// The last checkpoint that was written.
    pub checkpoint: Option<PathBuf>,
}

/// Trains the parameters of a model that require gradients: its adapters.
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
    output: Option<Output>,
}

impl<'a> Trainer<'a> {
    /// A run with these settings.
    pub fn new(config: TrainConfig) -> Self {
        let (observers, interrupt) = (Vec::new(), Interrupt::default());
        Self { config, observers, interrupt, devices: Vec::new(), resume: false, output: None }
    }

    /// Tells an observer what happens. Nothing is printed without one.
    pub fn observe(mut self, observer: impl Observer + 'a) -> Self {
        self.observers.push(Box::new(observer));
        self
    }

    /// Ends the run after the step in which it is raised, with a checkpoint.
    pub fn interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Trains on these devices and the model's own side by side ("data parallel"): each takes
    /// [`gradient_accumulation_steps`](TrainConfig::gradient_accumulation_steps) micro-batches of a
    /// step, and the gradients of the adapters are summed up over all by Burn's collective
    /// operations, which are NCCL's. GPUs of one host, through CUDA. A device that fails ends the run
    /// with its error; where the others wait for it and nothing can wake them, it ends the process.
    pub fn devices(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.devices = devices.into_iter().map(Device::inner).collect();
        self
    }

    /// Goes on from the newest checkpoint in the output folder that is whole, if there is one. What a
    /// step learns may not depend on anything that has changed: settings, adapter, base, data.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Takes the output folder now, and not in [`fit`](Self::fit) only: what is wrong with it or with the
    /// settings shows before data and model are loaded. From here on no other run can write into it,
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
    /// Settings that cannot be used; a folder that cannot be written, that another run has, or that has
    /// checkpoints and is not to be [resumed](Self::resume).
    pub fn claim(mut self) -> Result<Self, TrainError> {
        self.config.validate()?;
        if let (None, Some(output)) = (&self.output, &self.config.output) {
            self.output = Some(Output::claim(output, self.resume)?);
        }
        Ok(self)
    }

    /// Trains the model, which is left without a graph, ready to generate. With an output folder the
    /// adapter, `metrics.jsonl` and `loss.svg` are in it afterwards.
    ///
    /// # Errors
    /// Settings that cannot be used; a model without trained parameters; data without samples; a
    /// loss that is not finite; a checkpoint that does not fit; files that cannot be written.
    pub fn fit<M: CausalLm>(
        self,
        model: &mut M,
        train: &Dataset,
        valid: Option<&Dataset>,
    ) -> Result<Report, TrainError> {
        let objective = self.config.next_token();
        self.fit_with(objective, model, train, valid)
    }

    /// Trains a model on another loss than the next token's.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_with<M: CausalLm>(
        self,
        objective: impl Objective<M> + 'static,
        model: &mut M,
        train: &Dataset,
        valid: Option<&Dataset>,
    ) -> Result<Report, TrainError> {
        let Self { config, mut observers, interrupt, devices, resume, output } = self.claim()?;
        for data in std::iter::once(train).chain(valid) {
            data.check_vocabulary(model.vocabulary())?;
            objective.check(data)?;
        }
        if let Some(output) = &config.output {
            observers.push(Box::new(Metrics(MetricsLog::new(output.join("metrics.jsonl")))));
        }
        let mut observers = Observers(observers);
        *model = model.clone().train();
        let objective = Arc::new(objective);
        let mut run =
            Run::new(&config, objective, model, (train, valid), &devices, output, resume)?;
        let team = run.replica.start_others(run.resumed.as_ref());
        let finished = run.go(&mut observers, &interrupt, team)?;
        run.write_adapter()?;
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

/// A log that does not end the run when a line cannot be written: there is more to lose.
struct Metrics(MetricsLog);

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
