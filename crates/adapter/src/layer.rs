//! Common interface of the layers that can carry adapters, and their adapters.

use crate::{
    active::ActiveAdapters,
    error::AdapterError,
    frozen::FrozenLayer,
    method::{Method, Role, Site, UpdateTensor},
    methods::{lora::LoraAdapter, whole::SavedModule},
    parameters,
    selection::Selection,
    update::{BoxedUpdate, LinearInput, LowRank, Replacement, TokenInput, Update},
};
use burn::{
    module::{Module, Param},
    nn::{Dropout, DropoutConfig},
    tensor::Tensor,
};
use burn_lora_quant::Frozen;
use std::{cell::OnceCell, sync::Arc};

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
pub trait AdaptedLayer: FrozenLayer {
    /// Adapters of the layer.
    fn adapters(&self) -> &Adapters;

    /// Adapters of the layer, mutable.
    fn adapters_mut(&mut self) -> &mut Adapters;

    /// Renews what updates keep of the frozen weight, after the weight was changed by other means than
    /// [`set_weight`](FrozenLayer::set_weight). Does nothing while updates are merged into it.
    fn refresh(&mut self) {
        if !self.adapters().merged.is_empty() {
            return;
        }
        let mut updates = std::mem::take(&mut self.adapters_mut().updates);
        let weight = OnceCell::new();
        for adapter in &mut updates {
            let weight = || weight.get_or_init(|| self.weight()).clone();
            adapter.update.refresh(&weight);
        }
        self.adapters_mut().updates = updates;
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
    pub(crate) updates: Vec<LayerAdapter>,
    pub(crate) merged: Vec<Merged>,
    /// Quantized weight before adapters were merged into it.
    pub(crate) unmerged: Option<Frozen>,
    /// Parts of the base that adapters have replaced.
    #[module(skip)]
    pub(crate) brought: Vec<Brought>,
    /// Rows of the weight before the vocabulary was resized.
    #[module(skip)]
    pub(crate) resized: Option<usize>,
    /// Selected adapters, for a batch without adapters of its own.
    #[module(skip)]
    pub(crate) selected: ActiveAdapters,
}

/// One adapter at one layer.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// model.add_adapter("default", &LoraConfig::new(2, 4).targets(["linear"]))?;
/// let adapter = model.linear.adapters().get("default").unwrap();
/// assert_eq!((adapter.name(), adapter.method().peft_type()), ("default", "LORA"));
/// assert_eq!(adapter.update().downcast_ref::<LoraAdapter>().unwrap().rank(), 2);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Module, Debug)]
pub struct LayerAdapter {
    pub(crate) update: BoxedUpdate,
    dropout: Dropout,
    #[module(skip)]
    name: String,
    #[module(skip)]
    method: Arc<dyn Method>,
    /// Parameters of the update.
    #[module(skip)]
    tensors: Vec<UpdateTensor>,
    /// Whether the parameters are those of another layer, which shares its weight with this one.
    #[module(skip)]
    follows: bool,
    /// Whether A stays frozen (LoRA-FA).
    #[module(skip)]
    frozen_a: bool,
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

/// Update that is merged into the base's weight.
#[derive(Module, Debug)]
pub(crate) struct Merged {
    /// Factor of each row, for unmerging.
    pub factor: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub name: String,
}

impl LayerAdapter {
    /// Creates an adapter from the update that its method made.
    pub(crate) fn new(
        name: &str,
        method: Arc<dyn Method>,
        site: &Site<'_>,
        update: BoxedUpdate,
    ) -> Self {
        let tensors = method.tensors(site);
        Self::with_tensors(name, method, tensors, update)
    }

    /// Creates an adapter of a layer that is trained whole.
    pub(crate) fn whole(name: &str, method: Arc<dyn Method>, layer: &dyn FrozenLayer) -> Self {
        let tensors = SavedModule::tensors(&layer.file_shape(), layer.bias().is_some());
        let update = BoxedUpdate::new(SavedModule::new(layer));
        Self::with_tensors(name, method, tensors, update)
    }

    /// Creates the adapter of a layer that follows another one, whose weight it shares.
    pub(crate) fn follower(&self, update: BoxedUpdate) -> Self {
        let method = self.method.clone();
        let adapter = Self::with_tensors(&self.name, method, self.tensors.clone(), update);
        Self { follows: true, ..adapter }
    }

