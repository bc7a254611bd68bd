//! Identity of a run: everything that determines what is learned, as values written into its
//! checkpoints. A resumed run must match them.

use crate::{TrainConfig, TrainError, data::Dataset, objective::Objective};
use burn::{
    module::{Module, ModuleVisitor, Param, ParamId},
    tensor::{Bool, DType, Int, Tensor, TensorData, kind::Basic},
};
use burn_lora_adapter::{AdaptableExt, Init};
use burn_lora_llama::CausalLm;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashSet},
    hash::Hasher,
};
use twox_hash::XxHash64;

/// Everything that determines what is learned.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    /// Settings of [`TrainConfig`], without those that may change.
    settings: Value,
    /// Micro-batches per step, over all devices.
    micro_batches: usize,
    adapters: Value,
    /// Settings of the objective.
    objective: Value,
    /// Settings of the model.
    model: Value,
    /// Quantization of each layer.
    quantization: Value,
    training_data: Value,
    validation_data: Value,
    /// Frozen parameters.
    weights: BTreeMap<String, Weights>,
}

/// Fields of an adapter's settings that do not affect its values.
const NAMES: [&str; 5] =
    ["base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"];

impl Identity {
    pub fn new<M: CausalLm>(
        config: &TrainConfig,
        objective: &dyn Objective<M>,
        model: &M,
        train: &Dataset,
        valid: Option<&Dataset>,
        micro_batches: usize,
    ) -> Result<Self, TrainError> {
        let adapters = model.adapter_configs().into_iter().map(|(name, method)| {
            let mut config = method.settings();
            let fields = config.as_object_mut().into_iter();
            fields.for_each(|fields| fields.retain(|name, _| !NAMES.contains(&name.as_str())));
            (name, config)
        });
        let quantization = model.layers().into_iter().map(|(path, layer)| {
            let settings = layer.base().map(|base| base.weight.settings());
            (path, settings.unwrap_or_default())
        });
        let valid = valid.filter(|valid| !valid.is_empty());
        Ok(Self {
            settings: config.compared(model.is_random()),
            micro_batches,
            adapters: adapters.collect::<Map<_, _>>().into(),
            objective: objective.settings(),
            model: model.settings(),
            quantization: quantization.collect::<Map<_, _>>().into(),
            training_data: taught(train),
            validation_data: valid.map_or(Value::Null, taught),
            weights: weights(model)?,
        })
    }

    /// Returns the first difference from the run as it began: the name, the value before, and the
    /// value now.
    pub fn difference(&self, before: &Self) -> Option<[String; 3]> {
        // A setting unknown to an older version had what is its default now.
        let settings: Result<TrainConfig, _> = serde_json::from_value(before.settings.clone());
        let settings = settings.map(|settings| settings.compared(true));
        let mut settings = settings.unwrap_or_else(|_| before.settings.clone());
        if let (Value::Object(before), Value::Object(now)) = (&mut settings, &self.settings) {
            before.retain(|name, _| now.contains_key(name));
        }
        let pairs = [
            ("", &settings, &self.settings),
            ("micro-batches a step", &before.micro_batches.into(), &self.micro_batches.into()),
            ("adapters", &before.adapters, &self.adapters),
            ("objective", &before.objective, &self.objective),
            ("model", &before.model, &self.model),
            ("quantization", &before.quantization, &self.quantization),
        ];
        let settings =
            pairs.into_iter().find_map(|(name, before, now)| difference(name, before, now));
        settings.or_else(|| {
            let data = [
                ("training data", &before.training_data, &self.training_data),
                ("validation data", &before.validation_data, &self.validation_data),
            ];
            data.into_iter().find_map(|(name, before, now)| contents_difference(name, before, now))
        })
    }

    /// Returns `true` if an adapter's initialisation has changed the base.
    pub fn has_computed_base(&self) -> bool {
        let inits = self.adapters.as_object().into_iter().flat_map(Map::values);
        let inits = inits.filter_map(|adapter| adapter["init_lora_weights"].as_str()?.parse().ok());
        inits.into_iter().any(|init: Init| init.is_residual() || matches!(init, Init::Loftq { .. }))
    }

