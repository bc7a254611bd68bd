//! Distillation: a student learns a teacher's predictions.

use super::{
    GradientSums, Objective, Outcome,
    divergence::{Divergence, at_logits, divergence, row_sums},
    split, spread, total,
};
use crate::{
    TrainError,
    data::{Batch, BatchConfig, Dataset, TopLogits, TopRows},
    step,
};
use burn::tensor::{
    DType, Device, IndexingUpdateOp, Int, Tensor, TensorData, activation::log_softmax,
};
use burn_lora_kernels::pull_back;
use burn_lora_llama::CausalLm;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// Settings of a distillation, by TRL's names.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillationConfig {
    /// Which divergence of the student's predictions `q` from the teacher's `p`: 0 is the forward one, `KL(p || q)`, 1 the
    /// reverse one, `KL(q || p)`, and what lies between the Jensen-Shannon divergence
    /// `beta · KL(p || m) + (1 - beta) · KL(q || m)` with `m = (1 - beta)·q + beta·p` (arXiv:2306.13649).
    pub beta: f64,
    /// Temperature of both: logits are divided by it.
    pub temperature: f64,
    /// Whether the tokens that are not among the teacher's most probable count as one more outcome, if only those
    /// are known; otherwise only the proportions of the most probable ones do.
    pub loss_add_tail: bool,
}

impl Default for DistillationConfig {
    /// TRL's: the reverse divergence, a temperature of 1.
    fn default() -> Self {
        Self { beta: 1.0, temperature: 1.0, loss_add_tail: true }
    }
}

impl DistillationConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        let wrong = |name, found: f64, reason| Err(TrainError::setting(name, found, reason));
        if !(0.0..=1.0).contains(&self.beta) {
            return wrong("objective.beta", self.beta, "it has to be in [0, 1]");
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return wrong("objective.temperature", self.temperature, "it has to be above 0");
        }
        Ok(())
    }
}

/// Distillation (arXiv:1503.02531) as TRL's `DistillationTrainer` and `GKDTrainer`, on given answers: the mean divergence of the
/// student's predictions of the target tokens from the teacher's.
///
/// The teacher is a model with the same vocabulary ([`new`](Self::new)), or its most probable tokens that were stored before
/// ([`stored`](Self::stored), [`top_logits`]), so that it need not be in memory. Of these TRL has the forward divergence, and
/// others for a single token; here it is any divergence of the distributions over the stored tokens and the rest.
///
/// Metrics are `entropy`, that of the student's predictions at the temperature in nats, and `mean_token_accuracy`.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{
///     BatchConfig, Dataset, TrainConfig, Trainer,
///     objective::{Distillation, DistillationConfig, top_logits},
/// };
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let record = json!({ "prompt": "Price is", "completion": " $5" });
/// let data = Dataset::from_records(vec![record; 8]).load(&Tokenizer::from_pretrained(folder)?)?;
/// let load = || Llama::from_pretrained(folder).load(&Device::default());
/// let (teacher, student) = (load()?, load()?);
/// let mut student = student.with_adapter(&LoraConfig::new(8, 16).all_linear())?;
/// let config = DistillationConfig { beta: 0.5, ..DistillationConfig::default() };
/// let run = || Trainer::new(TrainConfig::new(1e-3).epochs(1));
/// let report = run().fit_with(Distillation::new(config, teacher.clone()), &mut student, &data, None)?;
/// assert!(report.log[0].loss < 0.1); // there is hardly anything to learn from oneself
///
/// // Or by the 16 most probable tokens of each prediction, without the teacher.
/// let rows = top_logits(&teacher, &data, 16, config.temperature, &BatchConfig::default())?;
/// let data = data.with_top_logits(rows)?;
/// run().fit_with(Distillation::stored(config), &mut student, &data, None)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Distillation<T> {
    config: DistillationConfig,
    teacher: Option<Arc<OnDevices<T>>>,
    /// What the teacher is called.
    name: Option<String>,
}

/// A model on each device on which it was needed.
type OnDevices<T> = Mutex<Vec<(Device, T)>>;

