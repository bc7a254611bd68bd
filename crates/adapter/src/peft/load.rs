//! Loading of PEFT's files into a model, with checks of required and optional tensors.

use super::{
    Around, Keys,
    file::{self, Files, HostTensors, TENSORS},
    trains_bias,
};
use crate::{
    attach,
    config::{Bias, LoraConfig},
    error::AdapterError,
    init::{
        CONVERT, Init,
        linalg::{tensor, to_vec},
    },
    layer::{AdaptedLayer, Brought, LayerKind, Part, are_tied},
    layers::LayersMut,
    lora::LoraAdapter,
    targets::{LayerPlan, MatchReport},
};
use burn::tensor::{FloatDType, Tensor};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Loads an adapter from its files. The model does not change before both are checked.
pub(crate) fn load(
    mut layers: LayersMut<'_>,
    head: &str,
    name: &str,
    folder: &Path,
) -> Result<MatchReport, AdapterError> {
    let Files { config, tensors, own_svd } = file::read(folder)?;
    attach::check_name(&layers, name)?;
    let planned = attach::plan(&layers, head, &config, false);
    let (plans, report) =
        planned.map_err(|error| file::format(&folder.join(file::CONFIG), error.to_string()))?;
    attach::check_plans(&layers, &plans, &config, true)?;
    let mut parts = sort(&layers, head, &plans, &config, tensors, folder.join(TENSORS))?;
    if matches!(config.init, Init::PissaNiter(_)) && !own_svd {
        check_decomposition(&layers, &plans, &parts, &config, folder)?;
    }

    replace_base(&mut layers, name, &config, &mut parts)?;
    let config = Arc::new(config);
    for (((path, layer), plan), parts) in layers.iter_mut().zip(plans).zip(parts) {
        let device = layer.device();
        match plan {
            Some(LayerPlan::Lora { alpha, .. }) => {
                attach_loaded(&mut **layer, path, name, &config, alpha, parts)?;
            }
            Some(LayerPlan::Save) => {
                let mut saved = attach::copy(&**layer, name, &config);
                let values = parts.weight.expect("it was checked");
                let shape = saved.weight.shape().dims();
                saved.weight = saved.weight.map(|_| tensor(values, shape, &device));
                if let Some(values) = parts.bias {
                    let shape = [values.len()];
                    saved.bias = saved.bias.map(|b| b.map(|_| tensor(values, shape, &device)));
                }
                layer.adapters_mut().saved.push(saved);
            }
            None => {}
        }
    }
    attach::finish(layers, name);
    Ok(report)
}

/// Tensors of a file for one layer.
#[derive(Default)]
struct Parts {
    /// Low-rank update.
    a: Option<Vec<f32>>,
    b: Option<Vec<f32>>,
    magnitude: Option<Vec<f32>>,
    /// Whole copy that is trained.
    weight: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    /// Parts that replace the base's own.
    base_weight: Option<Vec<f32>>,
    base_bias: Option<Vec<f32>>,
}

/// Sorts the tensors of a file by layer, and checks that none is missing or left over.
///
/// The base's own weights and biases are optional: PEFT writes them with `save_embedding_layers`, after
/// a vocabulary was resized, and with `bias="all"`.
fn sort(
    layers: &LayersMut<'_>,
    head: &str,
    plans: &[Option<LayerPlan>],
    config: &LoraConfig,
    tensors: HostTensors,
    path: PathBuf,
) -> Result<Vec<Parts>, AdapterError> {
    if tensors.is_empty() {
        return Err(file::format(&path, "it has no tensors"));
    }
    let mut file = Tensors { tensors, path, missing: vec![], wrong: None, vocabulary: None };
    let mut all = vec![];
    let mut biases: Vec<String> = vec![];
    for ((layer_path, layer), plan) in layers.iter().zip(plans) {
        let keys = Keys { path: layer_path, kind: layer.kind() };
        let [out, width] = layer.shape();
        let whole = layer.file_shape();
        file.vocabulary = match layer.kind() {
            LayerKind::Embedding => Some(width),
            _ => (layer_path == head).then_some(out),
        };
        let mut parts = Parts::default();
        let around = match plan {
            None => Around::Nothing,
            Some(LayerPlan::Save) => Around::Copy,
            Some(LayerPlan::Lora { .. }) => Around::Update,
        };
        match plan {
            Some(LayerPlan::Lora { rank, .. }) => {
                parts.a = file.required(&[keys.a()], vec![*rank, width])?;
                parts.b = file.required(&[keys.b()], vec![out, *rank])?;
                if config.dora {
                    let key = keys.magnitude();
                    let names = [key.clone(), format!("{key}.weight")];
                    parts.magnitude = file.required(&names, vec![out])?;
                }
            }
            Some(LayerPlan::Save) => {
                let names = |part| [keys.key(part), keys.key(&format!("modules_to_save.{part}"))];
                parts.weight = file.required(&names("weight"), whole.clone())?;
                if layer.bias().is_some() {
                    parts.bias = file.required(&names("bias"), vec![out])?;
                }
            }
            None => {}
        }
        let mut names = vec![keys.base(around, Part::Weight)];
        // Name from PEFT versions in which an adapted layer was a subclass of the linear layer.
        if around == Around::Update {
            names.push(keys.base(Around::Nothing, Part::Weight));
        }
        parts.base_weight = file.optional(&names, whole)?;
        if layer.bias().is_some() {
            let mut names = vec![keys.base(around, Part::Bias)];
            if around == Around::Update {
                names.push(keys.base(Around::Nothing, Part::Bias));
            }
            parts.base_bias = file.optional(&names, vec![out])?;
            if parts.base_bias.is_none() && trains_bias(config, around) {
                biases.push(names.swap_remove(0));
            }
        }
        all.push(parts);
    }
    let some = all.iter().any(|parts| parts.base_bias.is_some());
    if config.bias == Bias::LoraOnly && !some && !biases.is_empty() {
        burn_lora_io::warn!(
            "{}: the biases of {} layers were trained (bias is lora_only), and are not in the file: PEFT up \
             to 0.19.1 left them out. Those of the base are used",
            file.path.display(),
            biases.len()
        );
    } else {
        file.missing.extend(biases);
    }
    file.check()?;
    Ok(all)
}

