//! The door of adapter methods, at one layer: what an adapter trains there, and how the layer applies it.

use crate::{base::broadcast, frozen::FrozenLayer, lookup::look_up};
use burn::{
    backend::DispatchTensor,
    module::{Module, Param},
    tensor::{DType, FloatDType, Int, Tensor},
};
use burn_lora_kernels::Gemm;
use burn_lora_quant::{erased_module, with_rank};

/// Trained part of one adapter at one layer, made by a [`Method`](crate::Method).
///
/// It turns the frozen weight `W` into `factor · (W + delta)`, where `factor` is one number per output.
/// A method that is a low-rank product ([`low_rank`](Self::low_rank)), a factor per output
/// ([`factor`](Self::factor)), or both needs nothing else: it is computed in one product with the base,
/// in any storage, and rows of a batch may have different adapters at no further cost. Any other
/// method implements [`forward`](Self::forward), [`look_up`](Self::look_up) if it adapts embeddings,
/// and [`delta`](Self::delta).
///
/// A type implements it beside Burn's `Module`, and is wrapped in a [`BoxedUpdate`], the only type that
/// layers know. Its fields that are parameters are listed by [`Method::tensors`](crate::Method::tensors);
/// the chapter on extending in the book shows a custom one.
pub trait Update: Module + Sync + 'static {
    /// Returns the update as a low-rank product, if it is one.
    fn low_rank(&self) -> Option<LowRank> {
        None
    }

    /// Returns `true` if the update has a [`factor`](Self::factor).
    fn rescales(&self) -> bool {
        false
    }

    /// Returns the factor of each output, `[out]` in float32, if the update rescales its layer.
    fn factor(&self, layer: &dyn FrozenLayer) -> Option<Tensor<1>> {
        let _ = layer;
        None
    }

    /// Adds the update of a linear layer to `y`, the output without bias: the frozen product and the
    /// updates before this one. By default what [`low_rank`](Self::low_rank) and
    /// [`factor`](Self::factor) say.
    ///
    /// # Shapes
    /// - y, output: `[..., out]`, in the dtype of the input
    fn forward<const D: usize>(&self, y: Tensor<D>, input: LinearInput<'_, D>) -> Tensor<D> {
        let update = self.low_rank().map(|LowRank { a, b, scaling }| {
            let [a, b] = [a, b].map(|m| m.cast(input.x.dtype()).unsqueeze::<D>());
            let h = Gemm::new().trans_rhs().run(input.x.clone(), a);
            (Gemm::new().trans_rhs().alpha(scaling as f32), h, b)
        });
        let Some(factor) = self.factor(input.layer) else {
            return match update {
                None => y,
                Some((product, h, b)) => product.run_add(h, b, y),
            };
        };
        let factor = broadcast(factor, &y);
        let y = y + input.product() * (factor.clone() - 1.0);
        match update {
            None => y,
            Some((product, h, b)) => y + product.run(h, b) * factor,
        }
    }

    /// Adds the update of an embedding to `y`, the rows of the tokens: the frozen ones and the updates
    /// before this one. By default what [`low_rank`](Self::low_rank) and [`factor`](Self::factor) say.
    ///
    /// # Shapes
    /// - y, output: `[batch, sequence, hidden]`, in the dtype of the frozen rows
    fn look_up(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3> {
        let update = self.low_rank().map(|LowRank { a, b, scaling }| {
            let h = look_up(a.transpose(), input.tokens);
            let update = Gemm::new().trans_rhs().alpha(scaling as f32).run(h, b.unsqueeze());
            update.cast(y.dtype())
        });
        match (update, self.factor(input.layer)) {
            (None, None) => y,
            (Some(update), None) => y + update,
            (update, Some(factor)) => {
                let factor = broadcast(factor, &y);
                let y = y + input.rows * (factor.clone() - 1.0);
                match update {
                    None => y,
                    Some(update) => y + update * factor,
                }
            }
        }
    }

    /// Returns what the update adds to the frozen weight, `[out, in]`, without a gradient: for merging.
    /// `None` if it adds nothing. By default the product of [`low_rank`](Self::low_rank).
    fn delta(&self, dtype: FloatDType) -> Option<Tensor<2>> {
        self.low_rank().map(|update| update.product(dtype))
    }

    /// Returns the weight and the bias that take the place of the base's, if the update is a whole layer.
    /// The base does not run then, and nothing else of the update does.
    fn replacement(&self) -> Option<Replacement<'_>> {
        None
    }

    /// Renews what the update keeps of the frozen weight, which has changed; `weight` returns it,
    /// `[out, in]` in float32.
    fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>) {
        let _ = weight;
    }

    /// Returns the update of a layer that shares its weight with this one's (a head with tied
    /// embeddings), if it has to follow. It shares the parameters, and is not saved.
    fn tied(&self, layer: &dyn FrozenLayer) -> Option<BoxedUpdate> {
        let _ = layer;
        None
    }

    /// Returns the reason why this update cannot be active together with another one of the same layer.
    fn conflict(&self, other: &BoxedUpdate) -> Option<String> {
        let _ = other;
        None
    }
}

