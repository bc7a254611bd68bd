//! bitsandbytes' 4-bit weights in safetensors: values are read exactly, and written back bit for
//! bit.
//!
//! A weight `X.weight` consists of `X.weight` (codes), `X.weight.absmax`, `X.weight.quant_map`,
//! with double quantization `X.weight.nested_absmax` and `X.weight.nested_quant_map`, and
//! `X.weight.quant_state.bitsandbytes__nf4` (or `__fp4`), the bytes of a JSON document.

use crate::{
    codec::{Packed, to_words},
    config::QuantConfig,
    error::QuantError,
    format::Format,
    layout::Layout,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::tensor::{DType, FloatDType, TensorData};
use serde::{Deserialize, Serialize};

/// The JSON document of a quantization state, in the order of its keys.
#[derive(Serialize, Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

/// JSON formatter of Python's `json.dumps`, which puts a space after each comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

impl Packed {
    /// Reads the weight `name` (`model.layers.0.self_attn.q_proj.weight`) through `tensor`, which
    /// returns the tensor with a name, if there is one.
    ///
    /// # Errors
    /// [`QuantError::MissingTensor`], [`QuantError::DType`] or [`QuantError::Length`] for a tensor
    /// that is missing, of a wrong dtype or length; [`QuantError::Value`] for a value that is not
    /// supported; [`QuantError::QuantState`] for a malformed quantization state. Each names the
    /// tensor.
    pub fn from_bitsandbytes(
        name: &str,
        tensor: impl Fn(&str) -> Option<TensorData>,
    ) -> Result<Self, QuantError> {
        let source = Source { name, tensor };
        let (state_name, state) = source.state()?;
        let layout = source.layout(&state_name, &state)?;
        let blocks = layout.blocks();

        // bitsandbytes can store its bytes in tensors of wider elements (`quant_storage`).
        let stored = &[DType::U8, DType::BF16, DType::F16, DType::F32];
        let codes = source.get("", "U8 (or bitsandbytes' quant_storage)", stored)?;
        let why = |what: &str| format!("{what} of a weight {:?}", layout.shape);
        source.length(
            "",
            codes.as_bytes().len(),
            layout.len().div_ceil(2),
            why("one byte for two elements"),
        )?;
        let codes = to_words(codes.as_bytes());

        let mut tables = layout.tables();
        let codebook = source.floats(".quant_map", 16, "one value a code".into())?;
        for (code, (found, expected)) in codebook.iter().zip(&tables).enumerate() {
            if (found - expected).abs() > 1e-6 {
                return Err(source.value(
                    ".quant_map",
                    format!("code {code}"),
                    found,
                    format!("{expected} ({})", layout.format.name()),
                ));
            }
        }
        tables[..16].copy_from_slice(&codebook);

        let why = format!("one a block of {} in {:?}", layout.block_size, layout.shape);
        let scales = if layout.scales.is_coded() {
            let absmax = source.get(".absmax", "U8 with double quantization", &[DType::U8])?;
            source.length(".absmax", absmax.as_bytes().len(), blocks, why)?;
            let map = source.floats(".nested_quant_map", 256, "one value a code".into())?;
            let nested = source.floats(
                ".nested_absmax",
                layout.outer_len(),
                format!("one for {NESTED_BLOCK} of {blocks} blocks"),
            )?;
            tables[16..272].copy_from_slice(&map);
            tables[Layout::OFFSET] = state.nested_offset.unwrap_or(0.0) as f32;
            tables[Layout::OFFSET + 1..].copy_from_slice(&nested);
            to_words(absmax.as_bytes())
        } else {
            source.floats(".absmax", blocks, why)?.iter().map(|absmax| absmax.to_bits()).collect()
        };
        let tables = tables.iter().map(|value| value.to_bits()).collect();
        Ok(Self { layout, codes, scales, tables })
    }

    /// Returns the tensors that bitsandbytes stores for the weight `name`, with their full names.
    /// `dtype` is the dtype that bitsandbytes dequantizes to.
    ///
    /// # Errors
    /// [`QuantError::Value`] for a format that bitsandbytes does not have (MXFP4, NVFP4).
    ///
    /// # Panics
    /// If the numbers of words do not fit the layout.
    pub fn to_bitsandbytes(
        &self,
        name: &str,
        dtype: FloatDType,
    ) -> Result<Vec<(String, TensorData)>, QuantError> {
        self.view(); // checks the lengths
        let layout = &self.layout;
        if !matches!(layout.format, Format::Nf4 | Format::Fp4) {
            return Err(QuantError::Value {
                tensor: name.into(),
                field: "format".into(),
                found: layout.format.name().into(),
                expected: "nf4 or fp4: bitsandbytes has no other".into(),
            });
        }
        let bytes = |words: &[u32], len: usize, shape: Vec<usize>| {
            let bytes =
                words.iter().flat_map(|word| word.to_le_bytes()).take(len).collect::<Vec<_>>();
            TensorData::new(bytes, shape)
        };
        let floats = |words: &[u32]| {
            let values: Vec<f32> = words.iter().map(|&bits| f32::from_bits(bits)).collect();
            let shape = [values.len()];
            TensorData::new(values, shape)
        };
        let (blocks, packed) = (layout.blocks(), layout.len().div_ceil(2));
        let double_quant = layout.scales == ScaleRule::DoubleQuant;
        let mut tensors = vec![
            ("", bytes(&self.codes, packed, vec![packed, 1])),
            (".quant_map", floats(&self.tables[..16])),
        ];
        if double_quant {
            tensors.push((".absmax", bytes(&self.scales, blocks, vec![blocks])));
            tensors.push((
                ".nested_absmax",
                floats(&self.tables[Layout::OFFSET + 1..][..layout.outer_len()]),
            ));
            tensors.push((".nested_quant_map", floats(&self.tables[16..272])));
        } else {
            tensors.push((".absmax", floats(&self.scales)));
        }
        let state = QuantState {
            quant_type: layout.format.name().into(),
            blocksize: layout.block_size,
            dtype: torch_name(dtype).into(),
            shape: layout.shape.to_vec(),
            nested_blocksize: double_quant.then_some(NESTED_BLOCK),
            nested_dtype: double_quant.then(|| "float32".into()),
            nested_offset: double_quant.then(|| f32::from_bits(self.tables[Layout::OFFSET]).into()),
        };
        let mut json = vec![];
        state
            .serialize(&mut serde_json::Serializer::with_formatter(&mut json, PythonFormatter))
            .expect("a struct of plain fields");
        let len = json.len();
        let state = format!(".quant_state.bitsandbytes__{}", layout.format.name());
        tensors.push((&state, TensorData::new(json, [len])));
        Ok(tensors.into_iter().map(|(part, data)| (format!("{name}{part}"), data)).collect())
    }
}

fn torch_name(dtype: FloatDType) -> &'static str {
    match dtype {
        FloatDType::F16 => "float16",
        FloatDType::BF16 => "bfloat16",
        FloatDType::F64 => "float64",
        _ => "float32",
    }
}