/// No teacher: its predictions are stored.
pub type Stored = burn_lora_llama::Llama;

impl Distillation<Stored> {
    /// Creates the objective for data with [`Dataset::with_top_logits`].
    pub fn stored(config: DistillationConfig) -> Self {
        Self { config, name: None, teacher: None }
    }
}

impl<T: CausalLm> Distillation<T> {
    /// Creates the objective with a teacher.
    pub fn new(config: DistillationConfig, teacher: T) -> Self {
        let teacher = teacher.valid();
        let teacher = Some(Arc::new(Mutex::new(vec![(teacher.device(), teacher)])));
        Self { config, name: None, teacher }
    }

    /// Names the teacher: a run that is resumed has to have one of the same name.
    pub fn of_teacher(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The teacher on a device.
    fn teacher_on(&self, device: &Device) -> Option<T> {
        let mut all = self.teacher.as_ref()?.lock().expect("no thread has failed");
        if let Some((_, teacher)) = all.iter().find(|(on, _)| on == device) {
            return Some(teacher.clone());
        }
        let teacher = all[0].1.clone().fork(device);
        all.push((device.clone(), teacher.clone()));
        Some(teacher)
    }

    /// Loss, and gradient at the logits, of some predictions, given the student's log-probabilities at the temperature.
    fn loss(&self, student: Tensor<2>, teacher: Predicted) -> (Tensor<2>, Tensor<2>) {
        let DistillationConfig { beta, temperature, loss_add_tail } = self.config;
        let Predicted { logits, ids } = teacher;
        let (loss, grad) = match ids {
            None => {
                let Divergence { loss, pull } =
                    divergence(student.clone(), log_softmax(logits, 1), beta);
                (loss, at_logits(pull, student))
            }
            Some(ids) => {
                let logps = logits;
                let own = student.clone().gather(1, ids.clone());
                if loss_add_tail {
                    let [p, q] = [with_tail(logps), with_tail(own.clone())];
                    let Divergence { loss, pull } = divergence(q.clone(), p, beta);
                    let all = row_sums(pull.clone());
                    let k = own.dims()[1];
                    let of_tail = pull.clone().narrow(1, k, 1) / q.narrow(1, k, 1).exp();
                    // All tokens of the tail share its gradient.
                    let grad = student.exp() * (of_tail.clone() - all);
                    let rest = pull.narrow(1, 0, k) - own.exp() * of_tail;
                    (loss, grad.scatter(1, ids, rest, IndexingUpdateOp::Add))
                } else {
                    let [p, q] = [logps, own].map(|logps| log_softmax(logps, 1));
                    let Divergence { loss, pull } = divergence(q.clone(), p, beta);
                    let own = at_logits(pull, q);
                    let none = Tensor::zeros_like(&student);
                    (loss, none.scatter(1, ids, own, IndexingUpdateOp::Add))
                }
            }
        };
        (loss, grad / temperature)
    }
}

/// What a teacher predicts for some tokens.
struct Predicted {
    /// Logits at the temperature, `[tokens, vocabulary]` in float32; of those in `ids` if there are some.
    logits: Tensor<2>,
    /// The most probable tokens, `[tokens, k]`.
    ids: Option<Tensor<2, Int>>,
}

/// Log-probabilities of some outcomes, with that of all others at the end.
fn with_tail(logps: Tensor<2>) -> Tensor<2> {
    let rest = -row_sums(logps.clone().exp()).clamp_max(1.0 - 1e-7);
    Tensor::cat(vec![logps, rest.log1p()], 1)
}

/// Bytes that head and loss have at once: about a dozen tensors of a chunk's logits in float32.
pub(crate) fn loss_bytes(vocabulary: usize, tokens: Option<usize>) -> u64 {
    (12 * 4 * vocabulary * tokens.unwrap_or_else(|| chunk(vocabulary))) as u64
}

/// Tokens of a chunk.
fn chunk(vocabulary: usize) -> usize {
    ((1 << 24) / vocabulary.max(1)).clamp(64, 4096)
}

/// Computes a teacher's `k` most probable tokens for each target token of a data set, with their log-probabilities at a
/// temperature. Of equally probable ones those with the lower id count.
///
/// # Errors
/// [`TrainError::Setting`] if `k` is 0 or larger than the vocabulary; [`TrainError::Device`] if the device fails; as
/// [`Dataset::epoch`].
pub fn top_logits<M: CausalLm>(
    teacher: &M,
    data: &Dataset,
    k: usize,
    temperature: f64,
    batches: &BatchConfig,
) -> Result<TopLogits, TrainError> {
    data.check_vocabulary(teacher.vocabulary())?;
    DistillationConfig { temperature, ..DistillationConfig::default() }.validate()?;
    let teacher = teacher.valid();
    let most = teacher.vocabulary();
    if k == 0 || k > most {
        let reason = format!("it has to be 1 at least, and {most}, the vocabulary, at most");
        return Err(TrainError::setting("objective.loss_top_k", k, reason));
    }
    let mut found = TopLogits::empty(data, (k, temperature));
    for batch in data.in_order("reading the teacher", batches)? {
        let (hidden, context) = step::forward(&teacher, &batch);
        let [rows, length, width] = hidden.dims();
        let hidden = hidden.reshape([rows * length, width]);
        let owners = batch.owners();
        // Targets of each sample so far.
        let mut targets = vec![0; batch.sources.len()];
        for places in batch.target_places().chunks(chunk(most)) {
            let of = |(place, _): &(i32, i32)| owners[*place as usize].expect("a target");
            let samples: Vec<_> = places.iter().map(of).collect();
            let (places, _) = split(places, &hidden.device());
            let logits = teacher.head(hidden.clone().select(0, places), &context);
            let logps = log_softmax(logits.cast(DType::F32) / temperature, 1).try_into_data();
            let logps = logps.map_err(|error| TrainError::device("a teacher's logits", error))?;
            let logps: Vec<f32> = logps.try_into_vec().expect("float32");
            let rows: Vec<_> = logps.par_chunks(most).map(|row| top(row, k)).collect();
            for (sample, row) in samples.into_iter().zip(rows) {
                found.set(data, batch.sources[sample], targets[sample], &row);
                targets[sample] += 1;
            }
        }
    }
    Ok(found)
}

/// The largest values with their places, from the largest on.
fn top(values: &[f32], k: usize) -> Vec<(i32, f32)> {
    let mut all: Vec<i32> = (0..values.len() as i32).collect();
    let before =
        |a: &i32, b: &i32| values[*b as usize].total_cmp(&values[*a as usize]).then(a.cmp(b));
    if k < all.len() {
        all.select_nth_unstable_by(k, before);
        all.truncate(k);
    }
    all.sort_unstable_by(before);
    all.into_iter().map(|id| (id, values[id as usize])).collect()
}

impl<M: CausalLm, T: CausalLm> Objective<M> for Distillation<T> {
    fn settings(&self) -> Value {
        let from = if self.teacher.is_some() { "model" } else { "stored" };
        json!({ "distillation": self.config, "teacher": from, "name": self.name })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.config.validate()?;
        if data.samples_per_example() != 1 || data.has_token_labels() {
            let reason = "a distillation learns single answers, without labels";
            return Err(TrainError::setting("data", "pairs, or labels of words", reason));
        }
        if self.teacher.is_some() || data.is_empty() {
            return Ok(());
        }
        let wrong = |found: String, reason: &str| {
            Err(TrainError::setting("a teacher's logits", found, reason))
        };
        match data.top_logits() {
            None => wrong("missing".into(), "add those of `top_logits` by `with_top_logits`"),
            Some(rows) if rows.temperature != self.config.temperature => {
                let found = format!("of the temperature {}", rows.temperature);
                wrong(found, &format!("the objective has {}", self.config.temperature))
            }
            Some(_) => Ok(()),
        }
    }