/// Tensors of a file that are not assigned to a layer yet.
struct Tensors {
    tensors: HostTensors,
    path: PathBuf,
    missing: Vec<String>,
    /// Error of the first tensor with a wrong shape.
    wrong: Option<AdapterError>,
    /// Vocabulary size of the current layer, if it is an embedding or the head.
    vocabulary: Option<usize>,
}

impl Tensors {
    /// Takes a required tensor.
    fn required(
        &mut self,
        names: &[String],
        shape: Vec<usize>,
    ) -> Result<Option<Vec<f32>>, AdapterError> {
        let found = self.optional(names, shape)?;
        if found.is_none() {
            self.missing.push(names[0].clone());
        }
        Ok(found)
    }

    /// Takes a tensor by any of its names; under several names it has to be the same.
    fn optional(
        &mut self,
        names: &[String],
        shape: Vec<usize>,
    ) -> Result<Option<Vec<f32>>, AdapterError> {
        let mut found: Option<Vec<f32>> = None;
        for name in names {
            let Some(tensor) = self.tensors.remove(name) else { continue };
            if tensor.shape != shape {
                let wrong = self.wrong_shape(name, &tensor.shape, &shape);
                self.wrong.get_or_insert(wrong);
            }
            if found.as_ref().is_some_and(|found| *found != tensor.values) {
                let reason = format!("`{name}` and `{}` are the same tensor, and differ", names[0]);
                return Err(file::format(&self.path, reason));
            }
            found = Some(tensor.values);
        }
        Ok(found)
    }

    fn wrong_shape(&self, name: &str, found: &[usize], expected: &[usize]) -> AdapterError {
        let (path, tensor) = (self.path.clone(), name.to_owned());
        let mut others = found.iter().zip(expected).filter(|(found, expected)| found != expected);
        if let (Some((&found, &expected)), None) = (others.next(), others.next())
            && self.vocabulary == Some(expected)
        {
            return AdapterError::Vocabulary { path, tensor, found, expected };
        }
        let (found, expected) = (found.to_vec(), expected.to_vec());
        AdapterError::Shape { path, tensor, found, expected }
    }

    /// Checks that every tensor was there, in its shape, and no other.
    fn check(self) -> Result<(), AdapterError> {
        let Self { tensors, path, missing, wrong, .. } = self;
        let unexpected: Vec<_> = tensors.into_keys().collect();
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
                "; adapter_config.json or the model do not know them"
            } else {
                "; they may be of another model, or of another adapter_config.json"
            };
            return Err(AdapterError::UnexpectedTensors { path, tensors: unexpected, hint });
        }
        if !missing.is_empty() {
            return Err(AdapterError::MissingTensors { path, tensors: missing });
        }
        wrong.map_or(Ok(()), Err)
    }
}

/// Refuses a random decomposition that was subtracted from the base: PEFT subtracts another one when the
/// file is loaded, so it cannot be repeated.
fn check_decomposition(
    layers: &LayersMut<'_>,
    plans: &[Option<LayerPlan>],
    parts: &[Parts],
    config: &LoraConfig,
    folder: &Path,
) -> Result<(), AdapterError> {
    let changed = |((_, layer), plan): (&(String, &mut dyn AdaptedLayer), &Option<LayerPlan>)| {
        layer.kind() == LayerKind::Linear && matches!(plan, Some(LayerPlan::Lora { .. }))
    };
    let mut changed = layers.iter().zip(plans).map(changed).zip(parts);
    if !changed.any(|(changed, parts)| changed && parts.base_weight.is_none()) {
        return Ok(());
    }
    let reason = format!(
        "init_lora_weights is `{}`: a random decomposition was taken out of the base, and cannot be \
         repeated (PEFT takes another one out, and computes something else): {CONVERT}",
        config.init.name()
    );
    Err(file::format(&folder.join(file::CONFIG), reason))
}

