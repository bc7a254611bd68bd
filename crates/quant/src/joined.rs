//! Gradients of several products with one input.

use crate::storage::Frozen;
use burn::tensor::{DType, Tensor};
use burn_lora_kernels::{Gemm, pull_back_with};

/// A product with a frozen weight, and the gradient of its output.
#[derive(Clone, Debug)]
pub struct Pulled<'a, const D: usize> {
    /// The weight.
    pub weight: &'a Frozen,
    /// The low-rank update, if there is one.
    pub update: Option<Update>,
    /// Gradient of the output, `[..., out]`.
    pub grad: Tensor<D>,
}

/// A low-rank update, `scale · (x · Aᵀ) · Bᵀ`.
#[derive(Clone, Debug)]
pub struct Update {
    /// A, `[rank, in]`.
    pub a: Tensor<2>,
    /// B, `[out, rank]`.
    pub b: Tensor<2>,
    /// Scale.
    pub scale: f32,
}

/// Returns the sum of `pull_back_low_rank` (or `pull_back`, without an update) of products with the same
/// input `x`. The updates are one product with it, and gradients of `x` are added where they are.
///
/// # Shapes
/// - x: `[..., in]`, of rank 2 or more
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn pull_back_all<const D: usize>(x: Tensor<D>, products: Vec<Pulled<'_, D>>) -> Tensor<1> {
    let mut zero = Tensor::zeros([1], (&x.device(), DType::F32));
    let updates: Vec<_> = products
        .iter()
        .filter_map(|product| Some((product.update.clone()?, product.grad.clone())))
        .collect();
    let mut sum = None;
    if !updates.is_empty() {
        let rows: Tensor<2> = x.clone().inner().flatten(0, D - 2);
        let a = join(updates.iter().map(|(update, _)| update.a.clone().inner()), 0);
        let h = Gemm::new().trans_rhs().run(rows.clone(), a.clone());
        let (mut h_grads, mut start) = (vec![], 0);
        for (Update { a, b, scale }, grad) in &updates {
            let (rank, scaled) = (a.dims()[0], Gemm::new().alpha(*scale));
            let grad: Tensor<2> = grad.clone().flatten(0, D - 2);
            h_grads.push(scaled.run(grad.clone(), b.clone().inner()));
            if b.is_tracked() {
                let h = h.clone().narrow(1, start, rank);
                zero = pull_back_with(zero, b.clone(), scaled.trans_lhs().run(grad, h));
            }
            start += rank;
        }
        let h_grad = join(h_grads, 1);
        if updates.iter().any(|(update, _)| update.a.is_tracked()) {
            let grads = Gemm::new().trans_lhs().run(h_grad.clone(), rows);
            let mut start = 0;
            for (Update { a, .. }, _) in updates {
                let rank = a.dims()[0];
                zero = pull_back_with(zero, a, grads.clone().narrow(0, start, rank));
                start += rank;
            }
        }
        sum = x.is_tracked().then(|| Gemm::new().run(h_grad, a).reshape(x.dims()));
    }
    if !x.is_tracked() {
        return zero;
    }
    let grad = products
        .into_iter()
        .fold(sum, |sum, product| Some(product.weight.input_grad(product.grad, sum)));
    match grad {
        Some(grad) => pull_back_with(zero, x, grad),
        None => zero,
    }
}

fn join(parts: impl IntoIterator<Item = Tensor<2>>, dim: usize) -> Tensor<2> {
    let parts: Vec<_> = parts.into_iter().collect();
    match <[_; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => Tensor::cat(parts, dim),
    }
}