    fn with_tensors(
        name: &str,
        method: Arc<dyn Method>,
        tensors: Vec<UpdateTensor>,
        update: BoxedUpdate,
    ) -> Self {
        let dropout = DropoutConfig::new(method.dropout()).init();
        let name = name.to_owned();
        Self { update, dropout, name, method, tensors, follows: false, frozen_a: false }
    }

    /// Name of the adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Method of the adapter, with its settings.
    pub fn method(&self) -> &Arc<dyn Method> {
        &self.method
    }

    /// What the adapter trains of this layer.
    pub fn update(&self) -> &BoxedUpdate {
        &self.update
    }

    /// What the adapter trains of this layer, mutable.
    pub fn update_mut(&mut self) -> &mut BoxedUpdate {
        &mut self.update
    }

    /// Parameters of the update; none if they are those of another layer, which shares its weight.
    pub fn tensors(&self) -> &[UpdateTensor] {
        if self.follows { &[] } else { &self.tensors }
    }

    /// Parameters of the update that are in files.
    pub(crate) fn saved_tensors(&self) -> impl Iterator<Item = &UpdateTensor> {
        let saved = !self.follows || self.method.saves_tied();
        self.tensors.iter().filter(move |tensor| saved && tensor.is_trained())
    }

    /// Fields of the update that are trained parameters.
    pub(crate) fn trained_fields(&self) -> Vec<&'static str> {
        let trained = self.tensors.iter().filter(|tensor| tensor.is_trained());
        trained.map(|tensor| tensor.field).collect()
    }

    /// Returns `true` if the parameters are those of another layer: the adapter is not saved then.
    pub(crate) fn follows(&self) -> bool {
        self.follows
    }

    /// Returns `true` if dropout is active for this input.
    pub(crate) fn drops<const D: usize>(&self, x: &Tensor<D>) -> bool {
        let on_autodiff = || parameters::list(&self.update).iter().any(|p| p.on_autodiff);
        self.dropout.prob > 0.0
            && self.dropout.training.is_enabled()
            && (x.is_autodiff() || on_autodiff())
    }

    /// Returns the low-rank product of the update, if it is one and the input is not dropped: it can be
    /// computed together with the frozen product then.
    pub(crate) fn low_rank<const D: usize>(&self, x: &Tensor<D>) -> Option<LowRank> {
        if self.drops(x) { None } else { self.update.low_rank() }
    }

    /// Returns the low-rank product of the update, if it is one, and no input is dropped in training.
    pub(crate) fn undropped(&self) -> Option<LowRank> {
        let drops = self.dropout.prob > 0.0 && self.dropout.training.is_enabled();
        if drops { None } else { self.update.low_rank() }
    }

    /// Adds the update for `x` to `y`, the output of a linear layer without bias.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - product: `[..., out]`, `x · Wᵀ`
    /// - y and output: `[..., out]`
    pub(crate) fn add_to<const D: usize>(
        &self,
        y: Tensor<D>,
        x: Tensor<D>,
        product: Tensor<D>,
        layer: &dyn FrozenLayer,
    ) -> Tensor<D> {
        // Burn's dropout checks whether the input's device is an autodiff one, which the input of a
        // frozen first layer is not.
        let (x, product) = match self.drops(&x) {
            true => (self.dropout.forward(x.autodiff()), None),
            false => (x, Some(product)),
        };
        self.update.forward(y, LinearInput { x, layer, product })
    }

    /// Adds the update of an embedding.
    pub(crate) fn add_rows(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3> {
        self.update.look_up(y, input)
    }

    /// Freezes A permanently.
    pub(crate) fn freeze_a(&mut self) {
        self.frozen_a = true;
        let a = self.tensors.iter().filter(|tensor| tensor.role == Role::A);
        let a: Vec<_> = a.map(|tensor| tensor.field).collect();
        parameters::train(&mut self.update, &a, false);
    }

    /// Sets whether the parameters are trained.
    pub(crate) fn set_require_grad(&mut self, on: bool) {
        let trained = self.tensors.iter().filter(|tensor| tensor.is_trained());
        let (frozen, trained): (Vec<_>, Vec<_>) =
            trained.partition(|tensor| self.frozen_a && tensor.role == Role::A);
        let fields = |of: Vec<&UpdateTensor>| of.iter().map(|t| t.field).collect::<Vec<_>>();
        let (frozen, trained) = (fields(frozen), fields(trained));
        parameters::train(&mut self.update, &trained, on);
        parameters::train(&mut self.update, &frozen, false);
    }

    /// Reads a parameter to the host.
    pub(crate) fn read(
        &self,
        tensor: &UpdateTensor,
        path: &str,
    ) -> Result<Option<Vec<f32>>, AdapterError> {
        parameters::read(&self.update, tensor.field, path)
    }
}

impl Adapters {
    /// An adapter at this layer.
    pub fn get(&self, name: &str) -> Option<&LayerAdapter> {
        self.updates.iter().find(|adapter| adapter.name == name)
    }

