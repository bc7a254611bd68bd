//! Losses of the log-probabilities of whole sequences: preferences.

use super::{
    GradientSums, Objective, Outcome, Reference, floats, next_token::chunk, split, spread,
};
use crate::{
    TrainError,
    data::{Batch, Dataset, IGNORE_INDEX},
    metric::Goal,
    step,
};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_lora_kernels::{Gemm, cross_entropy, pull_back};
use burn_lora_llama::CausalLm;
use serde_json::Value;
use std::collections::BTreeMap;

/// The sequences of a batch, as a [`SequenceLoss`] sees them.
///
/// # Shapes
/// All `[sequences]` in float32, on the device of the model, in the order of [`Batch::sources`]: the two of a
/// pair one after the other, the chosen one first.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// Log-probability of each sequence: the sum over its target tokens of `log p(token | those before)`. In
    /// training it has a graph, which ends here.
    pub logps: Tensor<1>,
    /// Number of target tokens.
    pub lengths: Tensor<1>,
    /// Number of target tokens that the model ranks first.
    pub correct: Tensor<1>,
    /// Entropy of the predictions of the target tokens in nats: their sum.
    pub entropy: Tensor<1>,
    /// Mean of the logits that predict each target token: their sum.
    pub logits: Tensor<1>,
    /// Log-probability of the other tokens of each sequence, its prompt, and their number, if
    /// [`SequenceLoss::reads_prompts`].
    pub prompts: Option<[Tensor<1>; 2]>,
    /// Log-probabilities of answers to other prompts, less those by the reference model, without a graph and in any
    /// order, if [`SequenceLoss::reads_mismatched`].
    pub mismatched: Option<Tensor<1>>,
    /// Numbers beside the tokens, by name: [`Batch::values`].
    pub values: BTreeMap<String, Tensor<1>>,
}

impl Sequences {
    /// Returns the log-probabilities by the reference model.
    ///
    /// # Panics
    /// If the data have none.
    pub fn reference(&self) -> Tensor<1> {
        self.values.get(Reference::LOG_PROBS).expect("the objective has prepared the data").clone()
    }
}

/// Sums over the examples of a batch.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Sum of the losses, `[1]`, with the graph of [`Sequences::logps`].
    pub loss: Tensor<1>,
    /// Sums of the metrics, each `[1]`.
    pub metrics: Vec<Tensor<1>>,
}

/// A loss that depends on the model by the log-probabilities of whole sequences alone. [`BySequence`] is its
/// [`Objective`].
///
/// ```
/// use burn_lora_train::{data::Batch, objective::{Losses, SequenceLoss, Sequences}};
/// use serde_json::{Value, json};
///
/// /// The mean log-probability of a token, as high as possible for each sequence alike.
/// struct PerToken;
///
/// impl SequenceLoss for PerToken {
///     fn settings(&self) -> Value {
///         json!("per_token")
///     }
///
///     fn metrics(&self) -> Vec<&'static str> {
///         vec![]
///     }
///
///     fn count(&self, batch: &Batch) -> usize {
///         batch.sources.len()
///     }
///
///     fn losses(&self, sequences: &Sequences) -> Losses {
///         let Sequences { logps, lengths, .. } = sequences.clone();
///         Losses { loss: (logps / lengths).sum().neg(), metrics: vec![] }
///     }
/// }
/// ```
pub trait SequenceLoss: Send + Sync {
    /// As [`Objective::settings`].
    fn settings(&self) -> Value;

