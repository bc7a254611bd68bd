//! Optimizer step, on one device or on several in parallel.

use crate::{
    TrainConfig, TrainError,
    data::Batch,
    objective::{GradientSums, Objective},
    optim::{Optimizer, State, Update},
    params::{self, Trained},
    step::{self, Pair},
    team::Team,
};
use burn::{
    module::ParamId,
    tensor::{
        DType, Device, Tensor,
        distributed::{ReduceOperation, all_reduce},
    },
};
use burn_lora_kernels::{Gemm, optimizer::sum_of_squares, persist};
use burn_lora_llama::CausalLm;
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
};

/// Input of one optimizer step, for all devices.
pub(crate) struct Work {
    /// Micro-batches, with the seeds of their random numbers.
    pub batches: Vec<(Batch, u64)>,
    /// Number of target tokens in all of them.
    pub count: usize,
    pub rate: f64,
    /// Whether the measured values are read: only then do devices report a failure.
    pub logged: bool,
}

/// A model with its optimizer on one device. With several devices each has a replica: each computes
/// the gradients of its share of the micro-batches, the gradients are summed over the devices, and
/// all make the same step.
pub(crate) struct Replica<'a, M> {
    pub config: &'a TrainConfig,
    pub objective: Arc<dyn Objective<M>>,
    pub model: &'a mut M,
    pub params: Arc<Vec<Trained>>,
    /// Learning rate factor and weight decay of each parameter.
    pub groups: Arc<HashMap<ParamId, (f64, f64)>>,
    /// LoRA-FA's factor of the gradient of each B, `[rank, rank]`.
    pub factors: HashMap<ParamId, Tensor<2>>,
    pub optimizer: Box<dyn Optimizer>,
    pub device: Device,
    /// All devices, and the index of this one.
    pub devices: Vec<Device>,
    pub index: usize,
}

impl<M: CausalLm> Replica<'_, M> {
    /// Runs one optimizer step. Returns the mean loss, the norm of the gradients and the sums of
    /// the metrics; nothing is read from the device.
    pub fn step(&mut self, work: &Work) -> Tensor<1> {
        // Sums over target tokens: the divisor is the same, whatever the micro-batches.
        let zero = || Tensor::<1>::zeros([1], (&self.device, DType::F32));
        let chunk = self.config.loss_chunk;
        let mut sums = GradientSums { chunk, ..GradientSums::default() };
        // The loss, and the metrics.
        let mut totals = vec![zero(); 1 + self.objective.metrics().len()];
        let pair = Pair::new(&*self.model);
        for (batch, seed) in work.batches.iter().skip(self.index).step_by(self.devices.len()) {
            let (objective, config) = (&*self.objective, self.config.step());
            step::run(&pair, objective, batch, &config, *seed, &mut sums).add_to(&mut totals);
        }
        drop(pair);
        let mut sums = sums.flat;
        if self.devices.len() > 1 {
            for param in self.params.iter() {
                let count = param.shape.iter().product::<usize>();
                let zeros = || Tensor::zeros([count], (&self.device, DType::F32));
                let sum = sums.remove(&param.id).unwrap_or_else(zeros);
                sums.insert(param.id, self.summed(sum));
            }
            totals = totals.into_iter().map(|total| self.summed(total)).collect();
        }

        let mean = 1.0 / work.count.max(1) as f64;
        let grads = self.params.iter().filter_map(|param| sums.get(&param.id).cloned());
        let norm = sum_of_squares(grads, &self.device).sqrt() * mean;
        let factor = match self.config.max_grad_norm {
            Some(most) => ((norm.clone() + 1e-6).recip() * most).clamp_max(1.0) * mean,
            None => zero() + mean,
        };

        self.optimizer.begin();
        let mut values = params::values(&*self.model);
        let mut ids = vec![];
        let mut updates = vec![];
        for Trained { id, path, .. } in self.params.iter() {
            let (Some(param), Some(grad)) = (values.remove(path), sums.remove(id)) else {
                continue;
            };
            let (ratio, decay) = self.groups[id];
            let grad = match self.factors.get(id) {
                Some(factor) => times(grad, factor.clone()),
                None => grad,
            };
            ids.push(*id);
            updates.push(Update { path, param, grad, rate: work.rate * ratio, decay });
        }
        let new = self.optimizer.update(updates, &factor);
        let model = params::update(self.model.clone(), ids.into_iter().zip(new).collect());
        *self.model = model;
        let metrics = totals.split_off(1);
        let loss = totals.remove(0) * mean;
        Tensor::cat([loss, norm].into_iter().chain(metrics).collect(), 0)
    }

    /// Returns the sum over all devices.
    fn summed(&self, value: Tensor<1>) -> Tensor<1> {
        all_reduce(value, ReduceOperation::Sum, self.devices.clone()).resolve()
    }

    /// Starts a replica on each other device, in its own thread, with the state of this one.
    pub fn start_others(&self, resumed: Option<&Resumed>) -> Team<Arc<Work>> {
        let mut team = Team::new();
        for (index, device) in self.devices.iter().enumerate().skip(1) {
            let mut model = persist(self.model.clone().fork(&device.clone().autodiff()));
            let (device, devices) = (device.clone(), self.devices.clone());
            let (params, groups) = (self.params.clone(), self.groups.clone());
            let factors = self.factors.iter();
            let factors = factors.map(|(id, f)| (*id, f.clone().to_device(&device))).collect();
            let (config, objective) = (self.config.clone(), self.objective.clone());
            let resumed = resumed.cloned();
            team.join(format!("{device:?}"), move |work: Receiver<Arc<Work>>| {
                let mut optimizer = config.optimizer.init();
                if let Some(resumed) = resumed {
                    resumed.load(&mut *optimizer, &params, &device)?;
                }
                let (config, model) = (&config, &mut model);
                let mut replica = Replica {
                    config,
                    objective,
                    model,
                    params,
                    groups,
                    factors,
                    optimizer,
                    device,
                    devices,
                    index,
                };
                for work in work {
                    let values = replica.step(&work);
                    if work.logged {
                        let read = values.try_into_data();
                        read.map_err(|error| TrainError::device("a step", error))?;
                    }
                }
                Ok(())
            });
        }
        team
    }
}

/// Returns the gradient of B `[out, rank]`, as a vector, times a factor `[rank, rank]`.
fn times(grad: Tensor<1>, factor: Tensor<2>) -> Tensor<1> {
    let ([count], [rank, _]) = (grad.dims(), factor.dims());
    // (Burn's own product may round float32 to TF32.)
    Gemm::new().run(grad.reshape([count / rank, rank]), factor).reshape([count])
}

/// Optimizer state of a checkpoint.
#[derive(Clone)]
pub(crate) struct Resumed {
    pub step: usize,
    pub state: State,
    pub file: PathBuf,
}

impl Resumed {
    pub fn load(
        &self,
        optimizer: &mut dyn Optimizer,
        params: &[Trained],
        device: &Device,
    ) -> Result<(), TrainError> {
        let lengths = params.iter().map(|p| (p.path.clone(), p.shape.iter().product())).collect();
        optimizer.load(self.step, self.state.clone(), &lengths, &self.file, device)
    }
}
