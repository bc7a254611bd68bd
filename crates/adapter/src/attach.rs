//! Attaching a new adapter to the layers of a model.

use crate::{
    active::ActiveAdapters,
    config::{Bias, LoraConfig, Targets},
    error::AdapterError,
    init::{
        Init,
        eva::{InputStats, redistribute},
        linalg::{to_tensor, to_vec},
        random, residual,
    },
    layer::{AdaptedLayer, LayerKind, SavedModule},
    layers::LayersMut,
    lora::LoraAdapter,
    selection::{BASE, Selection},
    targets::{Candidate, LayerPlan, MatchReport, Matcher},
};
use burn::{module::Param, tensor::Tensor};
use burn_lora_quant::{Frozen, PackedWeight};
use std::{collections::BTreeMap, sync::Arc};

/// Plans the adapter of each layer, and warns of odd settings. With `strict`, a name that matches nothing
/// is an error.
pub(crate) fn plan(
    layers: &LayersMut<'_>,
    head: &str,
    config: &LoraConfig,
    strict: bool,
) -> Result<(Vec<Option<LayerPlan>>, MatchReport), AdapterError> {
    config.validate()?;
    let candidates: Vec<_> = layers
        .iter()
        .map(|(path, layer)| Candidate { path, kind: layer.kind(), is_head: path == head })
        .collect();
    let resolved = Matcher::new(config)?.resolve(&candidates, strict)?;
    config.warn_of_the_unusual();
    resolved.warnings.iter().for_each(|warning| burn_lora_io::warn!("{warning}"));
    Ok((resolved.plans, resolved.report))
}

/// Checks that a new adapter can have this name.
pub(crate) fn check_name(layers: &LayersMut<'_>, name: &str) -> Result<(), AdapterError> {
    let bad = |reason| Err(AdapterError::AdapterName { name: name.to_owned(), reason });
    if name.is_empty() {
        return bad("it is empty");
    }
    if name == BASE {
        return bad("it stands for the base without adapters");
    }
    let taken =
        |layer: &dyn AdaptedLayer| layer.adapters().configs().any(|(known, _)| known == name);
    if layers.iter().any(|(_, layer)| taken(&**layer)) {
        return Err(AdapterError::AdapterExists { name: name.to_owned() });
    }
    Ok(())
}

/// Attaches a new adapter by its settings.
pub(crate) fn add(
    mut layers: LayersMut<'_>,
    head: &str,
    name: &str,
    config: &LoraConfig,
    inputs: Option<&BTreeMap<String, InputStats>>,
) -> Result<MatchReport, AdapterError> {
    let (mut plans, mut report) = plan(&layers, head, config, true)?;
    check_name(&layers, name)?;
    check_plans(&layers, &plans, config, false)?;
    let mut config = config.clone();
    if let Init::Eva { rho } = config.init {
        let inputs = inputs.ok_or_else(|| AdapterError::State {
            what: "eva".into(),
            reason: "it needs the layers' inputs: use add_adapter_with_inputs".into(),
        })?;
        let paths: Vec<_> = layers.iter().map(|(path, _)| path.as_str()).collect();
        redistribute(&paths, &mut plans, inputs, &config, rho)?;
        report.adapted = follow(&paths, &plans, &mut config);
    }
    let config = Arc::new(config);
    for (i, plan) in plans.iter().enumerate() {
        let (path, layer) = &mut layers[i];
        let stats = inputs.and_then(|inputs| inputs.get(path));
        let attached = match plan {
            None => continue,
            Some(LayerPlan::Save) => {
                let saved = copy(&**layer, name, &config);
                layer.adapters_mut().saved.push(saved);
                Ok(())
            }
            Some(LayerPlan::Lora { rank, alpha }) => {
                attach(&mut **layer, path, name, &config, *rank, *alpha, stats)
            }
        };
        if let Err(error) = attached {
            layers[..i].iter_mut().for_each(|(_, layer)| detach(&mut **layer, name));
            return Err(error);
        }
    }
    finish(layers, name);
    Ok(report)
}

