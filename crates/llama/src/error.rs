//! Error type of this crate.

use burn_lora_adapter::AdapterError;
use burn_lora_io::{FileError, escaped, escaped_lines, listed};
use burn_lora_quant::QuantError;
use burn_lora_text::TextError;
use std::path::{Path, PathBuf};

/// Errors of reading, writing and running models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Path of the file or folder.
        path: PathBuf,
        /// Error of the operating system.
        source: std::io::Error,
    },

    /// A file is malformed, cut off, or cannot be used as asked.
    #[error("{}: {reason}", path.display())]
    Format {
        /// Path of the file.
        path: PathBuf,
        /// Reason, and the remedy.
        reason: String,
    },

    /// A field of a configuration file has a value that cannot be used.
    #[error("{}: `{field}` is {}: {reason}", path.display(), escaped(found))]
    Field {
        /// Path of the file.
        path: PathBuf,
        /// Name of the field.
        field: String,
        /// Value that was found.
        found: String,
        /// Reason, and what is expected.
        reason: String,
    },

    /// Tensors of the model are missing in the files.
    #[error(
        "{}: {} missing{}: {}", path.display(), count(tensors),
        by_config(path, ", which config.json asks for"), listed(tensors)
    )]
    MissingTensors {
        /// Path of the file or folder.
        path: PathBuf,
        /// Full names of the tensors.
        tensors: Vec<String>,
    },

    /// The files have tensors that the model does not have.
    #[error(
        "{}: {} unexpected{}: {}", path.display(), count(tensors),
        by_config(path, " by config.json"), listed(tensors)
    )]
    UnexpectedTensors {
        /// Path of the file or folder.
        path: PathBuf,
        /// Full names of the tensors.
        tensors: Vec<String>,
    },

    /// A tensor has another shape than in the model.
    #[error(
        "{}: `{}` is {found:?}, expected {expected:?}{}", path.display(), escaped(tensor),
        if is(path, "safetensors") { " by config.json" } else { "" }
    )]
    Shape {
        /// Path of the file.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Shape that was found.
        found: Vec<usize>,
        /// Shape that is expected.
        expected: Vec<usize>,
    },

    /// A tensor has a dtype that cannot be read.
    #[error("{}: `{}` is {found}, expected {expected}", path.display(), escaped(tensor))]
    DType {
        /// Path of the file.
        path: PathBuf,
        /// Full name of the tensor.
        tensor: String,
        /// Dtype that was found.
        found: String,
        /// Dtypes that are expected.
        expected: &'static str,
    },

    /// A setting or a prompt of a generation cannot be used.
    #[error("GenerateConfig: {field} is {found}: {reason}")]
    Generate {
        /// Name of the setting, or `prompt`.
        field: &'static str,
        /// Value that was found.
        found: String,
        /// Reason, and what is expected.
        reason: String,
    },

    /// A model could not be obtained from the hub.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// Id of the model.
        model: String,
        /// Reason, and the remedy.
        reason: String,
    },

    /// A tensor could not be read back from the device.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// Name of the tensor.
        tensor: String,
        /// Burn's error message.
        reason: String,
    },

    /// Error of the tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] TextError),

    /// Error of the quantization.
    #[error(transparent)]
    Quant(#[from] QuantError),

    /// Error of the adapters.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl LlamaError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn format(path: &Path, reason: impl ToString) -> Self {
        Self::Format { path: path.to_owned(), reason: escaped_lines(&reason.to_string()) }
    }
}

impl From<FileError> for LlamaError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { path, source } => Self::Io { path, source },
            FileError::Format { path, reason } => Self::Format { path, reason },
            FileError::Hub { model, reason } => Self::Hub { model, reason },
        }
    }
}

/// `said`, unless the file holds its configuration itself (GGUF).
fn by_config<'a>(path: &Path, said: &'a str) -> &'a str {
    if is(path, "gguf") { "" } else { said }
}

fn is(path: &Path, kind: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(kind))
}

pub(crate) fn count(tensors: &[String]) -> String {
    match tensors.len() {
        1 => "1 tensor is".into(),
        n => format!("{n} tensors are"),
    }
}
