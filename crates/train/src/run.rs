//! The training loop.

use crate::{
    Every, TrainConfig, TrainError,
    checkpoint::{self, Place},
    data::{Batch, Dataset, Rows},
    evaluate::evaluate,
    interrupt::Interrupt,
    model::CausalLm,
    params,
    replica::{Replica, Resumed, Work},
    schedule::LearningRate,
    setup,
    watch::{EvalMetrics, Finished, Observer, Started, StepMetrics, StopReason},
};
use burn::tensor::{Device, Tensor};
use std::{
    path::PathBuf,
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

pub(crate) struct Observers<'a>(pub Vec<Box<dyn Observer + 'a>>);

impl Observers<'_> {
    pub fn tell(
        &mut self,
        mut what: impl FnMut(&mut dyn Observer) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        self.0.iter_mut().try_for_each(|observer| what(observer.as_mut()))
    }
}

/// A run under way.
pub(crate) struct Run<'a, M> {
    config: &'a TrainConfig,
    train: &'a Dataset,
    valid: Option<&'a Dataset>,
    /// With the caller's model: no second copy of its parameters is held.
    pub replica: Replica<'a, M>,
    /// Those of the other devices.
    pub others: Vec<Sender<Arc<Work>>>,
    rate: LearningRate,
    /// Micro-batches of a step, on all devices together.
    micro_batches: usize,
    steps: usize,
    progress: Place,
    /// Passes over the data so far.
    epoch: f64,
    pub resumed: Option<Resumed>,
    unread: Unread,
    pub log: Vec<StepMetrics>,
    pub evaluations: Vec<EvalMetrics>,
    pub checkpoint: Option<PathBuf>,
}

/// What has not been read from the device since the last line of the log.
#[derive(Default)]
struct Unread {
    steps: Vec<Measured>,
    since: Option<Instant>,
}

/// One optimizer step.
struct Measured {
    step: usize,
    /// Mean loss, norm of the gradients and hits, `[3]`.
    values: Tensor<1>,
    targets: usize,
    tokens: usize,
    rate: f64,
    samples: Vec<usize>,
}

impl<'a, M: CausalLm> Run<'a, M> {
    pub fn new(
        config: &'a TrainConfig,
        model: &'a mut M,
        train: &'a Dataset,
        valid: Option<&'a Dataset>,
        devices: &[Device],
        resume: bool,
    ) -> Result<Self, TrainError> {
        let params = params::trained(&*model);
        if params.is_empty() {
            let reason = "nothing is trained: attach an adapter first (`with_adapter`)";
            return Err(TrainError::setting("model", "without trained parameters", reason));
        }
        if config.evaluate.is_some() && valid.is_none_or(|valid| valid.is_empty()) {
            let reason = "there are no validation data: give some, or leave it out";
            return Err(TrainError::setting("evaluate", "set", reason));
        }
        let device = model.device().inner();
        let others = devices.iter().filter(|other| **other != device).cloned();
        let devices: Vec<_> = std::iter::once(device.clone()).chain(others).collect();
        if devices.len() > 1 && !format!("{device:?}").to_lowercase().contains("cuda") {
            let reason = "several devices are trained on through CUDA only";
            return Err(TrainError::setting("devices", devices.len(), reason));
        }
        let micro_batches = config.gradient_accumulation_steps * devices.len();
        let steps = setup::total_steps(config, train, micro_batches)?;
        let rate = LearningRate::new(config.schedule, config.warmup, config.learning_rate, steps)?;
        let progress = Place {
            step: 0,
            epoch: 0,
            position: 0,
            tokens: 0,
            best: None,
            not_better: 0,
            plateau: rate.state().clone(),
            same: setup::same(config, train, micro_batches),
        };
        let replica = Replica {
            config,
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
            replica,
            others: Vec::new(),
            rate,
            micro_batches,
            steps,
            progress,
            epoch: 0.0,
            resumed: None,
            unread: Unread::default(),
            log: Vec::new(),
            evaluations: Vec::new(),
            checkpoint: None,
        };
        run.begin(resume)?;
        Ok(run)
    }

