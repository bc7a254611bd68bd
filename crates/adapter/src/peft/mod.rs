//! Adapters as PEFT's files: what they are called there, and what has to be in them.

mod export;
mod fields;
mod file;

pub(crate) use export::export;

use crate::{
    attach,
    config::{Bias, LoraConfig, Targets},
    error::AdapterError,
    init::{
        Init,
        linalg::{tensor, to_vec},
    },
    layer::{AdaptedLayer, LayerKind},
    lora::LoraAdapter,
    model::{Layers, LayersMut},
    targets::{LayerPlan, MatchReport, minimal},
};
use burn::{module::Param, tensor::Tensor};
use file::{HostTensor, HostTensors, TENSORS};
use std::{path::Path, sync::Arc};

/// The names of a layer's tensors.
struct Keys<'a> {
    path: &'a str,
    kind: LayerKind,
}

impl Keys<'_> {
    fn key(&self, rest: &str) -> String {
        format!("base_model.model.{}.{rest}", self.path)
    }

    fn a(&self) -> String {
        self.key(if self.kind == LayerKind::Embedding {
            "lora_embedding_A"
        } else {
            "lora_A.weight"
        })
    }

    fn b(&self) -> String {
        self.key(if self.kind == LayerKind::Embedding {
            "lora_embedding_B"
        } else {
            "lora_B.weight"
        })
    }

    fn magnitude(&self) -> String {
        self.key("lora_magnitude_vector")
    }

    /// The weight of the base, which PEFT adds to the update of an embedding or a head.
    fn base_weight(&self) -> String {
        self.key("base_layer.weight")
    }

    /// The bias of the base; of a layer with an update it is one level down.
    fn base_bias(&self, adapted: bool) -> String {
        self.key(if adapted { "base_layer.bias" } else { "bias" })
    }
}

fn host<const D: usize>(param: &Param<Tensor<D>>, key: &str) -> Result<HostTensor, AdapterError> {
    let values = to_vec(param.val(), key)?;
    Ok(HostTensor { shape: param.shape().to_vec(), values })
}

/// Writes an adapter; one that started from a part of the weight as a plain one.
pub(crate) fn save(layers: &Layers<'_>, name: &str, folder: &Path) -> Result<(), AdapterError> {
    let (mut config, mut tensors) = gather(layers, name)?;
    let converted = |layer: &dyn AdaptedLayer| {
        layer.adapters().lora(name).is_some_and(|lora| lora.initial.is_some())
    };
    if layers.iter().any(|(_, layer)| converted(*layer)) {
        convert(layers, name, &mut config, &mut tensors)?;
    }
    file::write(folder, &config, &tensors)
}

/// Writes an adapter as it is.
pub(crate) fn save_as_is(
    layers: &Layers<'_>,
    name: &str,
    folder: &Path,
) -> Result<(), AdapterError> {
    let (config, tensors) = gather(layers, name)?;
    file::write(folder, &config, &tensors)
}

/// The settings and tensors of an adapter.
fn gather(layers: &Layers<'_>, name: &str) -> Result<(LoraConfig, HostTensors), AdapterError> {
    let mut tensors = HostTensors::new();
    let mut config = None;
    let (mut adapted, mut others) = (vec![], vec![]);
    for (path, layer) in layers {
        let keys = Keys { path, kind: layer.kind() };
        let mut put = |key: String, param: Result<HostTensor, AdapterError>| {
            param.map(|param| tensors.insert(key, param)).map(drop)
        };
        if let Some(lora) = layer.adapters().lora(name) {
            adapted.push(path.as_str());
            config = Some(lora.config());
            put(keys.a(), host(&lora.lora_a, path))?;
            put(keys.b(), host(&lora.lora_b, path))?;
            if let Some(magnitude) = &lora.magnitude {
                put(keys.magnitude(), host(magnitude, path))?;
            }
        } else {
            others.push(path.as_str());
        }
        if let Some(saved) = layer.adapters().saved(name) {
            config = Some(saved.config());
            let mut weight = host(&saved.weight, path)?;
            if layer.kind() == LayerKind::Vector {
                weight.shape.pop();
            }
            put(keys.key("weight"), Ok(weight))?;
            if let Some(bias) = &saved.bias {
                put(keys.key("bias"), host(bias, path))?;
            }
        }
    }
    let mut config = LoraConfig::clone(config.expect("the adapter is known"));
    for (path, layer) in layers {
        if let Some((key, bias)) = trained_bias(path, *layer, name, &config) {
            tensors.insert(key, host(bias, path)?);
        }
    }
    if let Init::Loftq { config, .. } = config.init
        && config != burn_lora_quant::QuantConfig::nf4()
    {
        burn_lora_io::warn!(
            "the file cannot say that LoftQ was made for {config:?}: load it onto a base packed so"
        );
    }
    if config.targets == Some(Targets::AllLinear) {
        config.targets = Some(Targets::Names(minimal(&adapted, &others)));
    }
    Ok((config, tensors))
}

