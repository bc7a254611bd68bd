//! Loading of PEFT's files into a model, with checks of required and optional tensors.

use super::{
    Around, base_key, experts,
    file::{self, Files, HostTensors, Read},
    key, shared_key, trains_bias,
};
use crate::{
    attach::{self, Shared},
    error::AdapterError,
    frozen::LayerKind,
    init::{
        CONVERT, Init,
        linalg::{tensor, to_vec},
    },
    layer::{AdaptedLayer, Brought, Part, are_tied},
    layers::LayersMut,
    method::{Method, Origin, SharedTensor, Site, UpdateTensor},
    methods::{lora_method::lora_of, whole::SavedModule},
    parameters,
    target::Bias,
    targets::{LayerPlan, MatchReport},
};
use burn::tensor::{FloatDType, Tensor};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Loads an adapter of any known method from its files.
pub(crate) fn load(
    layers: LayersMut<'_>,
    head: &str,
    name: &str,
    folder: &Path,
) -> Result<MatchReport, AdapterError> {
    attach_files(layers, head, name, folder, file::read(folder)?)
}

/// Loads an adapter from its files, whose settings `read` reads.
pub(crate) fn load_as(
    layers: LayersMut<'_>,
    head: &str,
    name: &str,
    folder: &Path,
    read: Read<'_>,
) -> Result<MatchReport, AdapterError> {
    attach_files(layers, head, name, folder, file::read_as(folder, read)?)
}

/// Attaches what files contain. The model does not change before both are checked.
fn attach_files(
    mut layers: LayersMut<'_>,
    head: &str,
    name: &str,
    folder: &Path,
    files: Files,
) -> Result<MatchReport, AdapterError> {
    let Files { method, path, tensors, own_svd } = files;
    attach::check_name(&layers, name)?;
    let planned = attach::plan(&layers, head, &*method, false);
    let (plans, report) =
        planned.map_err(|error| file::format(&folder.join(file::CONFIG), error.to_string()))?;
    attach::check_loaded(&layers, &plans, &*method).map_err(|error| match error {
        AdapterError::Vocabulary { tensor, found, expected, .. } => {
            let path = folder.join(file::CONFIG);
            AdapterError::Vocabulary { path, tensor, found, expected }
        }
        other => other,
    })?;
    let (mut parts, mut shared) = sort(&layers, head, &plans, &*method, tensors, path)?;
    if let Some(lora) = lora_of(&*method)
        && matches!(lora.init, Init::PissaNiter(_))
        && !own_svd
    {
        check_decomposition(&layers, &plans, &parts, &lora.init, folder)?;
    }

    replace_base(&mut layers, name, method.bias(), &mut parts)?;
    for (((path, layer), plan), parts) in layers.iter_mut().zip(plans).zip(parts) {
        match plan {
            Some(LayerPlan::Update { rank, alpha }) => {
                let origin = Origin::File { weight: parts.base_weight.is_some() };
                let (kind, shape) = (layer.kind(), layer.shape());
                let site = Site { path, kind, shape, rank, alpha, origin, inputs: None };
                attach::attach(&mut **layer, name, &method, &site, &mut shared)?;
            }
            Some(LayerPlan::Save) => attach::attach_whole(&mut **layer, name, &method),
            None => continue,
        }
        let device = layer.device();
        let adapter = layer.adapters_mut().get_mut(name).expect("it was attached");
        for (field, values) in parts.values {
            parameters::write(&mut adapter.update, field, values, &device);
        }
    }
    attach::finish(layers, name);
    Ok(report)
}

