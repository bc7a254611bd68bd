//! Report of a run.

use super::{RunConfig, RunData};
use crate::{error::TrainError, watch::HtmlReport};
use std::path::Path;

/// Examples in the report.
const EXAMPLES: usize = 3;

impl RunConfig {
    /// Returns a report for the trainer with the settings and the first examples, in `report.html`
    /// in the output folder. Its title has the names of model and output folder.
    ///
    /// ```
    /// use burn_lora_train::{RunConfig, RunData, data::Dataset};
    /// # use burn_lora_text::Tokenizer;
    /// # let folder = tempfile::tempdir().unwrap();
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// # let record = serde_json::json!({ "prompt": "hello", "completion": " world" });
    /// # let train = Dataset::from_records([record]).load(&tokenizer)?;
    /// # let data = RunData { tokenizer, train, valid: None };
    ///
    /// let mut run = RunConfig::default();
    /// run.train.output = Some(folder.path().join("out"));
    /// let mut report = run.html_report(&data)?; // for `Trainer::html_report`
    /// report.answer("The model before", "Where is my parcel?", "Parcel is a noun.");
    /// report.write()?;
    /// assert!(folder.path().join("out/report.html").exists());
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Missing`] without an output folder
    /// - [`TrainError::Text`] if the tokenizer's decoder rejects the tokens of an example
    /// - as [`to_toml`](Self::to_toml)
    pub fn html_report(&self, data: &RunData) -> Result<HtmlReport, TrainError> {
        let needed = "the report is written there";
        let output = self.train.output.as_ref();
        let output = output.ok_or(TrainError::Missing { name: "train.output", needed })?;
        let mut report = HtmlReport::new(output.join("report.html"));
        let names = [self.model.path.as_deref(), Some(output)].into_iter().flatten();
        let names = names.filter_map(Path::file_name).map(|name| name.to_string_lossy());
        report.title(&names.collect::<Vec<_>>().join(" → ")).settings(&self.to_toml()?);
        let RunData { tokenizer, train, .. } = data;
        for index in 0..train.len().min(EXAMPLES * train.samples_per_example()) {
            let part = train.part_of_pair(index).map_or(String::new(), |part| format!(", {part}"));
            let source = format!("{}{part}", train.source(index));
            report.example(&source, train.spans(index, tokenizer)?);
        }
        Ok(report)
    }
}