/// The bias of the base that an adapter trains, and its name.
fn trained_bias<'a>(
    path: &str,
    layer: &'a dyn AdaptedLayer,
    name: &str,
    config: &LoraConfig,
) -> Option<(String, &'a Param<Tensor<1>>)> {
    let adapted = layer.adapters().lora(name).is_some();
    let keys = Keys { path, kind: layer.kind() };
    let saved = layer.adapters().saved(name).is_some();
    let bias = layer.bias().filter(|_| trains_bias(config, adapted, saved))?;
    Some((keys.base_bias(adapted), bias))
}

/// Whether the base's bias is trained; of a layer that is trained whole it is the copy's.
fn trains_bias(config: &LoraConfig, adapted: bool, saved: bool) -> bool {
    match config.bias {
        Bias::None => false,
        Bias::All => !saved,
        Bias::LoraOnly => adapted,
    }
}

/// Makes the difference from the start of it, `s·(B·A - B₀·A₀)`, of an adapter that started from a
/// part of the weight: `A' = [A; A₀]`, `B' = [B, -B₀]`. It fits the weight as it was.
fn convert(
    layers: &Layers<'_>,
    name: &str,
    config: &mut LoraConfig,
    tensors: &mut HostTensors,
) -> Result<(), AdapterError> {
    for (path, layer) in layers {
        let Some(lora) = layer.adapters().lora(name) else { continue };
        let Some(initial) = &lora.initial else { continue };
        if layer.packed().is_some() {
            burn_lora_io::warn!(
                "`{path}` is packed: the plain adapter fits the weight before it was packed, and \
                 another error than that of the residual comes with it"
            );
        }
        let keys = Keys { path, kind: layer.kind() };
        let [a0, b0] = &**initial;
        let a = tensors.get_mut(&keys.a()).expect("it was gathered");
        let rank = a.shape[0];
        a.shape[0] *= 2;
        a.values.extend(a0);
        let b = tensors.get_mut(&keys.b()).expect("it was gathered");
        b.shape[1] *= 2;
        let rows = b.values.chunks(rank).zip(b0.chunks(rank));
        b.values =
            rows.flat_map(|(b, b0)| b.iter().copied().chain(b0.iter().map(|b| -b))).collect();
    }
    let factor = if config.rslora { 2f64.sqrt() } else { 2.0 };
    config.rank *= 2;
    config.alpha *= factor;
    config.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
    config.alpha_pattern.values_mut().for_each(|alpha| *alpha *= factor);
    config.init = Init::Kaiming;
    Ok(())
}

/// Attaches an adapter from its files. Nothing changes before all of them has been checked.
pub(crate) fn load(
    mut layers: LayersMut<'_>,
    head: &str,
    name: &str,
    folder: &Path,
) -> Result<MatchReport, AdapterError> {
    let (config, mut tensors) = file::read(folder)?;
    attach::check_name(&layers, name)?;
    let planned = attach::plan(&layers, head, &config, false);
    let (plans, report) =
        planned.map_err(|error| file::format(&folder.join(file::CONFIG), error.to_string()))?;
    attach::check_plans(&layers, &plans, &config, true)?;
    check(&layers, &plans, &config, &tensors, &folder.join(TENSORS))?;

    let config = Arc::new(config);
    for ((path, layer), plan) in layers.iter_mut().zip(plans) {
        let keys = Keys { path, kind: layer.kind() };
        let device = layer.device();
        let mut take = |key: String| tensors.remove(&key).map(|tensor| tensor.values);
        match plan {
            Some(LayerPlan::Lora { rank, alpha }) => {
                let [out, width] = layer.shape();
                let values = |tensor: Option<Vec<f32>>| tensor.expect("it was checked");
                let a = tensor(values(take(keys.a())), [rank, width], &device);
                let b = tensor(values(take(keys.b())), [out, rank], &device);
                if let Some(values) = take(keys.base_weight()) {
                    let weight = match layer.kind() {
                        LayerKind::Embedding => tensor(values, [width, out], &device).transpose(),
                        _ => tensor(values, [out, width], &device),
                    };
                    layer.set_weight(weight.inner());
                }
                let magnitude = take(keys.magnitude()).map(|m| tensor(m, [out], &device));
                attach_loaded(&mut **layer, path, name, &config, alpha, [a, b], magnitude)?;
            }
            Some(LayerPlan::Save) => {
                let mut saved = attach::copy(&**layer, name, &config);
                let values = take(keys.key("weight")).expect("it was checked");
                let shape = saved.weight.shape().dims();
                saved.weight = saved.weight.map(|_| tensor(values, shape, &device));
                if let Some(values) = take(keys.key("bias")) {
                    let shape = [values.len()];
                    saved.bias = saved.bias.map(|b| b.map(|_| tensor(values, shape, &device)));
                }
                layer.adapters_mut().saved.push(saved);
            }
            None => {}
        }
        let adapted = layer.adapters().lora(name).is_some();
        if let Some(values) = take(keys.base_bias(adapted))
            && let Some(bias) = layer.bias_mut()
        {
            let (shape, dtype) = ([values.len()], bias.val().dtype());
            *bias = bias.clone().map(|_| tensor(values, shape, &device).cast(dtype));
        }
    }
    attach::finish(layers, name);
    Ok(report)
}