    fn check_model(&self, model: &M, data: &Dataset) -> Result<(), TrainError> {
        let own = model.vocabulary();
        let of_teacher = self.teacher.as_ref().map(|all| {
            let all = all.lock().expect("no thread has failed");
            all[0].1.vocabulary()
        });
        let stored = data.top_logits().map(|rows| rows.highest() + 1);
        let fits = match of_teacher {
            Some(vocabulary) => vocabulary == own,
            None => stored.is_none_or(|least| least <= own),
        };
        if fits {
            return Ok(());
        }
        let found = of_teacher.or(stored).unwrap_or(0);
        let reason = format!(
            "the student has {own} tokens: both need the same vocabulary, or, with a teacher's most probable tokens \
             (`loss_top_k`), the teacher none that the student lacks"
        );
        Err(TrainError::setting("the teacher's vocabulary", found, reason))
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["entropy", "mean_token_accuracy"]
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        mut sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let (shape, device, dtype) = (hidden.dims(), hidden.device(), hidden.dtype());
        let [rows, length, width] = shape;
        let hidden = hidden.reshape([rows * length, width]);
        let teacher = self.teacher_on(&device).map(|teacher| {
            let (hidden, context) = step::forward(&teacher, batch);
            let width = hidden.dims()[2];
            (hidden.reshape([rows * length, width]), context, teacher)
        });
        let places = batch.target_places();
        let zero = || Tensor::<1>::zeros([1], (&device, DType::F32));
        let (mut sum, mut entropies, mut correct) = (zero(), zero(), zero());
        let mut grads = vec![];
        let size = chunk(model.vocabulary());
        let size = sums.as_ref().map_or(size, |sums| sums.chunk(size));
        let at_temperature = |logits: Tensor<2>| logits.cast(DType::F32) / self.config.temperature;
        for (number, places) in places.chunks(size).enumerate() {
            let (places, targets) = split(places, &device);
            let predicted = match (&teacher, &batch.top_logits) {
                (Some((hidden, context, teacher)), _) => {
                    let chosen = hidden.clone().select(0, places.clone());
                    let logits = at_temperature(teacher.head(chosen, context));
                    Predicted { logits, ids: None }
                }
                (None, Some(rows)) => stored(rows, number * size, targets.dims()[0], &device),
                (None, None) => panic!("the objective has checked the data"),
            };
            let chosen = hidden.clone().select(0, places);
            let (loss, logits, student) = match &mut sums {
                None => {
                    let logits = at_temperature(model.head(chosen, context));
                    let student = log_softmax(logits.clone(), 1);
                    (self.loss(student.clone(), predicted).0, logits, student)
                }
                Some(sums) => {
                    let chosen = chosen.autodiff().require_grad();
                    let tracked = model.head(chosen.clone(), context);
                    let logits = at_temperature(tracked.clone().inner());
                    let student = log_softmax(logits.clone(), 1);
                    let (loss, grad) = self.loss(student.clone(), predicted);
                    let grad = grad.cast(tracked.dtype());
                    let mut found = pull_back(tracked, grad).backward();
                    sums.add(model, &mut found);
                    let grad = chosen.grad_remove(&mut found);
                    grads.push(grad.expect("the head's input has a gradient"));
                    (loss, logits, student)
                }
            };
            let tokens = loss.dims()[0];
            let column = |values: Tensor<2>| total(values.reshape([tokens]));
            let best = logits.clone().max_dim(1);
            let own = logits.gather(1, targets.reshape([tokens, 1]));
            sum = sum + column(loss);
            entropies = entropies - column(row_sums(student.clone().exp() * student));
            correct = correct + column(own.greater_equal(best).float());
        }
        let grad = sums.is_some().then(|| spread(grads, &places, shape, (&device, dtype)));
        Outcome { loss: sum, metrics: vec![entropies, correct], grad }
    }
}

/// The stored predictions of some targets of a batch.
fn stored(rows: &TopRows, from: usize, count: usize, device: &Device) -> Predicted {
    let (range, shape) = (from * rows.k..(from + count) * rows.k, [count, rows.k]);
    let ids = TensorData::new(rows.ids[range.clone()].to_vec(), shape);
    let logps = TensorData::new(rows.logps[range].to_vec(), shape);
    let ids = Tensor::from_data(ids, (device, DType::I32));
    Predicted { logits: Tensor::from_data(logps, (device, DType::F32)), ids: Some(ids) }
}