    /// Goes on from the last checkpoint, or makes sure that none is overwritten.
    fn begin(&mut self, resume: bool) -> Result<(), TrainError> {
        let Some(output) = &self.config.output else { return Ok(()) };
        checkpoint::tidy(output);
        let Some((_, folder)) = checkpoint::list(output)?.pop_last() else { return Ok(()) };
        if !resume {
            let reason = format!(
                "it has checkpoints of an earlier run ({}): resume that one, remove them, or \
                 write into another folder",
                folder.display()
            );
            return Err(TrainError::setting("output", output.display(), reason));
        }
        let progress = checkpoint::progress(&folder)?;
        for (name, now) in &self.progress.same {
            if progress.same.get(name) != Some(now) {
                let before = progress.same.get(name).map_or("not set", String::as_str);
                let reason = format!(
                    "`{name}` was {before} and is {now}: a run goes on with the settings it began \
                     with; set it back, or write into another folder"
                );
                return Err(TrainError::format(&folder, reason));
            }
        }
        let (model, state) = checkpoint::load(&folder, self.replica.model.clone())?;
        *self.replica.model = model;
        let resumed =
            Resumed { step: progress.step, state, file: folder.join(checkpoint::TENSORS) };
        let Replica { optimizer, params, device, .. } = &mut self.replica;
        resumed.load(&mut **optimizer, params, device)?;
        self.rate.resume(progress.plateau.clone());
        self.resumed = Some(resumed);
        self.progress = progress;
        self.checkpoint = Some(folder);
        Ok(())
    }

    pub fn go(
        &mut self,
        observers: &mut Observers<'_>,
        interrupt: &Interrupt,
    ) -> Result<Finished, TrainError> {
        let begin = Instant::now();
        let started = Started {
            steps: self.steps,
            epochs: self.config.epochs,
            examples: self.train.len(),
            trainable_parameters: self
                .replica
                .params
                .iter()
                .map(|p| p.shape.iter().product::<usize>())
                .sum(),
            resumed_from: self.resumed.as_ref().map(|resumed| resumed.step),
        };
        observers.tell(|observer| observer.started(&started))?;
        let reason = self.epochs(observers, interrupt)?;
        self.read_log(observers)?;
        if reason != StopReason::EarlyStopping {
            self.save(observers)?;
        }
        Ok(Finished {
            steps: self.progress.step,
            seconds: begin.elapsed().as_secs_f64(),
            reason,
            best: self.progress.best,
            loss: self.log.last().map_or(f64::NAN, |line| line.loss),
        })
    }

