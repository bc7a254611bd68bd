//! Uploads of adapters and models with their card: by themselves, and as the end of a run.

#[cfg(feature = "hub")]
use crate::{card::model_card, run_config::wrong_id, watch::StopReason};
use crate::{
    error::TrainError,
    run_config::{RUN, RunConfig},
    trainer::Report,
};
#[cfg(feature = "hub")]
use burn_lora_io::hub::{Hub, Upload};
#[cfg(feature = "hub")]
use std::path::Path;

/// What was uploaded.
#[cfg(feature = "hub")]
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
#[cfg(feature = "hub")]
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

impl RunConfig {
    /// Begins a run in its output folder: writes the settings there as `run.toml`, and creates the repository that
    /// `[hub]` names, so that what is wrong with it shows before anything is trained.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be written; [`TrainError::Setting`] if the hub refuses the
    /// repository; as [`to_toml`](Self::to_toml).
    pub fn begin(&self) -> Result<(), TrainError> {
        if let Some(output) = &self.train.output {
            let (path, text) = (output.join(RUN), self.to_toml()?);
            let written = std::fs::create_dir_all(output)
                .and_then(|()| burn_lora_io::replace(&path, text.as_bytes()));
            written.map_err(|error| TrainError::io(&path, error))?;
        }
        #[cfg(feature = "hub")]
        if let Some(id) = &self.hub.push {
            let created = Hub::from_env().create(id, self.hub.private);
            created.map_err(|error| wrong_id(id, error.to_string()))?;
        }
        Ok(())
    }

    /// Uploads the output folder if `[hub]` says so, unless the run was interrupted. Returns the address.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the hub refuses it or cannot be reached: the run is complete, and can be
    /// pushed later.
    pub fn push(&self, report: &Report) -> Result<Option<String>, TrainError> {
        #[cfg(feature = "hub")]
        if let (Some(id), Some(output)) = (&self.hub.push, &self.train.output)
            && report.finished.reason != StopReason::Interrupted
        {
            let message = format!("{} steps by burn-lora", report.finished.steps);
            let pushed = push(output, id, self.hub.private, &message).map_err(|error| {
                let folder = output.display();
                let reason = format!(
                    "{error}. The run is complete, and all of it in {folder}: `burn-lora push {folder} \
                     {id}` uploads it"
                );
                wrong_id(id, reason)
            })?;
            return Ok(Some(pushed.address));
        }
        let _ = report;
        Ok(None)
    }
}
