//! The door of adapter methods: settings, and what they make of a layer.

use crate::{
    error::AdapterError,
    frozen::{FrozenLayer, LayerKind},
    init::eva::InputStats,
    target::{Bias, TargetConfig},
    targets::{Candidate, LayerPlan, Matcher},
    update::BoxedUpdate,
};
use burn::{module::Param, tensor::Tensor};
use serde_json::Value;
use std::{any::Any, fmt};

/// An adapter method, with its settings: which layers it adapts, what it trains of them, and how that is
/// called in files.
///
/// [`LoraConfig`](crate::LoraConfig) (LoRA and DoRA) implements it; the chapter on extending in the book
/// shows a custom one.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// let lora = LoraConfig::new(4, 8).targets(["linear"]);
/// let method: &dyn Method = &lora;
/// let site = Site { path: "linear", kind: LayerKind::Linear, shape: [64, 32], ..Site::default() };
/// let tensors = method.tensors(&Site { rank: 4, ..site });
/// assert_eq!((tensors[0].keys[0].as_str(), tensors[0].shape.as_slice()), ("lora_A.weight", &[4, 32][..]));
/// assert_eq!((tensors[1].keys[0].as_str(), tensors[1].shape.as_slice()), ("lora_B.weight", &[64, 4][..]));
/// ```
pub trait Method: Any + fmt::Debug + Send + Sync {
    /// PEFT's name of the method: `LORA`.
    fn peft_type(&self) -> &'static str;

    /// Layers to adapt.
    fn targets(&self) -> TargetConfig;

    /// Settings as JSON, by the names that `adapter_config.json` has for them. A resumed run must have
    /// the same.
    fn settings(&self) -> Value;

    /// Validates the settings.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for the first setting that cannot be used.
    fn validate(&self) -> Result<(), AdapterError> {
        Matcher::new(&self.targets()).map(drop)
    }

    /// Warnings of settings that are valid but unusual.
    fn unusual(&self) -> Vec<String> {
        vec![]
    }

