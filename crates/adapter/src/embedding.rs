//! Embedding and vector that can carry adapters.

use crate::{
    active::ActiveAdapters,
    frozen::{FrozenLayer, LayerKind},
    layer::{AdaptedLayer, Adapters},
    lookup::look_up,
    selection::Selection,
    update::TokenInput,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, FloatDType, Int, Tensor},
};
use burn_lora_kernels::Gemm;

/// Frozen embedding `[vocabulary, hidden]` with any number of adapters.
///
/// The update of a token is `scaling · A[:, token] · Bᵀ`, with A `[rank, vocabulary]` and B
/// `[hidden, rank]`.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_adapter::AdaptedEmbedding;
///
/// let device = Device::default();
/// let embedding = AdaptedEmbedding::new(Tensor::from_floats([[1.0, 2.0], [3.0, 4.0]], &device));
/// let y = embedding.forward(Tensor::<2, Int>::from_ints([[1, 0]], &device));
/// y.into_data().assert_eq(&[[[3.0f32, 4.0], [1.0, 2.0]]].into(), true);
/// ```
#[derive(Module, Debug)]
pub struct AdaptedEmbedding {
    /// The frozen weight, `[vocabulary, hidden]`.
    pub weight: Param<Tensor<2>>,
    adapters: Adapters,
}

impl AdaptedEmbedding {
    /// Creates an embedding without adapters from its weight `[vocabulary, hidden]`.
    pub fn new(weight: Tensor<2>) -> Self {
        Self::from_param(Param::from_tensor(weight))
    }

    /// Creates an embedding without adapters from a parameter, which need not be initialised yet.
    pub fn from_param(weight: Param<Tensor<2>>) -> Self {
        Self { weight: weight.set_require_grad(false), adapters: Adapters::default() }
    }

    /// Looks up the tokens, with the selected adapters.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`, in the dtype of the weight
    ///
    /// # Panics
    /// If the selection is by rows and their number is not the batch size; on a CPU also if a token
    /// is not in the vocabulary. On a GPU such a token gives NaN, which needs no synchronisation.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.forward_with(tokens, None)
    }

    /// Looks up the tokens, with the adapters of the batch, or the selected ones if `None`.
    ///
    /// # Shapes
    /// - tokens: `[batch, sequence]`
    /// - output: `[batch, sequence, hidden]`, in the dtype of the weight
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_with(
        &self,
        tokens: Tensor<2, Int>,
        active: Option<&ActiveAdapters>,
    ) -> Tensor<3> {
        let active = active.unwrap_or(&self.adapters.selected);
        let here = |name: &String| self.adapters.get(name).is_some();
        match active.rows(tokens.dims()[0], &tokens.device()) {
            None => self.forward_all(tokens, active.names()),
            Some(rows) if !rows.names().any(here) => self.forward_all(tokens, &[]),
            Some(rows) => rows
                .each(|name, rows| self.forward_all(tokens.clone().select(0, rows.clone()), name)),
        }
    }

    fn forward_all(&self, tokens: Tensor<2, Int>, names: &[String]) -> Tensor<3> {
        let weight = self.weight.val();
        if let Some(whole) = self.adapters.replacement(names) {
            return look_up(whole.weight.val(), tokens).cast(weight.dtype());
        }
        let rows = look_up(weight, tokens.clone());
        self.adapters.active(names).fold(rows.clone(), |y, adapter| {
            adapter
                .add_rows(y, TokenInput { tokens: tokens.clone(), rows: rows.clone(), layer: self })
        })
    }
}

impl FrozenLayer for AdaptedEmbedding {
    fn kind(&self) -> LayerKind {
        LayerKind::Embedding
    }

    fn shape(&self) -> [usize; 2] {
        let [vocabulary, hidden] = self.weight.lazy_shape().dims();
        [hidden, vocabulary]
    }

    fn file_shape(&self) -> Vec<usize> {
        self.weight.lazy_shape().to_vec()
    }

