//! What a run leaves on the hub.

use crate::error::TrainError;
use burn_lora_io::hub;
use serde::{Deserialize, Serialize};

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

pub(crate) fn wrong(id: &str, reason: impl Into<String>) -> TrainError {
    TrainError::setting("hub.push", id, reason)
}
