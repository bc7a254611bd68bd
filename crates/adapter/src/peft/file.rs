//! Reading and writing of the two files of an adapter.

use crate::{
    error::AdapterError,
    init::Init,
    method::Method,
    methods::{
        self,
        lora_method::lora_of,
        settings::{PEFT_VERSION, Settings},
    },
};
use burn_lora_io::{
    escaped,
    torch::{TorchDType, TorchFile},
};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// File of the settings.
pub(super) const CONFIG: &str = "adapter_config.json";

/// File of the tensors.
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// Tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HostTensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensor file of old PEFT versions.
const PICKLED: &str = "adapter_model.bin";

/// Metadata entry of a file whose random decompositions were made here, so that they can be repeated.
const OWN_SVD: [&str; 2] = ["svd", "burn-lora"];

/// Tensors by name.
pub(super) type HostTensors = BTreeMap<String, HostTensor>;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> AdapterError {
    let path = path.to_owned();
    move |source| AdapterError::Io { path, source }
}

pub(super) fn format(path: &Path, reason: impl Into<String>) -> AdapterError {
    AdapterError::Format { path: path.to_owned(), reason: reason.into() }
}

/// Content of the two files, to write.
pub(super) struct Gathered {
    pub method: Arc<dyn Method>,
    pub settings: Value,
    pub tensors: HostTensors,
}

/// Writes both files, the settings last: a folder with settings has its tensors.
pub(super) fn write(folder: &Path, gathered: Gathered) -> Result<(), AdapterError> {
    let Gathered { method, settings, tensors } = gathered;
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
    let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    if lora_of(&*method).is_some_and(|config| matches!(config.init, Init::PissaNiter(_))) {
        metadata.insert(OWN_SVD[0].into(), OWN_SVD[1].into());
    }
    let file = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    let bytes = file.map_err(|error| format(&path, error.to_string()))?;
    burn_lora_io::replace(&path, &bytes).map_err(io(&path))?;

    let path = folder.join(CONFIG);
    let json = serde_json::to_vec_pretty(&for_file(&*method, settings));
    let json = json.map_err(|error| format(&path, error.to_string()))?;
    burn_lora_io::replace(&path, &json).map_err(io(&path))
}

/// Settings as PEFT writes them beside an adapter's tensors, sorted.
fn for_file(method: &dyn Method, settings: Value) -> BTreeMap<String, Value> {
    let mut fields = BTreeMap::from([
        ("auto_mapping".to_owned(), Value::Null),
        ("base_model_name_or_path".to_owned(), Value::Null),
        ("peft_type".to_owned(), method.peft_type().into()),
        ("peft_version".to_owned(), PEFT_VERSION.into()),
        ("revision".to_owned(), Value::Null),
        ("task_type".to_owned(), json!("CAUSAL_LM")),
    ]);
    if let Value::Object(settings) = settings {
        fields.extend(settings);
    }
    fields.insert("inference_mode".into(), true.into());
    // Of a new adapter; no setting of PEFT's.
    fields.remove("seed");
    fields
}

/// Content of the two files.
pub(super) struct Files {
    pub method: Arc<dyn Method>,
    /// File of the tensors.
    pub path: PathBuf,
    pub tensors: HostTensors,
    /// `true` if random decompositions of the base were made here, so that they can be repeated.
    pub own_svd: bool,
}

/// Reads settings of one method or of any.
pub(crate) type Read<'a> = &'a dyn Fn(Settings) -> Result<Arc<dyn Method>, String>;

/// Reads both files, the settings as those of any known method.
pub(super) fn read(folder: &Path) -> Result<Files, AdapterError> {
    read_as(folder, &methods::read)
}

/// Reads the settings of a saved adapter, whose method is any of those known here.
///
/// ```
/// use burn_lora_adapter::saved_method;
///
/// let method = saved_method("../../testdata/gqa/lora_qv")?;
/// assert_eq!(method.peft_type(), "LORA");
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
///
/// # Errors
/// [`AdapterError::Io`] or [`AdapterError::Format`] if the folder is none of an adapter, or its
/// settings cannot be read.
pub fn saved_method(folder: impl AsRef<Path>) -> Result<Arc<dyn Method>, AdapterError> {
    settings(&burn_lora_io::hub::resolve(folder.as_ref())?, &methods::read)
}

