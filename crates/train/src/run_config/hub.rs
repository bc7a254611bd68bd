//! What a run leaves on the hub, and the file of its settings.

use super::RunConfig;
use crate::{error::TrainError, trainer::Report};
use burn_lora_io::hub;
use serde::{Deserialize, Serialize};

/// Name of the file of a run's settings in its output folder.
pub(crate) const RUN: &str = "run.toml";

/// `[hub]` of a run: where its output folder is uploaded (feature `hub`).
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// let run = RunConfig::default().with_setting("hub.push='me/my-adapter'")?;
/// assert_eq!(run.hub.push.as_deref(), Some("me/my-adapter"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// `owner/name` or `owner/name@branch`: the adapter, the tokenizer if it has new tokens, the figures and a
    /// [card](crate::model_card) are uploaded when the run has ended. The repository is created when it
    /// begins.
    pub push: Option<String>,
    /// `true` if a new repository is a private one.
    pub private: bool,
}

impl HubConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for what is no id, and without the feature `hub`.
    pub fn validate(&self) -> Result<(), TrainError> {
        match &self.push {
            Some(id) if !hub::is_model_id(id) => {
                Err(wrong(id, "expected `owner/name` or `owner/name@branch`"))
            }
            Some(id) if cfg!(not(feature = "hub")) => {
                Err(wrong(id, "enable the feature `hub`, or leave it out"))
            }
            _ => Ok(()),
        }
    }
}

fn wrong(id: &str, reason: impl Into<String>) -> TrainError {
    TrainError::setting("hub.push", id, reason)
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
            let created = hub::Hub::from_env().create(id, self.hub.private);
            created.map_err(|error| wrong(id, error.to_string()))?;
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
            && report.finished.reason != crate::watch::StopReason::Interrupted
        {
            let message = format!("{} steps by burn-lora", report.finished.steps);
            let pushed = crate::push(output, id, self.hub.private, &message).map_err(|error| {
                let folder = output.display();
                let reason = format!(
                    "{error}. The run is complete, and all of it in {folder}: `burn-lora push {folder} \
                     {id}` uploads it"
                );
                wrong(id, reason)
            })?;
            return Ok(Some(pushed.address));
        }
        let _ = report;
        Ok(None)
    }
}
