//! 8-bit weights: LLM.int8, and blockwise FP8.

mod codec;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod exact;
#[cfg(all(feature = "cpu", target_arch = "x86_64"))]
mod few;
mod ops;

pub use codec::{EightBitFormat, EightBitLayout};
pub use ops::EightBitOps;

use crate::{
    error::QuantError,
    storage::{Frozen, Storage, StorageBytes, StorageFormat},
};
use burn::{
    backend::{Dispatch, DispatchTensor},
    module::{Module, Param, ParamId},
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use burn_lora_kernels::pull_back;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Settings of 8-bit quantization.
///
/// ```
/// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
/// use burn_lora_quant::{EightBitConfig, StorageFormat};
///
/// let weight = Tensor::<2>::random([64, 256], Distribution::Normal(0.0, 1.0), &Device::default());
/// for config in [EightBitConfig::int8(), EightBitConfig::fp8()] {
///     let stored = config.store(weight.clone())?;
///     let error = (stored.dequantize(FloatDType::F32) - weight.clone()).abs().mean();
///     assert!(error.into_scalar::<f32>() < 0.02);
/// }
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EightBitConfig {
    /// Format of the codes.
    pub format: EightBitFormat,
    /// Rows and columns of a block, which shares a scale; 0 stands for all of them.
    pub block: [usize; 2],
}

impl EightBitConfig {
    /// LLM.int8 (arXiv:2208.07339): one scale per row.
    pub const fn int8() -> Self {
        Self { format: EightBitFormat::Int8, block: [1, 0] }
    }

    /// FP8 (E4M3): one scale per 128 rows and 128 columns, as in DeepSeek-V3.
    pub const fn fp8() -> Self {
        Self { format: EightBitFormat::Fp8, block: [128, 128] }
    }

    /// Returns the layout of a weight `[out, in]`.
    pub fn layout(&self, shape: [usize; 2]) -> EightBitLayout {
        let side = |side: usize| match self.block[side] {
            0 => shape[side].max(1),
            block => block,
        };
        EightBitLayout { format: self.format, shape, block: [side(0), side(1)] }
    }
}

impl StorageFormat for EightBitConfig {
    fn validate(&self) -> Result<(), QuantError> {
        Ok(())
    }

    fn bytes(&self, shape: [usize; 2]) -> StorageBytes {
        self.layout(shape).bytes()
    }

    fn store(&self, weight: Tensor<2>) -> Result<Frozen, QuantError> {
        EightBitWeight::quantize(weight, self).map(Frozen::new)
    }
}

/// An 8-bit weight of logical shape `[out, in]`, as a Burn module. A product decodes it first; only
/// the codes are kept for the backward pass.
///
/// Inputs are not quantized: LLM.int8's own product also rounds them to 8 bits, which training does
/// without.
#[derive(Module, Debug)]
pub struct EightBitWeight {
    /// Codes, 4 per word.
    codes: Param<Tensor<1, Int>>,
    /// Scale of each block: the bits of a float32.
    scales: Param<Tensor<1, Int>>,
    #[module(skip)]
    layout: EightBitLayout,
}

impl EightBitWeight {
    /// Quantizes a weight `[out, in]`, on the host.
    ///
    /// # Errors
    /// [`QuantError::Device`] if the device fails to return the weight.
    pub fn quantize(weight: Tensor<2>, config: &EightBitConfig) -> Result<Self, QuantError> {
        let (layout, device) = (config.layout(weight.dims()), weight.device());
        let failed = |reason: String| QuantError::Device { tensor: "weight".into(), reason };
        let data = weight.inner().cast(FloatDType::F32).try_into_data();
        let data = data.map_err(|error| failed(error.to_string()))?;
        let data = data.try_into_vec::<f32>().map_err(|error| failed(format!("{error:?}")))?;
        let [codes, scales] = layout.encode(&data);
        Ok(Self::from_words(codes, scales, layout, &device))
    }

    /// Creates a weight from a checkpoint: one byte per element, row-major, and the scales of its
    /// blocks.
    ///
    /// # Errors
    /// [`QuantError::Length`] if the number of bytes or scales does not fit the layout;
    /// [`QuantError::Value`] for a scale that is not finite, or an FP8 code that is NaN.
    pub fn from_bytes(
        codes: &[u8],
        scales: &[f32],
        layout: EightBitLayout,
        device: &Device,
    ) -> Result<Self, QuantError> {
        let length = |tensor: &str, found: usize, expected: usize| {
            let why = format!("the weight is {:?}, its blocks {:?}", layout.shape, layout.block);
            let error = QuantError::Length { tensor: tensor.into(), found, expected, why };
            if found == expected { Ok(()) } else { Err(error) }
        };
        length("weight", codes.len(), layout.len())?;
        length("scales", scales.len(), layout.scale_words())?;
        let value = |tensor: &str, found: String, expected: &str| QuantError::Value {
            tensor: tensor.into(),
            field: "a value".into(),
            found,
            expected: expected.into(),
        };
        if let Some(scale) = scales.iter().find(|scale| !scale.is_finite()) {
            return Err(value("scales", scale.to_string(), "a finite number"));
        }
        if layout.format == EightBitFormat::Fp8 && codes.iter().any(|code| code & 0x7f == 0x7f) {
            return Err(value("weight", "NaN".into(), "a number: the file is damaged"));
        }
        let words = codes.chunks(4).map(|bytes| {
            bytes.iter().rev().fold(0, |word: u32, byte| word << 8 | u32::from(*byte))
        });
        let scales = scales.iter().map(|scale| scale.to_bits());
        Ok(Self::from_words(words.collect(), scales.collect(), layout, device))
    }

    fn from_words(
        codes: Vec<u32>,
        scales: Vec<u32>,
        layout: EightBitLayout,
        device: &Device,
    ) -> Self {
        let [codes, scales] = [codes, scales].map(|words| {
            let shape = [words.len()];
            let words = Tensor::from_data(TensorData::new(words, shape), (device, DType::U32));
            Param::initialized(ParamId::new(), words)
        });
        Self { codes, scales, layout }
    }

    /// Layout of the weight.
    pub fn layout(&self) -> &EightBitLayout {
        &self.layout
    }

    /// `x · W`: [`matmul`](Storage::matmul) with the transposed weight.
    ///
    /// # Shapes
    /// - x: `[..., out]`
    /// - output: `[..., in]`
    pub fn matmul_transposed<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.product(x, true)
    }

    fn product<const D: usize>(&self, x: Tensor<D>, transposed: bool) -> Tensor<D> {
        let (found, [out, width]) = (x.dims()[D - 1], self.layout.shape);
        let expected = if transposed { out } else { width };
        assert_eq!(found, expected, "x is {:?}, the weight is [{out}, {width}]", x.dims());
        let [codes, scales] = self.words();
        let x = x.into_dispatch();
        let y = <Dispatch as EightBitOps>::eight_matmul(x, codes, scales, self.layout, transposed);
        Tensor::from_dispatch(y)
    }

    /// Returns the tensors for an operation. They fit the layout, whatever loaded or mapped the
    /// module.
    fn words(&self) -> [DispatchTensor; 2] {
        let layout = &self.layout;
        let parts = [
            ("codes", &self.codes, layout.code_words()),
            ("scales", &self.scales, layout.scale_words()),
        ];
        parts.map(|(name, param, expected)| {
            let words = param.val();
            let found = (words.dims()[0], words.dtype());
            assert_eq!(found, (expected, DType::U32), "the {name} of a weight {:?}", layout.shape);
            words.into_dispatch()
        })
    }
}

impl Storage for EightBitWeight {
    fn shape(&self) -> [usize; 2] {
        self.layout.shape
    }

    fn device(&self) -> Device {
        self.codes.val().device()
    }

    fn bytes(&self) -> StorageBytes {
        self.layout.bytes()
    }

    fn settings(&self) -> Value {
        let EightBitLayout { format, block: [rows, columns], .. } = self.layout;
        json!(format!("{format:?} in blocks of {rows} x {columns}"))
    }

    fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        let [codes, scales] = self.words();
        let layout = self.layout;
        Tensor::from_dispatch(<Dispatch as EightBitOps>::decode_eight(codes, scales, layout, dtype))
    }

    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.product(x, false)
    }

    fn pull_back<const D: usize>(&self, x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
        pull_back(x, self.matmul_transposed(grad))
    }

    fn input_grad<const D: usize>(&self, grad: Tensor<D>, sum: Option<Tensor<D>>) -> Tensor<D> {
        let own = self.matmul_transposed(grad);
        match sum {
            Some(sum) => sum + own,
            None => own,
        }
    }

    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        let EightBitLayout { format, block, .. } = self.layout;
        Self::quantize(weight, &EightBitConfig { format, block })
    }
}
