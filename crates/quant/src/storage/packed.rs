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
use burn_lora_kernels::{Gemm, pull_back, pull_back_with};
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

    fn pull_back_low_rank<const D: usize>(
        &self,
        x: Tensor<D>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
        grad: Tensor<D>,
    ) -> Tensor<1> {
        self.check_low_rank(&x, &a, &b);
        let values = x.clone().inner();
        let [a_values, b_values] = [&a, &b].map(|matrix| matrix.clone().inner());
        let rows: Tensor<2> = values.clone().flatten(0, D - 2);
        let h = Gemm::new().trans_rhs().run(rows, a_values.clone()).into_dispatch();
        let (dy, values) = (grad.into_dispatch(), values.into_dispatch());
        let (h_grad, a_grad, b_grad) = <Dispatch as LowRankOps>::low_rank_grads(
            dy.clone(),
            values,
            h,
            b_values.into_dispatch(),
            scale,
        );
        let x_grad = <Dispatch as LowRankOps>::packed_low_rank_input_grad(
            dy,
            h_grad,
            self.tensors(),
            *self.layout(),
            a_values.into_dispatch(),
        );
        let zero = pull_back(x, Tensor::from_dispatch(x_grad));
        let zero = pull_back_with(zero, a, Tensor::from_dispatch(a_grad));
        pull_back_with(zero, b, Tensor::from_dispatch(b_grad))
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