    fn file_layout(&self, weight: Tensor<2>) -> Tensor<2> {
        weight.transpose()
    }

    fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    fn weight(&self) -> Tensor<2> {
        self.weight.val().inner().cast(FloatDType::F32).transpose()
    }

    fn set_weight(&mut self, weight: Tensor<2>) {
        let dtype = self.weight.val().dtype();
        let weight = Param::from_tensor(weight.transpose().cast(dtype));
        self.weight = weight.set_require_grad(false);
        self.refresh();
    }

    fn weight_param(&self) -> Option<&Param<Tensor<2>>> {
        Some(&self.weight)
    }

    fn weight_param_mut(&mut self) -> Option<&mut Param<Tensor<2>>> {
        Some(&mut self.weight)
    }

    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight.val().inner();
        Gemm::new().run(x.cast(weight.dtype()), weight).cast(FloatDType::F32)
    }
}

impl AdaptedLayer for AdaptedEmbedding {
    fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.adapters
    }
}

/// Frozen vector (the weight of a norm) of which an adapter can train a copy.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_adapter::AdaptedVector;
///
/// let device = Device::default();
/// let norm = AdaptedVector::new(Tensor::from_floats([1.0, 2.0], &device));
/// assert_eq!(norm.val().dims(), [2]);
/// ```
#[derive(Module, Debug)]
pub struct AdaptedVector {
    /// The frozen vector.
    pub weight: Param<Tensor<1>>,
    adapters: Adapters,
}

impl AdaptedVector {
    /// Creates a vector without adapters.
    pub fn new(weight: Tensor<1>) -> Self {
        Self::from_param(Param::from_tensor(weight))
    }

    /// Creates a vector without adapters from a parameter, which need not be initialised yet.
    pub fn from_param(weight: Param<Tensor<1>>) -> Self {
        Self { weight: weight.set_require_grad(false), adapters: Adapters::default() }
    }

    /// Returns the vector, or the copy of the selected adapter.
    ///
    /// # Panics
    /// As [`val_with`](Self::val_with).
    pub fn val(&self) -> Tensor<1> {
        self.val_with(None)
    }

    /// Returns the vector, or the copy of an adapter of the batch, or of the selected one if `None`.
    ///
    /// # Panics
    /// If the adapters are selected by rows and one of them has a copy: the whole batch shares one
    /// vector.
    pub fn val_with(&self, active: Option<&ActiveAdapters>) -> Tensor<1> {
        let active = active.unwrap_or(&self.adapters.selected);
        let names = active.names();
        match self.adapters.replacement(names) {
            None => self.weight.val(),
            Some(whole) => {
                let mixed = matches!(active.selection(), Selection::Rows(_));
                let name = || names.iter().find(|name| self.adapters.get(name).is_some());
                assert!(
                    !mixed,
                    "adapter `{}` trains a norm: not by rows",
                    name().expect("it has one")
                );
                whole.weight.val().squeeze_dim::<1>(1).cast(self.weight.val().dtype())
            }
        }
    }
}

impl FrozenLayer for AdaptedVector {
    fn kind(&self) -> LayerKind {
        LayerKind::Vector
    }

    fn shape(&self) -> [usize; 2] {
        [self.weight.lazy_shape()[0], 1]
    }

    fn file_shape(&self) -> Vec<usize> {
        self.weight.lazy_shape().to_vec()
    }

    fn device(&self) -> Device {
        self.weight.lazy_device()
    }

    fn weight(&self) -> Tensor<2> {
        self.weight.val().inner().cast(FloatDType::F32).unsqueeze_dim(1)
    }

    fn set_weight(&mut self, weight: Tensor<2>) {
        let dtype = self.weight.val().dtype();
        let weight = Param::from_tensor(weight.squeeze_dim::<1>(1).cast(dtype));
        self.weight = weight.set_require_grad(false);
    }

    fn product(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.weight().cast(x.dtype());
        Gemm::new().trans_rhs().run(x, weight)
    }
}

impl AdaptedLayer for AdaptedVector {
    fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.adapters
    }
}