    /// Probability that an input of a linear layer's update is zeroed in training.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// Biases of the base to train.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// Float parameters of the update of a layer: the trained ones and those that it keeps beside them.
    fn tensors(&self, site: &Site<'_>) -> Vec<UpdateTensor>;

    /// Returns `true` if files have the parameters of a layer for those that share its weight, too.
    fn saves_tied(&self) -> bool {
        false
    }

    /// Tensors that the updates of all layers share. They are not trained; they are made once for an
    /// adapter, and given to [`attach`](Self::attach).
    fn shared(&self, sites: &[Site<'_>]) -> Vec<SharedTensor> {
        let _ = sites;
        vec![]
    }

    /// Values of the [`shared`](Self::shared) tensors, where no file has them.
    fn shared_values(&self, tensors: &[SharedTensor]) -> Vec<Vec<f32>> {
        let _ = tensors;
        vec![]
    }

    /// Number of float32 values that [`low_rank`](crate::Update::low_rank) copies from parameters and
    /// keeps for the backward pass, for a memory plan: of A and B where they are made anew each time.
    fn copied(&self, site: &Site<'_>) -> usize {
        let _ = site;
        0
    }

    /// Checks whether layers can be adapted, before any of them is.
    ///
    /// # Errors
    /// [`AdapterError::Layer`] for the first layer that cannot; [`AdapterError::State`].
    fn check(&self, layers: &[(Site<'_>, &dyn FrozenLayer)]) -> Result<(), AdapterError> {
        let _ = layers;
        Ok(())
    }

    /// Creates the update of a layer. Parameters of an adapter from a file get their values afterwards.
    ///
    /// # Errors
    /// [`AdapterError`] if the initialisation fails.
    fn attach(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
        shared: &[Param<Tensor<2>>],
    ) -> Result<BoxedUpdate, AdapterError>;

    /// Undoes what [`attach`](Self::attach) did to the layer.
    fn detach(&self, layer: &mut dyn FrozenLayer, update: &BoxedUpdate) {
        let _ = (layer, update);
    }

    /// Plans an adapter for layers that are given by path and kind, without a model; `None` for a layer
    /// that is not adapted. `head` is the path of the output head.
    ///
    /// ```
    /// use burn_lora_adapter::{LayerKind, LayerPlan, LoraConfig, Method};
    ///
    /// let lora = LoraConfig::new(4, 8).all_linear();
    /// let layers = [("mlp.up", LayerKind::Linear), ("lm_head", LayerKind::Linear)];
    /// let plans = lora.plan(&layers, "lm_head")?;
    /// assert_eq!(plans, [Some(LayerPlan::Update { rank: 4, alpha: 8.0 }), None]);
    /// # Ok::<_, burn_lora_adapter::AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// [`AdapterError::Config`] if a setting cannot be used, [`AdapterError::NoMatch`] if one matches
    /// nothing.
    fn plan(
        &self,
        layers: &[(&str, LayerKind)],
        head: &str,
    ) -> Result<Vec<Option<LayerPlan>>, AdapterError> {
        self.validate()?;
        let candidates: Vec<_> = layers
            .iter()
            .map(|&(path, kind)| Candidate { path, kind, is_head: path == head })
            .collect();
        Ok(Matcher::new(&self.targets())?.resolve(&candidates, true)?.plans)
    }
}

/// Layer to adapt, as a method sees it before there is an update.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Path of the layer.
    pub path: &'a str,
    /// Kind of the layer.
    pub kind: LayerKind,
    /// Shape of the weight, `[out, in]`: see [`FrozenLayer::shape`].
    pub shape: [usize; 2],
    /// Rank of the update, if the method has one.
    pub rank: usize,
    /// Alpha of the update, if the method has one.
    pub alpha: f64,
    /// Where the adapter comes from.
    pub origin: Origin,
    /// Statistics of the layer's inputs, if the user has collected them.
    pub inputs: Option<&'a InputStats>,
}

impl Default for Site<'_> {
    fn default() -> Self {
        Self {
            path: "",
            kind: LayerKind::Linear,
            shape: [0, 0],
            rank: 0,
            alpha: 0.0,
            origin: Origin::New,
            inputs: None,
        }
    }
}

/// Origin of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A new adapter, to be initialised.
    New,
    /// A file, whose values replace those of the trained parameters.
    File {
        /// Whether the frozen weight of the layer is in the file, too.
        weight: bool,
    },
}

/// Parameter of an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateTensor {
    /// Name of the field of the [`Update`](crate::Update).
    pub field: &'static str,
    /// Names in files, after the path of the layer: the one that is written, and others that are read.
    /// Without one, the tensor is derived from the frozen weight, and not trained.
    pub keys: Vec<String>,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// Role of the parameter.
    pub role: Role,
}

impl UpdateTensor {
    /// Creates a trained parameter.
    pub fn new(field: &'static str, key: &str, shape: &[usize], role: Role) -> Self {
        Self { field, keys: vec![key.to_owned()], shape: shape.to_vec(), role }
    }

    /// Creates a parameter that is derived from the frozen weight, not trained and not saved.
    pub fn derived(field: &'static str, shape: &[usize]) -> Self {
        Self { field, keys: vec![], shape: shape.to_vec(), role: Role::Other }
    }

    /// Adds a name that is read, too.
    pub fn or(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }

    /// Returns `true` if the parameter is trained and saved.
    pub fn is_trained(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Number of values.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Role of a parameter, by which an optimizer may treat it: see [`ParamGroups`](crate::ParamGroups).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// A of a linear layer.
    A,
    /// B of a linear layer.
    B,
    /// Magnitude of DoRA.
    Magnitude,
    /// Parameter of an embedding.
    Embedding,
    /// Layer that is trained whole.
    Saved,
    /// Anything else.
    Other,
}

/// Tensor that the updates of all layers share: see [`Method::shared`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedTensor {
    /// Name of the field of the updates that have it.
    pub field: &'static str,
    /// Name in files, after `base_model.`.
    pub key: &'static str,
    /// Shape.
    pub shape: [usize; 2],
    /// Whether it is in files.
    pub saved: bool,
}