/// Update as a low-rank product, `scaling · B · A`, differentiable in the parameters behind it.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A, `[rank, in]`, in float32.
    pub a: Tensor<2>,
    /// B, `[out, rank]`, in float32.
    pub b: Tensor<2>,
    /// Scaling of the product.
    pub scaling: f64,
}

impl LowRank {
    /// Returns the update with A and B in another dtype.
    pub(crate) fn cast(self, dtype: DType) -> Self {
        Self { a: self.a.cast(dtype), b: self.b.cast(dtype), ..self }
    }

    /// Returns `scaling · B · A`, `[out, in]`, without a gradient.
    pub fn product(self, dtype: FloatDType) -> Tensor<2> {
        let [a, b] = [self.a, self.b].map(|m| m.inner().cast(dtype));
        if dtype == FloatDType::F32 {
            return Gemm::new().alpha(self.scaling as f32).run(b, a);
        }
        b.matmul(a) * self.scaling
    }
}

/// Input of a linear layer, as one of its updates sees it.
#[derive(Clone)]
pub struct LinearInput<'a, const D: usize> {
    /// Input `[..., in]`, after the adapter's dropout.
    pub x: Tensor<D>,
    /// Layer that is adapted.
    pub layer: &'a dyn FrozenLayer,
    pub(crate) product: Option<Tensor<D>>,
}

impl<const D: usize> LinearInput<'_, D> {
    /// Returns the frozen product `x · Wᵀ`, `[..., out]`, without bias. It is computed only if dropout
    /// changed the input.
    pub fn product(&self) -> Tensor<D> {
        let weight = || &self.layer.base().expect("a linear layer has one").weight;
        self.product.clone().unwrap_or_else(|| weight().matmul(self.x.clone()))
    }
}

/// Input of an embedding, as one of its updates sees it.
#[derive(Clone)]
pub struct TokenInput<'a> {
    /// Tokens, `[batch, sequence]`.
    pub tokens: Tensor<2, Int>,
    /// Frozen rows of the tokens, `[batch, sequence, hidden]`.
    pub rows: Tensor<3>,
    /// Layer that is adapted.
    pub layer: &'a dyn FrozenLayer,
}

/// Weight and bias in place of the base's.
#[derive(Clone, Copy, Debug)]
pub struct Replacement<'a> {
    /// Weight in float32, with the shape that it has in files.
    pub weight: &'a Param<Tensor<2>>,
    /// Bias, `[out]`.
    pub bias: Option<&'a Param<Tensor<1>>>,
}

/// An [`Update`] of any type, as layers have it.
pub struct BoxedUpdate(Box<dyn DynUpdate>);

erased_module!(BoxedUpdate, DynUpdate, Update, ErasedUpdate);

/// Object-safe form of [`Update`], with the ranks of tensors erased.
#[doc(hidden)]
pub trait DynUpdate: ErasedUpdate {
    fn low_rank(&self) -> Option<LowRank>;
    fn rescales(&self) -> bool;
    fn factor(&self, layer: &dyn FrozenLayer) -> Option<Tensor<1>>;
    fn forward(&self, rank: usize, y: DispatchTensor, input: ErasedInput<'_>) -> DispatchTensor;
    fn look_up(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3>;
    fn delta(&self, dtype: FloatDType) -> Option<Tensor<2>>;
    fn replacement(&self) -> Option<Replacement<'_>>;
    fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>);
    fn tied(&self, layer: &dyn FrozenLayer) -> Option<BoxedUpdate>;
    fn conflict(&self, other: &BoxedUpdate) -> Option<String>;
}

/// [`LinearInput`] of any rank.
#[doc(hidden)]
pub struct ErasedInput<'a> {
    x: DispatchTensor,
    product: Option<DispatchTensor>,
    layer: &'a dyn FrozenLayer,
}

