//! A weight that stays packed on its device.

use crate::{
    codec::Packed,
    config::QuantConfig,
    error::QuantError,
    fp8::weight_scale,
    layout::Layout,
    lowrank::LowRankOps,
    ops::{PackedOps, PackedTensors, supports_fp8},
};
use burn::{
    backend::Dispatch,
    module::{Module, Param, ParamId},
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use burn_lora_kernels::persistent_int;

/// A 4-bit weight of logical shape `[out, in]`, as a Burn module.
///
/// It is quantized on its device from a dense tensor, and stays packed: a product decodes it at
/// most temporarily. Its tensors are integers, so that a cast of the model or an optimizer leaves
/// them unchanged; [`Layout`] describes them.
///
/// ```
/// use burn::tensor::{Device, Distribution, FloatDType, Tensor};
/// use burn_lora_quant::{PackedWeight, QuantConfig};
///
/// let device = Device::default();
/// let dense = Tensor::<2>::random([64, 128], Distribution::Normal(0.0, 1.0), &device);
/// let weight = PackedWeight::quantize(dense.clone(), &QuantConfig::nf4().double_quant(true))?;
///
/// let error = (weight.dequantize(FloatDType::F32) - dense).abs().mean();
/// assert!(error.into_scalar::<f32>() < 0.08);
/// # Ok::<_, burn_lora_quant::QuantError>(())
/// ```
#[derive(Module, Debug)]
pub struct PackedWeight {
    /// 4-bit codes, 8 per word.
    codes: Param<Tensor<1, Int>>,
    /// Scale of each block (absmax).
    scales: Param<Tensor<1, Int>>,
    /// Codebook and the tables of the scales.
    tables: Param<Tensor<1, Int>>,
    #[module(skip)]
    layout: Layout,
}

impl PackedWeight {
    /// Quantizes a weight on its device.
    ///
    /// # Shapes
    /// - weight: `[out, in]`
    ///
    /// # Errors
    /// [`QuantError::BlockSize`] or [`QuantError::DoubleQuant`], as [`QuantConfig::validate`].
    pub fn quantize(weight: Tensor<2>, config: &QuantConfig) -> Result<Self, QuantError> {
        config.validate()?;
        let layout = config.layout(weight.dims());
        let weight = weight.inner().into_dispatch();
        let packed = <Dispatch as PackedOps>::pack(weight, layout);
        let [codes, scales, tables] =
            [packed.codes, packed.scales, packed.tables].map(Tensor::from_dispatch);
        Ok(Self::from_tensors(codes, scales, tables, layout))
    }

    /// Moves a weight that was quantized on the host to a device.
    ///
    /// # Panics
    /// If the numbers of words do not fit the layout, or if no [`QuantConfig`] has that layout.
    pub fn from_packed(packed: Packed, device: &Device) -> Self {
        packed.view(); // checks the lengths
        let Packed { layout, codes, scales, tables } = packed;
        let [codes, scales, tables] = [codes, scales, tables].map(|words| {
            let shape = [words.len()];
            Tensor::from_data(TensorData::new(words, shape), (device, DType::U32))
        });
        Self::from_tensors(codes, scales, tables, layout)
    }

    /// Reads the weight back to the host.
    ///
    /// # Errors
    /// [`QuantError::Device`] if the device fails to return a tensor.
    pub fn to_packed(&self) -> Result<Packed, QuantError> {
        Ok(Packed {
            layout: self.layout,
            codes: read(&self.codes, "codes")?,
            scales: read(&self.scales, "scales")?,
            tables: read(&self.tables, "tables")?,
        })
    }

    /// Computes products in FP8: the weight is decoded to E4M3 with one scale, and the rows of the
    /// other factor are rounded to E4M3, each with a scale of its own; sums are float32. Products of up
    /// to 8 rows, decoding and what is stored stay as they are. `y` and the gradient of `x` differ
    /// from those of the dtype by 3 to 4 % of their norm.
    ///
    /// On CUDA it needs compute capability 8.9 or later (Ada, Hopper); a CPU computes the same,
    /// slower than without.
    ///
    /// # Errors
    /// [`QuantError::Fp8`] if the device is another one, or if a side of the weight is no multiple
    /// of 16; [`QuantError::Device`] if the device fails to return the scales.
    pub fn with_fp8(self) -> Result<Self, QuantError> {
        if self.layout.fp8 {
            return Ok(self);
        }
        let device = self.device();
        supports_fp8(&device)?;
        let [scales, tables] = [(&self.scales, "scales"), (&self.tables, "tables")]
            .map(|(words, name)| read(words, name));
        let scale = weight_scale(&self.layout, &scales?, &tables?)?;
        let word = TensorData::new(vec![scale.to_bits()], [1]);
        let word = Tensor::<1, Int>::from_data(word, (&device, DType::U32));
        let tables = persistent_int(Tensor::cat(vec![self.tables.val(), word], 0));
        let layout = Layout { fp8: true, ..self.layout };
        Ok(Self { tables: Param::initialized(self.tables.id, tables), layout, ..self })
    }

    fn from_tensors(
        codes: Tensor<1, Int>,
        scales: Tensor<1, Int>,
        tables: Tensor<1, Int>,
        layout: Layout,
    ) -> Self {
        let [codes, scales, tables] =
            [codes, scales, tables].map(|words| Param::initialized(ParamId::new(), words));
        Self { codes, scales, tables, layout }
    }

    /// Layout of the weight.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Logical shape, `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.layout.shape
    }

    /// Bytes on the device: codes, scales and tables.
    pub fn bytes(&self) -> usize {
        self.layout.bytes()
    }

    /// Device of the weight.
    pub fn device(&self) -> Device {
        self.codes.val().device()
    }

    /// Decodes the weight into a dense tensor of shape `[out, in]`.
    ///
    /// # Panics
    /// As every operation, if the module was loaded from the record of another weight, whose words
    /// do not fit the layout.
    pub fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        let packed = self.tensors();
        Tensor::from_dispatch(<Dispatch as PackedOps>::unpack(packed, self.layout, dtype))
    }

    /// `x · W^T`. Its gradient is that of `x`, `dy · W`; only the codes are kept for it.
    ///
    /// A CPU decodes the weight in pieces. A GPU multiplies up to 8 rows directly by the codes, if
    /// rows of the weight are a whole number of words, and decodes the weight for more rows into a
    /// temporary tensor.
    ///
    /// # Shapes
    /// - x: `[..., in]`, of float32, float16 or bfloat16
    /// - output: `[..., out]`, of the same dtype
    ///
    /// # Panics
    /// If the last dimension of `x` is not `in`.
    pub fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.product(x, false)
    }

    /// `x · W`: [`matmul`](Self::matmul) with the transposed weight.
    ///
    /// # Shapes
    /// - x: `[..., out]`
    /// - output: `[..., in]`
    ///
    /// # Panics
    /// If the last dimension of `x` is not `out`.
    pub fn matmul_transposed<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.product(x, true)
    }

    /// `x · W^T + scale · (x · A^T) · B^T`, the product with a low-rank update (LoRA), as one
    /// operation. Its gradients are those of `x`, A and B; only the codes, `x` and `x · A^T` are
    /// kept for them.
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use burn_lora_quant::{PackedWeight, QuantConfig};
    ///
    /// let device = Device::default();
    /// let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.1), &device);
    /// let weight = PackedWeight::quantize(random([32, 64]), &QuantConfig::nf4())?;
    /// let (x, a, b) = (random([10, 64]), random([4, 64]), random([32, 4]));
    ///
    /// let y = weight.matmul_low_rank(x.clone(), a.clone(), b.clone(), 2.0);
    /// let expected = weight.matmul(x.clone()) + x.matmul(a.transpose()).matmul(b.transpose()) * 2.0;
    /// assert!((y - expected).abs().max().into_scalar::<f32>() < 1e-5);
    /// # Ok::<_, burn_lora_quant::QuantError>(())
    /// ```
    ///
    /// # Shapes
    /// - x: `[..., in]`, of float32, float16 or bfloat16
    /// - a: `[rank, in]`, of the same dtype
    /// - b: `[out, rank]`, of the same dtype
    /// - output: `[..., out]`, of the same dtype
    ///
    /// # Panics
    /// If the shapes do not fit or the dtypes differ.
    pub fn matmul_low_rank<const D: usize>(
        &self,
        x: Tensor<D>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<D> {
        check_low_rank(&x, &a, &b, self.layout.shape);
        let x = x.into_dispatch();
        let [a, b] = [a, b].map(Tensor::into_dispatch);
        let packed = self.tensors();
        let (y, _) = <Dispatch as LowRankOps>::packed_low_rank(x, packed, self.layout, a, b, scale);
        Tensor::from_dispatch(y)
    }

    fn product<const D: usize>(&self, x: Tensor<D>, transposed: bool) -> Tensor<D> {
        check_input(&x, self.layout.shape, transposed);
        let x = x.into_dispatch();
        let y = <Dispatch as PackedOps>::packed_matmul(x, self.tensors(), self.layout, transposed);
        Tensor::from_dispatch(y)
    }

    /// Returns the tensors for an operation. They fit the layout, whatever loaded or mapped the
    /// module.
    pub(crate) fn tensors(&self) -> PackedTensors<Dispatch> {
        let layout = &self.layout;
        let words = |name: &str, param: &Param<Tensor<1, Int>>, expected: usize| {
            let words = param.val();
            let found = (words.dims()[0], words.dtype());
            assert_eq!(found, (expected, DType::U32), "the {name} of a weight {:?}", layout.shape);
            words.into_dispatch()
        };
        PackedTensors {
            codes: words("codes", &self.codes, layout.code_words()),
            scales: words("scales", &self.scales, layout.scale_words()),
            tables: words("tables", &self.tables, layout.table_words()),
        }
    }
}

