//! Products of few rows have no gradients: those of training do.

use super::{FewOps, FewProducts};
use crate::{
    layout::Layout,
    ops::{PackedTensors, inner},
};
use burn::backend::{
    Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy, tensor::FloatTensor,
};

impl<B: FewOps, C: CheckpointStrategy> FewOps for Autodiff<B, C> {
    fn packed_few(
        x: FloatTensor<Self>,
        w0: PackedTensors<Self>,
        w1: PackedTensors<Self>,
        w2: PackedTensors<Self>,
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
        let [w0, w1, w2] = [w0, w1, w2].map(inner);
        let [x, a0, a1, a2] = [x, a0, a1, a2].map(|tensor| tensor.into_primitive());
        let [b0, b1, b2] = [b0, b1, b2].map(|tensor| tensor.into_primitive());
        let [k0, k1, k2] = [k0, k1, k2].map(|tensor| tensor.into_primitive());
        let (y0, y1, y2) =
            B::packed_few(x, w0, w1, w2, a0, a1, a2, b0, b1, b2, k0, k1, k2, layout, products);
        let [y0, y1, y2] = [y0, y1, y2].map(FloatTensor::<Self>::new);
        (y0, y1, y2)
    }

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
        let [w0, w1, w2] = [w0, w1, w2].map(|tensor| tensor.into_primitive());
        let [x, a0, a1, a2] = [x, a0, a1, a2].map(|tensor| tensor.into_primitive());
        let [b0, b1, b2] = [b0, b1, b2].map(|tensor| tensor.into_primitive());
        let [k0, k1, k2] = [k0, k1, k2].map(|tensor| tensor.into_primitive());
        let (y0, y1, y2) =
            B::dense_few(x, w0, w1, w2, a0, a1, a2, b0, b1, b2, k0, k1, k2, products);
        let [y0, y1, y2] = [y0, y1, y2].map(FloatTensor::<Self>::new);
        (y0, y1, y2)
    }
}
