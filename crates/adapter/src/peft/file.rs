//! The two files of an adapter, read and written whole.

use super::fields::Fields;
use crate::{config::LoraConfig, error::AdapterError};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

/// The settings.
pub(super) const CONFIG: &str = "adapter_config.json";

/// The values.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// A tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HostTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors by name.
pub(super) type HostTensors = BTreeMap<String, HostTensor>;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> AdapterError {
    let path = path.to_owned();
    move |source| AdapterError::Io { path, source }
}

pub(super) fn format(path: &Path, reason: impl Into<String>) -> AdapterError {
    AdapterError::Format { path: path.to_owned(), reason: reason.into() }
}

/// Writes both files, the settings last: a folder with settings has its values.
pub(super) fn write(
    folder: &Path,
    config: &LoraConfig,
    tensors: &HostTensors,
) -> Result<(), AdapterError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    let path = folder.join(TENSORS);
    let bytes: Vec<(&String, Vec<u8>, &[usize])> = tensors
        .iter()
        .map(|(name, tensor)| {
            let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, bytes, tensor.shape.as_slice())
        })
        .collect();
    let views = bytes.iter().map(|(name, bytes, shape)| {
        TensorView::new(Dtype::F32, shape.to_vec(), bytes).map(|view| (name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    let bytes = file.map_err(|error| format(&path, error.to_string()))?;
    burn_lora_io::replace(&path, &bytes).map_err(io(&path))?;

    let path = folder.join(CONFIG);
    let json = serde_json::to_vec_pretty(&Fields::for_file(config));
    let json = json.map_err(|error| format(&path, error.to_string()))?;
    burn_lora_io::replace(&path, &json).map_err(io(&path))
}

/// Reads both files.
pub(super) fn read(folder: &Path) -> Result<(LoraConfig, HostTensors), AdapterError> {
    let path = folder.join(CONFIG);
    let json = burn_lora_io::read(&path).map_err(io(&path))?;
    let config = serde_json::from_slice(&json);
    let config = config.map_err(|error| format(&path, error.to_string()))?;

    let path = folder.join(TENSORS);
    let bytes = burn_lora_io::read(&path).map_err(io(&path))?;
    let file = SafeTensors::deserialize(&bytes);
    let file = file.map_err(|error| {
        format(&path, format!("no safetensors file, or one that was cut off: {error}"))
    })?;
    let tensors = file.iter().map(|(name, view)| {
        let values = values(&view).ok_or_else(|| {
            let dtype = view.dtype();
            format(&path, format!("`{name}` is {dtype}, expected F32, F16 or BF16"))
        })?;
        Ok((name.to_owned(), HostTensor { shape: view.shape().to_vec(), values }))
    });
    Ok((config, tensors.collect::<Result<_, AdapterError>>()?))
}

/// The values in float32.
fn values(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let pairs = || view.data().as_chunks::<2>().0.iter();
    Some(match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => pairs().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