/// Replaces the base's own weights and biases by those of the file, as PEFT does. Tied layers stay tied,
/// unless the file has different weights for them.
fn replace_base(
    layers: &mut LayersMut<'_>,
    name: &str,
    config: &LoraConfig,
    parts: &mut [Parts],
) -> Result<(), AdapterError> {
    let configs = layers.iter().flat_map(|(_, layer)| layer.adapters().configs());
    let others: BTreeSet<_> = configs.map(|(other, _)| other.to_owned()).collect();
    let others = Vec::from_iter(others).join(", ");
    let bring = |layer: &mut dyn AdaptedLayer, path: &str, part: Part| {
        if !others.is_empty() {
            burn_lora_io::warn!(
                "adapter `{name}` replaces a part of the base, `{path}`: {others} will run with it, too"
            );
        }
        layer.adapters_mut().brought.push(Brought { adapter: name.to_owned(), part });
    };
    for i in 0..layers.len() {
        let around = match &parts[i] {
            Parts { a: Some(_), .. } => Around::Update,
            Parts { weight: Some(_), .. } => Around::Copy,
            _ => Around::Nothing,
        };
        if let Some(values) = parts[i].base_bias.take() {
            let trained = trains_bias(config, around);
            let (path, layer) = &mut layers[i];
            let (path, device) = (path.clone(), layer.device());
            let Some(bias) = layer.bias_mut() else { continue };
            let (shape, dtype) = ([values.len()], bias.val().dtype());
            let values = tensor(values, shape, &device).cast(dtype);
            let differs = differ(values.clone(), bias.val(), &path)?;
            *bias = bias.clone().map(|_| values);
            if differs && !trained {
                bring(&mut **layer, &path, Part::Bias);
            }
        }
        let Some(values) = &parts[i].base_weight else { continue };
        let (path, layer) = &layers[i];
        let mut shape = layer.file_shape();
        shape.resize(2, 1); // of a vector
        let weight = tensor(values.clone(), [shape[0], shape[1]], &layer.device());
        let weight = layer.file_layout(weight).inner();
        let dtype: FloatDType =
            layer.weight_param().map_or(FloatDType::F32, |param| param.val().dtype().into());
        if !differ(weight.clone().cast(dtype), layer.weight(), path)? {
            continue;
        }
        let tied: Vec<usize> = (0..layers.len())
            .filter(|&j| j != i && are_tied(&*layers[i].1, &*layers[j].1))
            .collect();
        let (path, layer) = &mut layers[i];
        layer.set_weight(weight);
        bring(&mut **layer, path, Part::Weight);
        let param = layer.weight_param().cloned();
        let path = path.clone();
        for j in tied {
            let same = parts[j].base_weight.as_ref().is_none_or(|other| *other == *values);
            let (other, layer) = &mut layers[j];
            match (layer.weight_param_mut(), &param) {
                (Some(shared), Some(param)) if same => {
                    *shared = param.clone();
                    layer.refresh();
                    bring(&mut **layer, other, Part::Weight);
                }
                _ => burn_lora_io::warn!(
                    "adapter `{name}` has other weights for `{path}` than for `{other}`, which were \
                     one in this model: from now on they are two"
                ),
            }
        }
    }
    Ok(())
}

/// Returns `true` if any value of two tensors differs.
fn differ<const D: usize>(a: Tensor<D>, b: Tensor<D>, path: &str) -> Result<bool, AdapterError> {
    let [a, b] = [a, b].map(|tensor| tensor.inner().cast(FloatDType::F32));
    Ok(to_vec((a - b).abs().max(), path)?[0] != 0.0)
}

/// Attaches an update from a file to its layer. If its initialisation changed the base, the base is
/// changed again, as PEFT does, unless the file contains the changed base.
fn attach_loaded(
    layer: &mut dyn AdaptedLayer,
    path: &str,
    name: &str,
    config: &Arc<LoraConfig>,
    alpha: f64,
    parts: Parts,
) -> Result<(), AdapterError> {
    let ([out, width], device) = (layer.shape(), layer.device());
    let values = |tensor: Option<Vec<f32>>| tensor.expect("it was checked");
    let a = values(parts.a);
    let rank = a.len() / width;
    let a = tensor(a, [rank, width], &device);
    let b = tensor(values(parts.b), [out, rank], &device);
    let changes = layer.kind() == LayerKind::Linear && parts.base_weight.is_none();
    if changes && config.init.is_residual() {
        attach::attach(layer, path, name, config, rank, alpha, None)?;
    } else {
        if changes && !layer.is_quantized() {
            attach::pack_for_loftq(layer, path, &config.init, rank, config.seed)?;
        }
        let lora = LoraAdapter::new(name, config.clone(), alpha, a.clone(), b.clone());
        attach::push(layer, lora);
    }
    let lora = layer.adapters_mut().lora_mut(name).expect("it was attached");
    lora.lora_a = lora.lora_a.clone().map(|_| a);
    lora.lora_b = lora.lora_b.clone().map(|_| b);
    if let (Some(param), Some(magnitude)) = (&mut lora.magnitude, parts.magnitude) {
        *param = param.clone().map(|_| tensor(magnitude, [out], &device));
    }
    Ok(())
}