    fn epochs(
        &mut self,
        observers: &mut Observers<'_>,
        interrupt: &Interrupt,
    ) -> Result<StopReason, TrainError> {
        while self.progress.step < self.steps {
            let micro_batches =
                self.train.epoch(&self.config.batches, self.progress.epoch as u64)?;
            let steps: Vec<_> = micro_batches.chunks(self.micro_batches).collect();
            while self.progress.position < steps.len() && self.progress.step < self.steps {
                self.step(steps[self.progress.position], steps.len());
                let step = self.progress.step;
                let epoch_ends = self.progress.position == steps.len();
                if step.is_multiple_of(self.config.log_steps) || step == self.steps {
                    self.read_log(observers)?;
                }
                let mut better = false;
                if self.is_due(self.config.evaluate, epoch_ends) {
                    better = self.evaluate(observers)?;
                }
                if better && self.config.output.is_some()
                    || self.is_due(self.config.save, epoch_ends)
                {
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

    /// One optimizer step over some micro-batches. Nothing is read from the device.
    fn step(&mut self, rows: &[Rows], steps_of_epoch: usize) {
        self.unread.since.get_or_insert_with(Instant::now);
        let batches: Vec<(Batch, u64)> = rows
            .iter()
            .zip(0..)
            .map(|(rows, number)| {
                let seed = setup::mix(self.config.seed, self.progress.step as u64, number);
                (self.train.batch(rows, &self.config.batches), seed)
            })
            .collect();
        let tokens: usize = batches.iter().map(|(batch, _)| batch.tokens).sum();
        let targets = batches.iter().map(|(batch, _)| batch.target_count).sum();
        let rate = self.rate.rate(self.progress.step);
        let work = Arc::new(Work { batches, targets, rate });
        for other in &self.others {
            other.send(work.clone()).expect("the other devices' threads wait for work");
        }
        let values = self.replica.step(&work);

        self.progress.step += 1;
        self.progress.position += 1;
        self.progress.tokens += tokens as u64;
        self.unread.steps.push(Measured {
            step: self.progress.step,
            values,
            targets,
            tokens,
            rate,
            samples: rows.iter().flatten().flatten().copied().collect(),
        });
        self.epoch =
            self.progress.epoch as f64 + self.progress.position as f64 / steps_of_epoch as f64;
    }

    /// Reads what the steps since the last time measured, and logs their mean.
    fn read_log(&mut self, observers: &mut Observers<'_>) -> Result<(), TrainError> {
        let Unread { steps, since } = std::mem::take(&mut self.unread);
        let (Some(last), Some(since)) = (steps.last(), since) else { return Ok(()) };
        let values = Tensor::cat(steps.iter().map(|step| step.values.clone()).collect(), 0);
        let values: Vec<f32> = values.into_data().try_into_vec().expect("float32");
        let seconds = since.elapsed().as_secs_f64();
        for (step, values) in steps.iter().zip(values.chunks(3)) {
            for (what, value) in [("loss", values[0]), ("norm of the gradients", values[1])] {
                if !value.is_finite() {
                    return Err(self.not_finite(step, what, value));
                }
            }
        }
        let (targets, tokens): (usize, usize) =
            steps.iter().fold((0, 0), |sum, step| (sum.0 + step.targets, sum.1 + step.tokens));
        let sum = |at: usize, weight: &dyn Fn(&Measured) -> f64| -> f64 {
            let all = steps.iter().zip(values.chunks(3));
            all.map(|(step, values)| f64::from(values[at]) * weight(step)).sum()
        };
        let metrics = StepMetrics {
            step: last.step,
            epoch: self.epoch,
            loss: sum(0, &|step| step.targets as f64) / targets.max(1) as f64,
            grad_norm: f64::from(values[values.len() - 2]),
            learning_rate: last.rate,
            num_tokens: self.progress.tokens,
            mean_token_accuracy: sum(2, &|_| 1.0) / targets.max(1) as f64,
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
            advice: "Lower the learning rate, clip the gradients or look at these examples; the \
                     last checkpoint is from before it",
        }
    }

    /// Goes through the validation data. Whether the loss is the best so far.
    fn evaluate(&mut self, observers: &mut Observers<'_>) -> Result<bool, TrainError> {
        // What is not finite must not become the best.
        self.read_log(observers)?;
        let valid = self.valid.expect("checked before the run");
        let found = evaluate(&*self.replica.model, valid, &self.config.batches)?;
        let metrics = EvalMetrics { step: self.progress.step, epoch: self.epoch, ..found };
        observers.tell(|observer| observer.evaluated(&metrics))?;
        self.rate.evaluated(metrics.loss);
        self.progress.plateau = self.rate.state().clone();
        let threshold = self.config.early_stopping.map_or(0.0, |early| early.threshold);
        let better = self.progress.best.is_none_or(|(_, best)| metrics.loss < best - threshold);
        if better {
            self.progress.best = Some((self.progress.step, metrics.loss));
            self.progress.not_better = 0;
        } else {
            self.progress.not_better += 1;
        }
        self.evaluations.push(metrics);
        Ok(better)
    }

    fn save(&mut self, observers: &mut Observers<'_>) -> Result<(), TrainError> {
        let Some(output) = &self.config.output else { return Ok(()) };
        let folder = checkpoint::folder_of(output, self.progress.step);
        if self.checkpoint.as_ref() == Some(&folder) {
            return Ok(());
        }
        self.read_log(observers)?;
        let (model, limit) = (&*self.replica.model, self.config.save_total_limit);
        let folder =
            checkpoint::save(output, model, self.replica.optimizer.state(), &self.progress, limit)?;
        observers.tell(|observer| observer.saved(&folder))?;
        self.checkpoint = Some(folder);
        Ok(())
    }

    pub fn load_best(&mut self) -> Result<(), TrainError> {
        let (Some((step, _)), Some(output)) = (self.progress.best, &self.config.output) else {
            return Ok(());
        };
        if step != self.progress.step {
            let folder = checkpoint::folder_of(output, step);
            let (model, _) = checkpoint::load(&folder, self.replica.model.clone())?;
            *self.replica.model = model;
        }
        Ok(())
    }
}
