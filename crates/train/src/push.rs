//! Uploads of adapters and models with their card.

use crate::{card::model_card, error::TrainError};
use burn_lora_io::hub::{Hub, Upload};
use std::path::Path;

/// What was uploaded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pushed {
    /// Number of files.
    pub files: usize,
    /// Address of the repository.
    pub address: String,
}

/// Uploads the folder of an adapter, such as the output folder of a run, or of a model to the repository
/// `owner/name` or `owner/name@branch`, which is created if it does not exist: weights (safetensors, GGUF), settings,
/// tokenizer, figures, and `README.md`, which is the [card](model_card) if there is none.
///
/// ```no_run
/// let pushed = burn_lora_train::push("out".as_ref(), "me/my-adapter", false, "Three epochs")?;
/// println!("{}", pushed.address);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
///
/// # Errors
/// [`TrainError::Format`] for a folder without weights; as [`model_card`] and [`Hub::push`].
pub fn push(folder: &Path, id: &str, private: bool, message: &str) -> Result<Pushed, TrainError> {
    let (mut upload, weights) = Upload::new(message).private(private).folder(folder)?;
    if weights == 0 {
        let reason = "neither safetensors nor GGUF files are in it: name the folder of an adapter or a \
                      model";
        return Err(TrainError::format(folder, reason));
    }
    if !folder.join("README.md").exists() {
        upload = upload.text("README.md", model_card(folder)?);
    }
    let files = upload.names().count();
    let address = Hub::from_env().push(id, &upload)?;
    Ok(Pushed { files, address })
}
