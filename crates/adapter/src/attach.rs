//! Attaching a new adapter to the layers of a model.

use crate::{
    active::ActiveAdapters,
    config::LoraConfig,
    error::AdapterError,
    frozen::FrozenLayer,
    init::{
        Init,
        eva::{InputStats, redistribute},
        linalg::tensor,
    },
    layer::{AdaptedLayer, LayerAdapter, are_tied},
    layers::LayersMut,
    method::{Method, Origin, SharedTensor, Site},
    selection::{BASE, Selection},
    target::{Bias, Targets},
    targets::{Candidate, LayerPlan, MatchReport, Matcher},
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use burn_lora_io::progress::Work;
use burn_lora_kernels::Persist;
use std::{collections::BTreeMap, sync::Arc};

/// Statistics of the inputs of layers, by path.
type Inputs = BTreeMap<String, InputStats>;

/// Plans the adapter of each layer, and warns of odd settings. With `strict`, a name that matches nothing
/// is an error.
pub(crate) fn plan(
    layers: &LayersMut<'_>,
    head: &str,
    method: &dyn Method,
    strict: bool,
) -> Result<(Vec<Option<LayerPlan>>, MatchReport), AdapterError> {
    method.validate()?;
    let candidates: Vec<_> = layers
        .iter()
        .map(|(path, layer)| Candidate { path, kind: layer.kind(), is_head: path == head })
        .collect();
    let resolved = Matcher::new(&method.targets())?.resolve(&candidates, strict)?;
    let warnings = method.unusual().into_iter().chain(resolved.warnings);
    warnings.for_each(|warning| burn_lora_io::warn!("{warning}"));
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
        |layer: &dyn AdaptedLayer| layer.adapters().methods().any(|(known, _)| known == name);
    if layers.iter().any(|(_, layer)| taken(&**layer)) {
        return Err(AdapterError::AdapterExists { name: name.to_owned() });
    }
    Ok(())
}

/// Attaches a new adapter by its settings.
pub(crate) fn add(
    layers: LayersMut<'_>,
    head: &str,
    name: &str,
    method: Arc<dyn Method>,
) -> Result<MatchReport, AdapterError> {
    let (plans, report) = plan(&layers, head, &*method, true)?;
    attach_new(layers, name, &plans, method, &Inputs::new())?;
    Ok(report)
}

/// Attaches a new LoRA adapter that is initialised from the inputs of the layers (EVA).
pub(crate) fn add_with_inputs(
    layers: LayersMut<'_>,
    head: &str,
    name: &str,
    config: &LoraConfig,
    inputs: &Inputs,
) -> Result<MatchReport, AdapterError> {
    let (mut plans, mut report) = plan(&layers, head, config, true)?;
    let mut config = config.clone();
    if let Init::Eva { rho } = config.init {
        check_name(&layers, name)?;
        let paths: Vec<_> = layers.iter().map(|(path, _)| path.as_str()).collect();
        let sites = sites(&layers, &plans, Origin::New, inputs);
        config.check(&with_layers(&sites, &layers))?;
        redistribute(&paths, &mut plans, inputs, &config, rho)?;
        report.adapted = follow(&paths, &plans, &mut config);
    }
    attach_new(layers, name, &plans, Arc::new(config), inputs)?;
    Ok(report)
}

/// Layers to adapt: their indices, and what a method sees of them.
fn sites<'a>(
    layers: &'a LayersMut<'_>,
    plans: &[Option<LayerPlan>],
    origin: Origin,
    inputs: &'a Inputs,
) -> Vec<(usize, Site<'a>)> {
    let planned = layers.iter().zip(plans).enumerate();
    let sites = planned.filter_map(|(i, ((path, layer), plan))| match plan {
        Some(LayerPlan::Update { rank, alpha }) => {
            let site = site(path, &**layer, *rank, *alpha, origin);
            Some((i, Site { inputs: inputs.get(path), ..site }))
        }
        _ => None,
    });
    sites.collect()
}

fn site<'a>(
    path: &'a str,
    layer: &dyn AdaptedLayer,
    rank: usize,
    alpha: f64,
    origin: Origin,
) -> Site<'a> {
    Site { path, kind: layer.kind(), shape: layer.shape(), rank, alpha, origin, inputs: None }
}

fn with_layers<'a>(
    sites: &[(usize, Site<'a>)],
    layers: &'a LayersMut<'_>,
) -> Vec<(Site<'a>, &'a dyn FrozenLayer)> {
    sites.iter().map(|(i, site)| (*site, &*layers[*i].1 as &dyn FrozenLayer)).collect()
}

/// What a method sees of the layers that it adapts from a file.
pub(crate) fn loaded_sites<'a>(
    layers: &'a LayersMut<'_>,
    plans: &[Option<LayerPlan>],
) -> Vec<(usize, Site<'a>)> {
    static NONE: Inputs = Inputs::new();
    sites(layers, plans, Origin::File { weight: false }, &NONE)
}

/// Checks whether a method can adapt layers from a file.
pub(crate) fn check_loaded(
    layers: &LayersMut<'_>,
    plans: &[Option<LayerPlan>],
    method: &dyn Method,
) -> Result<(), AdapterError> {
    method.check(&with_layers(&loaded_sites(layers, plans), layers))
}