/// Checks the input of a product with a weight `[out, in]`, or with the transposed one.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn check_input<const D: usize>(
    x: &Tensor<D>,
    [out, width]: [usize; 2],
    transposed: bool,
) {
    let expected = if transposed { out } else { width };
    assert_eq!(x.dims()[D - 1], expected, "x is {:?}, the weight is [{out}, {width}]", x.dims());
}

/// Checks the input, A and B of a product with a weight `[out, in]` and a low-rank update.
///
/// # Panics
/// If the shapes do not fit or the dtypes differ.
pub(crate) fn check_low_rank<const D: usize>(
    x: &Tensor<D>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    [out, width]: [usize; 2],
) {
    let rank = a.dims()[0];
    check_input(x, [out, width], false);
    assert_eq!(a.dims(), [rank, width], "A of the weight [{out}, {width}]");
    assert_eq!(b.dims(), [out, rank], "B of the weight [{out}, {width}]");
    assert!(x.dtype() == a.dtype() && x.dtype() == b.dtype(), "the dtypes of x, A and B");
}

/// Reads the words of a tensor.
fn read(words: &Param<Tensor<1, Int>>, name: &str) -> Result<Vec<u32>, QuantError> {
    let failed = |reason: String| QuantError::Device { tensor: name.into(), reason };
    let data = words.val().try_into_data().map_err(|error| failed(error.to_string()))?;
    data.try_into_vec::<u32>().map_err(|error| failed(format!("{error:?}")))
}
