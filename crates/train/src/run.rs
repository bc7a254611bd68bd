//! The training loop.

use crate::{
    Every, OptimizerConfig, TrainConfig, TrainError,
    checkpoint::{self, Checkpoint, Damage, TrainerState},
    data::{Batch, Dataset, Rows},
    evaluate::{add, evaluate_with, means},
    identity::Identity,
    interrupt::Interrupt,
    metric::{Best, Validation},
    objective::Objective,
    output::Output,
    params,
    replica::{Replica, Resumed, Work},
    schedule::LearningRate,
    setup,
    team::Team,
    watch::{EvalMetrics, Finished, Observer, Started, StepMetrics, StopReason},
};
use burn::tensor::Device;
use burn_lora_llama::CausalLm;
use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Instant};

mod resume;
mod unread;

use unread::{Line, Measured, Unread};

pub(crate) struct Observers<'a>(pub Vec<Box<dyn Observer + 'a>>);

impl Observers<'_> {
    pub fn tell(
        &mut self,
        mut what: impl FnMut(&mut dyn Observer) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|observer| what(observer.as_mut()))
    }

    pub fn failed(&mut self, error: &TrainError) {
        self.0.iter_mut().for_each(|observer| observer.failed(error));
    }
}

/// State of a run in progress.
pub(crate) struct Run<'a, M> {
    config: &'a TrainConfig,
    train: &'a Dataset,
    valid: &'a Validation<'a, M>,
    best: Best,
    /// Holds the caller's model: there is no second copy of its parameters.
    pub replica: Replica<'a, M>,
    pub output: Option<Output>,
    rate: LearningRate,
    /// Micro-batches per step, over all devices.
    micro_batches: usize,
    steps_of_epoch: usize,
    progress: TrainerState,
    /// Passes over the data so far.
    epoch: f64,
    /// Step after which the run ends, to be resumed.
    pub pause: Option<usize>,
    pub resumed: Option<Resumed>,
    unread: Unread,
    pub log: Vec<StepMetrics>,
    pub evaluations: Vec<EvalMetrics>,
    pub checkpoint: Option<PathBuf>,
}