    /// As [`Objective::check`].
    ///
    /// # Errors
    /// An error if the loss cannot be computed on the data.
    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        let _ = data;
        Ok(())
    }

    /// As [`Objective::check_training`].
    fn check_training(&self, data: &Dataset) {
        let _ = data;
    }

    /// As [`Objective::reference`]: the loss finds its log-probabilities by [`Sequences::reference`].
    fn reference(&self) -> Option<Reference> {
        None
    }

    /// Returns `true` if the loss depends on the log-probabilities of the prompts, too.
    fn reads_prompts(&self) -> bool {
        false
    }

    /// As [`Objective::reads_mismatched`]: the loss finds [`Sequences::mismatched`].
    fn reads_mismatched(&self) -> bool {
        false
    }

    /// As [`Objective::metrics`].
    fn metrics(&self) -> Vec<&'static str>;

    /// As [`Objective::goal`].
    fn goal(&self, metric: &str) -> Goal {
        Goal::of(metric)
    }

    /// As [`Objective::count`].
    fn count(&self, batch: &Batch) -> usize;

    /// As [`Objective::metric_counts`].
    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        vec![self.count(batch); self.metrics().len()]
    }

    /// Computes losses and metrics of a batch.
    fn losses(&self, sequences: &Sequences) -> Losses;
}

/// Objective of a [`SequenceLoss`]. Head and log-probabilities are computed for some tokens at a time, so that the
/// logits of a batch are never all in memory; unless the head itself is trained, once.
#[derive(Clone, Copy, Debug, Default)]
pub struct BySequence<L>(pub L);

impl<M: CausalLm, L: SequenceLoss> Objective<M> for BySequence<L> {
    fn settings(&self) -> Value {
        self.0.settings()
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.0.check(data)
    }

    fn check_training(&self, data: &Dataset) {
        self.0.check_training(data);
    }

    fn reference(&self) -> Option<Reference> {
        self.0.reference()
    }

    fn reads_mismatched(&self) -> bool {
        self.0.reads_mismatched()
    }

    fn metrics(&self) -> Vec<&'static str> {
        self.0.metrics()
    }

    fn goal(&self, metric: &str) -> Goal {
        self.0.goal(metric)
    }

    fn count(&self, batch: &Batch) -> usize {
        self.0.count(batch)
    }

    fn metric_counts(&self, batch: &Batch) -> Vec<usize> {
        self.0.metric_counts(batch)
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        mut sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let tracked = sums.is_some();
        let lift = |tensor: Tensor<1>| if tracked { tensor.autodiff() } else { tensor };
        let mismatched = self.0.reads_mismatched().then(|| lift(mismatched(model, batch)));
        let chunk = match &sums {
            Some(sums) => sums.chunk(chunk(model.vocabulary())),
            None => chunk(model.vocabulary()),
        };
        let targets = Targets::new(hidden, batch, self.0.reads_prompts(), chunk);
        let found = targets.log_probs(model, context, tracked);
        let logps = if tracked { lift(found.logps).require_grad() } else { found.logps };
        let values = batch
            .values
            .iter()
            .map(|(name, values)| (name.clone(), lift(floats(values, &targets.device))));
        let (sequences, lengths) = (targets.sequences, targets.lengths());
        let part =
            |of: &Tensor<1>, number: usize| of.clone().narrow(0, number * sequences, sequences);
        let prompts = || [part(&logps, 1), lift(part(&lengths, 1))];
        let Losses { loss, metrics } = self.0.losses(&Sequences {
            logps: part(&logps, 0),
            lengths: lift(part(&lengths, 0)),
            correct: lift(part(&found.correct, 0)),
            entropy: lift(part(&found.entropy, 0)),
            logits: lift(part(&found.logits, 0)),
            prompts: self.0.reads_prompts().then(prompts),
            mismatched,
            values: values.collect(),
        });
        let Some(sums) = &mut sums else { return Outcome { loss, metrics, grad: None } };
        let mut gradients = loss.backward();
        // None if the loss is a constant.
        let grad = logps.grad_remove(&mut gradients);
        let grad = grad.unwrap_or_else(|| Tensor::zeros_like(&logps.clone().inner()));
        let grad = targets.pull_back(model, context, found.grads, grad, sums);
        let metrics = metrics.into_iter().map(Tensor::inner).collect();
        Outcome { loss: loss.inner(), metrics, grad: Some(grad) }
    }
}