/// Puts an update from a file onto its layer. Where its initialisation changed the base, the base is
/// changed again, as PEFT does.
fn attach_loaded(
    layer: &mut dyn AdaptedLayer,
    path: &str,
    name: &str,
    config: &Arc<LoraConfig>,
    alpha: f64,
    [a, b]: [Tensor<2>; 2],
    magnitude: Option<Tensor<1>>,
) -> Result<(), AdapterError> {
    let quantizes = matches!(config.init, Init::Loftq { .. }) && layer.packed().is_none();
    if layer.kind() == LayerKind::Linear && (config.init.is_residual() || quantizes) {
        attach::attach(layer, path, name, config, a.dims()[0], alpha, None)?;
    } else {
        let lora = LoraAdapter::new(name, config.clone(), alpha, a.clone(), b.clone());
        attach::push(layer, lora);
    }
    let lora = layer.adapters_mut().lora_mut(name).expect("it was attached");
    lora.lora_a = lora.lora_a.clone().map(|_| a);
    lora.lora_b = lora.lora_b.clone().map(|_| b);
    if let (Some(param), Some(magnitude)) = (&mut lora.magnitude, magnitude) {
        *param = param.clone().map(|_| magnitude);
    }
    Ok(())
}

/// The shape that a layer's weight has in files.
fn file_shape(kind: LayerKind, [out, width]: [usize; 2]) -> Vec<usize> {
    match kind {
        LayerKind::Linear => vec![out, width],
        LayerKind::Embedding => vec![width, out],
        LayerKind::Vector => vec![out],
    }
}

/// Whether the file has what the settings and the model ask for, and nothing else.
fn check(
    layers: &LayersMut<'_>,
    plans: &[Option<LayerPlan>],
    config: &LoraConfig,
    tensors: &HostTensors,
    path: &Path,
) -> Result<(), AdapterError> {
    let mut expected = vec![];
    for ((path, layer), plan) in layers.iter().zip(plans) {
        let keys = Keys { path, kind: layer.kind() };
        let [out, width] = layer.shape();
        let bias = layer.bias().is_some();
        let adapted = matches!(plan, Some(LayerPlan::Lora { .. }));
        match plan {
            Some(LayerPlan::Lora { rank, .. }) => {
                expected.push((keys.a(), vec![*rank, width]));
                expected.push((keys.b(), vec![out, *rank]));
                if tensors.contains_key(&keys.base_weight()) {
                    let shape = file_shape(layer.kind(), [out, width]);
                    expected.push((keys.base_weight(), shape));
                }
                if config.dora {
                    expected.push((keys.magnitude(), vec![out]));
                }
            }
            Some(LayerPlan::Save) => {
                expected.push((keys.key("weight"), file_shape(layer.kind(), [out, width])));
                if bias {
                    expected.push((keys.key("bias"), vec![out]));
                }
            }
            None => {}
        }
        if bias && trains_bias(config, adapted, *plan == Some(LayerPlan::Save)) {
            expected.push((keys.base_bias(adapted), vec![out]));
        }
    }
    let missing: Vec<_> = expected
        .iter()
        .filter(|(key, _)| !tensors.contains_key(key))
        .map(|(key, _)| key.clone())
        .collect();
    let known: std::collections::BTreeSet<_> = expected.iter().map(|(key, _)| key).collect();
    let unexpected: Vec<_> = tensors.keys().filter(|key| !known.contains(key)).cloned().collect();
    if !unexpected.is_empty() {
        let named = |key: &String| {
            [".lora_A.", ".lora_B."].iter().any(|part| {
                let rest = key.split_once(part).map(|(_, rest)| rest);
                rest.is_some_and(|rest| rest != "weight")
            })
        };
        let hint = if unexpected.iter().any(named) {
            "; the names of PEFT's files hold no adapter's name after lora_A and lora_B"
        } else if missing.is_empty() {
            "; the settings or the model do not know them"
        } else {
            "; they may be of another model"
        };
        let path = path.to_owned();
        return Err(AdapterError::UnexpectedTensors { path, tensors: unexpected, hint });
    }
    if !missing.is_empty() {
        return Err(AdapterError::MissingTensors { path: path.to_owned(), tensors: missing });
    }
    for (key, shape) in expected {
        let found = &tensors[&key].shape;
        if *found != shape {
            return Err(AdapterError::Shape {
                path: path.to_owned(),
                tensor: key,
                found: found.clone(),
                expected: shape,
            });
        }
    }
    if tensors.is_empty() {
        return Err(file::format(path, "it has no tensors"));
    }
    Ok(())
}
