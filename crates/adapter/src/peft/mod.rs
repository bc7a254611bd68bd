//! PEFT's adapter files: names of the tensors, and saving.

mod experts;
mod export;
mod file;
mod load;

pub(crate) use export::{export, exported_rank};
pub use file::saved_method;
pub(crate) use load::{load, load_as};

use crate::{
    config::LoraConfig,
    error::AdapterError,
    frozen::LayerKind,
    init::{Init, linalg::to_vec},
    layer::{AdaptedLayer, Part, are_tied},
    layers::Layers,
    method::{Method, SharedTensor, Site, UpdateTensor},
    methods::{
        lora_method::{keys, lora_of},
        tokens::TrainableTokens,
    },
    parameters,
    target::{Bias, Targets},
    targets::minimal,
};
use burn::{module::Param, tensor::Tensor};
use file::{Gathered, HostTensor, HostTensors};
use std::{path::Path, sync::Arc};

/// Name of a tensor of a layer.
fn key(path: &str, rest: &str) -> String {
    format!("base_model.model.{path}.{rest}")
}

/// Name of a part of the base, which lies below PEFT's wrapper of the layer.
fn base_key(path: &str, around: Around, part: Part) -> String {
    let part = match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
    };
    match around {
        Around::Nothing => key(path, part),
        Around::Update => key(path, &format!("base_layer.{part}")),
        Around::Tokens => key(path, &format!("token_adapter.base_layer.{part}")),
        Around::Copy => key(path, &format!("original_module.{part}")),
    }
}

/// Name of a tensor that the updates of all layers share.
fn shared_key(tensor: &SharedTensor) -> String {
    format!("base_model.{}", tensor.key)
}

/// Wrapper that an adapter puts around a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Nothing,
    /// Update of the frozen weight.
    Update,
    /// Rows of some tokens beside LoRA.
    Tokens,
    /// Whole copy that is trained.
    Copy,
}

impl Around {
    fn of(layer: &dyn AdaptedLayer, name: &str) -> Self {
        match layer.adapters().get(name).filter(|adapter| !adapter.follows()) {
            None => Self::Nothing,
            Some(adapter) if adapter.update.replacement().is_some() => Self::Copy,
            Some(adapter) => Self::of_update(adapter.tensors()),
        }
    }

    fn of_update(tensors: &[UpdateTensor]) -> Self {
        let tokens = tensors.iter().flat_map(|tensor| &tensor.keys);
        let tokens = tokens.into_iter().any(|key| key.starts_with("token_adapter."));
        if tokens { Self::Tokens } else { Self::Update }
    }
}

/// Part of the base, in the layout of files.
fn base(layer: &dyn AdaptedLayer, part: Part, path: &str) -> Result<HostTensor, AdapterError> {
    let weight = match (part, layer.bias()) {
        (Part::Bias, Some(bias)) => return host(bias, path),
        _ => layer.file_layout(layer.weight()),
    };
    Ok(HostTensor { shape: layer.file_shape(), values: to_vec(weight, path)? })
}

fn host<const D: usize>(param: &Param<Tensor<D>>, key: &str) -> Result<HostTensor, AdapterError> {
    let values = to_vec(param.val(), key)?;
    Ok(HostTensor { shape: param.shape().to_vec(), values })
}

/// Saves an adapter; one that was initialised from a part of the weight is converted to a plain one.
pub(crate) fn save(layers: &Layers<'_>, name: &str, folder: &Path) -> Result<(), AdapterError> {
    let mut gathered = gather(layers, name)?;
    let converted = |layer: &dyn AdaptedLayer| {
        layer.adapters().lora(name).is_some_and(|lora| lora.initial.is_some())
    };
    if layers.iter().any(|(_, layer)| converted(*layer)) {
        convert(layers, name, &mut gathered)?;
    }
    file::write(folder, gathered)
}

/// Saves an adapter without conversion.
pub(crate) fn save_as_is(
    layers: &Layers<'_>,
    name: &str,
    folder: &Path,
) -> Result<(), AdapterError> {
    file::write(folder, gather(layers, name)?)
}