/// Checks the plans against the layers: the rank fits, the initialisation is supported, and the weight
/// can be decomposed. For an adapter that is `loaded` the initialisation matters only if it changed the
/// base.
pub(crate) fn check_plans(
    layers: &LayersMut<'_>,
    plans: &[Option<LayerPlan>],
    config: &LoraConfig,
    loaded: bool,
) -> Result<(), AdapterError> {
    let mut large: Vec<String> = vec![];
    for ((path, layer), plan) in layers.iter().zip(plans) {
        let Some(LayerPlan::Lora { rank, .. }) = plan else { continue };
        let [out, width] = layer.shape();
        if *rank > out.min(width) {
            large.push(format!("{rank} at `{path}`, which is [{out}, {width}]"));
        }
        let error = |reason: String| Err(AdapterError::Layer { layer: path.clone(), reason });
        let random = matches!(config.init, Init::Kaiming | Init::Random | Init::Gaussian);
        if layer.kind() == LayerKind::Embedding && !random {
            if loaded {
                continue;
            }
            let name = config.init.name();
            return error(format!("an embedding has no `{name}` initialisation: exclude it"));
        }
        let most = out.max(width).max(ALWAYS);
        if !loaded && *rank > most {
            return error(format!("rank {rank} of a weight [{out}, {width}]: at most {most}"));
        }
        let most = out.min(width);
        let loftq = matches!(config.init, Init::Loftq { .. });
        let decomposed = config.init.is_residual() || loftq;
        let eva = matches!(config.init, Init::Eva { .. }) && !loaded;
        if (decomposed || eva) && *rank > most {
            return error(format!("rank {rank} of a weight [{out}, {width}]: at most {most}"));
        }
        if loftq && layer.is_quantized() && !loaded {
            return error("LoftQ needs the weight that it quantizes: load the base dense".into());
        }
        if decomposed {
            // Zero times a value that is not finite is NaN.
            let sum = to_vec((layer.weight() * 0.0).sum(), path)?;
            if sum[0] != 0.0 {
                return error("its weight has values that are not finite".into());
            }
        }
    }
    if let Some(first) = large.first() {
        let others = large.len() - 1;
        let others =
            if others == 0 { String::new() } else { format!(", and at {others} more layers") };
        burn_lora_io::warn!("ranks beyond the weight's own, which add nothing: {first}{others}");
    }
    Ok(())
}

/// Rank that any layer may have. A rank larger than this and than both sides of the layer is a typing
/// error, and would take the memory of many such layers.
const ALWAYS: usize = 1024;

/// Updates the settings to the redistributed ranks and alphas; returns the paths of the adapted layers.
fn follow(paths: &[&str], plans: &[Option<LayerPlan>], config: &mut LoraConfig) -> Vec<String> {
    let mut adapted = vec![];
    (config.rank_pattern, config.alpha_pattern) = Default::default();
    for (path, plan) in paths.iter().zip(plans) {
        let Some(LayerPlan::Lora { rank, alpha }) = plan else { continue };
        adapted.push((*path).to_owned());
        let key = || fancy_regex::escape(path).into_owned();
        if *rank != config.rank {
            config.rank_pattern.insert(key(), *rank);
        }
        if *alpha != config.alpha {
            config.alpha_pattern.insert(key(), *alpha);
        }
    }
    (config.layers, config.layers_pattern) = Default::default();
    config.targets = Some(Targets::Names(adapted.clone()));
    adapted
}

/// Attaches the initialised update of one layer; some initialisations change the base.
pub(crate) fn attach(
    layer: &mut dyn AdaptedLayer,
    path: &str,
    name: &str,
    config: &Arc<LoraConfig>,
    rank: usize,
    alpha: f64,
    stats: Option<&InputStats>,
) -> Result<(), AdapterError> {
    // The part subtracted from the base depends only on the base, so that it can be repeated.
    let seed = if config.init.is_residual() { 0 } else { config.seed };
    let mut rng = random::generator(seed, path);
    let [out, width] = layer.shape();
    let (a, b) = ([rank, width], [out, rank]);
    let scaling = config.scaling(rank, alpha);
    let [a, b] = match &config.init {
        Init::Kaiming | Init::Gaussian if layer.kind() == LayerKind::Embedding => {
            random::embedding(rank, layer, true, &mut rng)
        }
        Init::Random if layer.kind() == LayerKind::Embedding => {
            random::embedding(rank, layer, false, &mut rng)
        }
        Init::Kaiming => [random::kaiming(a, layer, &mut rng), random::zeros(b, layer)],
        Init::Random => [random::kaiming(a, layer, &mut rng), random::kaiming(b, layer, &mut rng)],
        Init::Gaussian => {
            let std = 1.0 / rank as f32;
            [random::gaussian(a, std, layer, &mut rng), random::zeros(b, layer)]
        }
        Init::Orthogonal => random::orthogonal(rank, layer, &mut rng),
        Init::Eva { .. } => {
            let stats = stats.filter(|stats| stats.width() == width);
            let stats = stats.ok_or_else(|| AdapterError::Layer {
                layer: path.to_owned(),
                reason: format!("its input statistics are not of width {width}"),
            })?;
            let a = to_tensor(stats.components(rank).as_ref(), &layer.device());
            [a, random::zeros(b, layer)]
        }
        Init::Pissa | Init::PissaNiter(_) | Init::Olora => {
            residual::factors(&config.init, layer, path, rank, scaling, &mut rng)?
        }
        Init::Loftq { iterations, config } => {
            let weight = layer.weight();
            let (packed, factors) =
                residual::loftq(&weight, config, *iterations, path, rank, scaling, &mut rng)?;
            pack(layer, packed);
            factors
        }
    };
    let mut lora = LoraAdapter::new(name, config.clone(), alpha, a, b);
    if config.init.is_residual() {
        layer.set_weight(layer.weight() - lora.delta_weight());
        let host = |param: &Param<Tensor<2>>| to_vec(param.val(), path);
        lora.initial = Some(Arc::new([host(&lora.lora_a)?, host(&lora.lora_b)?]));
    }
    push(layer, lora);
    Ok(())
}

