//! Products of few rows with several weights and their low-rank updates, as one operation: for generation, where launches cost
//! more than sums, and memory more than products.

mod autodiff;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod limits;

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

/// Most weights of an operation.
pub(crate) const MOST: usize = 3;

/// A weight of [`matmul_few`].
#[derive(Clone, Debug)]
pub struct FewWeight<'a> {
    /// The weight, `[out, in]`.
    pub weight: &'a Frozen,
    /// The low-rank update, if there is one.
    pub update: Option<Update>,
    /// What of `h = x · Aᵀ` is kept where not all is: 0 where it becomes 0, `[rows, rank]` in float32.
    pub kept: Option<Tensor<2>>,
}

/// What [`FewOps`] know of their products.
#[derive(Clone, Copy, Debug, Default)]
pub struct FewProducts {
    /// Number of weights; the others are there in form alone.
    pub count: usize,
    /// Outputs of each weight.
    pub outputs: [usize; MOST],
    /// Whether each has an update.
    pub updated: [bool; MOST],
    /// Whether not all of its h is kept.
    pub masked: [bool; MOST],
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
    weights: &[FewWeight<'_>],
) -> Option<Vec<Tensor<D>>> {
    if !takes_few(x) || !(1..=MOST).contains(&weights.len()) {
        return None;
    }
    let rows = rows_of(x);
    let weight = |number: usize| weights.get(number).unwrap_or(&weights[0]).weight;
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
    for (FewWeight { update, kept, .. }, shape) in weights.iter().zip(shapes) {
        check_input(x, shape, false);
        if let Some(Update { a, b, .. }) = update {
            check_low_rank(x, a, b, shape);
        }
        let rank = update.as_ref().map_or(0, |update| update.a.dims()[0]);
        let fits = kept.as_ref().is_none_or(|kept| kept.dims() == [rows, rank]);
        assert!(fits, "what is kept of {rows} rows of rank {rank}");
    }
    let update = |number: usize| weights.get(number).and_then(|weight| weight.update.as_ref());
    let kept = |number: usize| weights.get(number).and_then(|weight| weight.kept.as_ref());
    let products = FewProducts {
        count: weights.len(),
        outputs: shapes.map(|shape| shape[0]),
        updated: std::array::from_fn(|number| update(number).is_some()),
        masked: std::array::from_fn(|number| kept(number).is_some()),
        scales: std::array::from_fn(|number| update(number).map_or(0.0, |update| update.scale)),
    };
    let flat = x.clone().flatten::<2>(0, D - 2);
    // x is in the place of what is not there, and is not read.
    let factor = |number: usize, b: bool| {
        let own = update(number).map(|Update { a, b: of_b, .. }| if b { of_b } else { a });
        own.map_or_else(|| flat.clone(), |own| own.clone().inner()).into_dispatch()
    };
    let [a0, a1, a2] = [0, 1, 2].map(|number| factor(number, false));
    let [b0, b1, b2] = [0, 1, 2].map(|number| factor(number, true));
    let [k0, k1, k2] =
        [0, 1, 2].map(|number| kept(number).unwrap_or(&flat).clone().inner().into_dispatch());
    let rows = flat.clone().into_dispatch();
    let (y0, y1, y2) = if let (Some(layout), [Some(w0), Some(w1), Some(w2)]) = (layout, packed) {
        let [w0, w1, w2] = [w0, w1, w2].map(PackedWeight::tensors);
        Dispatch::packed_few(rows, w0, w1, w2, a0, a1, a2, b0, b1, b2, k0, k1, k2, layout, products)
    } else {
        let [w0, w1, w2] = [0, 1, 2].map(|number| dense(number).expect("it fits").into_dispatch());
        Dispatch::dense_few(rows, w0, w1, w2, a0, a1, a2, b0, b1, b2, k0, k1, k2, products)
    };
    let found = [y0, y1, y2].into_iter().take(weights.len()).zip(shapes).map(|(y, shape)| {
        let mut dims = x.dims();
        dims[D - 1] = shape[0];
        Tensor::<2>::from_dispatch(y).reshape(dims)
    });
    Some(found.collect())
}

#[cfg(feature = "cuda")]
use limits::{fits, fits_dense};

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
        return (1..=limits::MANY).contains(&rows_of(x)) && limits::takes(&client, x.dtype());
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
    #[fusion(meta = |x, _w0, _w1, _w2, _a0, _a1, _a2, _b0, _b1, _b2, _k0, _k1, _k2, _layout, products| (
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
        k0: FloatTensor<Self>,
        k1: FloatTensor<Self>,
        k2: FloatTensor<Self>,
        layout: Layout,
        products: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let _ = (x, [w0, w1, w2], [a0, a1, a2], [b0, b1, b2], [k0, k1, k2]);
        untaken(&products, Some(layout))
    }

    /// The same for dense weights.
    #[fusion(meta = |x, _w0, _w1, _w2, _a0, _a1, _a2, _b0, _b1, _b2, _k0, _k1, _k2, products| (
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
        k0: FloatTensor<Self>,
        k1: FloatTensor<Self>,
        k2: FloatTensor<Self>,
        products: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let _ = (x, [w0, w1, w2], [a0, a1, a2], [b0, b1, b2], [k0, k1, k2]);
        untaken(&products, None)
    }
}

/// Where there is no kernel [`takes_few`] says so.
fn untaken(products: &FewProducts, layout: Option<Layout>) -> ! {
    unreachable!("no rows are taken here: {products:?}, {layout:?}")
}

#[cfg(feature = "fusion")]
fn of_outputs(x: &TensorSpec, outputs: usize) -> TensorSpec {
    TensorSpec::new(Shape::from([x.shape[0], outputs]), x.dtype)
}

#[cfg(feature = "cpu")]
impl FewOps for burn::backend::Flex {}

#[cfg(all(feature = "cubecl", not(feature = "cuda")))]
impl FewOps for burn_cubecl::CubeBackend {}
