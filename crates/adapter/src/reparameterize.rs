//! LoRA on any Burn module, through Burn's own reparameterization: the model does not change.

use crate::{
    base::Base,
    config::LoraConfig,
    error::AdapterError,
    frozen::{FrozenLayer, LayerKind},
    init::Init,
    layer::{AdaptedLayer, LayerAdapter},
    linear::AdaptedLinear,
    method::Site,
    methods::lora::LoraAdapter,
    targets::{Candidate, LayerPlan, MatchReport, Matcher},
    update::{BoxedUpdate, Update},
};
use burn::{
    module::{Module, ModuleVisitor, Param, Reparameterization, Reparameterizer},
    tensor::Tensor,
};
use burn_lora_quant::{DenseWeight, Frozen, Gemm, StorageFormat};
use std::{collections::BTreeMap, sync::Arc};

/// Reparameterizer that adds LoRA to the weights of any Burn module by
/// [`apply_reparameterization`](burn::module::Module::apply_reparameterization), over a dense base or one
/// that is stored in 4 or 8 bits: the model's own layers stay as they are, and see the weight
/// `W + scaling · B · A`.
///
/// Limits compared to [`AdaptedLinear`]: the weight is made dense at each use, and lives until the backward
/// pass (an `AdaptedLinear` keeps only codes, and makes no matrix of the weight's size); there is no dropout
/// and only one adapter, for the whole batch; files are Burn's records, not PEFT's. Supported:
/// initialisations (PiSSA, OLoRA, LoftQ), DoRA and rank patterns, a quantized base in memory and in records,
/// and `valid().materialize()` to merge.
///
/// ```
/// use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::{Device, Tensor}};
/// use burn_lora_adapter::{LoraConfig, LoraReparameterizer};
/// use burn_lora_quant::QuantConfig;
///
/// #[derive(Module, Debug)]
/// struct Mlp {
///     up: Linear,
///     down: Linear,
/// }
///
/// let device = Device::default().autodiff();
/// let mlp = Mlp {
///     up: LinearConfig::new(64, 128).init(&device),
///     down: LinearConfig::new(128, 64).init(&device),
/// };
/// let lora = LoraConfig::new(4, 8).targets(["up", "down"]);
/// let lora = LoraReparameterizer::new(&mlp, &lora)?.quantize(QuantConfig::nf4());
/// let mlp = mlp.apply_reparameterization(lora);
///
/// let x = Tensor::<2>::ones([3, 64], &device);
/// let grads = mlp.down.forward(mlp.up.forward(x)).sum().backward();
/// let up = mlp.up.weight.reparameterization::<burn_lora_adapter::LoraWeight>().unwrap();
/// assert!(up.lora().lora_b.val().grad(&grads).is_some());
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
pub struct LoraReparameterizer {
    config: Arc<LoraConfig>,
    plans: BTreeMap<String, (usize, f64)>,
    report: MatchReport,
    format: Option<Arc<dyn StorageFormat>>,
}

/// Weight with a low-rank update that replaces one of Burn's parameters: see [`LoraReparameterizer`].
#[derive(Module, Debug)]
pub struct LoraWeight {
    linear: AdaptedLinear,
}

const NAME: &str = "default";

impl LoraReparameterizer {
    /// Creates a reparameterizer for the weights that `config` targets: `all_linear` those of Burn's
    /// `Linear`, names and patterns those of any layer, by its path.
    ///
    /// # Errors
    /// [`AdapterError::Config`] if a setting cannot be used here (dropout, `modules_to_save`, EVA) or at
    /// all; [`AdapterError::NoMatch`] if a name matches nothing; [`AdapterError::Layer`] if a rank is
    /// too large for a weight that the initialization decomposes.
    pub fn new<M: Module>(model: &M, config: &LoraConfig) -> Result<Self, AdapterError> {
        let unsupported = |field: &'static str, found: String| AdapterError::Config {
            config: "LoraConfig",
            field,
            found,
            reason: "a weight alone cannot do that: use an AdaptedLinear".into(),
        };
        if config.has_dropout() {
            return Err(unsupported("lora_dropout", config.dropout.to_string()));
        }
        if !config.modules_to_save.is_empty() {
            return Err(unsupported("modules_to_save", config.modules_to_save.join(", ")));
        }
        if matches!(config.init, Init::Eva { .. }) {
            return Err(unsupported("init_lora_weights", config.init.name()));
        }
        config.validate()?;
        let mut found = Weights::default();
        model.visit(&mut found);
        let kinds = found.weights.iter().map(|(path, linear, _)| {
            // `all_linear` skips every other kind of layer.
            let kind = if *linear { LayerKind::Linear } else { LayerKind::Embedding };
            Candidate { path, kind, is_head: false }
        });
        let candidates: Vec<_> = kinds.collect();
        let resolved = Matcher::new(&config.target_config())?.resolve(&candidates, true)?;
        let warnings = config.unusual().into_iter().chain(resolved.warnings);
        warnings.for_each(|warning| burn_lora_io::warn!("{warning}"));
        let decomposed = config.init.is_residual() || matches!(config.init, Init::Loftq { .. });
        let mut plans = BTreeMap::new();
        for ((path, _, [width, out]), plan) in found.weights.iter().zip(&resolved.plans) {
            let Some(LayerPlan::Update { rank, alpha }) = plan else { continue };
            let most = (*width).min(*out);
            if decomposed && *rank > most {
                let reason = format!("rank {rank} of a weight [{width}, {out}]: at most {most}");
                return Err(AdapterError::Layer { layer: path.clone(), reason });
            }
            plans.insert(path.clone(), (*rank, *alpha));
        }
        Ok(Self { config: Arc::new(config.clone()), plans, report: resolved.report, format: None })
    }

    /// Sets the storage format of the base weights; the original weights are not kept.
    pub fn quantize(mut self, format: impl StorageFormat + 'static) -> Self {
        self.format = Some(Arc::new(format));
        self
    }

    /// Number of weights that each target matched.
    pub fn report(&self) -> &MatchReport {
        &self.report
    }
}