/// Replaces the weight of a linear layer by a packed one.
fn pack(layer: &mut dyn AdaptedLayer, weight: PackedWeight) {
    if let Some(base) = layer.base_mut() {
        base.weight = Frozen::new(weight);
    }
    layer.refresh();
}

/// Packs the base as LoftQ does, for an update that comes from a file.
pub(crate) fn pack_for_loftq(
    layer: &mut dyn AdaptedLayer,
    path: &str,
    init: &Init,
    rank: usize,
    seed: u64,
) -> Result<(), AdapterError> {
    let Init::Loftq { iterations, config } = init else { return Ok(()) };
    let mut rng = random::generator(seed, path);
    let weight = layer.weight();
    pack(layer, residual::loftq_base(&weight, config, *iterations, path, rank, &mut rng)?);
    Ok(())
}

/// Adds an update to its layer, with a magnitude if DoRA is enabled.
pub(crate) fn push(layer: &mut dyn AdaptedLayer, lora: LoraAdapter) {
    let lora = if lora.config().dora { lora.with_magnitude(layer) } else { lora };
    layer.adapters_mut().lora.push(lora);
}

/// Creates a trainable copy of a layer.
pub(crate) fn copy(layer: &dyn AdaptedLayer, name: &str, config: &Arc<LoraConfig>) -> SavedModule {
    let autodiff = layer.device().is_autodiff();
    let weight = layer.file_layout(layer.weight());
    let bias = layer.bias().map(|bias| bias.val().inner().cast(burn::tensor::FloatDType::F32));
    // A copy, even if the base is float32: training must not overwrite the base's memory.
    let weight = weight * 1.0;
    let (weight, bias) =
        if autodiff { (weight.autodiff(), bias.map(Tensor::autodiff)) } else { (weight, bias) };
    SavedModule::new(name, config.clone(), weight, bias)
}

/// Undoes [`attach`].
fn detach(layer: &mut dyn AdaptedLayer, name: &str) {
    if let Some(lora) = layer.adapters().lora(name)
        && lora.initial.is_some()
    {
        let weight = layer.weight() + lora.delta_weight();
        layer.set_weight(weight);
    }
    layer.adapters_mut().remove(name);
}

/// Selects the first adapter of a model; later ones stay frozen.
pub(crate) fn finish(mut layers: LayersMut<'_>, name: &str) {
    let others =
        |layer: &dyn AdaptedLayer| layer.adapters().configs().any(|(other, _)| other != name);
    let first = !layers.iter().any(|(_, layer)| others(&**layer));
    if first {
        let active = ActiveAdapters::new(Selection::adapters([name]));
        for (_, layer) in &mut layers {
            layer.adapters_mut().selected = active.clone();
        }
    }
    train_selected(layers);
}

/// Trains the selected adapters and the biases that they train; freezes the others.
pub(crate) fn train_selected(layers: LayersMut<'_>) {
    let mut biases: BTreeMap<String, Bias> = BTreeMap::new();
    for (_, layer) in &layers {
        let configs = layer.adapters().configs();
        biases.extend(configs.map(|(name, config)| (name.to_owned(), config.bias)));
    }
    let none = biases.values().all(|bias| *bias == Bias::None);
    for (_, layer) in layers {
        let active = layer.adapters().selected.clone();
        let selected = active.selection().names();
        layer.adapters_mut().train_only(&selected);
        let trains = |name: &&str| match biases.get(*name) {
            None | Some(Bias::None) => false,
            Some(Bias::All) => true,
            Some(Bias::LoraOnly) => layer.adapters().lora(name).is_some(),
        };
        let trained = selected.iter().any(trains);
        if !none && let Some(bias) = layer.bias_mut() {
            *bias = bias.clone().set_require_grad(trained);
        }
    }
}
