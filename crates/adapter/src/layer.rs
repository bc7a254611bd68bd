//! What every layer that can carry adapters has in common.

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

/// What a layer is.
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
    /// [`AdaptedVector`](crate::AdaptedVector): it can be trained whole, but has no low-rank update.
    Vector,
}

/// A layer that can carry adapters. The three kinds of them implement it; a model only lists them
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
    /// What it is.
    fn kind(&self) -> LayerKind;

    /// The shape of the frozen weight as A `[rank, in]` and B `[out, rank]` see it: `[out, in]`. Of
    /// an embedding that is `[hidden, vocabulary]`; of a vector `[length, 1]`.
    fn shape(&self) -> [usize; 2];

    /// The shape of the weight in checkpoints: `[out, in]`, of an embedding `[vocabulary, hidden]`, of a
    /// vector `[length]`.
    fn file_shape(&self) -> Vec<usize> {
        self.shape().to_vec()
    }

    /// A weight of [`shape`](Self::shape) as checkpoints have it, or the other way round: that of an
    /// embedding is transposed there.
    fn file_layout(&self, weight: Tensor<2>) -> Tensor<2> {
        weight
    }

    /// Where it is.
    fn device(&self) -> Device;

    /// The adapters.
    fn adapters(&self) -> &Adapters;

    /// The adapters, to change.
    fn adapters_mut(&mut self) -> &mut Adapters;

    /// The frozen weight, decoded, in float32 and of shape [`shape`](Self::shape).
    fn weight(&self) -> Tensor<2>;

    /// Puts a weight in the place of the frozen one: in its dtype, or quantized as it was.
    fn set_weight(&mut self, weight: Tensor<2>);

    /// The frozen weight as a parameter, where it is a dense matrix: layers that are tied share it.
    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        None
    }

    /// The same, to change; call [`refresh`](Self::refresh) afterwards.
    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        None
    }

    /// Measures what DoRA keeps of the frozen weight again, after it was changed by other means than
    /// [`set_weight`](Self::set_weight).
    fn refresh(&mut self) {
        if self.adapters().lora.iter().any(|lora| lora.base_norm.is_some()) {
            let norms = squared_norms(self.weight());
            self.adapters_mut().lora.iter_mut().for_each(|lora| lora.refresh(&norms));
        }
    }

    /// The product of a few rows with the frozen weight, `x · Wᵀ`, without bias and in float32; it is
    /// computed without a copy of the weight.
    ///
    /// # Shapes
    /// - x: `[rows, in]`
    /// - output: `[rows, out]`
    fn product(&self, x: Tensor<2>) -> Tensor<2>;

    /// The bias of the base.
    fn bias(&self) -> Option<&Param<Tensor<1>>> {
        None
    }

    /// The bias of the base, to change.
    fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        None
    }

    /// The base of a linear layer: it alone can be quantized.
    fn base(&self) -> Option<&Base> {
        None
    }

    /// The 4-bit weight, where the base is one.
    fn packed(&self) -> Option<&PackedWeight> {
        self.base()?.weight.downcast_ref()
    }

    /// Whether the base is quantized, in whatever storage.
    fn is_quantized(&self) -> bool {
        self.base().is_some_and(|base| base.weight.dense().is_none())
    }

    /// The base of a linear layer, to change. Call [`refresh`](Self::refresh)
    /// afterwards.
    fn base_mut(&mut self) -> Option<&mut Base> {
        None
    }
}

/// The adapters of one layer.
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
    /// The quantized weight as it was before adapters were merged into it.
    pub(crate) unmerged: Option<Frozen>,
    /// What adapters have put in the place of the base's own.
    #[module(skip)]
    pub(crate) brought: Vec<Brought>,
    /// Those of a batch that brings none.
    #[module(skip)]
    pub(crate) selected: ActiveAdapters,
}

/// A part of the base that came with an adapter's file, and goes into it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Brought {
    pub adapter: String,
    pub part: Part,
}

/// A part of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Weight,
    Bias,
}

