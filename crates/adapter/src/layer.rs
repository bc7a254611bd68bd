//! Common interface of the layers that can carry adapters.

use crate::{
    active::ActiveAdapters,
    base::Base,
    config::LoraConfig,
    lora::{LoraAdapter, squared_norms},
    selection::Selection,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use burn_lora_quant::{Frozen, PackedWeight};
use std::sync::Arc;

/// Kind of a layer.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let kinds: Vec<_> = model.layers().into_iter().map(|(path, l)| (path, l.kind())).collect();
/// assert_eq!(kinds, [("linear".to_owned(), LayerKind::Linear)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayerKind {
    /// [`AdaptedLinear`](crate::AdaptedLinear).
    Linear,
    /// [`AdaptedEmbedding`](crate::AdaptedEmbedding).
    Embedding,
    /// [`AdaptedVector`](crate::AdaptedVector): trained as a whole copy, never by a low-rank update.
    Vector,
}

/// Layer that can carry adapters. The three layer types implement it; a model only lists its layers
/// ([`Adaptable`](crate::Adaptable)).
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// model.add_adapter("default", &lora)?;
/// for (path, layer) in model.layers() {
///     let lora = layer.adapters().lora("default").expect("it was matched");
///     println!("{path} {:?}: rank {}", layer.shape(), lora.rank());
///     assert_eq!(layer.weight().dims(), layer.shape());
/// }
/// # Ok::<_, AdapterError>(())
/// ```
pub trait AdaptedLayer {
    /// Kind of the layer.
    fn kind(&self) -> LayerKind;

    /// Shape of the frozen weight in terms of A `[rank, in]` and B `[out, rank]`: `[out, in]`. For an
    /// embedding that is `[hidden, vocabulary]`, for a vector `[length, 1]`.
    fn shape(&self) -> [usize; 2];

    /// Shape of the weight in checkpoints: `[out, in]`, for an embedding `[vocabulary, hidden]`, for a
    /// vector `[length]`.
    fn file_shape(&self) -> Vec<usize> {
        self.shape().to_vec()
    }

    /// Converts a weight of [`shape`](Self::shape) to the layout of checkpoints, or back: an embedding is
    /// transposed there.
    fn file_layout(&self, weight: Tensor<2>) -> Tensor<2> {
        weight
    }

    /// Device of the layer.
    fn device(&self) -> Device;

    /// Adapters of the layer.
    fn adapters(&self) -> &Adapters;

    /// Adapters of the layer, mutable.
    fn adapters_mut(&mut self) -> &mut Adapters;

    /// Returns the frozen weight, dequantized, in float32, with shape [`shape`](Self::shape).
    fn weight(&self) -> Tensor<2>;

    /// Replaces the frozen weight, keeping its dtype or quantization.
    fn set_weight(&mut self, weight: Tensor<2>);

    /// Frozen weight as a parameter, if it is a dense matrix: tied layers share it.
    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        None
    }

    /// Frozen weight as a mutable parameter; call [`refresh`](Self::refresh) after changing it.
    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }

    /// Recomputes the norms of the frozen weight that DoRA keeps, after the weight was changed by other
    /// means than [`set_weight`](Self::set_weight).
    fn refresh(&mut self) {
        if self.adapters().lora.iter().any(|lora| lora.base_norm.is_some()) {
            let norms = squared_norms(self.weight());
            self.adapters_mut().lora.iter_mut().for_each(|lora| lora.refresh(&norms));
        }
    }

    /// Returns the product of a few rows with the frozen weight, `x · Wᵀ`, without bias, in float32 and
    /// without a copy of the weight.
    ///
    /// # Shapes
    /// - x: `[rows, in]`
    /// - output: `[rows, out]`
    fn product(&self, x: Tensor<2>) -> Tensor<2>;

    /// Bias of the base.
    fn bias(&self) -> Option<&Param<Tensor<1>>> {
        None
    }

    /// Bias of the base, mutable.
    fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        None
    }

    /// Base of a linear layer, the only kind that can be quantized.
    fn base(&self) -> Option<&Base> {
        None
    }

    /// 4-bit weight, if the base is stored as one.
    fn packed(&self) -> Option<&PackedWeight> {
        self.base()?.weight.downcast_ref()
    }

    /// Returns `true` if the base is quantized, in any storage.
    fn is_quantized(&self) -> bool {
        self.base().is_some_and(|base| base.weight.dense().is_none())
    }

    /// Base of a linear layer, mutable; call [`refresh`](Self::refresh) after changing it.
    fn base_mut(&mut self) -> Option<&mut Base> {
        None
    }
}

/// Adapters of one layer.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// model.add_adapter("default", &lora)?;
/// let adapters = model.linear.adapters();
/// assert_eq!(adapters.selection().names(), ["default"]);
/// assert!(adapters.lora("default").is_some() && adapters.saved("default").is_none());
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Module, Debug, Default)]
pub struct Adapters {
    pub(crate) lora: Vec<LoraAdapter>,
    pub(crate) saved: Vec<SavedModule>,
    pub(crate) merged: Vec<Merged>,
    /// Quantized weight before adapters were merged into it.
    pub(crate) unmerged: Option<Frozen>,
    /// Parts of the base that adapters have replaced.
    #[module(skip)]
    pub(crate) brought: Vec<Brought>,
    /// Selected adapters, for a batch without adapters of its own.
    #[module(skip)]
    pub(crate) selected: ActiveAdapters,
}