/// Gathers the settings and tensors of an adapter.
fn gather(layers: &Layers<'_>, name: &str) -> Result<Gathered, AdapterError> {
    let mut tensors = HostTensors::new();
    let (mut adapted, mut others, mut sites) = (vec![], vec![], vec![]);
    let mut method = None;
    for (path, layer) in layers {
        match Around::of(*layer, name) {
            // Named by its parameter.
            _ if layer.kind() == LayerKind::Expert => {}
            Around::Update => adapted.push(path.as_str()),
            _ => others.push(path.as_str()),
        }
        let Some(adapter) = layer.adapters().get(name) else { continue };
        method = Some(adapter.method());
        for tensor in adapter.saved_tensors() {
            // An optional field may be empty.
            if let Some(values) = adapter.read(tensor, path)? {
                let host = HostTensor { shape: tensor.shape.clone(), values };
                tensors.insert(key(path, &tensor.keys[0]), host);
            }
        }
        if Around::of(*layer, name) == Around::Update {
            let (kind, shape) = (layer.kind(), layer.shape());
            sites.push((Site { path, kind, shape, ..Site::default() }, adapter));
        }
    }
    let method = method.expect("the adapter is known").clone();
    if let Some((_, first)) = sites.first() {
        let of_method: Vec<_> = sites.iter().map(|(site, _)| *site).collect();
        for shared in method.shared(&of_method).into_iter().filter(|shared| shared.saved) {
            let values = parameters::read(&first.update, shared.field, shared.key)?;
            let (shape, values) = (shared.shape.to_vec(), values.expect("every update has it"));
            tensors.insert(shared_key(&shared), HostTensor { shape, values });
        }
    }
    for (i, (path, layer)) in layers.iter().enumerate() {
        let tied = layers[..i].iter().any(|(_, other)| are_tied(*other, *layer));
        let resized = (!tied && has_new_rows(*layer, name)).then_some(Part::Weight);
        for part in layer.adapters().brought(name).chain(resized) {
            let key = base_key(path, Around::of(*layer, name), part);
            tensors.insert(key, base(*layer, part, path)?);
        }
        if let Some((key, bias)) = trained_bias(path, *layer, name, method.bias()) {
            tensors.insert(key, host(bias, path)?);
        }
    }
    if let Some(LoraConfig { init: Init::Loftq { config, .. }, .. }) = lora_of(&*method)
        && *config != burn_lora_quant::QuantConfig::nf4()
    {
        burn_lora_io::warn!(
            "the file cannot say that LoftQ was made for {config:?}: load it onto a base packed so"
        );
    }
    let updated = sites.iter().map(|(site, _)| (site.path, site.kind));
    experts::stack(&mut tensors, updated);
    let mut settings = method.settings();
    if method.targets().targets == Some(Targets::AllLinear) {
        settings["target_modules"] = minimal(&adapted, &others).into();
    }
    Ok(Gathered { method, settings, tensors })
}

/// Returns `true` if the vocabulary of a layer was resized, and the adapter does not train all new rows: the
/// layer is saved whole then, as PEFT does. Another base, resized elsewhere, has other new rows.
fn has_new_rows(layer: &dyn AdaptedLayer, name: &str) -> bool {
    let Some(before) = layer.adapters().resized else { return false };
    let rows = layer.file_shape()[0];
    let update = layer.adapters().get(name).map(|adapter| &adapter.update);
    let tokens = update.and_then(|update| update.downcast_ref::<TrainableTokens>());
    let whole = update.is_some_and(|update| update.replacement().is_some());
    // A smaller vocabulary has no new rows, but has to be known.
    !whole && (rows < before || tokens.is_none_or(|tokens| !tokens.covers(before..rows)))
}

/// Name and parameter of the base's bias, if an adapter trains it.
fn trained_bias<'a>(
    path: &str,
    layer: &'a dyn AdaptedLayer,
    name: &str,
    trained: Bias,
) -> Option<(String, &'a Param<Tensor<1>>)> {
    let around = Around::of(layer, name);
    let bias = layer.bias().filter(|_| trains_bias(trained, around))?;
    Some((base_key(path, around, Part::Bias), bias))
}

/// Returns `true` if the base's bias is trained; a layer that is trained whole trains the copy's.
fn trains_bias(trained: Bias, around: Around) -> bool {
    match trained {
        Bias::None => false,
        Bias::All => around != Around::Copy,
        Bias::LoraOnly => around == Around::Update,
    }
}

/// Converts an adapter that was initialised from a part of the weight to its difference from that
/// initialisation, `s·(B·A - B₀·A₀)`: `A' = [A; A₀]`, `B' = [B, -B₀]`. It fits the original weight.
fn convert(
    layers: &Layers<'_>,
    name: &str,
    Gathered { method, settings, tensors }: &mut Gathered,
) -> Result<(), AdapterError> {
    let mut config = lora_of(&**method).expect("only LoRA has such initialisations").clone();
    for (path, layer) in layers {
        let Some(lora) = layer.adapters().lora(name) else { continue };
        let Some(initial) = &lora.initial else { continue };
        if layer.is_quantized() {
            burn_lora_io::warn!(
                "`{path}` is packed: the plain adapter fits the weight before it was packed, and \
                 another error than that of the residual comes with it"
            );
        }
        let keys = keys(layer.kind()).map(|name| key(path, name));
        let [a0, b0] = &**initial;
        let a = tensors.get_mut(&keys[0]).expect("it was gathered");
        let rank = a.shape[0];
        a.shape[0] *= 2;
        a.values.extend(a0);
        let b = tensors.get_mut(&keys[1]).expect("it was gathered");
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
    let targets = settings["target_modules"].take();
    *settings = config.settings();
    settings["target_modules"] = targets;
    *method = Arc::new(config);
    Ok(())
}
