//! Several products with one input, and their gradients.

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

/// Returns `x · Wᵀ + scale · h · Bᵀ` for each weight and its update, without a graph, and `h = x · Aᵀ` of all
/// updates side by side, which is one product; `None` without an update. A known `h` is not computed again.
///
/// # Shapes
/// - x: `[..., in]`, of rank 2 or more, without a graph
/// - h: `[rows, ranks]`
/// - outputs: `[..., out]` for each weight
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn matmul_all<const D: usize>(
    x: Tensor<D>,
    products: Vec<(&Frozen, Option<Update>)>,
    h: Option<Tensor<2>>,
) -> (Vec<Tensor<D>>, Option<Tensor<2>>) {
    let h = h.or_else(|| {
        let a = joined_a(products.iter().filter_map(|(_, update)| update.as_ref()))?;
        Some(Gemm::new().trans_rhs().run(x.clone().flatten(0, D - 2), a))
    });
    if let Some(h) = &h {
        check(h, x.dims(), products.iter().filter_map(|(_, update)| update.as_ref()));
    }
    let mut start = 0;
    let product = |(weight, update): (&Frozen, Option<Update>)| match (update, &h) {
        (Some(Update { a, b, scale }), Some(h)) => {
            let h = part(h, start, a.dims()[0]);
            start += a.dims()[0];
            weight.matmul_update(x.clone(), h, b.inner(), scale)
        }
        _ => weight.matmul(x.clone()),
    };
    (products.into_iter().map(product).collect(), h)
}

/// Returns the sum of `pull_back(y, grad)` of products `y` with the same input: see [`matmul_all`], whose `h` is
/// computed if it is not given. The outputs are not needed. The updates are one product with `x`, and gradients
/// of `x` are added where they are.
///
/// # Shapes
/// - x: `[..., in]`, of rank 2 or more
/// - h: `[rows, ranks]`
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn pull_back_all<const D: usize>(
    x: Tensor<D>,
    products: Vec<Pulled<'_, D>>,
    h: Option<Tensor<2>>,
) -> Tensor<1> {
    let mut zero = Tensor::zeros([1], (&x.device(), DType::F32));
    let updates =
        || products.iter().filter_map(|product| Some((product.update.as_ref()?, product)));
    let mut update_grad = None;
    if let Some(a) = joined_a(updates().map(|(update, _)| update)) {
        let rows: Tensor<2> = x.clone().inner().flatten(0, D - 2);
        let h = h.unwrap_or_else(|| Gemm::new().trans_rhs().run(rows.clone(), a.clone()));
        check(&h, x.dims(), updates().map(|(update, _)| update));
        let (mut h_grads, mut start) = (vec![], 0);
        for (Update { a, b, scale }, Pulled { grad, .. }) in updates() {
            let (rank, scaled) = (a.dims()[0], Gemm::new().alpha(*scale));
            let grad: Tensor<2> = grad.clone().flatten(0, D - 2);
            h_grads.push(scaled.run(grad.clone(), b.clone().inner()));
            if b.is_tracked() {
                let h = part(&h, start, rank);
                zero = pull_back_with(zero, b.clone(), scaled.trans_lhs().run(grad, h));
            }
            start += rank;
        }
        let h_grad = join(h_grads, 1);
        if updates().any(|(update, _)| update.a.is_tracked()) {
            let grads = Gemm::new().trans_lhs().run(h_grad.clone(), rows);
            let mut start = 0;
            for (Update { a, .. }, _) in updates() {
                let rank = a.dims()[0];
                zero = pull_back_with(zero, a.clone(), grads.clone().narrow(0, start, rank));
                start += rank;
            }
        }
        update_grad = Some((h_grad, a));
    }
    if !x.is_tracked() {
        return zero;
    }
    let mut sum = None;
    for Pulled { weight, grad, .. } in products {
        sum = Some(match update_grad.take() {
            Some((h_grad, a)) => weight.input_grad_update(grad, h_grad, a),
            None => weight.input_grad(grad, sum),
        });
    }
    match sum {
        Some(grad) => pull_back_with(zero, x, grad),
        None => zero,
    }
}

/// A of all updates, one below the other.
fn joined_a<'a>(updates: impl Iterator<Item = &'a Update>) -> Option<Tensor<2>> {
    let parts: Vec<_> = updates.map(|update| update.a.clone().inner()).collect();
    (!parts.is_empty()).then(|| join(parts, 0))
}

/// Checks that `h` is that of these updates, as far as its shape says.
fn check<'a, const D: usize>(
    h: &Tensor<2>,
    x: [usize; D],
    updates: impl Iterator<Item = &'a Update>,
) {
    let rows: usize = x[..D - 1].iter().product();
    let ranks: usize = updates.map(|update| update.a.dims()[0]).sum();
    assert_eq!(h.dims(), [rows, ranks], "h of all updates, for x {x:?}");
}

/// Columns of one update.
fn part(h: &Tensor<2>, start: usize, rank: usize) -> Tensor<2> {
    if h.dims()[1] == rank { h.clone() } else { h.clone().narrow(1, start, rank) }
}

fn join(parts: Vec<Tensor<2>>, dim: usize) -> Tensor<2> {
    match <[_; 1]>::try_from(parts) {
        Ok([one]) => one,
        Err(parts) => Tensor::cat(parts, dim),
    }
}