/// Computes the log-probability of each sample of a batch, `[sequences]` in float32, from the states after the last
/// layer.
pub(crate) fn log_probs<M: CausalLm>(
    model: &M,
    hidden: Tensor<3>,
    batch: &Batch,
    context: &M::Context,
) -> Tensor<1> {
    let chunk = chunk(model.vocabulary());
    Targets::new(hidden, batch, false, chunk).log_probs(model, context, false).logps
}

/// Log-probabilities of the mismatched answers of a batch, less those by the reference, `[sequences]`. They are no more
/// than read: no layer draws random numbers, and nothing is kept.
fn mismatched<M: CausalLm>(model: &M, batch: &Batch) -> Tensor<1> {
    let batch = batch.mismatched.as_deref().expect("the objective has prepared the data");
    let model = model.valid();
    let (hidden, context) = step::forward(&model, batch);
    let logps = log_probs(&model, hidden, batch, &context);
    let reference = floats(&batch.values[Reference::LOG_PROBS], &logps.device());
    logps - reference
}

/// Target tokens of a batch, with the parts of sequences that they belong to: the answers, and then the prompts if these
/// are read.
struct Targets {
    /// `[rows · sequence, hidden]`
    hidden: Tensor<2>,
    shape: [usize; 3],
    device: Device,
    places: Vec<(i32, i32)>,
    owners: Vec<Parts>,
    sequences: usize,
    /// Number of parts.
    parts: usize,
    /// Tokens of a chunk.
    chunk: usize,
}

/// The parts that a token belongs to: that of its sequence, and of a shared prompt that of the sequence after it.
#[derive(Clone, Copy)]
struct Parts {
    own: usize,
    also: Option<usize>,
}

impl Parts {
    fn all(&self) -> impl Iterator<Item = usize> + use<> {
        std::iter::once(self.own).chain(self.also)
    }
}

/// Log-probabilities of the parts, `[parts]`, and how many of their tokens are ranked first.
struct LogProbs {
    logps: Tensor<1>,
    correct: Tensor<1>,
    /// Sums of the entropies, and of the means of the logits.
    entropy: Tensor<1>,
    logits: Tensor<1>,
    /// Gradients of the summed losses of the tokens at the hidden states, chunk by chunk; `None` if they were not
    /// requested, or if the head is trained, whose gradient depends on that of the log-probabilities.
    grads: Option<Vec<Tensor<2>>>,
}

impl Targets {
    fn new(hidden: Tensor<3>, batch: &Batch, prompts: bool, chunk: usize) -> Self {
        let (shape, device) = (hidden.dims(), hidden.device());
        let [rows, length, width] = shape;
        let sequences = batch.sources.len();
        // First place of each sample.
        let mut first = vec![None; sequences];
        let owned = batch.owners().into_iter().enumerate();
        let tokens = owned.filter_map(|(place, owner)| {
            let (owner, is_target) = (owner?, batch.targets[place] != IGNORE_INDEX);
            let number = place - *first[owner].get_or_insert(place) + 1;
            let parts = match is_target {
                true => Parts { own: owner, also: None },
                false => {
                    let shares =
                        batch.shared.get(owner + 1).is_some_and(|shared| number <= *shared);
                    let also = shares.then_some(sequences + owner + 1);
                    Parts { own: sequences + owner, also }
                }
            };
            (is_target || prompts).then(|| ((place as i32, batch.ids[place + 1] as i32), parts))
        });
        let (places, owners) = tokens.unzip();
        Self {
            hidden: hidden.reshape([rows * length, width]),
            shape,
            device,
            places,
            owners,
            sequences,
            parts: if prompts { 2 * sequences } else { sequences },
            chunk,
        }
    }

    fn chunks(&self) -> impl Iterator<Item = (&[(i32, i32)], &[Parts])> {
        self.places.chunks(self.chunk).zip(self.owners.chunks(self.chunk))
    }

    fn lengths(&self) -> Tensor<1> {
        let mut lengths = vec![0.0; self.parts];
        self.owners.iter().flat_map(Parts::all).for_each(|part| lengths[part] += 1.0);
        floats(&lengths, &self.device)
    }

