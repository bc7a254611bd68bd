//! Products of few rows with several 4-bit weights and their low-rank updates, as one operation: for generation, where launches
//! cost more than sums.

mod autodiff;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

#[cfg(feature = "fusion")]
use crate::ops::product_shape;
use crate::{
    joined::Update, layout::Layout, lowrank::LowRankOps, ops::PackedTensors, packed::PackedWeight,
    storage::Frozen,
};
#[cfg(feature = "fusion")]
use burn::backend::fusion::custom::TensorSpec;
use burn::{
    backend::{Dispatch, backend_extension, tensor::FloatTensor},
    tensor::Tensor,
};

/// Most weights of an operation.
pub(crate) const MOST: usize = 3;

/// Most rows.
const ROWS: usize = 8;

/// What [`FewOps::packed_few`] knows of its products.
#[derive(Clone, Copy, Debug)]
pub struct FewProducts {
    /// Number of weights; the others are there in form alone.
    pub count: usize,
    /// Layout of each weight.
    pub layouts: [Layout; MOST],
    /// Whether each has an update.
    pub updated: [bool; MOST],
    /// Scale of each update.
    pub scales: [f32; MOST],
}

/// Returns `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight, without a graph, if that is one operation here: on CUDA, for up to
/// eight rows in 16 bits, and up to three weights in NF4 or FP4 whose layouts differ in their outputs alone.
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
    let packed = weights.iter().map(|(weight, _)| weight.downcast_ref::<PackedWeight>());
    let packed = packed.collect::<Option<Vec<_>>>()?;
    let of = |number: usize| packed.get(number).unwrap_or(&packed[0]);
    let layouts: [Layout; MOST] = std::array::from_fn(|number| *of(number).layout());
    let first = layouts[0];
    let same =
        |layout: &Layout| Layout { shape: [layout.shape[0], first.shape[1]], ..first } == *layout;
    if !layouts.iter().all(|layout| same(layout) && fits(layout)) {
        return None;
    }
    for (packed, (_, update)) in packed.iter().zip(weights) {
        if let Some(Update { a, b, .. }) = update {
            packed.check_low_rank(x, a, b);
        }
    }
    let update = |number: usize| weights.get(number).and_then(|(_, update)| update.as_ref());
    let products = FewProducts {
        count: weights.len(),
        layouts,
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
    let [w0, w1, w2] = [0, 1, 2].map(|number| of(number).tensors());
    let rows = flat.clone().into_dispatch();
    let (y0, y1, y2) = Dispatch::packed_few(rows, w0, w1, w2, a0, a1, a2, b0, b1, b2, products);
    let found = [y0, y1, y2].into_iter().take(weights.len()).zip(&layouts).map(|(y, layout)| {
        let mut dims = x.dims();
        dims[D - 1] = layout.shape[0];
        Tensor::<2>::from_dispatch(y).reshape(dims)
    });
    Some(found.collect())
}

/// Returns `true` if [`matmul_few`] computes products of these rows, given weights that it takes.
pub fn takes_few<const D: usize>(x: &Tensor<D>) -> bool {
    let rows = x.dims()[..D - 1].iter().product::<usize>();
    if !(1..=ROWS).contains(&rows) || x.is_autodiff() {
        return false;
    }
    #[cfg(feature = "cuda")]
    if let Some(client) = burn_lora_kernels::cube::client(&x.device()) {
        return cuda::takes(&client, x.dtype());
    }
    false
}

fn fits(layout: &Layout) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::fits(layout);
    #[cfg(not(feature = "cuda"))]
    unreachable!("no rows are taken for {layout:?}")
}

/// [`matmul_few`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait FewOps: LowRankOps {
    /// `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight; in place of those beyond the count, the first one's.
    #[fusion(meta = |x, _w0, _w1, _w2, _a0, _a1, _a2, _b0, _b1, _b2, products| (
        TensorSpec::new(product_shape(&x.shape, products.layouts[0].shape, false), x.dtype),
        TensorSpec::new(product_shape(&x.shape, products.layouts[1].shape, false), x.dtype),
        TensorSpec::new(product_shape(&x.shape, products.layouts[2].shape, false), x.dtype),
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
        products: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let factors = [(w0, a0, b0), (w1, a1, b1), (w2, a2, b2)];
        let mut found: Vec<FloatTensor<Self>> = vec![];
        for (number, (packed, a, b)) in factors.into_iter().enumerate() {
            let (layout, scale) = (products.layouts[number], products.scales[number]);
            let y = match number < products.count {
                false => found[0].clone(),
                true if products.updated[number] => {
                    Self::packed_low_rank(x.clone(), packed, layout, a, b, scale).0
                }
                true => Self::packed_matmul(x.clone(), packed, layout, false),
            };
            found.push(y);
        }
        let [y0, y1, y2] = <[_; MOST]>::try_from(found).unwrap_or_else(|_| unreachable!("three"));
        (y0, y1, y2)
    }
}

#[cfg(feature = "cpu")]
impl FewOps for burn::backend::Flex {}

#[cfg(all(feature = "cubecl", not(feature = "cuda")))]
impl FewOps for burn_cubecl::CubeBackend {}
