//! Products of few rows with several weights and their low-rank updates, as one operation: for generation, where launches cost
//! more than sums, and memory more than products.

mod autodiff;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::{
    joined::Update,
    layout::Layout,
    lowrank::LowRankOps,
    ops::PackedTensors,
    packed::{PackedWeight, check_input, check_low_rank},
    storage::Frozen,
};
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};
use burn_lora_kernels::Gemm;

/// Most weights of an operation.
pub(crate) const MOST: usize = 3;

/// What [`FewOps`] know of their products.
#[derive(Clone, Copy, Debug)]
pub struct FewProducts {
    /// Number of weights; the others are there in form alone.
    pub count: usize,
    /// Outputs of each weight.
    pub outputs: [usize; MOST],
    /// Whether each has an update.
    pub updated: [bool; MOST],
    /// Scale of each update.
    pub scales: [f32; MOST],
}

/// Returns `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight, without a graph, if that is one operation here: on CUDA, for rows in
/// 16 bits and up to three weights, which are all in NF4 or FP4 with layouts that differ in their outputs alone (up to 64 rows),
/// or all dense in the dtype of the rows (up to eight).
///
/// # Shapes
/// - x: `[..., in]`
/// - outputs: `[..., out]` for each weight
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub fn matmul_few<const D: usize>(
    x: &Tensor<D>,
    weights: &[(&Frozen, Option<Update>)],
) -> Option<Vec<Tensor<D>>> {
    if !takes_few(x) || !(1..=MOST).contains(&weights.len()) {
        return None;
    }
    let rows = rows_of(x);
    let weight = |number: usize| weights.get(number).unwrap_or(&weights[0]).0;
    let packed = |number: usize| weight(number).downcast_ref::<PackedWeight>();
    let dense = |number: usize| Some(weight(number).dense()?.val().inner());
    let packed = [packed(0), packed(1), packed(2)];
    let layout = packed[0].map(|packed| *packed.layout());
    let all_fit = match layout {
        Some(first) => packed.iter().all(|packed| {
            packed.is_some_and(|packed| {
                let outputs = packed.layout().shape[0];
                let same = Layout { shape: [outputs, first.shape[1]], ..first };
                same == *packed.layout() && fits(&same, rows)
            })
        }),
        None => (0..MOST).all(|number| {
            dense(number)
                .is_some_and(|dense| dense.dtype() == x.dtype() && fits_dense(dense.dims(), rows))
        }),
    };
    let shapes = [0, 1, 2].map(|number| weight(number).shape());
    if !all_fit || shapes.iter().any(|shape| shape[1] != shapes[0][1]) {
        return None;
    }
    for ((_, update), shape) in weights.iter().zip(shapes) {
        check_input(x, shape);
        if let Some(Update { a, b, .. }) = update {
            check_low_rank(x, a, b, shape);
        }
    }
    let update = |number: usize| weights.get(number).and_then(|(_, update)| update.as_ref());
    let products = FewProducts {
        count: weights.len(),
        outputs: shapes.map(|shape| shape[0]),
        updated: std::array::from_fn(|number| update(number).is_some()),
        scales: std::array::from_fn(|number| update(number).map_or(0.0, |update| update.scale)),
    };
    let flat = x.clone().flatten::<2>(0, D - 2);
    // Those without an update have x in the place of A and B, which is not read.
    let factor = |number: usize, b: bool| {
        let own = update(number).map(|Update { a, b: of_b, .. }| if b { of_b } else { a });
        own.map_or_else(|| flat.clone(), |own| own.clone().inner()).into_dispatch()
    };
    let [a0, a1, a2] = [0, 1, 2].map(|number| factor(number, false));
    let [b0, b1, b2] = [0, 1, 2].map(|number| factor(number, true));
    let rows = flat.clone().into_dispatch();
    let (y0, y1, y2) = if let (Some(layout), [Some(w0), Some(w1), Some(w2)]) = (layout, packed) {
        let [w0, w1, w2] = [w0, w1, w2].map(PackedWeight::tensors);
        Dispatch::packed_few(rows, w0, w1, w2, a0, a1, a2, b0, b1, b2, layout, products)
    } else {
        let [w0, w1, w2] = [0, 1, 2].map(|number| dense(number).expect("it fits").into_dispatch());
        Dispatch::dense_few(rows, w0, w1, w2, a0, a1, a2, b0, b1, b2, products)
    };
    let found = [y0, y1, y2].into_iter().take(weights.len()).zip(shapes).map(|(y, shape)| {
        let mut dims = x.dims();
        dims[D - 1] = shape[0];
        Tensor::<2>::from_dispatch(y).reshape(dims)
    });
    Some(found.collect())
}

