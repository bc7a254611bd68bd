//! Products of few rows on CubeCL's runtimes: CUDA has kernels of its own.

use super::FewOps;
use burn_cubecl::CubeBackend;

#[cfg(not(feature = "cuda"))]
impl FewOps for CubeBackend {}

#[cfg(feature = "cuda")]
impl FewOps for CubeBackend {
    fn packed_few(
        x: super::FloatTensor<Self>,
        w0: super::PackedTensors<Self>,
        w1: super::PackedTensors<Self>,
        w2: super::PackedTensors<Self>,
        a0: super::FloatTensor<Self>,
        a1: super::FloatTensor<Self>,
        a2: super::FloatTensor<Self>,
        b0: super::FloatTensor<Self>,
        b1: super::FloatTensor<Self>,
        b2: super::FloatTensor<Self>,
        products: super::FewProducts,
    ) -> (super::FloatTensor<Self>, super::FloatTensor<Self>, super::FloatTensor<Self>) {
        let factors = [(w0, a0, b0), (w1, a1, b1), (w2, a2, b2)];
        let factors = factors.into_iter().zip(products.updated).take(products.count);
        let factors = factors.map(|((packed, a, b), updated)| super::cuda::Factors {
            packed,
            update: updated.then_some([a, b]),
        });
        let mut found = super::cuda::products(x, factors.collect(), &products);
        while found.len() < super::MOST {
            found.push(found[0].clone());
        }
        let [y0, y1, y2] = <[_; super::MOST]>::try_from(found).expect("three");
        (y0, y1, y2)
    }
}