/// Two-dimensional weights of a model: path of the layer, `true` if it is Burn's `Linear`, and shape.
#[derive(Default)]
struct Weights {
    path: Vec<(String, bool)>,
    weights: Vec<(String, bool, [usize; 2])>,
}

impl ModuleVisitor for Weights {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.to_owned(), container == "Struct:Linear"));
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(((name, linear), layers)) = self.path.split_last().filter(|_| D == 2) else {
            return;
        };
        if name == "weight" {
            let names: Vec<_> = layers.iter().map(|(name, _)| name.as_str()).collect();
            let shape = param.lazy_shape();
            self.weights.push((names.join("."), *linear, [shape[0], shape[1]]));
        }
    }
}

impl LoraWeight {
    /// Low-rank update of the weight.
    pub fn lora(&self) -> &LoraAdapter {
        self.linear.adapters().lora(NAME).expect("it is there from the start")
    }

    /// Frozen weight, `[out, in]`.
    pub fn base(&self) -> &Frozen {
        &self.linear.base.weight
    }

    /// Returns the weight with its update, `[out, in]` in float32, differentiable in the update.
    fn weight(&self) -> Tensor<2> {
        let (lora, weight) = (self.lora(), self.linear.weight());
        let [a, b] = [&lora.lora_a, &lora.lora_b].map(|param| param.val());
        let weight = if a.is_autodiff() { weight.autodiff() } else { weight };
        let sum = Gemm::new().alpha(lora.scaling() as f32).run_add(b, a, weight);
        match lora.factor(&self.linear) {
            None => sum,
            Some(factor) => sum * factor.unsqueeze_dim::<2>(1),
        }
    }
}

impl Reparameterization for LoraWeight {
    const NAME: &'static str = "lora";

    /// Returns the weight with its update.
    ///
    /// # Shapes
    /// - base: a placeholder of one element, in the dtype of the output
    /// - output: `[in, out]`, the layout of Burn's layers
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let [out, width] = self.linear.shape();
        let weight = self.weight().transpose().cast(base.dtype());
        let mut shape = [1; D];
        (shape[0], shape[D - 1]) = (width, out);
        weight.reshape(shape)
    }
}

impl Reparameterizer for LoraReparameterizer {
    type Reparam = LoraWeight;

    /// Replaces a targeted weight, and freezes every other parameter.
    ///
    /// # Panics
    /// If the model is a different one than the settings were matched with, or a weight cannot be
    /// decomposed (it has values that are not finite).
    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Self::Reparam>) {
        let plan = path.strip_suffix(".weight").filter(|_| D == 2);
        let Some((layer, (rank, alpha))) =
            plan.and_then(|layer| Some((layer, *self.plans.get(layer)?)))
        else {
            return (param.set_require_grad(false), None);
        };
        let dense = param.base().inner();
        let (device, dtype) = (param.lazy_device(), dense.dtype());
        let dims = dense.dims();
        let weight = dense.reshape([dims[0], dims[D - 1]]).transpose();
        let stored = match &self.format {
            Some(format) => format.store(weight),
            None => Ok(Frozen::new(DenseWeight::new(weight))),
        };
        let stored = stored.unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut linear = AdaptedLinear::new(Base::new(stored, None));
        let (kind, shape) = (linear.kind(), linear.shape());
        let site = Site { path: layer, kind, shape, rank, alpha, ..Site::default() };
        let lora = self.config.attach_lora(&mut linear, &site);
        let update = BoxedUpdate::new(lora.unwrap_or_else(|error| panic!("{error}")));
        let adapter = LayerAdapter::new(NAME, self.config.clone(), &site, update);
        linear.adapters_mut().updates.push(adapter);
        linear.adapters_mut().train_only(&[NAME]);
        let linear = if device.is_autodiff() { linear.train() } else { linear };
        let base = Tensor::zeros([1; D], (&device, dtype));
        (Param::from_tensor(base).set_require_grad(false), Some(LoraWeight { linear }))
    }
}
