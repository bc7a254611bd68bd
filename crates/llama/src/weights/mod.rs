//! Checkpoints: sources of tensors, loading and saving of models.

mod build;
pub(crate) mod bytes;
mod folder;
mod load;
mod normal;
mod random;
mod safetensors;
mod save;
mod source;
mod stacked;
pub(crate) mod stored;
mod torch;
mod values;
mod view;
mod write;

pub use load::Loader;
pub use save::SaveOptions;
pub use source::Source;
