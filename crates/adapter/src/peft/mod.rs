//! PEFT's adapter files: names of the tensors, and saving.

mod export;
mod fields;
mod file;
mod load;
mod settings;

pub(crate) use export::export;
pub(crate) use load::load;

use crate::{
    config::{Bias, LoraConfig, Targets},
    error::AdapterError,
    init::{Init, linalg::to_vec},
    layer::{AdaptedLayer, LayerKind, Part},
    layers::Layers,
    targets::minimal,
};
use burn::{module::Param, tensor::Tensor};
use file::{HostTensor, HostTensors};
use std::path::Path;

/// Names of a layer's tensors.
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

    /// Name of a part of the base, which lies below PEFT's wrapper of the layer.
    fn base(&self, around: Around, part: Part) -> String {
        let part = match part {
            Part::Weight => "weight",
            Part::Bias => "bias",
        };
        self.key(&match around {
            Around::Nothing => part.to_owned(),
            Around::Update => format!("base_layer.{part}"),
            Around::Copy => format!("original_module.{part}"),
        })
    }
}

/// Wrapper that an adapter puts around a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Nothing,
    /// Low-rank update.
    Update,
    /// Whole copy that is trained.
    Copy,
}

impl Around {
    fn of(layer: &dyn AdaptedLayer, name: &str) -> Self {
        match (layer.adapters().lora(name), layer.adapters().saved(name)) {
            (Some(_), _) => Self::Update,
            (_, Some(_)) => Self::Copy,
            _ => Self::Nothing,
        }
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
    let (mut config, mut tensors) = gather(layers, name)?;
    let converted = |layer: &dyn AdaptedLayer| {
        layer.adapters().lora(name).is_some_and(|lora| lora.initial.is_some())
    };
    if layers.iter().any(|(_, layer)| converted(*layer)) {
        convert(layers, name, &mut config, &mut tensors)?;
    }
    file::write(folder, &config, &tensors)
}

/// Saves an adapter without conversion.
pub(crate) fn save_as_is(
    layers: &Layers<'_>,
    name: &str,
    folder: &Path,
) -> Result<(), AdapterError> {
    let (config, tensors) = gather(layers, name)?;
    file::write(folder, &config, &tensors)
}

/// Gathers the settings and tensors of an adapter.
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
            let weight = HostTensor { shape: layer.file_shape(), ..host(&saved.weight, path)? };
            put(keys.key("weight"), Ok(weight))?;
            if let Some(bias) = &saved.bias {
                put(keys.key("bias"), host(bias, path))?;
            }
        }
    }
    let mut config = LoraConfig::clone(config.expect("the adapter is known"));
    for (path, layer) in layers {
        let keys = Keys { path, kind: layer.kind() };
        for part in layer.adapters().brought(name) {
            let key = keys.base(Around::of(*layer, name), part);
            tensors.insert(key, base(*layer, part, path)?);
        }
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

/// Name and parameter of the base's bias, if an adapter trains it.
fn trained_bias<'a>(
    path: &str,
    layer: &'a dyn AdaptedLayer,
    name: &str,
    config: &LoraConfig,
) -> Option<(String, &'a Param<Tensor<1>>)> {
    let around = Around::of(layer, name);
    let keys = Keys { path, kind: layer.kind() };
    let bias = layer.bias().filter(|_| trains_bias(config, around))?;
    Some((keys.base(around, Part::Bias), bias))
}

/// Returns `true` if the base's bias is trained; a layer that is trained whole trains the copy's.
fn trains_bias(config: &LoraConfig, around: Around) -> bool {
    match config.bias {
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
    config: &mut LoraConfig,
    tensors: &mut HostTensors,
) -> Result<(), AdapterError> {
    for (path, layer) in layers {
        let Some(lora) = layer.adapters().lora(name) else { continue };
        let Some(initial) = &lora.initial else { continue };
        if layer.is_quantized() {
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