    /// Returns the first changed parameter of the base: its name, the value before, and the value
    /// now.
    pub fn other_weights(&self, before: &Self) -> Option<[String; 3]> {
        let paths: Vec<_> = before.weights.keys().chain(self.weights.keys()).collect();
        paths.into_iter().find_map(|path| {
            let [before, now] = [before, self].map(|run| run.weights.get(path));
            let same = before.zip(now).is_some_and(|(before, now)| before.is(now));
            let shown = |weights: Option<&Weights>| weights.map_or("none".into(), Weights::show);
            (!same).then(|| [path.clone(), shown(before), shown(now)])
        })
    }
}

/// First value that differs, by its path. A missing value is `null`: an older version did not know
/// it.
pub(crate) fn difference(path: &str, before: &Value, now: &Value) -> Option<[String; 3]> {
    if let (Value::Object(before), Value::Object(now)) = (before, now) {
        // The field `name` says what the other fields are about.
        let first = std::iter::once("name");
        let names = before.keys().chain(now.keys()).map(String::as_str);
        return first.chain(names).find_map(|name| {
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let [before, now] =
                [before, now].map(|fields| fields.get(name).unwrap_or(&Value::Null));
            difference(&path, before, now)
        });
    }
    let [was, is] = [before, now].map(|value| match value {
        Value::Null => "not set".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    (before != now).then(|| {
        let [was, is] = shortened(was, is);
        [path.to_owned(), was, is]
    })
}

/// Shortens two long texts to the part around their first difference.
fn shortened(was: String, is: String) -> [String; 2] {
    const MOST: usize = 80;
    if was.len().max(is.len()) <= MOST {
        return [was, is];
    }
    let common = was.chars().zip(is.chars()).take_while(|(a, b)| a == b).count();
    [was, is].map(|text| {
        let skipped = common.saturating_sub(MOST / 4);
        let mut short: String = text.chars().skip(skipped).take(MOST).collect();
        if skipped > 0 {
            short.insert(0, '…');
        }
        if text.chars().count() > skipped + MOST {
            short.push('…');
        }
        short
    })
}

/// First difference of the [contents] of data.
pub(crate) fn contents_difference(name: &str, before: &Value, now: &Value) -> Option<[String; 3]> {
    // Other samples differ in order, too.
    let parts = ["samples", "tokens and masks", "order", "teacher"];
    let of = |part: &&str| difference(&format!("{name}: {part}"), &before[*part], &now[*part]);
    parts.iter().find_map(of)
}

/// The [contents] of data, with the teacher whose predictions are beside them.
fn taught(data: &Dataset) -> Value {
    let mut found = contents(data);
    if let Some(rows) = data.top_logits() {
        found["teacher"] = rows.identity();
    }
    found
}

/// Hashes of the tokens, loss masks and numbers of all samples, and of the order of the samples.
pub(crate) fn contents(data: &Dataset) -> Value {
    let columns = data.given_values();
    let hash = |index: usize| {
        let sample = data.sample(index);
        let mut hash = XxHash64::with_seed(0);
        hash.write(bytemuck::cast_slice(&sample.ids));
        sample.loss_mask.iter().for_each(|trained| hash.write_u8((*trained).into()));
        hash.write(bytemuck::cast_slice(data.token_labels(index)));
        columns.values().for_each(|column| hash.write_u32(column[index].to_bits()));
        hash.finish()
    };
    let hashes: Vec<u64> = (0..data.len()).into_par_iter().map(hash).collect();
    let all = hashes.iter().fold(0u64, |all, hash| all.wrapping_add(*hash));
    let order = XxHash64::oneshot(0, bytemuck::cast_slice(&hashes));
    let shown = |hash| format!("{hash:016x}");
    json!({ "samples": data.len(), "tokens and masks": shown(all), "order": shown(order) })
}

/// Fingerprint of a parameter's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Weights {
    dtype: DType,
    shape: Vec<usize>,
    values: Values,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Values {
    /// The root of the sum of squares, and a sum with position-dependent signs: two tensors whose
    /// values differ by rounding compare as equal, two that differ in one value do not. (DoRA's
    /// norms, and bases that gave up a part, are computed on the device, which may add in another
    /// order.)
    Sums(f64, f64),
    /// A hash: of codes, every bit counts.
    Hash(String),
}

impl Weights {
    fn is(&self, other: &Self) -> bool {
        if (self.dtype, &self.shape) != (other.dtype, &other.shape) {
            return false;
        }
        match (&self.values, &other.values) {
            (Values::Sums(norm, sum), Values::Sums(other_norm, other_sum)) => {
                let most = 1e-6 * norm.max(*other_norm);
                (norm - other_norm).abs() <= most && (sum - other_sum).abs() <= most
            }
            (one, other) => one == other,
        }
    }

    fn show(&self) -> String {
        let values = match &self.values {
            Values::Sums(norm, sum) => format!("with the norm {norm} and the checksum {sum}"),
            Values::Hash(hash) => format!("with the hash {hash}"),
        };
        format!("{:?} {:?} {values}", self.dtype, self.shape)
    }
}

/// Number of values read from the device at a time.
const PIECE: usize = 1 << 22;

/// Hash of the frozen parameters of a model.
pub(crate) fn weights_hash<M: Module>(model: &M) -> Result<String, TrainError> {
    let found = serde_json::to_vec(&weights(model)?).expect("it has no other keys than strings");
    Ok(format!("{:016x}", XxHash64::oneshot(0, &found)))
}

fn weights<M: Module>(model: &M) -> Result<BTreeMap<String, Weights>, TrainError> {
    let mut read = Read { path: vec![], seen: HashSet::new(), found: Ok(BTreeMap::new()) };
    model.visit(&mut read);
    read.found
}

struct Read {
    path: Vec<String>,
    seen: HashSet<ParamId>,
    found: Result<BTreeMap<String, Weights>, TrainError>,
}

impl Read {
    /// Adds a parameter.
    fn visit<const D: usize, K: Basic>(&mut self, id: ParamId, value: Tensor<D, K>) {
        let (dtype, shape) = (value.dtype(), value.dims().to_vec());
        // A shared parameter, such as a tied head, counts once.
        if self.found.is_err() || !self.seen.insert(id) {
            return;
        }
        let count: usize = shape.iter().product();
        let flat = value.reshape([count]);
        let mut sums = dtype.is_float().then_some((0.0, 0.0));
        let mut hash = XxHash64::with_seed(0);
        for from in (0..count).step_by(PIECE) {
            let piece = flat.clone().narrow(0, from, PIECE.min(count - from));
            let data = match piece.try_into_data() {
                Ok(data) => data,
                Err(error) => {
                    return self.found = Err(TrainError::device("reading a weight", error));
                }
            };
            match &mut sums {
                Some(sums) => *sums = add(*sums, data, from),
                None => hash.write(data.as_bytes()),
            }
        }
        let values = match sums {
            Some((squares, sum)) => Values::Sums(squares.sqrt(), sum),
            None => Values::Hash(format!("{:016x}", hash.finish())),
        };
        let found = self.found.as_mut().expect("nothing has failed yet");
        found.insert(self.path.join("."), Weights { dtype, shape, values });
    }
}

/// Adds values to the sums of those before them. Values that are not finite count as zero.
fn add((squares, sum): (f64, f64), data: TensorData, from: usize) -> (f64, f64) {
    let values: Vec<f32> = data.convert::<f32>().try_into_vec().expect("float32");
    let chunks: Vec<(f64, f64)> = values
        .par_chunks(1 << 16)
        .enumerate()
        .map(|(chunk, values)| {
            let first = from + (chunk << 16);
            values.iter().enumerate().fold((0.0, 0.0), |(squares, sum), (at, value)| {
                let value = if value.is_finite() { f64::from(*value) } else { 0.0 };
                // The highest bit of multiples of the golden ratio: signs without a pattern.
                let sign = ((first + at) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 63;
                (squares + value * value, if sign == 0 { sum + value } else { sum - value })
            })
        })
        .collect();
    chunks.into_iter().fold((squares, sum), |all, chunk| (all.0 + chunk.0, all.1 + chunk.1))
}

impl ModuleVisitor for Read {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !param.is_require_grad() {
            self.visit(param.id, param.val().inner());
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.visit(param.id, param.val());
    }

    fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
        self.visit(param.id, param.val());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Sample;

    /// What the trainer computes of the samples may differ from device to device; what a user gives is part of the data.
    #[test]
    fn derived_numbers_are_no_part_of_the_data() {
        let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
        let data = Dataset::from_samples([sample.clone(), sample]).unwrap();
        let derived = |value| data.clone().with_derived("ref_logps", vec![value, 0.0]);
        assert_eq!(contents(&derived(1.0)), contents(&derived(1.5)));
        let given = |value| data.clone().with_values("ref_logps", [value, 0.0]).unwrap();
        assert_ne!(contents(&given(1.0)), contents(&given(1.5)));
    }
}