impl<U: Update> DynUpdate for U {
    fn low_rank(&self) -> Option<LowRank> {
        Update::low_rank(self)
    }

    fn rescales(&self) -> bool {
        Update::rescales(self)
    }

    fn factor(&self, layer: &dyn FrozenLayer) -> Option<Tensor<1>> {
        Update::factor(self, layer)
    }

    fn forward(&self, rank: usize, y: DispatchTensor, input: ErasedInput<'_>) -> DispatchTensor {
        with_rank!(rank, D => {
            let input = LinearInput::<D> {
                x: Tensor::from_dispatch(input.x),
                layer: input.layer,
                product: input.product.map(Tensor::from_dispatch),
            };
            Update::forward::<D>(self, Tensor::from_dispatch(y), input).into_dispatch()
        })
    }

    fn look_up(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3> {
        Update::look_up(self, y, input)
    }

    fn delta(&self, dtype: FloatDType) -> Option<Tensor<2>> {
        Update::delta(self, dtype)
    }

    fn replacement(&self) -> Option<Replacement<'_>> {
        Update::replacement(self)
    }

    fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>) {
        Update::refresh(self, weight);
    }

    fn tied(&self, layer: &dyn FrozenLayer) -> Option<BoxedUpdate> {
        Update::tied(self, layer)
    }

    fn conflict(&self, other: &BoxedUpdate) -> Option<String> {
        Update::conflict(self, other)
    }
}

impl BoxedUpdate {
    /// Wraps an update.
    pub fn new(update: impl Update) -> Self {
        Self(Box::new(update))
    }

    /// Returns the update if it is of type `U`.
    pub fn downcast_ref<U: Update>(&self) -> Option<&U> {
        self.0.as_any().downcast_ref()
    }

    /// Returns the update, mutable, if it is of type `U`.
    pub fn downcast_mut<U: Update>(&mut self) -> Option<&mut U> {
        self.0.as_any_mut().downcast_mut()
    }

    /// Update as a low-rank product: see [`Update::low_rank`].
    pub fn low_rank(&self) -> Option<LowRank> {
        self.0.low_rank()
    }

    /// Returns `true` if the update has a factor per output.
    pub fn rescales(&self) -> bool {
        self.0.rescales()
    }

    /// Factor of each output: see [`Update::factor`].
    pub fn factor(&self, layer: &dyn FrozenLayer) -> Option<Tensor<1>> {
        self.0.factor(layer)
    }

    /// Adds the update of a linear layer: see [`Update::forward`].
    pub(crate) fn forward<const D: usize>(
        &self,
        y: Tensor<D>,
        input: LinearInput<'_, D>,
    ) -> Tensor<D> {
        let LinearInput { x, layer, product } = input;
        let (x, product) = (x.into_dispatch(), product.map(Tensor::into_dispatch));
        let input = ErasedInput { x, product, layer };
        Tensor::from_dispatch(self.0.forward(D, y.into_dispatch(), input))
    }

    /// Adds the update of an embedding: see [`Update::look_up`].
    pub(crate) fn look_up(&self, y: Tensor<3>, input: TokenInput<'_>) -> Tensor<3> {
        self.0.look_up(y, input)
    }

    /// What the update adds to the frozen weight: see [`Update::delta`].
    pub fn delta(&self, dtype: FloatDType) -> Option<Tensor<2>> {
        self.0.delta(dtype)
    }

    /// Layer in place of the base: see [`Update::replacement`].
    pub fn replacement(&self) -> Option<Replacement<'_>> {
        self.0.replacement()
    }

    pub(crate) fn refresh(&mut self, weight: &dyn Fn() -> Tensor<2>) {
        self.0.refresh(weight);
    }

    pub(crate) fn tied(&self, layer: &dyn FrozenLayer) -> Option<Self> {
        self.0.tied(layer)
    }

    pub(crate) fn conflict(&self, other: &Self) -> Option<String> {
        self.0.conflict(other)
    }
}
