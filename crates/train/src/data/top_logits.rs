//! A teacher's most probable tokens, beside the data.

use super::{
    Dataset,
    top_rows::{TopLogits, TopRows},
};
use crate::{error::TrainError, identity::contents};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{collections::HashMap, path::Path, sync::Arc};

/// Names in a file.
const IDS: &str = "token_ids";
const LOGPS: &str = "logprobs";

impl TopLogits {
    /// Rows of all targets of a data set, in its order, to be filled in.
    pub(crate) fn empty(data: &Dataset, (k, temperature): (usize, f64)) -> Self {
        let mut next = 0;
        let starts = (0..data.len()).map(|index| {
            let start = next;
            next += data.entry(index).targets as usize;
            (data.place(index), start)
        });
        let starts = starts.collect();
        let (ids, logps) = (vec![0; next * k], vec![0.0; next * k]);
        Self { k, temperature, teacher: None, store: data.store.clone(), starts, ids, logps }
    }

    /// Fills in a row of a sample, by the number of its target.
    pub(crate) fn set(&mut self, data: &Dataset, sample: usize, target: usize, row: &[(i32, f32)]) {
        let from = (self.starts[&data.place(sample)] + target) * self.k;
        for (at, (id, logp)) in row.iter().enumerate() {
            (self.ids[from + at], self.logps[from + at]) = (*id, *logp);
        }
    }

    /// Names the teacher: files keep the name, and a run that is resumed has to have the same.
    pub fn of_teacher(mut self, name: impl Into<String>) -> Self {
        self.teacher = Some(name.into());
        self
    }

    /// What makes these rows other than those of another teacher.
    pub(crate) fn identity(&self) -> Value {
        json!({ "name": self.teacher, "k": self.k, "temperature": self.temperature })
    }

    fn check_of(&self, data: &Dataset) -> Result<(), TrainError> {
        let known = |index: usize| self.starts.contains_key(&data.place(index));
        if Arc::ptr_eq(&self.store, &data.store) && (0..data.len()).all(known) {
            return Ok(());
        }
        let reason = "they are those of other data: compute them for these by `top_logits`";
        Err(TrainError::setting("a teacher's logits", self.store.len(), reason))
    }

    /// Writes a file in the format of safetensors, `token_ids` and `logprobs`, each `[targets, k]`, for these data.
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be written; [`TrainError::Setting`] if the rows are of other data.
    pub fn save(&self, path: impl AsRef<Path>, data: &Dataset) -> Result<(), TrainError> {
        let path = path.as_ref();
        self.check_of(data)?;
        let shape = vec![self.ids.len() / self.k, self.k];
        let views = [
            (IDS, TensorView::new(Dtype::I32, shape.clone(), bytemuck::cast_slice(&self.ids))),
            (LOGPS, TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(&self.logps))),
        ];
        let views = views.map(|(name, view)| (name, view.expect("as long as its shape")));
        let mut metadata = HashMap::from([
            ("temperature".to_owned(), self.temperature.to_string()),
            ("data".to_owned(), contents(data).to_string()),
        ]);
        metadata.extend(self.teacher.clone().map(|name| ("teacher".to_owned(), name)));
        let file = safetensors::serialize(views, Some(metadata)).expect("two plain tensors");
        burn_lora_io::replace(path, &file).map_err(|source| TrainError::io(path, source))
    }

    /// Reads a file of [`save`](Self::save).
    ///
    /// # Errors
    /// [`TrainError::Io`] if it cannot be read; [`TrainError::Format`] if it is no such file, or is of other data.
    pub fn load(path: impl AsRef<Path>, data: &Dataset) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let wrong = |reason: String| TrainError::format(path, reason);
        let bytes = burn_lora_io::read(path).map_err(|source| TrainError::io(path, source))?;
        let no_file = |error| wrong(format!("no file of a teacher's logits: {error}"));
        let file = SafeTensors::deserialize(&bytes).map_err(no_file)?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(no_file)?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        if metadata.get("data") != Some(&contents(data).to_string()) {
            let reason =
                "it is of other data than these, or of another order of them: name another file";
            return Err(wrong(reason.into()));
        }
        let temperature = metadata.get("temperature").and_then(|text| text.parse().ok());
        let temperature = temperature.ok_or_else(|| wrong("it names no temperature".into()))?;
        let (ids, logps) =
            (file.tensor(IDS).map_err(no_file)?, file.tensor(LOGPS).map_err(no_file)?);
        let k = ids.shape().get(1).copied().unwrap_or(0);
        let mut rows = Self::empty(data, (k, temperature));
        let targets = rows.ids.len().checked_div(k).unwrap_or(0);
        let kinds = (ids.dtype(), logps.dtype()) == (Dtype::I32, Dtype::F32);
        if !kinds || k == 0 || ids.shape() != [targets, k] || logps.shape() != [targets, k] {
            let (a, b) = (ids.shape(), logps.shape());
            return Err(wrong(format!("`{IDS}` {a:?} and `{LOGPS}` {b:?} for {targets} targets")));
        }
        rows.ids = bytemuck::pod_collect_to_vec(ids.data());
        rows.logps = bytemuck::pod_collect_to_vec(logps.data());
        rows.teacher = metadata.get("teacher").cloned();
        if let Some(id) = rows.ids.iter().find(|id| **id < 0) {
            return Err(wrong(format!("{id} is no token")));
        }
        if let Some(logp) = rows.logps.iter().find(|logp| !(**logp <= 1e-3 && logp.is_finite())) {
            return Err(wrong(format!("{logp} is no log-probability")));
        }
        Ok(rows)
    }

    /// Highest token.
    pub(crate) fn highest(&self) -> usize {
        self.ids.iter().copied().max().unwrap_or(0) as usize
    }
}

impl Dataset {
    /// Adds a teacher's most probable tokens.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if they are of other data.
    pub fn with_top_logits(mut self, rows: TopLogits) -> Result<Self, TrainError> {
        rows.check_of(&self)?;
        self.top_logits = Some(Arc::new(rows));
        Ok(self)
    }

    /// The teacher's most probable tokens, if they are there.
    pub(crate) fn top_logits(&self) -> Option<&TopLogits> {
        self.top_logits.as_deref()
    }

    /// The rows of some samples.
    pub(super) fn top_rows(&self, samples: impl Iterator<Item = usize>) -> Option<TopRows> {
        let all = self.top_logits.as_deref()?;
        let mut rows = TopRows { k: all.k, ids: vec![], logps: vec![] };
        for sample in samples {
            let start = all.starts[&self.place(sample)] * all.k;
            let range = start..start + self.entry(sample).targets as usize * all.k;
            rows.ids.extend_from_slice(&all.ids[range.clone()]);
            rows.logps.extend_from_slice(&all.logps[range]);
        }
        Some(rows)
    }
}