/// Attaches a new adapter as planned; on an error no layer has it.
fn attach_new(
    mut layers: LayersMut<'_>,
    name: &str,
    plans: &[Option<LayerPlan>],
    method: Arc<dyn Method>,
    inputs: &Inputs,
) -> Result<(), AdapterError> {
    check_name(&layers, name)?;
    let sites = sites(&layers, plans, Origin::New, inputs);
    method.check(&with_layers(&sites, &layers))?;
    let of_method: Vec<_> = sites.iter().map(|(_, site)| *site).collect();
    let shared = method.shared(&of_method);
    let values = method.shared_values(&shared);
    let mut shared = Shared::new(shared, values);
    let work = Work::items("initialising adapters", plans.len());
    for (i, plan) in plans.iter().enumerate() {
        work.advance(1);
        let (path, layer) = &mut layers[i];
        let attached = match plan {
            None => Ok(()),
            Some(LayerPlan::Save) => {
                attach_whole(&mut **layer, name, &method);
                Ok(())
            }
            Some(LayerPlan::Update { rank, alpha }) => {
                let site = site(path, &**layer, *rank, *alpha, Origin::New);
                let site = Site { inputs: inputs.get(path), ..site };
                attach(&mut **layer, name, &method, &site, &mut shared)
            }
        };
        if let Err(error) = attached {
            layers[..i].iter_mut().for_each(|(_, layer)| detach(&mut **layer, name));
            return Err(error);
        }
    }
    finish(layers, name);
    Ok(())
}

/// Tensors that the layers of an adapter share, on each device once.
pub(crate) struct Shared {
    tensors: Vec<(SharedTensor, Vec<f32>)>,
    on: Vec<(burn::tensor::Device, Vec<Param<Tensor<2>>>)>,
}

impl Shared {
    pub fn new(tensors: Vec<SharedTensor>, values: Vec<Vec<f32>>) -> Self {
        Self { tensors: tensors.into_iter().zip(values).collect(), on: vec![] }
    }

    fn on(&mut self, device: &burn::tensor::Device) -> &[Param<Tensor<2>>] {
        let at = self.on.iter().position(|(known, _)| known == device);
        let at = at.unwrap_or_else(|| {
            let params = self.tensors.iter().map(|(shared, values)| {
                let tensor = tensor(values.clone(), shared.shape, device);
                Param::from_tensor(tensor).set_require_grad(false)
            });
            self.on.push((device.clone(), params.collect()));
            self.on.len() - 1
        });
        &self.on[at].1
    }
}

/// Attaches the update of one layer.
pub(crate) fn attach(
    layer: &mut dyn AdaptedLayer,
    name: &str,
    method: &Arc<dyn Method>,
    site: &Site<'_>,
    shared: &mut Shared,
) -> Result<(), AdapterError> {
    let shared = shared.on(&layer.device());
    let update = method.attach(layer, site, shared)?;
    // Other adapters keep something of a weight that may have changed.
    layer.refresh();
    layer.adapters_mut().updates.push(LayerAdapter::new(name, method.clone(), site, update));
    Ok(())
}

/// Attaches a trainable copy of a layer.
pub(crate) fn attach_whole(layer: &mut dyn AdaptedLayer, name: &str, method: &Arc<dyn Method>) {
    let whole = LayerAdapter::whole(name, method.clone(), layer);
    layer.adapters_mut().updates.push(whole);
}

/// Updates the settings to the redistributed ranks and alphas; returns the paths of the adapted layers.
fn follow(paths: &[&str], plans: &[Option<LayerPlan>], config: &mut LoraConfig) -> Vec<String> {
    let mut adapted = vec![];
    (config.rank_pattern, config.alpha_pattern) = Default::default();
    for (path, plan) in paths.iter().zip(plans) {
        let Some(LayerPlan::Update { rank, alpha }) = plan else { continue };
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

/// Undoes [`attach`].
fn detach(layer: &mut dyn AdaptedLayer, name: &str) {
    if let Some(adapter) = layer.adapters().get(name) {
        let (method, update) = (adapter.method().clone(), adapter.update.clone());
        method.detach(layer, &update);
    }
    layer.adapters_mut().remove(name);
}

/// Lets layers follow those whose weight they share, and selects the first adapter of a model; later
/// ones stay frozen.
pub(crate) fn finish(mut layers: LayersMut<'_>, name: &str) {
    let mut persist = Persist::default();
    for (_, layer) in &mut layers {
        if let Some(adapter) = layer.adapters_mut().get_mut(name) {
            *adapter = adapter.clone().map(&mut persist);
        }
    }
    for i in 0..layers.len() {
        let Some(adapter) = layers[i].1.adapters().get(name).filter(|a| !a.follows()) else {
            continue;
        };
        let adapter = adapter.clone();
        for j in 0..layers.len() {
            let tied = j != i && are_tied(&*layers[i].1, &*layers[j].1);
            let layer = &mut layers[j].1;
            if tied
                && layer.adapters().get(name).is_none()
                && let Some(update) = adapter.update.tied(&**layer)
            {
                layer.adapters_mut().updates.push(adapter.follower(update));
            }
        }
    }
    let others =
        |layer: &dyn AdaptedLayer| layer.adapters().methods().any(|(other, _)| other != name);
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
        let methods = layer.adapters().methods();
        biases.extend(methods.map(|(name, method)| (name.to_owned(), method.bias())));
    }
    let none = biases.values().all(|bias| *bias == Bias::None);
    for (_, layer) in layers {
        let active = layer.adapters().selected.clone();
        let selected = active.selection().names();
        layer.adapters_mut().train_only(&selected);
        let trains = |name: &&str| match biases.get(*name) {
            None | Some(Bias::None) => false,
            Some(Bias::All) => true,
            Some(Bias::LoraOnly) => layer.adapters().updates_weight(name),
        };
        let trained = selected.iter().any(trains);
        if !none && let Some(bias) = layer.bias_mut() {
            *bias = bias.clone().set_require_grad(trained);
        }
    }
}
