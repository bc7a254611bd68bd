//! Writer of a safetensors file, tensor by tensor.

use crate::error::LlamaError;
use burn::tensor::{DType, FloatDType, Tensor, TensorData};
use burn_lora_adapter::AdaptedLayer;
use burn_lora_io::progress::Work;
use burn_lora_quant::{Format, PackedWeight, QuantError};
use half::f16;
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use std::{
    collections::HashMap,
    io::{Error, Write},
    path::Path,
};

/// Tensor that is read from the device when it is written.
pub(super) struct Lazy<'a> {
    /// Layer that it is of; several, if it has the transposed weights or the biases of all experts.
    pub(super) layers: Vec<&'a dyn AdaptedLayer>,
    pub(super) name: String,
    pub(super) bias: bool,
    pub(super) dtype: FloatDType,
    pub(super) shape: Vec<usize>,
    /// First row of the tensor in the layer.
    pub(super) start: usize,
    /// Tensors that are written for a weight that stays packed.
    pub(super) packed: Option<Vec<Entry>>,
}

/// Tensor of a file.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
}

impl Entry {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

impl Lazy<'_> {
    /// Tensors of the file, which follow each other.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let dense = || {
            let dtype = match self.dtype {
                FloatDType::BF16 => Dtype::BF16,
                FloatDType::F16 => Dtype::F16,
                _ => Dtype::F32,
            };
            vec![Entry { name: self.name.clone(), dtype, shape: self.shape.clone() }]
        };
        self.packed.clone().unwrap_or_else(dense)
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries().iter().map(Entry::bytes).sum()
    }

    /// Stays packed, as bitsandbytes' tensors, if it is the weight of a layer in one of its 4-bit formats.
    pub(super) fn pack(&mut self) -> Result<(), LlamaError> {
        let Some(tensors) = self.bitsandbytes()? else { return Ok(()) };
        let entries = tensors.into_iter().map(|(name, data)| {
            let dtype = if data.dtype() == DType::U8 { Dtype::U8 } else { Dtype::F32 };
            Entry { name, dtype, shape: data.shape().to_vec() }
        });
        self.packed = Some(entries.collect());
        Ok(())
    }

    /// bitsandbytes' tensors of a weight that it has a format for.
    fn bitsandbytes(&self) -> Result<Option<Vec<(String, TensorData)>>, LlamaError> {
        let [layer] = self.layers[..] else { return Ok(None) };
        let packed = layer.base().and_then(|base| base.weight.downcast_ref::<PackedWeight>());
        let Some(packed) = packed.filter(|_| !self.bias) else { return Ok(None) };
        let whole = self.start == 0 && layer.shape()[..] == self.shape[..];
        if !whole || !matches!(packed.layout().format, Format::Nf4 | Format::Fp4) {
            return Ok(None);
        }
        let device = |error: QuantError| LlamaError::Device {
            tensor: self.name.clone(),
            reason: error.to_string(),
        };
        let packed = packed.to_packed().map_err(device)?;
        packed.to_bitsandbytes(&self.name, self.dtype).map(Some).map_err(device)
    }

    /// Reads the bytes to write.
    pub(super) fn read(&self, path: &Path) -> Result<Vec<u8>, LlamaError> {
        if self.packed.is_some()
            && let Some(tensors) = self.bitsandbytes()?
        {
            return Ok(tensors.iter().flat_map(|(_, data)| data.as_bytes()).copied().collect());
        }
        let parts = self.layers.iter().map(|layer| self.read_layer(*layer));
        let bytes = parts
            .collect::<Result<Vec<_>, _>>()
            .map_err(|reason| LlamaError::Device { tensor: self.name.clone(), reason })?
            .concat();
        if self.dtype == FloatDType::F16
            && bytes.as_chunks().0.iter().any(|&bytes| !f16::from_le_bytes(bytes).is_finite())
        {
            let reason = format!(
                "`{}` has values that float16 does not reach: write bfloat16 or float32",
                self.name
            );
            return Err(LlamaError::format(path, reason));
        }
        Ok(bytes)
    }
}

impl Lazy<'_> {
    fn read_layer(&self, layer: &dyn AdaptedLayer) -> Result<Vec<u8>, String> {
        if self.bias {
            let bias = layer.bias().expect("listed because it is there");
            return read(bias.val().inner().cast(self.dtype));
        }
        let weight = layer.file_layout(layer.weight());
        let weight = match self.shape[..] {
            [_, _, _] => weight.transpose(),
            // Of a layer that checkpoints have in several parts.
            [rows, ..] if rows < weight.dims()[0] => weight.narrow(0, self.start, rows),
            _ => weight,
        };
        read(weight.cast(self.dtype))
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<u8>, String> {
    let data = tensor.try_into_data().map_err(|error| error.to_string())?;
    Ok(data.as_bytes().to_vec())
}

/// Writes tensors into a file, which is there whole or not at all. One of them is in memory at a
/// time.
///
/// # Errors
/// - [`LlamaError::Device`] if a tensor cannot be read from the device.
/// - [`LlamaError::Io`] if the file cannot be written.
/// - [`LlamaError::Format`] if the file's dtype cannot hold a value.
pub(super) fn write(path: &Path, tensors: &[&Lazy<'_>], work: &Work) -> Result<(), LlamaError> {
    let mut end = 0;
    let infos = tensors.iter().flat_map(|tensor| tensor.entries()).map(|entry| {
        let start = end;
        end += entry.bytes();
        let Entry { name, dtype, shape } = entry;
        (name, TensorInfo { dtype, shape, data_offsets: (start, end) })
    });
    // Python's loaders ask for it.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect());
    let metadata = metadata.map_err(|error| LlamaError::format(path, error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| LlamaError::format(path, e))?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut failed = None;
    let written = burn_lora_io::replace_with(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for tensor in tensors {
            let bytes = tensor.read(path).map_err(|error| {
                let text = error.to_string();
                failed = Some(error);
                Error::other(text)
            })?;
            file.write_all(&bytes)?;
            work.advance(bytes.len() as u64);
        }
        Ok(())
    });
    written.map_err(|error| failed.unwrap_or_else(|| LlamaError::io(path)(error)))
}
