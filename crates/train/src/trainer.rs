//! Training a model.

use crate::{
    TrainConfig, TrainError,
    data::Dataset,
    interrupt::Interrupt,
    model::CausalLm,
    run::{Observers, Run},
    watch::{EvalMetrics, Finished, MetricsLog, Observer, StepMetrics, plot_metrics},
};
use burn::tensor::Device;
use std::path::PathBuf;

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
/// # use burn_lora_adapter::{Adaptable, LoraConfig};
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
}

impl<'a> Trainer<'a> {
    /// A run with these settings.
    pub fn new(config: TrainConfig) -> Self {
        let (observers, interrupt) = (Vec::new(), Interrupt::default());
        Self { config, observers, interrupt, devices: Vec::new(), resume: false }
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
    /// operations, which are NCCL's. GPUs of one host, through CUDA.
    pub fn devices(mut self, devices: impl IntoIterator<Item = Device>) -> Self {
        self.devices = devices.into_iter().map(Device::inner).collect();
        self
    }

    /// Goes on from the last checkpoint in the output folder, if there is one.
    pub fn resume(mut self, resume: bool) -> Self {
        self.resume = resume;
        self
    }

    /// Trains the model, which is left without a graph, ready to generate. With an output folder the
    /// adapter, `metrics.jsonl` and `loss.svg` are in it afterwards.
    ///
    /// # Errors
    /// Settings that cannot be used; a model without trained parameters; data without samples; a
    /// loss that is not finite; a checkpoint that does not fit; files that cannot be written.
    pub fn fit<M: CausalLm>(
        mut self,
        model: &mut M,
        train: &Dataset,
        valid: Option<&Dataset>,
    ) -> Result<Report, TrainError> {
        self.config.validate()?;
        for data in std::iter::once(train).chain(valid) {
            data.check_vocabulary(model.vocabulary())?;
        }
        if let Some(output) = &self.config.output {
            self.observers.push(Box::new(MetricsLog::new(output.join("metrics.jsonl"))));
        }
        *model = model.clone().train();
        let mut run = Run::new(&self.config, model, train, valid, &self.devices, self.resume)?;
        let mut observers = Observers(self.observers);
        let finished = std::thread::scope(|scope| {
            run.others = run.replica.start_others(scope, run.resumed.as_ref());
            let finished = run.go(&mut observers, &self.interrupt);
            run.others.clear(); // They end when no more work comes.
            finished
        })?;
        if self.config.load_best_at_end {
            run.load_best()?;
        }
        let Run { log, evaluations, checkpoint, .. } = run;
        *model = model.valid();
        if let Some(output) = &self.config.output {
            model.save_trained(output)?;
            train.save_generation_config(output)?;
            plot_metrics(&output.join("metrics.jsonl"), &output.join("loss.svg"))?;
        }
        observers.tell(|observer| observer.finished(&finished))?;
        Ok(Report { finished, log, evaluations, checkpoint })
    }
}
