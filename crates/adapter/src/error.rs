//! The one error type of this crate.

use burn_lora_io::{escaped, listed};
use burn_lora_quant::QuantError;
use std::path::PathBuf;

/// What can go wrong when adapters are configured, attached, combined, read or written.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// let error = model.add_adapter("default", &lora.targets(["linaer"])).unwrap_err();
/// assert_eq!(error.to_string(),
///     "target_modules: `linaer` matches no layer of this model; nearest: linear");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A setting that cannot be used.
    #[error("LoraConfig: {field} is {found}: {reason}")]
    Config {
        /// The setting, by PEFT's name.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is wrong, and what would do.
        reason: String,
    },

    /// A name or a number in the settings that no layer of the model answers to.
    #[error("{field}: `{}` matches no {what} of this model; {near}", escaped(name))]
    NoMatch {
        /// The setting, by PEFT's name.
        field: &'static str,
        /// The name or number.
        name: String,
        /// What it was compared with.
        what: &'static str,
        /// The names that are nearest to it.
        near: String,
    },

    /// An adapter that the model does not have.
    #[error("there is no adapter `{name}`; this model has {known}")]
    UnknownAdapter {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },

    /// An adapter that the model has already.
    #[error("there is an adapter `{name}` already: delete it, or choose another name")]
    AdapterExists {
        /// The name.
        name: String,
    },

    /// A name that an adapter cannot have.
    #[error("`{name}` is no name for an adapter: {reason}")]
    AdapterName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Something that is not possible in the model's state.
    #[error("{what}: {reason}")]
    State {
        /// What was asked for.
        what: String,
        /// Why not, and what to do.
        reason: String,
    },

    /// A layer that an operation cannot be done on.
    #[error("layer `{layer}`: {reason}")]
    Layer {
        /// The layer's path.
        layer: String,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// A file that is not what its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// Tensors that the settings and the model ask for, but the file does not have.
    #[error("{}: {} missing: {}", path.display(), count(tensors), listed(tensors))]
    MissingTensors {
        /// The file.
        path: PathBuf,
        /// Their full names.
        tensors: Vec<String>,
    },

    /// Tensors in the file that neither the settings nor the model know.
    #[error("{}: {} unexpected: {}{hint}", path.display(), count(tensors), listed(tensors))]
    UnexpectedTensors {
        /// The file.
        path: PathBuf,
        /// Their full names.
        tensors: Vec<String>,
        /// What it may come from.
        hint: &'static str,
    },

    /// A tensor of another shape than the settings and the model ask for.
    #[error("{}: `{}` is {found:?}, expected {expected:?}", path.display(), escaped(tensor))]
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

    /// A tensor for a vocabulary of another size than the model's.
    #[error(
        "{}: `{tensor}` is for a vocabulary of {found} tokens, and the model has {expected}: the adapter \
         was trained on a base whose vocabulary had been resized. Load that base; in Python \
         `resize_token_embeddings({found})` and `save_pretrained` make it of the one at hand",
        path.display()
    )]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// The tokens that it is for.
        found: usize,
        /// The tokens that the model has.
        expected: usize,
    },

    /// A tensor that the device could not hand back.
    #[error("`{tensor}` could not be read from the device: {reason}")]
    Device {
        /// The tensor.
        tensor: String,
        /// What Burn said.
        reason: String,
    },

    /// What the quantization says.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

fn count(tensors: &[String]) -> String {
    match tensors.len() {
        1 => "1 tensor is".into(),
        n => format!("{n} tensors are"),
    }
}
