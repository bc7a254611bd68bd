//! A teacher's most probable tokens beside the data of a run.

use super::{ObjectiveConfig, RunConfig, RunData, TeacherConfig};
use crate::{
    data::{Dataset, TopLogits},
    error::TrainError,
    objective::top_logits,
};
use burn::tensor::Device;
use burn_lora_llama::Llama;
use std::path::{Path, PathBuf};

impl RunConfig {
    /// Adds the teacher's most probable tokens to the data, if the [objective](Self::objective) learns from these: from
    /// their file, or by the teacher, which is loaded for it and is gone afterwards.
    ///
    /// # Errors
    /// Those of [`top_logits`], [`TopLogits::load`] and [`TopLogits::save`], and of loading the teacher.
    pub fn teach(&self, data: &mut RunData, device: &Device) -> Result<(), TrainError> {
        let ObjectiveConfig::Distillation(config) = &self.objective else { return Ok(()) };
        let file = config.teacher_logits.as_deref();
        let mut teacher = None;
        data.train = self.taught(&data.train, file, true, &mut teacher, device)?;
        if let Some(valid) = &data.valid {
            let file = file.map(beside);
            data.valid = Some(self.taught(valid, file.as_deref(), true, &mut teacher, device)?);
        }
        drop(teacher);
        device.memory_cleanup();
        Ok(())
    }

    /// [`teach`](Self::teach) for data to evaluate on, of which nothing is written. With `own` they are the run's validation
    /// data, whose file is read if it is there.
    ///
    /// # Errors
    /// As [`teach`](Self::teach).
    pub fn teach_evaluation(
        &self,
        data: &Dataset,
        own: bool,
        device: &Device,
    ) -> Result<Dataset, TrainError> {
        let ObjectiveConfig::Distillation(config) = &self.objective else {
            return Ok(data.clone());
        };
        let file = config.teacher_logits.as_deref().filter(|_| own).map(beside);
        let found = self.taught(data, file.as_deref(), false, &mut None, device)?;
        device.memory_cleanup();
        Ok(found)
    }

    fn taught(
        &self,
        data: &Dataset,
        file: Option<&Path>,
        write: bool,
        teacher: &mut Option<Llama>,
        device: &Device,
    ) -> Result<Dataset, TrainError> {
        let ObjectiveConfig::Distillation(config) = &self.objective else {
            return Ok(data.clone());
        };
        let TeacherConfig { loss_top_k, temperature, .. } = *config;
        if loss_top_k == 0 {
            return Ok(data.clone());
        }
        if let Some(file) = file.filter(|file| file.is_file()) {
            let rows = TopLogits::load(file, data)?;
            config.check_stored(&rows, file)?;
            return data.clone().with_top_logits(rows);
        }
        if let Some(file) = file.filter(|_| write) {
            // Before the teacher has run for hours.
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                let reason = format!("there is no folder {}: make it", folder.display());
                return Err(TrainError::setting(
                    "objective.teacher_logits",
                    file.display(),
                    reason,
                ));
            }
        }
        if teacher.is_none() {
            *teacher = Some(config.load(&self.model, device)?);
        }
        let teacher = teacher.as_ref().expect("just loaded");
        let rows = top_logits(teacher, data, loss_top_k, temperature, &self.train.batches)?;
        let rows = rows.of_teacher(config.name());
        if let Some(file) = file.filter(|_| write) {
            rows.save(file, data)?;
        }
        data.clone().with_top_logits(rows)
    }
}

/// File of the validation data beside that of the training data: `NAME.valid.safetensors`.
fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(".safetensors").unwrap_or(&name);
    file.with_file_name(format!("{name}.valid.safetensors"))
}
