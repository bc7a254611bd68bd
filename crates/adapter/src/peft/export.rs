//! Adapter files for programs that support less than PEFT.

use super::{file, key};
use crate::{
    combine::stack,
    config::LoraConfig,
    error::AdapterError,
    frozen::LayerKind,
    init::linalg::to_mat,
    layer::{AdaptedLayer, Part, are_tied},
    layers::Layers,
    method::Method,
    methods::{
        lora::LoraAdapter,
        lora_method::{keys, lora_of},
        tokens::TrainableTokens,
    },
    target::Bias,
};
use faer::{Mat, Scale};
use file::{Gathered, HostTensor, HostTensors};
use std::{path::Path, sync::Arc};

/// Layers with A and B of an adapter.
fn adapted<'a>(
    layers: &'a Layers<'_>,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a dyn AdaptedLayer, &'a LoraAdapter)> {
    let lora = layers.iter().map(move |(path, layer)| (path, *layer, layer.adapters().lora(name)));
    lora.filter_map(|(path, layer, lora)| Some((path, layer, lora?)))
}

/// Rank of all layers of an export, if any layer has one.
pub(crate) fn exported_rank(layers: &Layers<'_>, name: &str) -> Option<usize> {
    let rank_of = |lora: &LoraAdapter| lora.rank() * if lora.initial.is_some() { 2 } else { 1 };
    adapted(layers, name).map(|(.., lora)| rank_of(lora)).max()
}

/// Exports an adapter with one rank and one alpha for all layers, and only A and B.
pub(crate) fn export(layers: &Layers<'_>, name: &str, folder: &Path) -> Result<(), AdapterError> {
    let gathered = super::gather(layers, name)?;
    let config = refuse(layers, name, &*gathered.method)?.clone();
    let adapted = || self::adapted(layers, name);
    let rank = exported_rank(layers, name).unwrap_or(config.rank);
    // The most frequent scaling, so that B of most layers stays as it is.
    let scalings: Vec<f64> = adapted().map(|(.., lora)| lora.scaling()).collect();
    let count = |scaling: f64| scalings.iter().filter(|other| **other == scaling).count();
    let scaling = scalings.iter().copied().max_by_key(|scaling| count(*scaling)).unwrap_or(1.0);

    let mut plain = LoraConfig {
        rank,
        alpha: scaling * rank as f64,
        rslora: false,
        init: crate::init::Init::Kaiming,
        bias: Bias::None,
        ..config
    };
    plain.rank_pattern.clear();
    plain.alpha_pattern.clear();
    let mut tensors = HostTensors::new();
    for (path, layer, lora) in adapted() {
        let keys = keys(layer.kind()).map(|name| key(path, name));
        let mut a = vec![to_mat(lora.lora_a.val(), path)?];
        let mut b = vec![to_mat(lora.lora_b.val(), path)?.transpose().to_owned()];
        if let Some(initial) = &lora.initial {
            let (rank, width) = (lora.rank(), layer.shape()[1]);
            a.push(Mat::from_fn(rank, width, |i, j| initial[0][i * width + j]));
            b.push(Mat::from_fn(rank, layer.shape()[0], |i, j| -initial[1][j * rank + i]));
        }
        let factor = Scale((lora.scaling() / scaling) as f32);
        let b = (stack(&b, rank).transpose().to_owned()) * factor;
        tensors.insert(keys[0].clone(), host(&stack(&a, rank)));
        tensors.insert(keys[1].clone(), host(&b));
    }
    let mut settings = plain.settings();
    settings["target_modules"] = gathered.settings["target_modules"].clone();
    file::write(folder, Gathered { method: Arc::new(plain), settings, tensors })
}

fn host(matrix: &Mat<f32>) -> HostTensor {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values = (0..rows * columns).map(|at| matrix[(at / columns, at % columns)]).collect();
    HostTensor { shape: vec![rows, columns], values }
}

/// Refuses what llama.cpp's converter or vLLM cannot load; returns the settings of what they can.
fn refuse<'a>(
    layers: &Layers<'_>,
    name: &str,
    method: &'a dyn Method,
) -> Result<&'a LoraConfig, AdapterError> {
    let refused =
        |reason: String| Err(AdapterError::State { what: format!("export of `{name}`"), reason });
    let Some(config) = lora_of(method) else {
        let method = method.peft_type();
        return refused(format!("neither llama.cpp nor vLLM knows {method}: merge it instead"));
    };
    if config.dora {
        return refused("neither llama.cpp nor vLLM knows DoRA: merge it instead".into());
    }
    let embedding = layers.iter().find(|(_, layer)| layer.kind() == LayerKind::Embedding);
    for (path, layer) in layers {
        let trained = super::trained_bias(path, *layer, name, config.bias).is_some();
        if trained || layer.adapters().brought(name).any(|part| part == Part::Bias) {
            return refused(format!(
                "it trains the bias of `{path}`, which neither llama.cpp nor vLLM loads: merge it instead"
            ));
        }
        if layer.adapters().update::<TrainableTokens>(name).is_some() {
            return refused(format!(
                "it trains rows of `{path}`, which neither llama.cpp nor vLLM loads: merge it instead"
            ));
        }
        if super::has_new_rows(*layer, name) || layer.adapters().brought(name).next().is_some() {
            return refused(format!(
                "it has a weight of its own in place of the base's `{path}`, which neither llama.cpp nor \
                 vLLM loads: merge it instead"
            ));
        }
        let tied = embedding.is_some_and(|(_, embedding)| are_tied(*layer, *embedding));
        if tied && layer.kind() == LayerKind::Linear && layer.adapters().lora(name).is_some() {
            return refused(format!(
                "`{path}` is the embedding, too, and has no tensor of its own that llama.cpp or vLLM \
                 could add an update to: merge it instead"
            ));
        }
        if layer.adapters().saved(name).is_some() {
            let reason = "vLLM and llama.cpp load low-rank updates only: merge it instead";
            return refused(format!("it trains `{path}` whole: {reason}"));
        }
        let reason = match layer.kind() {
            LayerKind::Embedding => "is an embedding, which llama.cpp's converter does not load",
            LayerKind::Expert => {
                "is of an expert, which llama.cpp does not load, and vLLM for gpt-oss only, from the \
                 adapter's own folder"
            }
            _ => continue,
        };
        if layer.adapters().lora(name).is_some() {
            return refused(format!("`{path}` {reason}: merge it instead"));
        }
    }
    Ok(config)
}
