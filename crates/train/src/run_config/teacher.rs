//! The teacher of a run that distils.

use super::ModelConfig;
use crate::{
    data::TopLogits,
    error::TrainError,
    objective::{Distillation, DistillationConfig},
};
use burn::tensor::Device;
use burn_lora_adapter::AdaptableExt;
use burn_lora_llama::Llama;
use burn_lora_quant::WeightFormat;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// `[objective]` of a run that distils: the settings of a [`Distillation`], and its teacher.
///
/// ```
/// use burn_lora_train::RunConfig;
///
/// let teacher = "objective={name='distillation', teacher_model_name_or_path='big', loss_top_k=64}";
/// assert!(RunConfig::default().with_setting(teacher)?.objective.validate().is_ok());
/// let error = RunConfig::default().with_setting("objective={name='distillation'}")?.objective.validate();
/// assert!(error.unwrap_err().to_string().contains("teacher_model_name_or_path"));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherConfig {
    /// The teacher: a folder in Hugging Face's layout, a GGUF file, or with the feature `hub` an id.
    pub teacher_model_name_or_path: Option<PathBuf>,
    /// Folder of an adapter of the teacher.
    pub teacher_adapter: Option<PathBuf>,
    /// Storage format of the teacher's linear layers.
    pub teacher_format: WeightFormat,
    /// Number of the teacher's most probable tokens that count, which are computed once, before the student is loaded; 0 for
    /// the whole vocabulary, with the teacher in memory all the time.
    pub loss_top_k: usize,
    /// File of these tokens, which is written if it is not there; those of the validation data are in another beside it,
    /// `NAME.valid.safetensors`.
    pub teacher_logits: Option<PathBuf>,
    /// As [`DistillationConfig::beta`].
    pub beta: f64,
    /// As [`DistillationConfig::temperature`].
    pub temperature: f64,
    /// As [`DistillationConfig::loss_add_tail`].
    pub loss_add_tail: bool,
}

impl Default for TeacherConfig {
    /// TRL's: the reverse divergence over the whole vocabulary, of a teacher as it is in its files.
    fn default() -> Self {
        let DistillationConfig { beta, temperature, loss_add_tail } = DistillationConfig::default();
        Self {
            teacher_model_name_or_path: None,
            teacher_adapter: None,
            teacher_format: WeightFormat::None,
            loss_top_k: 0,
            teacher_logits: None,
            beta,
            temperature,
            loss_add_tail,
        }
    }
}

impl TeacherConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Missing`] without a teacher, unless a file has its tokens; [`TrainError::Setting`] for the first that
    /// is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        self.loss().validate()?;
        if self.teacher_logits.is_some() && self.loss_top_k == 0 {
            let reason = "a file holds the most probable tokens only: set their number, such as 64";
            return Err(TrainError::setting("objective.loss_top_k", 0, reason));
        }
        if self.teacher_model_name_or_path.is_none() && self.teacher_logits.is_none() {
            let needed = "name the folder, the .gguf file or the id of the teacher";
            return Err(TrainError::Missing {
                name: "objective.teacher_model_name_or_path",
                needed,
            });
        }
        Ok(())
    }

    fn loss(&self) -> DistillationConfig {
        let Self { beta, temperature, loss_add_tail, .. } = *self;
        DistillationConfig { beta, temperature, loss_add_tail }
    }

    /// Returns `true` if the teacher's predictions are the same as with other settings.
    pub(super) fn has_rows_of(&self, other: &Self) -> bool {
        let Self { beta, loss_add_tail, .. } = *other;
        Self { beta, loss_add_tail, ..self.clone() } == *other
    }

    /// The teacher with all that its predictions depend on.
    pub(super) fn name(&self) -> String {
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map_or(String::new(), |path| path.display().to_string())
        };
        let (model, adapter) =
            (path(&self.teacher_model_name_or_path), path(&self.teacher_adapter));
        let adapter = if adapter.is_empty() { adapter } else { format!(" with {adapter}") };
        format!("{model}{adapter} in {}", self.teacher_format)
    }

    /// Loads the teacher.
    pub(super) fn load(&self, like: &ModelConfig, device: &Device) -> Result<Llama, TrainError> {
        let needed = "its predictions are not stored";
        let name = "objective.teacher_model_name_or_path";
        let path = self.teacher_model_name_or_path.clone();
        let path = path.ok_or(TrainError::Missing { name, needed })?;
        let (format, dtype) = (self.teacher_format, like.dtype);
        let config = ModelConfig { path: Some(path), format, dtype, ..ModelConfig::default() };
        let mut teacher = config.loader()?.load(device)?;
        if let Some(folder) = &self.teacher_adapter {
            teacher.load_adapter("default", folder)?;
        }
        Ok(teacher)
    }

    /// Builds the objective, with the teacher if it is needed all the time.
    pub(super) fn build(
        &self,
        like: &ModelConfig,
        device: &Device,
    ) -> Result<Distillation<Llama>, TrainError> {
        Ok(match self.loss_top_k {
            0 => Distillation::new(self.loss(), self.load(like, device)?).of_teacher(self.name()),
            _ => Distillation::stored(self.loss()),
        })
    }
}

impl TeacherConfig {
    /// Checks that a file has what these settings ask for.
    pub(super) fn check_stored(&self, rows: &TopLogits, file: &Path) -> Result<(), TrainError> {
        let (k, temperature) = (rows.k, rows.temperature);
        let named = self.teacher_model_name_or_path.is_some().then(|| self.name());
        if let (Some(wanted), Some(found)) = (named, &rows.teacher)
            && *found != wanted
        {
            let reason = format!(
                "it has the predictions of {found}, and the run's teacher is {wanted}: name another file"
            );
            return Err(TrainError::format(file, reason));
        }
        if (k, temperature) == (self.loss_top_k, self.temperature) {
            return Ok(());
        }
        let (wanted, at) = (self.loss_top_k, self.temperature);
        Err(TrainError::format(
            file,
            format!(
                "it has the {k} most probable tokens at the temperature {temperature}, and the run wants {wanted} at {at}: \
                 change the settings, or name another file"
            ),
        ))
    }
}