/// A whole copy of a layer that an adapter trains (`modules_to_save`).
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
    /// The weight in float32, of the shape that it has in files.
    pub weight: Param<Tensor<2>>,
    /// The bias.
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

    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The settings of the adapter.
    pub(crate) fn config(&self) -> &Arc<LoraConfig> {
        &self.config
    }

    fn set_require_grad(&mut self, require_grad: bool) {
        self.weight = self.weight.clone().set_require_grad(require_grad);
        self.bias = self.bias.take().map(|bias| bias.set_require_grad(require_grad));
    }
}

/// An update that is part of the base's weight now.
#[derive(Module, Debug)]
pub(crate) struct Merged {
    /// DoRA's factor of each row, to undo it.
    pub factor: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub name: String,
}

impl Adapters {
    /// The low-rank update of an adapter.
    pub fn lora(&self, name: &str) -> Option<&LoraAdapter> {
        self.lora.iter().find(|lora| lora.name() == name)
    }

    /// The low-rank update of an adapter, to change.
    pub fn lora_mut(&mut self, name: &str) -> Option<&mut LoraAdapter> {
        self.lora.iter_mut().find(|lora| lora.name() == name)
    }

    /// The copy that an adapter trains whole.
    pub fn saved(&self, name: &str) -> Option<&SavedModule> {
        self.saved.iter().find(|saved| saved.name() == name)
    }

    /// The same, to change.
    pub fn saved_mut(&mut self, name: &str) -> impl Iterator<Item = &mut SavedModule> {
        self.saved.iter_mut().filter(move |saved| saved.name() == name)
    }

    /// The names of the adapters that this layer has, with their settings.
    pub(crate) fn configs(&self) -> impl Iterator<Item = (&str, &Arc<LoraConfig>)> {
        let lora = self.lora.iter().map(|lora| (lora.name(), lora.config()));
        lora.chain(self.saved.iter().map(|saved| (saved.name(), saved.config())))
    }

    /// Which adapters a batch runs with that brings none of its own.
    pub fn selection(&self) -> &Selection {
        self.selected.selection()
    }

    /// The updates that are active for every row; none where one is merged into the base.
    pub(crate) fn active(&self, names: &[String]) -> impl Iterator<Item = &LoraAdapter> {
        names.iter().filter_map(|name| self.active_lora(name))
    }

    /// The update of an adapter, unless one is merged into the base.
    pub(crate) fn active_lora(&self, name: &str) -> Option<&LoraAdapter> {
        self.lora(name).filter(|_| self.merged.is_empty())
    }

    /// The copy that stands in for the base.
    pub(crate) fn active_saved(&self, names: &[String]) -> Option<&SavedModule> {
        names.iter().find_map(|name| self.saved(name))
    }

    /// Trains the adapters named and freezes the others.
    pub(crate) fn train_only(&mut self, names: &[&str]) {
        for lora in &mut self.lora {
            let on = names.contains(&lora.name());
            lora.set_require_grad(on);
        }
        for saved in &mut self.saved {
            saved.set_require_grad(names.contains(&saved.name.as_str()));
        }
    }

    /// The parts of the base that came with an adapter.
    pub(crate) fn brought(&self, name: &str) -> impl Iterator<Item = Part> {
        self.brought.iter().filter(move |brought| brought.adapter == name).map(|b| b.part)
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.brought.retain(|brought| brought.adapter != name);
        self.lora.retain(|lora| lora.name() != name);
        self.saved.retain(|saved| saved.name() != name);
    }
}

/// Whether two layers have one weight: a head that is the embedding.
pub(crate) fn are_tied(a: &dyn AdaptedLayer, b: &dyn AdaptedLayer) -> bool {
    let id = |layer: &dyn AdaptedLayer| layer.weight_param().map(|param| param.id);
    id(a).is_some() && id(a) == id(b)
}

/// Whether a parameter is to be trained, also where autodiff is off. One that is not initialised yet
/// counts as frozen, because asking it would initialise it.
pub(crate) fn is_trained<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    param.is_initialized() && param.clone().train().is_require_grad()
}
