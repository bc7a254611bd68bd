//! LoRA and DoRA as a method: how an update begins, and what it is called in files.

use super::lora::LoraAdapter;
use crate::{
    config::LoraConfig,
    error::AdapterError,
    frozen::{FrozenLayer, LayerKind},
    init::{
        Init,
        linalg::{to_tensor, to_vec},
        random, residual,
    },
    method::{Method, Origin, Role, Site, UpdateTensor},
    target::{Bias, TargetConfig},
    update::BoxedUpdate,
};
use burn::{module::Param, tensor::Tensor};
use burn_lora_quant::{Frozen, PackedWeight};
use serde_json::Value;
use std::sync::Arc;

/// Rank that any layer may have. A rank larger than this and than both sides of the layer is a typing
/// error, and would take the memory of many such layers.
const ALWAYS: usize = 1024;

impl Method for LoraConfig {
    fn peft_type(&self) -> &'static str {
        "LORA"
    }

    fn targets(&self) -> TargetConfig {
        self.target_config()
    }

    fn settings(&self) -> Value {
        serde_json::to_value(self).expect("settings are plain values")
    }

    fn validate(&self) -> Result<(), AdapterError> {
        self.validate()
    }

    fn unusual(&self) -> Vec<String> {
        self.unusual()
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn bias(&self) -> Bias {
        self.bias
    }

    fn tensors(&self, site: &Site<'_>) -> Vec<UpdateTensor> {
        let ([out, width], rank) = (site.shape, site.rank);
        let (a, b) = ([rank, width], [out, rank]);
        let [key_a, key_b] = keys(site.kind);
        let roles = match site.kind {
            LayerKind::Embedding => [Role::Embedding; 2],
            _ => [Role::A, Role::B],
        };
        let mut tensors = vec![
            UpdateTensor::new("lora_a", key_a, &a, roles[0]),
            UpdateTensor::new("lora_b", key_b, &b, roles[1]),
        ];
        if self.dora {
            let key = "lora_magnitude_vector";
            let magnitude = UpdateTensor::new("magnitude", key, &[out], Role::Magnitude);
            tensors.push(magnitude.or("lora_magnitude_vector.weight"));
            tensors.push(UpdateTensor::derived("base_norm", &[out]));
        }
        tensors
    }

    fn check(&self, layers: &[(Site<'_>, &dyn FrozenLayer)]) -> Result<(), AdapterError> {
        let without = |(site, _): &(Site<'_>, &dyn FrozenLayer)| {
            site.origin == Origin::New && site.inputs.is_none()
        };
        if matches!(self.init, Init::Eva { .. }) && !layers.is_empty() && layers.iter().all(without)
        {
            return Err(AdapterError::State {
                what: "eva".into(),
                reason: "it needs the layers' inputs: use add_adapter_with_inputs".into(),
            });
        }
        let mut large: Vec<String> = vec![];
        for (site, layer) in layers {
            let (path, rank, [out, width]) = (site.path, site.rank, site.shape);
            if rank > out.min(width) {
                large.push(format!("{rank} at `{path}`, which is [{out}, {width}]"));
            }
            self.check_layer(site, *layer)?;
        }
        if let Some(first) = large.first() {
            let others = large.len() - 1;
            let others =
                if others == 0 { String::new() } else { format!(", and at {others} more layers") };
            burn_lora_io::warn!(
                "ranks beyond the weight's own, which add nothing: {first}{others}"
            );
        }
        Ok(())
    }

    fn attach(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
        _shared: &[Param<Tensor<2>>],
    ) -> Result<BoxedUpdate, AdapterError> {
        self.attach_lora(layer, site).map(BoxedUpdate::new)
    }

    fn detach(&self, layer: &mut dyn FrozenLayer, update: &BoxedUpdate) {
        if let Some(lora) = update.downcast_ref::<LoraAdapter>()
            && lora.initial.is_some()
        {
            layer.set_weight(layer.weight() + lora.delta_weight());
        }
    }
}

/// Names of A and B in files.
pub(crate) fn keys(kind: LayerKind) -> [&'static str; 2] {
    match kind {
        LayerKind::Embedding => ["lora_embedding_A", "lora_embedding_B"],
        _ => ["lora_A.weight", "lora_B.weight"],
    }
}

impl LoraConfig {
    /// Checks that the rank fits, the initialisation is supported, and the weight can be decomposed. For
    /// an adapter from a file the initialisation matters only if it changed the base.
    fn check_layer(&self, site: &Site<'_>, layer: &dyn FrozenLayer) -> Result<(), AdapterError> {
        let (path, rank, [out, width]) = (site.path, site.rank, site.shape);
        let loaded = site.origin != Origin::New;
        let error = |reason: String| Err(AdapterError::Layer { layer: path.to_owned(), reason });
        let random = matches!(self.init, Init::Kaiming | Init::Random | Init::Gaussian);
        if site.kind == LayerKind::Embedding && !random {
            if loaded {
                return Ok(());
            }
            let name = self.init.name();
            return error(format!("an embedding has no `{name}` initialisation: exclude it"));
        }
        let most = out.max(width).max(ALWAYS);
        if !loaded && rank > most {
            return error(format!("rank {rank} of a weight [{out}, {width}]: at most {most}"));
        }
        let most = out.min(width);
        let loftq = matches!(self.init, Init::Loftq { .. });
        let decomposed = self.init.is_residual() || loftq;
        let eva = matches!(self.init, Init::Eva { .. }) && !loaded;
        if (decomposed || eva) && rank > most {
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
        Ok(())
    }

    /// Creates the update of a layer. If its initialisation changes the base, the base is changed, as
    /// PEFT does also on loading, unless the file contains the changed base.
    pub(crate) fn attach_lora(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
    ) -> Result<LoraAdapter, AdapterError> {
        let lora = match site.origin {
            Origin::New => self.initialised(layer, site)?,
            Origin::File { weight } => {
                let changes = site.kind == LayerKind::Linear && !weight;
                if changes && self.init.is_residual() {
                    self.initialised(layer, site)?
                } else {
                    if changes && !layer.is_quantized() {
                        self.pack_for_loftq(layer, site)?;
                    }
                    let ([out, width], rank) = (site.shape, site.rank);
                    let zeros = |shape| random::zeros(shape, layer);
                    self.lora(site, zeros([rank, width]), zeros([out, rank]))
                }
            }
        };
        Ok(if self.dora { lora.with_magnitude(layer) } else { lora })
    }

    fn lora(&self, site: &Site<'_>, a: Tensor<2>, b: Tensor<2>) -> LoraAdapter {
        LoraAdapter::new(self.scaling(site.rank, site.alpha), self.rslora, a, b)
    }

    /// Creates the initialised update of one layer; some initialisations change the base.
    fn initialised(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
    ) -> Result<LoraAdapter, AdapterError> {
        let (path, rank, [out, width]) = (site.path, site.rank, site.shape);
        // The part subtracted from the base depends only on the base, so that it can be repeated.
        let seed = if self.init.is_residual() { 0 } else { self.seed };
        let mut rng = random::generator(seed, path);
        let (a, b) = ([rank, width], [out, rank]);
        let scaling = self.scaling(rank, site.alpha);
        let [a, b] = match &self.init {
            Init::Kaiming | Init::Gaussian if site.kind == LayerKind::Embedding => {
                random::embedding(rank, layer, true, &mut rng)
            }
            Init::Random if site.kind == LayerKind::Embedding => {
                random::embedding(rank, layer, false, &mut rng)
            }
            Init::Kaiming => [random::kaiming(a, layer, &mut rng), random::zeros(b, layer)],
            Init::Random => {
                [random::kaiming(a, layer, &mut rng), random::kaiming(b, layer, &mut rng)]
            }
            Init::Gaussian => {
                let std = 1.0 / rank as f32;
                [random::gaussian(a, std, layer, &mut rng), random::zeros(b, layer)]
            }
            Init::Orthogonal => random::orthogonal(rank, layer, &mut rng),
            Init::Eva { .. } => {
                let stats = site.inputs.filter(|stats| stats.width() == width);
                let stats = stats.ok_or_else(|| AdapterError::Layer {
                    layer: path.to_owned(),
                    reason: format!("its input statistics are not of width {width}"),
                })?;
                let a = to_tensor(stats.components(rank).as_ref(), &layer.device());
                [a, random::zeros(b, layer)]
            }
            Init::Pissa | Init::PissaNiter(_) | Init::Olora => {
                residual::factors(&self.init, layer, path, rank, scaling, &mut rng)?
            }
            Init::Loftq { iterations, config } => {
                let weight = layer.weight();
                let (packed, factors) =
                    residual::loftq(&weight, config, *iterations, path, rank, scaling, &mut rng)?;
                pack(layer, packed);
                factors
            }
        };
        let mut lora = self.lora(site, a, b);
        if self.init.is_residual() {
            layer.set_weight(layer.weight() - lora.delta_weight());
            let host = |param: &Param<Tensor<2>>| to_vec(param.val(), path);
            lora.initial = Some(Arc::new([host(&lora.lora_a)?, host(&lora.lora_b)?]));
        }
        Ok(lora)
    }

    /// Packs the base as LoftQ does, for an update that comes from a file.
    fn pack_for_loftq(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
    ) -> Result<(), AdapterError> {
        let Init::Loftq { iterations, config } = &self.init else { return Ok(()) };
        let (path, mut rng) = (site.path, random::generator(self.seed, site.path));
        let weight = layer.weight();
        let base = residual::loftq_base(&weight, config, *iterations, path, site.rank, &mut rng)?;
        pack(layer, base);
        Ok(())
    }
}

/// Replaces the weight of a linear layer by a packed one.
fn pack(layer: &mut dyn FrozenLayer, weight: PackedWeight) {
    if let Some(base) = layer.base_mut() {
        base.weight = Frozen::new(weight);
    }
}