impl<'a, M: CausalLm> Run<'a, M> {
    pub fn new(
        config: &'a TrainConfig,
        objective: Arc<dyn Objective<M>>,
        model: &'a mut M,
        (train, valid): (&'a Dataset, &'a Validation<'a, M>),
        devices: &[Device],
        output: Option<Output>,
        resume: bool,
    ) -> Result<Self, TrainError> {
        let params = params::trained(&*model);
        if params.is_empty() {
            let reason = "nothing is trained: attach an adapter first (`with_adapter`)";
            return Err(TrainError::setting("model", "without trained parameters", reason));
        }
        if config.evaluate.is_some() && valid.examples().is_none() {
            let reason = "there are no validation data: give some, or leave it out";
            return Err(TrainError::setting("evaluate", "set", reason));
        }
        if config.evaluate.is_none() && !valid.metrics.is_empty() {
            let reason = "the validation data have metrics, which evaluations compute: set it";
            return Err(TrainError::setting("evaluate", "not set", reason));
        }
        let name = config.metric_for_best_model.as_deref();
        let best = Best::new(name, &*objective, &valid.metrics)?;
        let device = model.device().inner();
        let others = devices.iter().filter(|other| **other != device).cloned();
        let devices: Vec<_> = std::iter::once(device.clone()).chain(others).collect();
        if devices.len() > 1 && !devices.iter().all(setup::is_cuda) {
            let reason = "several devices are trained on through CUDA only";
            return Err(TrainError::setting("devices", devices.len(), reason));
        }
        if let Some(twice) = devices.iter().enumerate().find(|(i, d)| devices[..*i].contains(d)) {
            return Err(TrainError::setting(
                "devices",
                format!("{:?}", twice.1),
                "it is named twice",
            ));
        }
        let micro_batches = config.gradient_accumulation_steps * devices.len();
        let (steps_of_epoch, steps) = setup::steps(config, train, micro_batches)?;
        let rate = LearningRate::new(config.schedule, config.warmup, config.learning_rate, steps)?;
        let identity = match &output {
            Some(_) => Identity::new(config, &*objective, model, train, valid.data, micro_batches)?,
            None => Identity::default(),
        };
        let progress = TrainerState {
            step: 0,
            steps,
            epoch: 0,
            position: 0,
            tokens: 0,
            best: None,
            not_better: 0,
            plateau: rate.state().clone(),
            run: identity,
        };
        let factors = match config.optimizer {
            OptimizerConfig::LoraFa { .. } => setup::lora_fa(&*model, &device)?,
            _ => HashMap::new(),
        };
        let replica = Replica {
            config,
            factors,
            objective,
            groups: Arc::new(setup::groups(config, &*model, &params)),
            params: Arc::new(params),
            model,
            optimizer: config.optimizer.init(),
            device,
            devices,
            index: 0,
        };
        let mut run = Self {
            config,
            train,
            valid,
            best,
            replica,
            output,
            rate,
            micro_batches,
            steps_of_epoch,
            progress,
            epoch: 0.0,
            pause: None,
            resumed: None,
            unread: Unread::default(),
            log: Vec::new(),
            evaluations: Vec::new(),
            checkpoint: None,
        };
        run.begin(resume)?;
        Ok(run)
    }

    pub fn go(
        &mut self,
        observers: &mut Observers<'_>,
        interrupt: &Interrupt,
        team: Team<Arc<Work>>,
    ) -> Result<Finished, TrainError> {
        let begin = Instant::now();
        let started = Started {
            steps: self.progress.steps,
            epochs: self.config.epochs,
            examples: self.train.len() / self.train.samples_per_example(),
            trainable_parameters: self
                .replica
                .params
                .iter()
                .map(|p| p.shape.iter().product::<usize>())
                .sum(),
            resumed_from: self.resumed.as_ref().map(|resumed| resumed.step),
            compiles: setup::is_gpu(&self.replica.device),
        };
        observers.tell(|observer| observer.started(&started))?;
        let reason = match self.epochs(observers, interrupt, &team) {
            // A failure of another device is the cause of an error here.
            Err(error) => return Err(team.failure().unwrap_or(error)),
            Ok(reason) => reason,
        };
        team.finish()?;
        if reason != StopReason::EarlyStopping {
            self.save(observers)?;
        }
        Ok(Finished {
            steps: self.progress.step,
            seconds: begin.elapsed().as_secs_f64(),
            reason,
            best: self.progress.best,
            best_metric: self.best.name.clone(),
            loss: self.log.last().map_or(f64::NAN, |line| line.loss),
        })
    }

    fn epochs(
        &mut self,
        observers: &mut Observers<'_>,
        interrupt: &Interrupt,
        team: &Team<Arc<Work>>,
    ) -> Result<StopReason, TrainError> {
        let reason = self.steps(observers, interrupt, team)?;
        self.read_log(observers)?;
        Ok(reason)
    }

    fn steps(
        &mut self,
        observers: &mut Observers<'_>,
        interrupt: &Interrupt,
        team: &Team<Arc<Work>>,
    ) -> Result<StopReason, TrainError> {
        while self.progress.step < self.progress.steps {
            let micro_batches =
                self.train.epoch(&self.config.batches, self.progress.epoch as u64)?;
            let steps: Vec<_> = micro_batches.chunks(self.micro_batches).collect();
            while self.progress.position < steps.len() && self.progress.step < self.progress.steps {
                if self.pause.is_some_and(|pause| pause <= self.progress.step) {
                    return Ok(StopReason::Paused);
                }
                self.step(steps[self.progress.position], steps.len(), team)?;
                self.log_line(observers)?;
                let step = self.progress.step;
                let epoch_ends = self.progress.position == steps.len();
                if self.is_logged(step) {
                    self.unread.end_line();
                    // A GPU has not finished the step: its line comes while it computes the next.
                    if !setup::is_gpu(&self.replica.device) {
                        self.log_line(observers)?;
                    }
                }
                let mut better = false;
                if self.is_due(self.config.evaluate, epoch_ends) {
                    better = self.evaluate(observers)?;
                }
                if better || self.is_due(self.config.save, epoch_ends) {
                    self.save(observers)?;
                }
                if let Some(early) = self.config.early_stopping
                    && self.progress.not_better >= early.patience.max(1)
                {
                    return Ok(StopReason::EarlyStopping);
                }
                if interrupt.is_raised() {
                    return Ok(StopReason::Interrupted);
                }
            }
            self.progress.epoch += 1;
            self.progress.position = 0;
        }
        let all = self.config.max_steps.is_some_and(|most| most <= self.progress.step);
        Ok(if all { StopReason::MaxSteps } else { StopReason::Done })
    }

    fn is_due(&self, every: Option<Every>, epoch_ends: bool) -> bool {
        match every {
            None => false,
            Some(Every::Steps(steps)) => self.progress.step.is_multiple_of(steps),
            Some(Every::Epochs(epochs)) => {
                epoch_ends && (self.progress.epoch + 1).is_multiple_of(epochs)
            }
        }
    }

    fn is_logged(&self, step: usize) -> bool {
        step.is_multiple_of(self.config.log_steps) || step == self.progress.steps
    }

    /// Runs one optimizer step over some micro-batches. Nothing is read from the device.
    fn step(
        &mut self,
        rows: &[Rows],
        steps_of_epoch: usize,
        team: &Team<Arc<Work>>,
    ) -> Result<(), TrainError> {
        self.unread.begin();
        let batches: Vec<(Batch, u64)> = rows
            .iter()
            .zip(0..)
            .map(|(rows, number)| {
                let seed = setup::mix(self.config.seed, self.progress.step as u64, number);
                (self.train.batch(rows, &self.config.batches), seed)
            })
            .collect();
        let tokens: usize = batches.iter().map(|(batch, _)| batch.tokens).sum();
        let objective = &self.replica.objective;
        let count = batches.iter().map(|(batch, _)| objective.count(batch)).sum();
        let mut metric_counts = vec![0; objective.metrics().len()];
        for (batch, _) in &batches {
            add(&mut metric_counts, &objective.metric_counts(batch));
        }
        let rate = self.rate.rate(self.progress.step);
        let logged = self.is_logged(self.progress.step + 1);
        let work = Arc::new(Work { batches, count, rate, logged });
        team.send(&work)?;
        let values = self.replica.step(&work);

        self.progress.step += 1;
        self.progress.position += 1;
        self.progress.tokens += tokens as u64;
        self.epoch =
            self.progress.epoch as f64 + self.progress.position as f64 / steps_of_epoch as f64;
        self.unread.push(Measured {
            step: self.progress.step,
            values,
            count,
            metric_counts,
            tokens,
            rate,
            samples: rows.iter().flatten().flatten().copied().collect(),
            epoch: self.epoch,
            all_tokens: self.progress.tokens,
        });
        Ok(())
    }

    /// Logs all steps so far: what follows may rely on their values.
    fn read_log(&mut self, observers: &mut Observers<'_>) -> Result<(), TrainError> {
        self.log_line(observers)?;
        self.unread.end_line();
        self.log_line(observers)?;
        self.unread.pause();
        Ok(())
    }

    /// Logs the mean of the steps whose line has ended, once their values are there.
    fn log_line(&mut self, observers: &mut Observers<'_>) -> Result<(), TrainError> {
        let line = self.unread.line()?;
        let Some(Line { steps, values, seconds }) = line else { return Ok(()) };
        let Some(last) = steps.last() else { return Ok(()) };
        let names = self.replica.objective.metrics();
        let each = || steps.iter().zip(values.chunks(2 + names.len()));
        for (step, values) in each() {
            for (what, value) in [("loss", values[0]), ("norm of the gradients", values[1])] {
                if !value.is_finite() {
                    return Err(self.not_finite(step, what, value));
                }
            }
        }
        let (count, tokens): (usize, usize) =
            steps.iter().fold((0, 0), |sum, step| (sum.0 + step.count, sum.1 + step.tokens));
        let losses = each().map(|(step, values)| f64::from(values[0]) * step.count as f64);
        let loss = losses.sum::<f64>() / count.max(1) as f64;
        let last_values = each().next_back().map_or(&[][..], |(_, values)| values);
        let sums = (2..2 + names.len())
            .map(|at| each().map(|(_, values)| f64::from(values[at])).sum::<f64>());
        let mut counts = vec![0; names.len()];
        steps.iter().for_each(|step| add(&mut counts, &step.metric_counts));
        let metrics = means(&names, sums, &counts).into_iter().collect();
        let metrics = StepMetrics {
            step: last.step,
            epoch: last.epoch,
            loss,
            grad_norm: f64::from(last_values[1]),
            learning_rate: last.rate,
            num_tokens: last.all_tokens,
            metrics,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            step_seconds: seconds / steps.len() as f64,
            memory: self.replica.device.memory_pool_usage().map(|usage| usage.bytes_reserved),
        };
        observers.tell(|observer| observer.step(&metrics))?;
        self.log.push(metrics);
        Ok(())
    }

    fn not_finite(&self, step: &Measured, what: &'static str, value: f32) -> TrainError {
        let mut batch: Vec<_> =
            step.samples.iter().take(8).map(|sample| self.train.source(*sample)).collect();
        if step.samples.len() > batch.len() {
            batch.push(format!("and {} more", step.samples.len() - batch.len()));
        }
        TrainError::NotFinite {
            step: step.step,
            what,
            value: f64::from(value),
            batch: batch.join(", "),
            advice: match params::not_finite(&*self.replica.model) {
                Some(path) => format!(
                    "The model itself has weights that are infinite or not a number, in `{path}`: \
                     no setting helps; get its files again"
                ),
                None => "Lower the learning rate, clip the gradients or look at these examples; \
                         the last checkpoint is from before it"
                    .to_owned(),
            },
        }
    }

    /// Evaluates the model on the validation data. Returns `true` if it is the best so far.
    fn evaluate(&mut self, observers: &mut Observers<'_>) -> Result<bool, TrainError> {
        // A value that is not finite must not become the best.
        self.read_log(observers)?;
        let valid = self.valid.examples().expect("checked before the run");
        let Replica { objective, model, .. } = &self.replica;
        let model = model.valid();
        let mut found = evaluate_with(&**objective, &model, valid, &self.config.batches)?;
        for metric in &self.valid.metrics {
            metric.add_to(&mut found, &model, valid)?;
        }
        let metrics = EvalMetrics { step: self.progress.step, epoch: self.epoch, ..found };
        observers.tell(|observer| observer.evaluated(&metrics))?;
        self.rate.evaluated(metrics.loss);
        self.progress.plateau = self.rate.state().clone();
        let (name, value) = (&self.best.name, self.best.of(&metrics));
        if !value.is_finite() {
            let step = metrics.step;
            burn_lora_io::warn!(
                "step {step}: the validation {name} is {value}, which is never the best"
            );
        }
        // The threshold affects only the patience of early stopping.
        let before = self.progress.best.map(|(_, best)| best);
        let threshold = self.config.early_stopping.map_or(0.0, |early| early.threshold);
        let better = self.best.improves(value, before, 0.0);
        let enough = self.best.improves(value, before, threshold);
        self.progress.not_better = if enough { 0 } else { self.progress.not_better + 1 };
        if better {
            self.progress.best = Some((self.progress.step, value));
        }
        self.evaluations.push(metrics);
        Ok(better)
    }

    fn save(&mut self, observers: &mut Observers<'_>) -> Result<(), TrainError> {
        let Some(output) = &mut self.output else { return Ok(()) };
        let folder = checkpoint::folder_of(output.path(), self.progress.step);
        if self.checkpoint.as_ref() == Some(&folder) && folder.is_dir() {
            return Ok(());
        }
        output.renew()?;
        let path = output.path().to_owned();
        self.read_log(observers)?;
        let (model, limit) = (&*self.replica.model, self.config.save_total_limit);
        let state = self.replica.optimizer.state();
        let folder = checkpoint::save(&path, model, self.train, state, &self.progress, limit)?;
        observers.tell(|observer| observer.saved(&folder))?;
        self.checkpoint = Some(folder);
        Ok(())
    }

    /// Writes the adapter of the last step, and then, with `best` and if configured, the best one in its
    /// place.
    pub fn write_adapter(&mut self, best: bool) -> Result<(), TrainError> {
        let Some(output) = &mut self.output else { return Ok(()) };
        output.renew()?;
        let path = output.path().to_owned();
        self.replica.model.save_trained(&path)?;
        self.train.save_tokenizer(&path)?;
        if !self.config.load_best_at_end || !best {
            return Ok(());
        }
        let Some((step, _)) = self.progress.best else {
            let name = &self.best.name;
            burn_lora_io::warn!(
                "no validation {name} was a number: the adapter is the last step's"
            );
            return Ok(());
        };
        if step == self.progress.step {
            return Ok(());
        }
        let folder = checkpoint::folder_of(&path, step);
        let loaded = match checkpoint::read(&folder) {
            Ok(Checkpoint { tensors, .. }) => {
                checkpoint::load(&folder, tensors, self.replica.model.clone())
            }
            Err(Damage::Torn(error) | Damage::Wrong(error)) => Err(error),
        };
        match loaded {
            Ok((model, _)) => {
                *self.replica.model = model;
                self.replica.model.save_trained(&path)?;
            }
            Err(error) => burn_lora_io::warn!(
                "the best checkpoint, of step {step}, cannot be loaded ({error}): the adapter is \
                 the last step's"
            ),
        }
        Ok(())
    }
}