    /// An adapter at this layer, mutable.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut LayerAdapter> {
        self.updates.iter_mut().find(|adapter| adapter.name == name)
    }

    /// Update of an adapter, if it is of type `U`.
    pub fn update<U: Update>(&self, name: &str) -> Option<&U> {
        self.get(name)?.update.downcast_ref()
    }

    /// Update of an adapter, mutable, if it is of type `U`.
    pub fn update_mut<U: Update>(&mut self, name: &str) -> Option<&mut U> {
        self.get_mut(name)?.update.downcast_mut()
    }

    /// Low-rank update of an adapter: LoRA or DoRA.
    pub fn lora(&self, name: &str) -> Option<&LoraAdapter> {
        self.update(name)
    }

    /// Low-rank update of an adapter, mutable.
    pub fn lora_mut(&mut self, name: &str) -> Option<&mut LoraAdapter> {
        self.update_mut(name)
    }

    /// Copy of the whole layer that an adapter trains.
    pub fn saved(&self, name: &str) -> Option<&SavedModule> {
        self.update(name)
    }

    /// Copy of the whole layer that an adapter trains, mutable.
    pub fn saved_mut(&mut self, name: &str) -> impl Iterator<Item = &mut SavedModule> {
        self.update_mut(name).into_iter()
    }

    /// Selected adapters: those of a batch that is run without adapters of its own.
    pub fn selection(&self) -> &Selection {
        self.selected.selection()
    }

    /// Updates of the frozen weight that are active for every row; none if one is merged into it.
    pub(crate) fn active(&self, names: &[String]) -> impl Iterator<Item = &LayerAdapter> {
        names.iter().filter_map(|name| self.active_update(name))
    }

    /// Update of the frozen weight by an adapter, unless one is merged into it.
    pub(crate) fn active_update(&self, name: &str) -> Option<&LayerAdapter> {
        let updates = |adapter: &&LayerAdapter| {
            self.merged.is_empty() && adapter.update.replacement().is_none()
        };
        self.get(name).filter(updates)
    }

    /// Returns `true` if an adapter has an update of the frozen weight here, and no copy of the layer.
    pub(crate) fn updates_weight(&self, name: &str) -> bool {
        self.get(name).is_some_and(|adapter| adapter.update.replacement().is_none())
    }

    /// Names of the adapters of this layer, with their methods.
    pub(crate) fn methods(&self) -> impl Iterator<Item = (&str, &Arc<dyn Method>)> {
        self.updates.iter().map(|adapter| (adapter.name(), &adapter.method))
    }

    /// Layer that replaces the base: that of the first of the adapters that has one.
    pub(crate) fn replacement(&self, names: &[String]) -> Option<Replacement<'_>> {
        names.iter().find_map(|name| self.get(name)?.update.replacement())
    }

    /// Trains the named adapters and freezes the others.
    pub(crate) fn train_only(&mut self, names: &[&str]) {
        for adapter in &mut self.updates {
            let on = names.contains(&adapter.name());
            adapter.set_require_grad(on);
        }
    }

    /// Parts of the base that came with an adapter.
    pub(crate) fn brought(&self, name: &str) -> impl Iterator<Item = Part> {
        self.brought.iter().filter(move |brought| brought.adapter == name).map(|b| b.part)
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.brought.retain(|brought| brought.adapter != name);
        self.updates.retain(|adapter| adapter.name() != name);
    }
}

/// Returns `true` if two layers share their weight (tied embeddings).
pub(crate) fn are_tied(a: &dyn AdaptedLayer, b: &dyn AdaptedLayer) -> bool {
    let id = |layer: &dyn AdaptedLayer| layer.weight_param().map(|param| param.id);
    id(a).is_some() && id(a) == id(b)
}
