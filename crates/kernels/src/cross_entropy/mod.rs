//! Cross-entropy with its gradient in the same pass.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Int, Tensor},
};

/// Results of [`cross_entropy`] for each row.
#[derive(Clone, Debug)]
pub struct CrossEntropy {
    /// Loss, `[rows]` in float32.
    pub loss: Tensor<1>,
    /// 1 for a correct token (the target has the largest logit), else 0; `[rows]` in float32.
    pub correct: Tensor<1>,
    /// Entropy of the predicted distribution in nats, `-sum(p · log(p))` with `p = softmax(x)`; `[rows]` in float32.
    pub entropy: Tensor<1>,
    /// Mean of the logits, `[rows]` in float32.
    pub mean: Tensor<1>,
    /// Gradient of the sum of the losses, `[rows, vocabulary]` in the dtype of the logits.
    pub grad: Tensor<2>,
}

/// Softmax cross-entropy with label smoothing as in PyTorch, and its gradient in the same pass:
/// `loss = log(sum(exp(x))) - (1 - s) · x[target] - s · mean(x)` and
/// `grad = softmax(x) - (1 - s) · onehot(target) - s / vocabulary`, computed in float32.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_lora_kernels::cross_entropy;
///
/// let device = Device::default();
/// let logits = Tensor::from_floats([[0.0, 0.0], [3.0, -50.0]], &device);
/// let targets = Tensor::<1, Int>::from_ints([1, 0], &device);
/// let found = cross_entropy(logits, targets, 0.0);
/// let loss: Vec<f32> = found.loss.into_data().try_into_vec().unwrap();
/// assert!((loss[0] - 2f32.ln()).abs() < 1e-6 && loss[1].abs() < 1e-6);
/// found.grad.narrow(0, 0, 1).into_data().assert_eq(&[[0.5f32, -0.5]].into(), true);
/// ```
///
/// # Shapes
/// - logits: `[rows, vocabulary]`
/// - targets: `[rows]`, each below the size of the vocabulary
///
/// # Panics
/// If the shapes do not fit; on a CPU also if a target is outside of the vocabulary. A GPU returns
/// NaN as the loss and the gradient of such a row, so that the host does not have to wait.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<1, Int>, smoothing: f32) -> CrossEntropy {
    let [rows, vocabulary] = logits.dims();
    assert_eq!(rows, targets.dims()[0], "cross_entropy: a target for each row");
    assert!(vocabulary > 0 || rows == 0, "cross_entropy: a vocabulary of nothing");
    let targets = targets.cast(DType::I32).into_dispatch();
    let (of_rows, grad) = Dispatch::cross_entropy(logits.into_dispatch(), targets, smoothing);
    let of_rows = Tensor::<2>::from_dispatch(of_rows);
    // (Burn takes no part of what is empty.)
    let [loss, correct, entropy, mean] = [0, 1, 2, 3].map(|which| match rows {
        0 => Tensor::zeros([0], (&of_rows.device(), DType::F32)),
        _ => of_rows.clone().narrow(0, which, 1).reshape([rows]),
    });
    CrossEntropy { loss, correct, entropy, mean, grad: Tensor::from_dispatch(grad) }
}

/// [`cross_entropy`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait CrossEntropyOps: Backend {
    /// Of each row of logits and its target the loss, whether the token is correct, the entropy and the mean, one after
    /// the other, `[4, rows]` in float32; and the gradient of the sum of the losses.
    #[fusion(meta = |logits, _targets, _smoothing| (
        TensorSpec::new(Shape::new([4, logits.shape[0]]), DType::F32),
        logits.clone(),
    ))]
    fn cross_entropy(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        smoothing: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}