/// Tensors of a file for one layer.
struct Parts {
    around: Around,
    /// Values of the fields of the update.
    values: Vec<(&'static str, Vec<f32>)>,
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
    method: &dyn Method,
    tensors: HostTensors,
    path: PathBuf,
) -> Result<(Vec<Parts>, Shared), AdapterError> {
    if tensors.is_empty() {
        return Err(file::format(&path, "it has no tensors"));
    }
    let sites = attach::loaded_sites(layers, plans);
    let mut tensors = tensors;
    let updated = sites.iter().map(|(_, site)| (site.path, site.kind, site.rank, site.shape));
    experts::unstack(&mut tensors, updated, &path)?;
    let mut file = Tensors { tensors, path, missing: vec![], wrong: None, vocabulary: None };
    let mut all = vec![];
    let mut biases: Vec<String> = vec![];
    for (i, ((layer_path, layer), plan)) in layers.iter().zip(plans).enumerate() {
        let [out, width] = layer.shape();
        let whole = layer.file_shape();
        file.vocabulary = match layer.kind() {
            LayerKind::Embedding => Some(width),
            _ => (layer_path == head).then_some(out),
        };
        let (around, tensors) = match plan {
            None => (Around::Nothing, vec![]),
            Some(LayerPlan::Save) => {
                (Around::Copy, SavedModule::tensors(&whole, layer.bias().is_some()))
            }
            Some(LayerPlan::Update { .. }) => {
                let site = sites.iter().find(|(at, _)| *at == i).expect("it is planned");
                let tensors = method.tensors(&site.1);
                (Around::of_update(&tensors), tensors)
            }
        };
        let mut values = vec![];
        for UpdateTensor { field, keys, shape, .. } in tensors {
            if keys.is_empty() {
                continue;
            }
            let mut names: Vec<_> = keys.iter().map(|name| key(layer_path, name)).collect();
            // Rows of a head with tied embeddings, which PEFT writes twice with a whole embedding.
            if method.saves_tied() || around == Around::Tokens {
                let tied = layers
                    .iter()
                    .zip(plans)
                    .filter(|((_, other), plan)| plan.is_none() && are_tied(&**layer, &**other));
                names.extend(tied.map(|((path, _), _)| key(path, &keys[0])));
            }
            values.extend(file.required(&names, shape)?.map(|values| (field, values)));
        }
        let mut names = vec![base_key(layer_path, around, Part::Weight)];
        match around {
            // Name from PEFT versions in which an adapted layer was a subclass of the linear layer.
            Around::Update => names.push(base_key(layer_path, Around::Nothing, Part::Weight)),
            // Head that follows the rows of a tied embedding.
            Around::Nothing => names.push(base_key(layer_path, Around::Tokens, Part::Weight)),
            _ => {}
        }
        let base_weight = file.optional(&names, whole)?;
        let mut base_bias = None;
        if layer.bias().is_some() {
            let mut names = vec![base_key(layer_path, around, Part::Bias)];
            if around == Around::Update {
                names.push(base_key(layer_path, Around::Nothing, Part::Bias));
            }
            base_bias = file.optional(&names, vec![out])?;
            if base_bias.is_none() && trains_bias(method.bias(), around) {
                biases.push(names.swap_remove(0));
            }
        }
        all.push(Parts { around, values, base_weight, base_bias });
    }
    let some = all.iter().any(|parts| parts.base_bias.is_some());
    if method.bias() == Bias::LoraOnly && !some && !biases.is_empty() {
        burn_lora_io::warn!(
            "{}: the biases of {} layers were trained (bias is lora_only), and are not in the file: PEFT up \
             to 0.19.1 left them out. Those of the base are used",
            file.path.display(),
            biases.len()
        );
    } else {
        file.missing.extend(biases);
    }
    file.vocabulary = None;
    let sites: Vec<_> = sites.into_iter().map(|(_, site)| site).collect();
    let shared = file.shared(method, method.shared(&sites))?;
    file.check()?;
    Ok((all, shared))
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

    /// Takes the tensors that layers share, or makes those that files need not have.
    fn shared(
        &mut self,
        method: &dyn Method,
        tensors: Vec<SharedTensor>,
    ) -> Result<Shared, AdapterError> {
        let mut values = vec![];
        for tensor in &tensors {
            let (names, shape) = ([shared_key(tensor)], tensor.shape.to_vec());
            values.push(match tensor.saved {
                true => self.required(&names, shape)?,
                false => self.optional(&names, shape)?,
            });
        }
        let made = match values.iter().any(Option::is_none) {
            true => method.shared_values(&tensors),
            false => vec![vec![]; tensors.len()],
        };
        let values = values.into_iter().zip(made).map(|(found, made)| found.unwrap_or(made));
        Ok(Shared::new(tensors, values.collect()))
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
    init: &Init,
    folder: &Path,
) -> Result<(), AdapterError> {
    let changed = |((_, layer), plan): (&(String, &mut dyn AdaptedLayer), &Option<LayerPlan>)| {
        layer.kind() == LayerKind::Linear && matches!(plan, Some(LayerPlan::Update { .. }))
    };
    let mut changed = layers.iter().zip(plans).map(changed).zip(parts);
    if !changed.any(|(changed, parts)| changed && parts.base_weight.is_none()) {
        return Ok(());
    }
    let reason = format!(
        "init_lora_weights is `{}`: a random decomposition was taken out of the base, and cannot be \
         repeated (PEFT takes another one out, and computes something else): {CONVERT}",
        init.name()
    );
    Err(file::format(&folder.join(file::CONFIG), reason))
}

/// Replaces the base's own weights and biases by those of the file, as PEFT does. Tied layers stay tied,
/// unless the file has different weights for them.
fn replace_base(
    layers: &mut LayersMut<'_>,
    name: &str,
    biases: Bias,
    parts: &mut [Parts],
) -> Result<(), AdapterError> {
    let methods = layers.iter().flat_map(|(_, layer)| layer.adapters().methods());
    let others: BTreeSet<_> = methods.map(|(other, _)| other.to_owned()).collect();
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
        if let Some(values) = parts[i].base_bias.take() {
            let trained = trains_bias(biases, parts[i].around);
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
