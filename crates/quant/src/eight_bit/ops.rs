//! Operations on 8-bit weights, as a Burn backend extension.

use super::codec::EightBitLayout;
#[cfg(feature = "cubecl")]
use super::cube;
#[cfg(any(feature = "cpu", feature = "cubecl", feature = "fusion"))]
use crate::ops::product_shape;
#[cfg(any(feature = "cpu", feature = "cubecl"))]
use crate::ops::rows;
#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::DType};
use burn::{
    backend::{
        Autodiff, Backend, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
        backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{FloatDType, Shape},
};
use burn_lora_kernels::{Gemm, GemmOps};

/// Backend operations on 8-bit weights. Call them through
/// [`EightBitWeight`](super::EightBitWeight), which checks shapes.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait EightBitOps: Backend {
    /// Decodes the weight, `[out, in]`, into `dtype`.
    #[fusion(meta = |_codes, _scales, layout, dtype| TensorSpec::new(
        Shape::new(layout.shape),
        DType::from(*dtype),
    ))]
    fn decode_eight(
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self>;

    /// `x · Wᵀ`, or `x · W` when `transposed`.
    #[fusion(dtype = x, shape = product_shape(x, layout.shape, *transposed))]
    fn eight_matmul(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        transposed: bool,
    ) -> FloatTensor<Self>;
}

/// Product with a weight that is decoded first, into a temporary tensor.
#[cfg(any(feature = "cpu", feature = "cubecl"))]
fn product<B: EightBitOps + GemmOps>(
    x: FloatTensor<B>,
    codes: IntTensor<B>,
    scales: IntTensor<B>,
    layout: EightBitLayout,
    transposed: bool,
) -> FloatTensor<B> {
    let shape = product_shape(&x.shape(), layout.shape, transposed);
    let width = layout.shape[usize::from(!transposed)];
    let dense = B::decode_eight(codes, scales, layout, x.dtype().into());
    let x = B::float_reshape(x, Shape::new([rows(&shape), width]));
    let gemm = if transposed { Gemm::new() } else { Gemm::new().trans_rhs() };
    B::float_reshape(B::gemm(x, dense, gemm), shape)
}

#[cfg(feature = "cpu")]
impl EightBitOps for burn::backend::Flex {
    fn decode_eight(
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        use burn_lora_kernels::flex::from_f32;
        use rayon::prelude::*;
        /// Elements that a task decodes.
        const CHUNK: usize = 16 << 10;
        let [codes, scales] = [codes, scales].map(|words| words.to_contiguous());
        let (codes, scales): (&[u32], &[u32]) = (codes.storage(), scales.storage());
        let mut out = vec![0.0; layout.len()];
        out.par_chunks_mut(CHUNK)
            .enumerate()
            .for_each(|(i, out)| layout.decode(codes, scales, i * CHUNK, out));
        from_f32(out, layout.shape.into(), dtype.into())
    }

    fn eight_matmul(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use burn::{backend::ops::FloatTensorOps, tensor::DType};
            use burn_lora_kernels::flex::{from_f32, to_f32};
            let shape = product_shape(&x.shape(), layout.shape, transposed);
            let (count, dtype) = (rows(&shape), x.dtype());
            if !transposed && super::few::supports(&layout, count) {
                let [codes, scales] = [codes, scales].map(|words| words.to_contiguous());
                let (codes, scales) = (codes.storage(), scales.storage());
                let y = super::few::few_rows(&layout, codes, scales, to_f32(x).storage(), count);
                let y = from_f32(y, Shape::new([layout.shape[0], count]), DType::F32);
                return Self::float_cast(y.transpose(0, 1).reshape(shape), dtype.into());
            }
        }
        product::<Self>(x, codes, scales, layout, transposed)
    }
}

#[cfg(feature = "cubecl")]
impl EightBitOps for burn_cubecl::CubeBackend {
    fn decode_eight(
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        cube::decode(codes, scales, layout, dtype.into())
    }

    fn eight_matmul(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        product::<Self>(x, codes, scales, layout, transposed)
    }
}

impl<B: EightBitOps, C: CheckpointStrategy> EightBitOps for Autodiff<B, C> {
    fn decode_eight(
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        FloatTensor::<Self>::new(B::decode_eight(codes, scales, layout, dtype))
    }

    fn eight_matmul(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        layout: EightBitLayout,
        transposed: bool,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct EightMatmul;

        impl<B: EightBitOps> Backward<B, 1> for EightMatmul {
            /// Only the codes are kept.
            type State = (IntTensor<B>, IntTensor<B>, EightBitLayout, bool);

            fn backward(
                self,
                ops: Ops<Self::State, 1>,
                grads: &mut Gradients,
                _checkpointer: &mut Checkpointer,
            ) {
                let (codes, scales, layout, transposed) = ops.state;
                unary::<B, _>(ops.parents, ops.node, grads, |grad| {
                    B::eight_matmul(grad, codes, scales, layout, !transposed)
                });
            }
        }

        let (x, node) = x.into_parts();
        match EightMatmul.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = B::eight_matmul(x, codes.clone(), scales.clone(), layout, transposed);
                prep.finish((codes, scales, layout, transposed), out)
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::eight_matmul(x, codes, scales, layout, transposed))
            }
        }
    }
}