#[cfg(feature = "cuda")]
use cuda::{fits, fits_dense};

/// Without CUDA no rows are taken.
#[cfg(not(feature = "cuda"))]
fn fits(_: &Layout, _: usize) -> bool {
    false
}

#[cfg(not(feature = "cuda"))]
fn fits_dense(_: [usize; 2], _: usize) -> bool {
    false
}

fn rows_of<const D: usize>(x: &Tensor<D>) -> usize {
    x.dims()[..D - 1].iter().product()
}

/// Returns `true` if [`matmul_few`] computes products of these rows, given weights that it takes.
pub fn takes_few<const D: usize>(x: &Tensor<D>) -> bool {
    if x.is_autodiff() {
        return false;
    }
    #[cfg(feature = "cuda")]
    if let Some(client) = burn_lora_kernels::cube::client(&x.device()) {
        return (1..=cuda::MANY).contains(&rows_of(x)) && cuda::takes(&client, x.dtype());
    }
    false
}

/// [`matmul_few`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait FewOps: LowRankOps {
    /// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight, which has this layout but for its outputs; in place of those beyond the
    /// count, the first one's.
    #[fusion(meta = |x, _w0, _w1, _w2, _a0, _a1, _a2, _b0, _b1, _b2, _layout, products| (
        of_outputs(x, products.outputs[0]),
        of_outputs(x, products.outputs[1]),
        of_outputs(x, products.outputs[2]),
    ))]
    #[allow(clippy::too_many_arguments, reason = "an operation has no list of tensors")]
    fn packed_few(
        x: FloatTensor<Self>,
        #[extension_type] w0: PackedTensors<Self>,
        #[extension_type] w1: PackedTensors<Self>,
        #[extension_type] w2: PackedTensors<Self>,
        a0: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        layout: Layout,
        products: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let factors = [(w0, a0, b0), (w1, a1, b1), (w2, a2, b2)];
        by_itself(factors, &products, |number, (packed, a, b), scale| {
            let shape = [products.outputs[number], layout.shape[1]];
            let layout = Layout { shape, ..layout };
            match scale {
                Some(scale) => Self::packed_low_rank(x.clone(), packed, layout, a, b, scale).0,
                None => Self::packed_matmul(x.clone(), packed, layout, false),
            }
        })
    }

    /// The same for dense weights.
    #[fusion(meta = |x, _w0, _w1, _w2, _a0, _a1, _a2, _b0, _b1, _b2, products| (
        of_outputs(x, products.outputs[0]),
        of_outputs(x, products.outputs[1]),
        of_outputs(x, products.outputs[2]),
    ))]
    #[allow(clippy::too_many_arguments, reason = "an operation has no list of tensors")]
    fn dense_few(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        a0: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        products: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let factors = [(w0, a0, b0), (w1, a1, b1), (w2, a2, b2)];
        let gemm = || Gemm::new().trans_rhs();
        by_itself(factors, &products, |_, (weight, a, b), scale| {
            let y = Self::gemm(x.clone(), weight, gemm());
            let Some(scale) = scale else { return y };
            Self::gemm_add(Self::gemm(x.clone(), a, gemm()), b, y, gemm().alpha(scale))
        })
    }
}

/// Each product by itself, where there is no kernel for all: `product` gets its number, its factors and the scale of its update.
fn by_itself<W, Y: Clone>(
    factors: [(W, Y, Y); MOST],
    products: &FewProducts,
    product: impl Fn(usize, (W, Y, Y), Option<f32>) -> Y,
) -> (Y, Y, Y) {
    let mut found: Vec<Y> = vec![];
    for (number, factors) in factors.into_iter().enumerate() {
        let scale = products.updated[number].then_some(products.scales[number]);
        let there = number < products.count;
        found.push(if there { product(number, factors, scale) } else { found[0].clone() });
    }
    let [y0, y1, y2] = <[_; MOST]>::try_from(found).unwrap_or_else(|_| unreachable!("three"));
    (y0, y1, y2)
}

#[cfg(feature = "fusion")]
fn of_outputs(x: &TensorSpec, outputs: usize) -> TensorSpec {
    TensorSpec::new(Shape::from([x.shape[0], outputs]), x.dtype)
}

#[cfg(feature = "cpu")]
impl FewOps for burn::backend::Flex {}

#[cfg(all(feature = "cubecl", not(feature = "cuda")))]
impl FewOps for burn_cubecl::CubeBackend {}
