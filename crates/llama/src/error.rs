//! The one error type of this crate.

use burn_lora_adapter::AdapterError;
use burn_lora_io::{FileError, escaped, escaped_lines, listed};
use burn_lora_quant::QuantError;
use burn_lora_text::TextError;
use std::path::{Path, PathBuf};

/// What can go wrong when models are read, written and run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file that is not what its name says, or was cut off.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// A field of a file with settings whose value cannot be used.
    #[error("{}: `{field}` is {}: {reason}", path.display(), escaped(found))]
    Field {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
        /// Its value.
        found: String,
        /// What is wrong, and what would do.
        reason: String,
    },

    /// Tensors that the model asks for, but the files do not have.
    #[error(
        "{}: {} missing{}: {}", path.display(), count(tensors),
        by_config(path, ", which config.json asks for"), listed(tensors)
    )]
    MissingTensors {
        /// The file or folder.
        path: PathBuf,
        /// Their full names.
        tensors: Vec<String>,
    },

    /// Tensors in the files that the model does not know.
    #[error(
        "{}: {} unexpected{}: {}", path.display(), count(tensors),
        by_config(path, " by config.json"), listed(tensors)
    )]
    UnexpectedTensors {
        /// The file or folder.
        path: PathBuf,
        /// Their full names.
        tensors: Vec<String>,
    },

    /// A tensor of another shape than the model asks for.
    #[error(
        "{}: `{}` is {found:?}, expected {expected:?}{}", path.display(), escaped(tensor),
        if is(path, "safetensors") { " by config.json" } else { "" }
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that would do.
        expected: Vec<usize>,
    },

    /// A tensor of a dtype that cannot be read.
    #[error("{}: `{}` is {found}, expected {expected}", path.display(), escaped(tensor))]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// Its dtype.
        found: String,
        /// What would do.
        expected: &'static str,
    },

    /// A setting of the generation that cannot be used.
    #[error("GenerateConfig: {field} is {found}: {reason}")]
    Generate {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is wrong, and what would do.
        reason: String,
    },

    /// A model that the hub did not hand out.
    #[error("hub: {model}: {reason}")]
    Hub {
        /// The model's id.
        model: String,
        /// What the hub said, and what to do.
        reason: String,
    },

    /// A tensor that the device could not hand back.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What Burn said.
        reason: String,
    },

    /// What the tokenizer or the chat template says.
    #[error(transparent)]
    Text(#[from] TextError),

    /// What the quantization says.
    #[error(transparent)]
    Quant(#[from] QuantError),

    /// What the adapters say.
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

/// What is said of tensors whose settings lie in `config.json`, and not in the file.
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
