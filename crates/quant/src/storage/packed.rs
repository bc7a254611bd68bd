//! 4-bit storage of a weight.

use super::{Frozen, Storage, StorageBytes, StorageFormat};
use crate::{
    config::QuantConfig, error::QuantError, layout::Layout, lowrank::LowRankOps,
    packed::PackedWeight,
};
use burn::{
    backend::Dispatch,
    tensor::{Device, FloatDType, Tensor},
};
use burn_lora_kernels::pull_back;
use serde_json::{Value, json};

impl Storage for PackedWeight {
    fn shape(&self) -> [usize; 2] {
        self.shape()
    }

    fn device(&self) -> Device {
        self.device()
    }

    fn bytes(&self) -> StorageBytes {
        self.layout().into()
    }

    fn settings(&self) -> Value {
        let layout = self.layout();
        let (format, size, scales) = (layout.format, layout.block_size, layout.scales);
        let products = if layout.fp8 { ", products in FP8" } else { "" };
        json!(format!("{format:?} in blocks of {size}, scales {scales:?}{products}"))
    }

    fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        self.dequantize(dtype)
    }

    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.matmul(x)
    }

    fn matmul_low_rank<const D: usize>(
        &self,
        x: Tensor<D>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        self.matmul_low_rank(x, a, b, scale)
    }

    fn pull_back<const D: usize>(&self, x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
        pull_back(x, self.matmul_transposed(grad))
    }

    fn matmul_update<const D: usize>(
        &self,
        x: Tensor<D>,
        h: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        let ([out, width], [rows, rank]) = (Storage::shape(self), h.dims());
        let dims = x.dims();
        assert_eq!(dims[D - 1], width, "x is {dims:?}, the weight is [{out}, {width}]");
        assert_eq!(dims[..D - 1].iter().product::<usize>(), rows, "the rows of x and of h");
        assert_eq!(b.dims(), [out, rank], "B of the weight [{out}, {width}]");
        assert!(x.dtype() == h.dtype() && x.dtype() == b.dtype(), "the dtypes of x, h and B");
        let (x, h, b) = (x.into_dispatch(), h.into_dispatch(), b.into_dispatch());
        let (packed, layout) = (self.tensors(), *self.layout());
        let y = <Dispatch as LowRankOps>::packed_update(x, h, packed, layout, b, scale);
        Tensor::from_dispatch(y)
    }

    fn input_grad<const D: usize>(&self, grad: Tensor<D>, sum: Option<Tensor<D>>) -> Tensor<D> {
        let Some(sum) = sum else { return self.matmul_transposed(grad) };
        let ([out, width], last) = (Storage::shape(self), D - 1);
        assert_eq!(
            (grad.dims()[last], sum.dims()[last]),
            (out, width),
            "the weight [{out}, {width}]"
        );
        assert_eq!(
            grad.dims()[..last],
            sum.dims()[..last],
            "the rows of a gradient and of the sum"
        );
        assert_eq!(grad.dtype(), sum.dtype(), "the dtypes of a gradient and of the sum");
        Tensor::from_dispatch(<Dispatch as LowRankOps>::packed_add_input_grad(
            grad.into_dispatch(),
            self.tensors(),
            *self.layout(),
            sum.into_dispatch(),
        ))
    }

    fn input_grad_update<const D: usize>(
        &self,
        grad: Tensor<D>,
        h_grad: Tensor<2>,
        a: Tensor<2>,
    ) -> Tensor<D> {
        let ([out, width], [rows, rank]) = (Storage::shape(self), h_grad.dims());
        let dims = grad.dims();
        assert_eq!(dims[D - 1], out, "a gradient is {dims:?}, the weight is [{out}, {width}]");
        assert_eq!(dims[..D - 1].iter().product::<usize>(), rows, "the rows of the gradients");
        assert_eq!(a.dims(), [rank, width], "A of the weight [{out}, {width}]");
        let dtype = grad.dtype();
        assert!(dtype == h_grad.dtype() && dtype == a.dtype(), "the dtypes of gradients and A");
        let [h_grad, a] = [h_grad, a].map(Tensor::into_dispatch);
        Tensor::from_dispatch(<Dispatch as LowRankOps>::packed_low_rank_input_grad(
            grad.into_dispatch(),
            h_grad,
            self.tensors(),
            *self.layout(),
            a,
        ))
    }

    fn few_rows(&self, x: Tensor<2>) -> Tensor<2> {
        /// Maximal number of rows that are computed from the codes; for more the weight would be
        /// decoded.
        const ROWS: usize = 8;
        let chunks = x.split(ROWS, 0).into_iter().map(|rows| self.matmul(rows));
        Tensor::cat(chunks.collect(), 0)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        let stored = Self::quantize(weight, &self.layout().config())?;
        if self.layout().fp8 { stored.with_fp8() } else { Ok(stored) }
    }

    fn with_fp8(&self) -> Result<Option<Self>, QuantError> {
        self.clone().with_fp8().map(Some)
    }
}

impl From<&Layout> for StorageBytes {
    fn from(layout: &Layout) -> Self {
        let codes = layout.code_words() * size_of::<u32>();
        Self { codes, scales: layout.bytes() - codes }
    }
}

impl StorageFormat for QuantConfig {
    fn validate(&self) -> Result<(), QuantError> {
        self.validate()
    }

    fn bytes(&self, shape: [usize; 2]) -> StorageBytes {
        StorageBytes::from(&self.layout(shape))
    }

    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError> {
        PackedWeight::quantize(weight, self).map(Frozen::new)
    }
}