/// Reads the file of the settings.
fn settings(folder: &Path, method: Read<'_>) -> Result<Arc<dyn Method>, AdapterError> {
    let path = folder.join(CONFIG);
    let json = burn_lora_io::read(&path).map_err(|error| match folders_in(folder).as_slice() {
        [] if folder.join("config.json").is_file() => format(
            folder,
            format!("it has no {CONFIG}: it is the folder of a model, not of an adapter"),
        ),
        [] => io(&path)(error),
        folders => {
            let folders = folders.join(", ");
            format(folder, format!("it has no {CONFIG}; there are adapters in it: {folders}"))
        }
    })?;
    let config = serde_json::from_slice::<Settings>(&json);
    let config = config.map_err(|error| format(&path, wrong_json(&json, &error)))?;
    method(config).map_err(|reason| format(&path, reason))
}

/// Reads both files. As in PEFT, safetensors take precedence over PyTorch's own file.
pub(super) fn read_as(folder: &Path, method: Read<'_>) -> Result<Files, AdapterError> {
    let method = settings(folder, method)?;
    let (path, pickled) = (folder.join(TENSORS), folder.join(PICKLED));
    let files = match !path.exists() && pickled.exists() {
        true => {
            Files { method, tensors: pickled_tensors(&pickled)?, path: pickled, own_svd: false }
        }
        false => {
            let (tensors, own_svd) = safetensors(&path)?;
            Files { method, tensors, path, own_svd }
        }
    };
    for (name, tensor) in &files.tensors {
        if let Some(value) = tensor.values.iter().find(|value| !value.is_finite()) {
            let name = escaped(name);
            let reason = format!("`{name}` has the value {value}: its training went wrong");
            return Err(format(&files.path, reason));
        }
    }
    Ok(files)
}

/// Reads the tensors of a safetensors file, and whether random decompositions were made here.
fn safetensors(path: &Path) -> Result<(HostTensors, bool), AdapterError> {
    let bytes = burn_lora_io::read(path).map_err(io(path))?;
    let wrong =
        |error| format(path, format!("no safetensors file, or one that was cut off: {error}"));
    let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
    let metadata = metadata.metadata().as_ref();
    let own_svd =
        metadata.and_then(|entries| entries.get(OWN_SVD[0])).is_some_and(|by| by == OWN_SVD[1]);
    let tensors = file.iter().map(|(name, view)| {
        let dtype = match view.dtype() {
            Dtype::F32 => Some(TorchDType::F32),
            Dtype::F16 => Some(TorchDType::F16),
            Dtype::BF16 => Some(TorchDType::BF16),
            _ => None,
        };
        let values = dtype.and_then(|dtype| values(view.data(), dtype));
        let values = values.ok_or_else(|| wrong_dtype(path, name, &view.dtype().to_string()))?;
        Ok((name.to_owned(), HostTensor { shape: view.shape().to_vec(), values }))
    });
    Ok((tensors.collect::<Result<_, AdapterError>>()?, own_svd))
}

/// Reads the tensors of PyTorch's own file.
fn pickled_tensors(path: &Path) -> Result<HostTensors, AdapterError> {
    let file = TorchFile::open(path)?;
    let tensors = file.names().map(|name| {
        let (shape, dtype) = file.shape(name).zip(file.dtype(name)).expect("it is named");
        let values = values(&file.read(name)?, dtype);
        let values = values.ok_or_else(|| wrong_dtype(path, name, &format!("{dtype:?}")))?;
        Ok((name.to_owned(), HostTensor { shape: shape.to_vec(), values }))
    });
    tensors.collect()
}

fn wrong_dtype(path: &Path, tensor: &str, dtype: &str) -> AdapterError {
    let tensor = escaped(tensor);
    format(path, format!("`{tensor}` is {dtype}, expected F32, F16 or BF16"))
}

/// Names of the subfolders that hold adapters (checkpoints of a trainer, several adapters of PEFT).
fn folders_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let adapters = entries.filter(|entry| entry.path().join(CONFIG).is_file());
    let mut names: Vec<_> =
        adapters.map(|entry| escaped(&entry.file_name().to_string_lossy()).to_string()).collect();
    names.sort();
    names.truncate(8);
    names
}

/// Formats a JSON error, with a hint for numbers that Python writes and JSON does not allow.
fn wrong_json(json: &[u8], error: &serde_json::Error) -> String {
    let line = json.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1));
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    let python = ["NaN", "Infinity"].into_iter().find(|word| line.contains(word));
    match python.filter(|_| error.is_syntax() || error.is_data()) {
        Some(word) => format!("{error} ({word} is no number that a setting can have)"),
        None => error.to_string(),
    }
}

/// Values in float32; `None` for an unsupported dtype.
fn values(bytes: &[u8], dtype: TorchDType) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        TorchDType::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        TorchDType::F16 => pairs().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        TorchDType::BF16 => pairs().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