/// Part of the base that came with an adapter's file, and is saved with the adapter again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Brought {
    pub adapter: String,
    pub part: Part,
}

/// Part of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
}

/// Copy of a whole layer that an adapter trains (`modules_to_save`).
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// model.add_adapter("default", &LoraConfig::new(2, 4).targets([""; 0]).modules_to_save(["linear"]))?;
/// let copy = model.linear.adapters().saved("default").unwrap();
/// assert_eq!(copy.weight.dims(), [16, 16]);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Module, Debug)]
pub struct SavedModule {
    /// Weight in float32, with the shape that it has in files.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    name: String,
    #[module(skip)]
    config: Arc<LoraConfig>,
}

impl SavedModule {
    pub(crate) fn new(
        name: &str,
        config: Arc<LoraConfig>,
        weight: Tensor<2>,
        bias: Option<Tensor<1>>,
    ) -> Self {
        let bias = bias.map(Param::from_tensor);
        Self { weight: Param::from_tensor(weight), bias, name: name.to_owned(), config }
    }

    /// Name of the adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Settings of the adapter.
    pub(crate) fn config(&self) -> &Arc<LoraConfig> {
        &self.config
    }

    fn set_require_grad(&mut self, require_grad: bool) {
        self.weight = self.weight.clone().set_require_grad(require_grad);
        self.bias = self.bias.take().map(|bias| bias.set_require_grad(require_grad));
    }
}

/// Update that is merged into the base's weight.
#[derive(Module, Debug)]
pub(crate) struct Merged {
    /// DoRA's factor of each row, for unmerging.
    pub factor: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub name: String,
}

impl Adapters {
    /// Low-rank update of an adapter.
    pub fn lora(&self, name: &str) -> Option<&LoraAdapter> {
        self.lora.iter().find(|lora| lora.name() == name)
    }

    /// Low-rank update of an adapter, mutable.
    pub fn lora_mut(&mut self, name: &str) -> Option<&mut LoraAdapter> {
        self.lora.iter_mut().find(|lora| lora.name() == name)
    }

    /// Copy of the whole layer that an adapter trains.
    pub fn saved(&self, name: &str) -> Option<&SavedModule> {
        self.saved.iter().find(|saved| saved.name() == name)
    }

    /// Copy of the whole layer that an adapter trains, mutable.
    pub fn saved_mut(&mut self, name: &str) -> impl Iterator<Item = &mut SavedModule> {
        self.saved.iter_mut().filter(move |saved| saved.name() == name)
    }

    /// Names of the adapters of this layer, with their settings.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (&str, &Arc<LoraConfig>)> {
        let lora = self.lora.iter().map(|lora| (lora.name(), lora.config()));
        lora.chain(self.saved.iter().map(|saved| (saved.name(), saved.config())))
    }

    /// Selected adapters: those of a batch that is run without adapters of its own.
    pub fn selection(&self) -> &Selection {
        self.selected.selection()
    }

    /// Updates that are active for every row; none if one is merged into the base.
    pub(crate) fn active(&self, names: &[String]) -> impl Iterator<Item = &LoraAdapter> {
        names.iter().filter_map(|name| self.active_lora(name))
    }

    /// Update of an adapter, unless one is merged into the base.
    pub(crate) fn active_lora(&self, name: &str) -> Option<&LoraAdapter> {
        self.lora(name).filter(|_| self.merged.is_empty())
    }

    /// Copy that replaces the base: that of the first of the adapters that has one.
    pub(crate) fn active_saved(&self, names: &[String]) -> Option<&SavedModule> {
        names.iter().find_map(|name| self.saved(name))
    }

    /// Trains the named adapters and freezes the others.
    pub(crate) fn train_only(&mut self, names: &[&str]) {
        for lora in &mut self.lora {
            let on = names.contains(&lora.name());
            lora.set_require_grad(on);
        }
        for saved in &mut self.saved {
            saved.set_require_grad(names.contains(&saved.name.as_str()));
        }
    }

    /// Parts of the base that came with an adapter.
    pub(crate) fn brought(&self, name: &str) -> impl Iterator<Item = Part> {
        self.brought.iter().filter(move |brought| brought.adapter == name).map(|b| b.part)
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.brought.retain(|brought| brought.adapter != name);
        self.lora.retain(|lora| lora.name() != name);
        self.saved.retain(|saved| saved.name() != name);
    }
}

/// Returns `true` if two layers share their weight (tied embeddings).
pub(crate) fn are_tied(a: &dyn AdaptedLayer, b: &dyn AdaptedLayer) -> bool {
    let id = |layer: &dyn AdaptedLayer| layer.weight_param().map(|param| param.id);
    id(a).is_some() && id(a) == id(b)
}

/// Returns `true` if a parameter is trained, also where autodiff is off. A parameter that is not
/// initialised yet counts as frozen, because checking it would initialise it.
pub(crate) fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    param.is_initialized() && param.clone().train().is_require_grad()
}