/// The tensors of a weight, by the suffixes of their names.
struct Source<'a, F> {
    name: &'a str,
    tensor: F,
}

impl<F: Fn(&str) -> Option<TensorData>> Source<'_, F> {
    fn full(&self, part: &str) -> String {
        format!("{}{part}", self.name)
    }

    fn get(
        &self,
        part: &str,
        expected: &'static str,
        dtypes: &[DType],
    ) -> Result<TensorData, QuantError> {
        let tensor = self.full(part);
        let Some(data) = (self.tensor)(&tensor) else {
            return Err(QuantError::MissingTensor {
                tensor,
                expected: "a bitsandbytes 4-bit weight",
            });
        };
        if !dtypes.contains(&data.dtype()) {
            let found = format!("{:?}", data.dtype());
            return Err(QuantError::DType { tensor, found, expected });
        }
        Ok(data)
    }

    fn length(
        &self,
        part: &str,
        found: usize,
        expected: usize,
        why: String,
    ) -> Result<(), QuantError> {
        if found == expected {
            return Ok(());
        }
        Err(QuantError::Length { tensor: self.full(part), found, expected, why })
    }

    fn floats(&self, part: &str, expected: usize, why: String) -> Result<Vec<f32>, QuantError> {
        let data = self.get(part, "F32", &[DType::F32])?;
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(data.as_bytes());
        self.length(part, values.len(), expected, why)?;
        if let Some(i) = values.iter().position(|value| !value.is_finite()) {
            return Err(self.value(
                part,
                format!("element {i}"),
                &values[i],
                "a finite number".into(),
            ));
        }
        Ok(values)
    }

    fn value(
        &self,
        part: &str,
        field: String,
        found: &impl ToString,
        expected: String,
    ) -> QuantError {
        QuantError::Value { tensor: self.full(part), field, found: found.to_string(), expected }
    }

    /// Reads the quantization state, and returns it with the name of its tensor.
    fn state(&self) -> Result<(String, QuantState), QuantError> {
        const PART: &str = ".quant_state.bitsandbytes__";
        let part = ["nf4", "fp4"]
            .map(|format| format!("{PART}{format}"))
            .into_iter()
            .find(|part| (self.tensor)(&self.full(part)).is_some())
            .unwrap_or_else(|| format!("{PART}nf4"));
        let data = self.get(&part, "U8", &[DType::U8])?;
        let tensor = self.full(&part);
        serde_json::from_slice(data.as_bytes())
            .map(|state| (tensor.clone(), state))
            .map_err(|error| QuantError::QuantState { tensor, reason: error.to_string() })
    }

    /// Returns the layout that the quantization state describes.
    fn layout(&self, state_name: &str, state: &QuantState) -> Result<Layout, QuantError> {
        let wrong = |field: &str, found: String, expected: &str| QuantError::Value {
            tensor: state_name.into(),
            field: field.into(),
            found,
            expected: expected.into(),
        };
        let config = match state.quant_type.as_str() {
            "nf4" => QuantConfig::nf4(),
            "fp4" => QuantConfig::fp4(),
            other => return Err(wrong("quant_type", format!("`{other}`"), "nf4 or fp4")),
        };
        let double_quant = state.nested_blocksize.is_some();
        let config = config.block_size(state.blocksize).double_quant(double_quant);
        if config.validate().is_err() {
            let expected = "a power of two from 32 to 4096";
            return Err(wrong("blocksize", state.blocksize.to_string(), expected));
        }
        let shape = <[usize; 2]>::try_from(&state.shape[..])
            .ok()
            .filter(|[out, width]| out.checked_mul(*width).is_some_and(|len| len < 1 << 40))
            .ok_or_else(|| wrong("shape", format!("{:?}", state.shape), "[out, in]"))?;
        if double_quant {
            if state.nested_blocksize != Some(NESTED_BLOCK) {
                return Err(wrong(
                    "nested_blocksize",
                    format!("{:?}", state.nested_blocksize),
                    "256",
                ));
            }
            if state.nested_dtype.as_deref() != Some("float32") {
                return Err(wrong("nested_dtype", format!("{:?}", state.nested_dtype), "float32"));
            }
            if !state.nested_offset.is_some_and(|offset| (offset as f32).is_finite()) {
                return Err(wrong(
                    "nested_offset",
                    format!("{:?}", state.nested_offset),
                    "a number",
                ));
            }
        }
        Ok(config.layout(shape))
    }
}