    /// 1 where a token belongs to a part, `[parts, tokens]`.
    fn membership(&self, owners: &[Parts]) -> Tensor<2> {
        let mut values = vec![0f32; self.parts * owners.len()];
        for (token, parts) in owners.iter().enumerate() {
            parts.all().for_each(|part| values[part * owners.len() + token] = 1.0);
        }
        let shape = [self.parts, owners.len()];
        Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
    }

    fn log_probs<M: CausalLm>(
        &self,
        model: &M,
        context: &M::Context,
        with_grads: bool,
    ) -> LogProbs {
        let zeros = || Tensor::<1>::zeros([self.parts], (&self.device, DType::F32));
        let (mut logps, mut correct) = (zeros(), zeros());
        let (mut entropies, mut means) = (zeros(), zeros());
        let mut grads = with_grads.then(Vec::new);
        for (places, owners) in self.chunks() {
            let (places, targets) = split(places, &self.device);
            let chosen = self.hidden.clone().select(0, places);
            let entropy = if grads.is_some() {
                let chosen = chosen.autodiff().require_grad();
                let logits = model.head(chosen.clone(), context);
                let entropy = cross_entropy(logits.clone().inner(), targets, 0.0);
                let mut found = pull_back(logits, entropy.grad.clone()).backward();
                let mut own = GradientSums::default();
                own.add(model, &mut found);
                let grad = chosen.grad_remove(&mut found);
                match (&mut grads, own.flat.is_empty()) {
                    (Some(grads), true) => {
                        grads.push(grad.expect("the head's input has a gradient"))
                    }
                    _ => grads = None,
                }
                entropy
            } else {
                cross_entropy(model.head(chosen, context), targets, 0.0)
            };
            // (A product adds in the same order each time.)
            let members = self.membership(owners);
            let sum = |of: Tensor<1>| {
                let column = of.reshape([owners.len(), 1]);
                Gemm::new().run(members.clone(), column).reshape([self.parts])
            };
            logps = logps - sum(entropy.loss);
            correct = correct + sum(entropy.correct);
            entropies = entropies + sum(entropy.entropy);
            means = means + sum(entropy.mean);
        }
        LogProbs { logps, correct, entropy: entropies, logits: means, grads }
    }

    /// Returns the gradient at the hidden states, given those of the log-probabilities, `[parts]`.
    fn pull_back<M: CausalLm>(
        &self,
        model: &M,
        context: &M::Context,
        grads: Option<Vec<Tensor<2>>>,
        grad: Tensor<1>,
        sums: &mut GradientSums,
    ) -> Tensor<3> {
        let dtype = self.hidden.dtype();
        // A token's loss is its negative log-probability.
        let of_tokens = |owners: &[Parts]| {
            let column = grad.clone().neg().reshape([self.parts, 1]);
            Gemm::new().trans_lhs().run(self.membership(owners), column)
        };
        let scaled =
            |grad: Tensor<2>, owners| (grad.cast(DType::F32) * of_tokens(owners)).cast(dtype);
        let chunks = self.chunks();
        let all: Vec<_> = match grads {
            Some(grads) => {
                chunks.zip(grads).map(|((_, owners), grad)| scaled(grad, owners)).collect()
            }
            None => chunks
                .map(|(places, owners)| {
                    let (places, targets) = split(places, &self.device);
                    let chosen = self.hidden.clone().select(0, places).autodiff().require_grad();
                    let logits = model.head(chosen.clone(), context);
                    let entropy = cross_entropy(logits.clone().inner(), targets, 0.0);
                    let kind = entropy.grad.dtype();
                    let grad = (entropy.grad.cast(DType::F32) * of_tokens(owners)).cast(kind);
                    let mut found = pull_back(logits, grad).backward();
                    sums.add(model, &mut found);
                    chosen.grad_remove(&mut found).expect("the head's input has a gradient")
                })
                .collect(),
        };
        spread(all, &self.places, self.shape, (&self.device, dtype))
    }
}
