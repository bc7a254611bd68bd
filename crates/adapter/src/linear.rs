//! Linear layer that can carry adapters.

use crate::{
    active::{ActiveAdapters, Rows},
    base::{Base, add_bias, broadcast, dense_product},
    frozen::{FrozenLayer, LayerKind},
    layer::{AdaptedLayer, Adapters, LayerAdapter},
    selection::Selection,
    stacked::{LastStack, Stack},
    update::LowRank,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::pull_back;
use burn_lora_quant::{
    FewWeight, Frozen, PackedWeight, Pulled, QuantError, StorageFormat, Update, matmul_all,
    matmul_few, pull_back_all, takes_few,
};
use std::sync::Arc;

/// Drop-in replacement for Burn's `Linear`: a frozen base, dense or packed, with any number of adapters.
///
/// ```text
/// y = x · Wᵀ + Σ scaling · dropout(x) · Aᵀ · Bᵀ + b
/// ```
///
/// Without an adapter it computes exactly its base. The update is computed in activation space: no
/// matrix of the weight's size is made, and the base never gets a gradient. With DoRA
/// (arXiv:2402.09353) the product with `W + scaling · B · A` is scaled by `m / n` per output.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::{Device, Tensor}};
/// use burn_lora_adapter::AdaptedLinear;
/// use burn_lora_quant::QuantConfig;
///
/// let device = Device::default();
/// let linear = LinearConfig::new(64, 32).init(&device);
/// let x = Tensor::<3>::ones([2, 5, 64], &device);
/// let expected = linear.forward(x.clone());
///
/// let adapted = AdaptedLinear::from(linear);
/// adapted.forward(x.clone()).into_data().assert_approx_eq::<f32>(
///     &expected.into_data(), burn::tensor::Tolerance::default());
///
/// let packed = adapted.quantize(&QuantConfig::nf4())?; // QLoRA's base
/// assert_eq!(packed.forward(x).dims(), [2, 5, 32]);
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub struct AdaptedLinear {
    /// Frozen base. Call [`refresh`](AdaptedLayer::refresh) after changing its weight.
    pub base: Base,
    adapters: Adapters,
    stacked: LastStack,
    #[module(skip)]
    kind: LayerKind,
}

/// Base and adapters of a layer as one product.
#[expect(clippy::large_enum_variant, reason = "taken apart at once")]
enum Product<'a> {
    Base,
    Updated(&'a LayerAdapter, LowRank),
}

impl AdaptedLinear {
    /// Creates a layer without adapters.
    pub fn new(base: Base) -> Self {
        Self {
            base,
            adapters: Adapters::default(),
            stacked: LastStack::default(),
            kind: LayerKind::Linear,
        }
    }

    /// Makes it a layer of an expert, or of a router.
    ///
    /// # Panics
    /// If it is no kind of a linear layer.
    pub fn of_kind(self, kind: LayerKind) -> Self {
        let linear = matches!(kind, LayerKind::Linear | LayerKind::Expert | LayerKind::Router);
        assert!(linear, "a linear layer of the kind {kind:?}");
        Self { kind, ..self }
    }

    /// Creates a layer with a dense weight `[out, in]` and a bias `[out]`, both frozen.
    pub fn dense(weight: Tensor<2>, bias: Option<Tensor<1>>) -> Self {
        Self::new(Base::dense(weight, bias))
    }

    /// Creates a layer with a packed weight and a bias `[out]`, both frozen.
    pub fn packed(weight: PackedWeight, bias: Option<Tensor<1>>) -> Self {
        Self::new(Base::new(Frozen::new(weight), bias))
    }

    /// Quantizes a dense base; a base that is already quantized is left as it is.
    ///
    /// # Errors
    /// [`QuantError`] if the settings do not go together ([`StorageFormat::validate`]).
    pub fn quantize(mut self, format: &impl StorageFormat) -> Result<Self, QuantError> {
        if let Some(dense) = self.base.weight.dense() {
            self.base = self.base.with_stored(dense.val(), format)?;
            self.refresh();
        }
        Ok(self)
    }

    /// Applies the layer with the selected adapters.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - output: `[..., out]`, in the dtype of `x`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`, or the selection is by rows and their number is not
    /// the first dimension of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.forward_with(x, None)
    }

    /// Applies the layer with the adapters of the batch, or the selected ones if `None`.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - output: `[..., out]`, in the dtype of `x`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`, or the adapters are selected by rows and their number
    /// is not the first dimension of `x`.
    pub fn forward_with<const D: usize>(
        &self,
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Tensor<D> {
        if D == 1 {
            let out = self.base.shape()[0];
            return self.forward_with::<2>(x.unsqueeze(), active).reshape([out; D]);
        }
        if let Some(mut outputs) = Self::few(&[self], &x, active) {
            return outputs.remove(0);
        }
        let active = active.unwrap_or(&self.adapters.selected);
        match active.rows(x.dims()[0], &x.device()) {
            Some(rows) => self.forward_rows(x, &rows),
            None => self.forward_same(x, active.names()),
        }
    }

    /// Returns `pull_back(forward_with(x, active), grad)`: a zero, `[1]`, whose `backward()` starts
    /// from `grad` as the gradient of the output. The output itself is computed only if the gradients
    /// need it, as with DoRA or dropout.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - grad: `[..., out]`, in the dtype of `x`
    ///
    /// # Panics
    /// As [`forward_with`](Self::forward_with), or if `grad` is not like its output.
    pub fn pull_back<const D: usize>(
        &self,
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
        grad: Tensor<D>,
    ) -> Tensor<1> {
        Self::pull_back_all(&[self], x, active, vec![grad], None)
    }

    /// Returns the outputs of layers with the same input, which is read once for the updates of all unless the
    /// outputs have a graph.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - outputs: `[..., out]` for each layer
    ///
    /// # Panics
    /// As [`forward_with`](Self::forward_with).
    pub fn forward_all<const D: usize>(
        layers: &[&Self],
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Vec<Tensor<D>> {
        if let Some(outputs) = Self::few(layers, &x, active) {
            return outputs;
        }
        let tracked = |update: &Update| update.a.is_tracked() || update.b.is_tracked();
        let updates = Self::joined_updates(layers, &x, active)
            .filter(|updates| !x.is_tracked() && !updates.iter().flatten().any(tracked));
        Self::forward_joined(layers, x, active, updates, None).0
    }

    /// Returns what [`forward_all`](Self::forward_all) does, and `h = x · Aᵀ` of the updates side by side: for
    /// [`pull_back_all`](Self::pull_back_all), and for another pass of the same layers with the same input. Then
    /// the outputs have no graph. There is no `h` if a layer is not [plain](Self::is_plain), if none has an
    /// update, or if rows are so few that joining A costs more: outputs are those of
    /// [`forward_with`](Self::forward_with) then.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - h: `[rows, ranks]`
    /// - outputs: `[..., out]` for each layer
    ///
    /// # Panics
    /// As [`forward_with`](Self::forward_with).
    pub fn forward_once<const D: usize>(
        layers: &[&Self],
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
        h: Option<Tensor<2>>,
    ) -> (Vec<Tensor<D>>, Option<Tensor<2>>) {
        let updates = Self::joined_updates(layers, &x, active);
        Self::forward_joined(layers, x, active, updates, h)
    }

    /// The outputs of layers for so few rows that they are one operation ([`matmul_few`]).
    fn few<const D: usize>(
        layers: &[&Self],
        x: &Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Option<Vec<Tensor<D>>> {
        if !takes_few(x) {
            return None;
        }
        let weights = layers.iter().map(|layer| layer.few_weight(x, active));
        let weights = weights.collect::<Option<Vec<_>>>()?;
        let outputs = matmul_few(x, &weights)?;
        let biased = |(layer, y): (&&Self, _)| add_bias(y, layer.base.bias.as_ref());
        Some(layers.iter().zip(outputs).map(biased).collect())
    }

    /// The layer as one of [`matmul_few`], if it is [plain](Self::is_plain), or if each row has an adapter of its own and these are
    /// low-rank updates.
    fn few_weight<const D: usize>(
        &self,
        x: &Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Option<FewWeight<'_>> {
        let weight = &self.base.weight;
        let rows = x.dims()[0];
        let selected = active.unwrap_or(&self.adapters.selected);
        if let Some(rows) = selected.rows(rows, &x.device()) {
            let each_its_own = x.dims()[..D - 1].iter().product::<usize>() == x.dims()[0];
            let stack = if each_its_own { self.stack(x, &rows) } else { None }?;
            let (update, kept) = stack.map(Stack::into_update).unzip();
            return Some(FewWeight { weight, update, kept });
        }
        let update = Self::updates(&[self], x, active)?.remove(0);
        Some(FewWeight { weight, update, kept: None })
    }

    /// The updates of layers that are one product, if they are, and if that pays.
    fn joined_updates<const D: usize>(
        layers: &[&Self],
        x: &Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Option<Vec<Option<Update>>> {
        /// Most rows whose products are separate.
        const FEW: usize = 16;
        let few = x.dims()[..D - 1].iter().product::<usize>() <= FEW;
        if few { None } else { Self::updates(layers, x, active) }
    }

    /// [`forward_once`](Self::forward_once), by joined updates, or else layer by layer.
    fn forward_joined<const D: usize>(
        layers: &[&Self],
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
        updates: Option<Vec<Option<Update>>>,
        h: Option<Tensor<2>>,
    ) -> (Vec<Tensor<D>>, Option<Tensor<2>>) {
        let Some(updates) = updates else {
            return (
                layers.iter().map(|layer| layer.forward_with(x.clone(), active)).collect(),
                None,
            );
        };
        let lift = |y: Tensor<D>| if x.is_autodiff() { y.autodiff() } else { y };
        let products =
            layers.iter().zip(updates).map(|(layer, update)| (&layer.base.weight, update));
        let (outputs, h) = matmul_all(x.clone().inner(), products.collect(), h);
        let biased = |(layer, y): (&&Self, _)| add_bias(lift(y), layer.base.bias.as_ref());
        (layers.iter().zip(outputs).map(biased).collect(), h)
    }

    /// Returns the sum of [`pull_back`](Self::pull_back) of layers with the same input, which is read
    /// once for the updates of all, and has one gradient. `h` is what [`forward_once`](Self::forward_once)
    /// gave; without it, it is computed.
    ///
    /// # Shapes
    /// - x: `[..., in]`
    /// - grads: `[..., out]` for each layer, in the dtype of `x`
    /// - h: `[rows, ranks]`
    ///
    /// # Panics
    /// As [`pull_back`](Self::pull_back), or if the numbers of layers and gradients differ.
    pub fn pull_back_all<const D: usize>(
        layers: &[&Self],
        x: Tensor<D>,
        active: Option<&ActiveAdapters>,
        grads: Vec<Tensor<D>>,
        h: Option<Tensor<2>>,
    ) -> Tensor<1> {
        assert_eq!(layers.len(), grads.len(), "a gradient for each layer");
        let Some(updates) = Self::updates(layers, &x, active) else {
            let zeros = layers.iter().zip(grads).map(|(layer, grad)| match layers {
                [_] => pull_back(layer.forward_with(x.clone(), active), grad),
                _ => layer.pull_back(x.clone(), active, grad),
            });
            return zeros.reduce(|sum, zero| sum + zero).expect("a layer");
        };
        let products = layers.iter().zip(updates).zip(grads);
        let products = products.map(|((layer, update), grad)| Pulled {
            weight: &layer.base.weight,
            update,
            grad,
        });
        let products = products.collect();
        pull_back_all(x, products, h)
    }

    /// Returns the update of each layer for an input of rank 2 or more, if all are
    /// [plain](Self::is_plain).
    fn updates<const D: usize>(
        layers: &[&Self],
        x: &Tensor<D>,
        active: Option<&ActiveAdapters>,
    ) -> Option<Vec<Option<Update>>> {
        let update = |layer: &&Self| {
            let update = layer.plain(active).filter(|_| D > 1)?;
            Some(update.map(|update| {
                let LowRank { a, b, scaling } = update.cast(x.dtype());
                Update { a, b, scale: scaling as f32 }
            }))
        };
        layers.iter().map(update).collect()
    }

    /// Returns `true` if the gradients of the layer need neither its output nor random numbers: without
    /// DoRA, dropout, a trained weight or bias, and adapters by rows.
    pub fn is_plain(&self, active: Option<&ActiveAdapters>) -> bool {
        self.plain(active).is_some()
    }

    /// Returns the update of a [plain](Self::is_plain) layer, if it has one.
    fn plain(&self, active: Option<&ActiveAdapters>) -> Option<Option<LowRank>> {
        let selected = active.unwrap_or(&self.adapters.selected);
        let Selection::Adapters(names) = selected.selection() else { return None };
        let trained = |param: &Param<Tensor<2>>| param.is_require_grad();
        let bias = self.base.bias.as_ref().is_some_and(|bias| bias.is_require_grad());
        let weight = self.base.weight.dense().is_some_and(trained);
        if bias || weight || self.adapters.replacement(names).is_some() {
            return None;
        }
        let mut active = self.adapters.active(names);
        match (active.next(), active.next()) {
            (None, _) => Some(None),
            (Some(one), None) if !one.update.rescales() => one.undropped().map(Some),
            _ => None,
        }
    }

    /// Returns the one product that base and adapters are, if they are one: without adapters, or with
    /// one low-rank update without dropout.
    fn product_of<const D: usize>(&self, x: &Tensor<D>, names: &[String]) -> Option<Product<'_>> {
        let mut active = self.adapters.active(names);
        match (active.next(), active.next()) {
            (None, _) => Some(Product::Base),
            (Some(one), None) => one.low_rank(x).map(|update| Product::Updated(one, update)),
            _ => None,
        }
    }

    /// Applies the same adapters to the whole batch.
    fn forward_same<const D: usize>(&self, x: Tensor<D>, names: &[String]) -> Tensor<D> {
        if let Some(whole) = self.adapters.replacement(names) {
            return add_bias(dense_product(x, whole.weight.val()), whole.bias);
        }
        let y = match self.product_of(&x, names) {
            Some(Product::Base) => self.base.weight.matmul(x),
            Some(Product::Updated(one, update)) => self.forward_one(x, one, update),
            None => self.add_all(x, names),
        };
        add_bias(y, self.base.bias.as_ref())
    }

    /// Applies one low-rank update without dropout: base and update are one product.
    fn forward_one<const D: usize>(
        &self,
        x: Tensor<D>,
        adapter: &LayerAdapter,
        update: LowRank,
    ) -> Tensor<D> {
        let LowRank { a, b, scaling } = update.cast(x.dtype());
        let y = self.base.weight.matmul_low_rank(x, a, b, scaling as f32);
        match adapter.update.factor(self) {
            None => y,
            Some(factor) => y.clone() * broadcast(factor, &y),
        }
    }

    /// Applies updates one after the other.
    fn add_all<const D: usize>(&self, x: Tensor<D>, names: &[String]) -> Tensor<D> {
        let y = self.base.weight.matmul(x.clone());
        let add = |sum, adapter: &LayerAdapter| adapter.add_to(sum, x.clone(), y.clone(), self);
        self.adapters.active(names).fold(y.clone(), add)
    }

    /// Applies to each row of the batch its own adapter. The base runs once.
    fn forward_rows<const D: usize>(&self, x: Tensor<D>, rows: &Arc<Rows>) -> Tensor<D> {
        let adapters = &self.adapters;
        let y = self.base.weight.matmul(x.clone());
        if let Some(stack) = self.stack(&x, rows) {
            let y = match stack {
                None => y,
                Some(stack) => stack.add_to(y, x),
            };
            return add_bias(y, self.base.bias.as_ref());
        }
        rows.each(|name, rows| {
            let x = x.clone().select(0, rows.clone());
            if let Some(whole) = adapters.replacement(name) {
                return add_bias(dense_product(x, whole.weight.val()), whole.bias);
            }
            let base = y.clone().select(0, rows.clone());
            let y = adapters
                .active(name)
                .fold(base.clone(), |y, adapter| adapter.add_to(y, x.clone(), base.clone(), self));
            add_bias(y, self.base.bias.as_ref())
        })
    }

    /// Returns the updates of a batch by rows as one product, if each is a low-rank one: `Some(None)`
    /// without any here.
    fn stack<const D: usize>(&self, x: &Tensor<D>, rows: &Arc<Rows>) -> Option<Option<Stack>> {
        if !x.is_autodiff()
            && let Some(stack) = self.stacked.get(rows, x.dtype())
        {
            return Some(stack);
        }
        let adapters = &self.adapters;
        let mut updates = vec![];
        for (number, name) in rows.names().enumerate() {
            match adapters.get(name) {
                // A whole copy is no low-rank update.
                Some(adapter) if adapter.update.replacement().is_some() => return None,
                Some(adapter) if adapters.merged.is_empty() => {
                    let update = adapter.low_rank(x).filter(|_| !adapter.update.rescales())?;
                    updates.push((number, update));
                }
                _ => {}
            }
        }
        let stack = Stack::new(&updates, rows, x.dtype());
        if !updates.iter().any(|(_, update)| update.a.is_autodiff() || update.b.is_autodiff()) {
            self.stacked.set(rows, x.dtype(), stack.clone());
        }
        Some(stack)
    }
}

impl From<burn::nn::Linear> for AdaptedLinear {
    /// Freezes Burn's layer.
    fn from(linear: burn::nn::Linear) -> Self {
        let weight = linear.weight.val().transpose();
        Self::dense(weight, linear.bias.map(|bias| bias.val()))
    }
}

impl FrozenLayer for AdaptedLinear {
    fn kind(&self) -> LayerKind {
        self.kind
    }

    fn shape(&self) -> [usize; 2] {
        self.base.shape()
    }

    fn device(&self) -> Device {
        self.base.device()
    }

    fn weight(&self) -> Tensor<2> {
        self.base.weight.dequantize(FloatDType::F32)
    }

    fn set_weight(&mut self, weight: Tensor<2>) {
        self.base = self.base.with_weight(weight).expect("a weight of the same shape");
        self.refresh();
    }

    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        self.base.weight.dense()
    }

    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        self.base.weight.dense_mut()
    }

    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        self.base.weight.few_rows(x)
    }

    fn bias(&self) -> Option<&Param<Tensor<1>>> {
        self.base.bias.as_ref()
    }

    fn bias_mut(&mut self) -> Option<&mut Param<Tensor<1>>> {
        self.base.bias.as_mut()
    }

    fn base(&self) -> Option<&Base> {
        Some(&self.base)
    }

    fn base_mut(&mut self) -> Option<&mut Base> {
        Some(&mut self.base)
    }
}

impl AdaptedLayer for AdaptedLinear {
    fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut Adapters {
        self.stacked.forget();
        &mut self.adapters
    }
}
