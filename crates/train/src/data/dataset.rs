//! Data sets: samples of tokens, in an order.

use super::{
    Report,
    read::example,
    sample::Sample,
    store::{Entry, Store, Writer},
    top_rows::TopLogits,
};
use crate::error::TrainError;
use burn_lora_text::Tokenizer;
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

/// Samples to train on. They are stored in a temporary file that is mapped into memory, so that
/// they may exceed the memory. A clone is cheap, and shares that file.
///
/// ```
/// use burn_lora_text::Tokenizer;
/// use burn_lora_train::data::Dataset;
/// use serde_json::json;
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let data = Dataset::from_records([json!({ "text": "hello world" })]).load(&tokenizer)?;
/// assert_eq!(data.sample(0).ids, [281, 285, 2]);
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dataset {
    pub(super) store: Arc<Store>,
    /// Indices of the samples in the store.
    order: Arc<[u32]>,
    /// Number of samples of an example: two of a pair.
    pub(super) group: usize,
    /// Numbers beside the tokens that were added after loading, by name.
    added: BTreeMap<String, Added>,
    /// For each sample its prompt with the answer to another, once prepared.
    pub(super) mismatched: Option<Arc<Dataset>>,
    pub(super) top_logits: Option<Arc<TopLogits>>,
    /// For each sample how many of its first tokens are read in the sample before, if pairs share their prompts.
    pub(super) shared: Option<Arc<[u32]>>,
}

/// Numbers beside the tokens that were added after loading, one for each sample.
#[derive(Clone, Debug)]
struct Added {
    values: Arc<[f32]>,
    /// `true` if they follow from the rest and a model.
    derived: bool,
}

impl Dataset {
    pub(super) fn new(store: Store) -> Self {
        let order = (0..store.len() as u32).collect();
        Self {
            group: store.group,
            store: store.into(),
            order,
            added: BTreeMap::new(),
            mismatched: None,
            top_logits: None,
            shared: None,
        }
    }

    /// Creates a data set of tokens from elsewhere. Rows are padded with token 0, which no loss
    /// counts.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// let data = Dataset::from_samples([sample.clone()])?;
    /// assert_eq!(data.sample(0), sample);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Format`] if there are no samples
    /// - [`TrainError::Example`] if a sample has no token to train on, or `loss_mask` does not have
    ///   the length of `ids`
    /// - [`TrainError::Io`] if the temporary file cannot be written
    pub fn from_samples(samples: impl IntoIterator<Item = Sample>) -> Result<Self, TrainError> {
        Self::from_examples(samples.into_iter().map(|sample| [sample]))
    }

    /// Creates a data set of pairs of tokens from elsewhere: the chosen answer to a prompt, and the rejected one,
    /// each with the prompt before it.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// let answer = |id| Sample { ids: vec![5, id], loss_mask: vec![false, true] };
    /// let data = Dataset::from_pairs([[answer(6), answer(7)]])?;
    /// assert_eq!((data.len(), data.samples_per_example()), (2, 2));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// As [`from_samples`](Self::from_samples).
    pub fn from_pairs(pairs: impl IntoIterator<Item = [Sample; 2]>) -> Result<Self, TrainError> {
        Self::from_examples(pairs)
    }

    fn from_examples<const N: usize>(
        examples: impl IntoIterator<Item = [Sample; N]>,
    ) -> Result<Self, TrainError> {
        let mut writer = Writer::new(None, vec!["samples".into()])?;
        writer.set_group(N);
        for (number, samples) in examples.into_iter().enumerate() {
            for sample in samples {
                let (tokens, flags) = (sample.ids.len(), sample.loss_mask.len());
                let reason = if tokens != flags {
                    format!("{tokens} tokens, but {flags} in `loss_mask`")
                } else if sample.target_count() == 0 {
                    format!("none of its {tokens} tokens is one to train on")
                } else {
                    writer.push(&sample, 0, number + 1)?;
                    continue;
                };
                return Err(writer.wrong(0, number + 1, reason));
            }
        }
        Ok(Self::new(writer.finish(None)?))
    }

    /// Adds numbers beside the tokens of the samples, for an objective: one per sample, in order.
    ///
    /// ```
    /// use burn_lora_train::{BatchConfig, Dataset, data::Sample};
    ///
    /// let sample = Sample { ids: vec![5, 6, 7], loss_mask: vec![true; 3] };
    /// let data = Dataset::from_samples(vec![sample; 3])?.with_values("label", [2.0, 0.0, 1.0])?;
    /// let batch = data.batch(&[vec![2], vec![0]], &BatchConfig::default());
    /// assert_eq!(batch.values["label"], [1.0, 2.0]);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Setting`] if there is not one value per sample.
    pub fn with_values(
        mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = f32>,
    ) -> Result<Self, TrainError> {
        let values: Arc<[f32]> = values.into_iter().collect();
        if values.len() != self.len() {
            let reason = format!("there are {} samples: give one for each", self.len());
            return Err(TrainError::setting("values", values.len(), reason));
        }
        self.added.insert(name.into(), Added { values, derived: false });
        Ok(self)
    }

    /// Adds numbers that follow from the samples and a model: they are no part of what the data are.
    ///
    /// # Panics
    /// If there is not one value per sample.
    pub(crate) fn with_derived(mut self, name: &str, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), self.len(), "a number for each sample");
        self.added.insert(name.into(), Added { values: values.into(), derived: true });
        self
    }

    /// Returns the number of samples: one of an example, but two of a pair, the chosen and the rejected
    /// answer, one after the other.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert_eq!(Dataset::from_samples([sample])?.len(), 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns the number of samples of an example: 2 if the examples are pairs, else 1.
    pub fn samples_per_example(&self) -> usize {
        self.group
    }

    /// Returns the part of its example that a sample is: `Some("chosen")` or `Some("rejected")` of a pair.
    pub fn part_of_pair(&self, index: usize) -> Option<&'static str> {
        (self.group == 2).then(|| ["chosen", "rejected"][index % 2])
    }

    /// Returns the samples of each example.
    pub(super) fn examples(&self) -> impl ExactSizeIterator<Item = Range<usize>> {
        let group = self.group;
        (0..self.len() / group).map(move |example| example * group..(example + 1) * group)
    }

    /// Returns `true` if there are no samples, as may be after a split.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert!(Dataset::from_samples([sample])?.take(0).is_empty());
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns a sample.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert_eq!(Dataset::from_samples([sample])?.sample(0).ids, [5, 6]);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Panics
    /// If the index is not less than [`len`](Self::len).
    pub fn sample(&self, index: usize) -> Sample {
        self.store.sample(self.order[index] as usize)
    }

    /// Returns the source of a sample: its file and its line, or its row in a Parquet file.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert_eq!(Dataset::from_samples([sample])?.source(0), "samples:1");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Panics
    /// If the index is not less than [`len`](Self::len).
    pub fn source(&self, index: usize) -> String {
        let (path, line) = self.origin(index);
        format!("{}:{line}", path.display())
    }

    /// Index of a sample in the store.
    pub(super) fn place(&self, index: usize) -> usize {
        self.order[index] as usize
    }

    /// Returns `true` if there are numbers of this name beside the tokens.
    pub(crate) fn has_values(&self, name: &str) -> bool {
        self.store.values.contains_key(name) || self.added.contains_key(name)
    }

    /// Returns the numbers beside the tokens of some samples, by name.
    pub(crate) fn values(&self, samples: &[usize]) -> BTreeMap<String, Vec<f32>> {
        let read =
            |all: &Vec<f32>| samples.iter().map(|at| all[self.order[*at] as usize]).collect();
        let read = self.store.values.iter().map(|(name, all)| (name.clone(), read(all)));
        let added = |all: &Added| samples.iter().map(|at| all.values[*at]).collect();
        let added = self.added.iter().map(|(name, all)| (name.clone(), added(all)));
        read.chain(added).collect()
    }

    /// Returns the [`values`](Self::values) of all samples that are not derived.
    pub(crate) fn given_values(&self) -> BTreeMap<String, Vec<f32>> {
        let mut values = self.values(&(0..self.len()).collect::<Vec<_>>());
        values.retain(|name, _| !self.added.get(name).is_some_and(|added| added.derived));
        values
    }

    pub(super) fn origin(&self, index: usize) -> (&Path, usize) {
        self.store.source(self.order[index] as usize)
    }

    /// Returns the tokenizer that has read the data; `None` if they came as tokens.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.store.tokenizer.as_ref()
    }

    /// Tokens that end a turn, though no file of the model says that they end a text.
    pub(crate) fn ends(&self) -> impl Iterator<Item = u32> {
        self.store.ends.iter().copied()
    }

    /// An error of an example, with its file and line.
    pub(crate) fn wrong(&self, index: usize, reason: impl Into<String>) -> TrainError {
        let (path, line) = self.origin(index);
        example(path, line, reason)
    }

    pub(super) fn entry(&self, index: usize) -> Entry {
        self.store.entry(self.order[index] as usize)
    }

    /// Returns the number of tokens of a sample.
    pub(super) fn length(&self, index: usize) -> usize {
        self.entry(index).length as usize
    }

    /// Returns the counts of the data. The counts of truncated and left-out examples are those of
    /// all the data that was loaded, also for a part of it.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert_eq!(Dataset::from_samples([sample])?.report().target_tokens, 1);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn report(&self) -> Report {
        let examples = self.examples().len();
        let samples = self.len();
        let mut report = Report { examples, samples, ..self.store.report.clone() };
        for entry in (0..self.len()).map(|index| self.entry(index)) {
            report.tokens += entry.length as usize;
            report.target_tokens += entry.targets as usize;
            report.longest = report.longest.max(entry.length as usize);
        }
        report
    }

    /// Splits the data into two parts, the second with this fraction of the examples, chosen at
    /// random. Both keep the order of the examples.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// let data = Dataset::from_samples(vec![sample; 10])?;
    /// let (train, eval) = data.split(0.2, 42);
    /// assert_eq!((train.len(), eval.len()), (8, 2));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Panics
    /// If the fraction is not between 0 and 1.
    pub fn split(&self, fraction: f64, seed: u64) -> (Self, Self) {
        assert!((0.0..=1.0).contains(&fraction), "{fraction} is no fraction to split by");
        let mut examples: Vec<_> = self.examples().collect();
        examples.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let second = (examples.len() as f64 * fraction).round() as usize;
        let (second, first) = examples.split_at_mut(second);
        (self.part(first), self.part(second))
    }

    /// Checks that all tokens are within an embedding of this many rows: some devices read out of
    /// bounds without an error. The trainer does so before the first step.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// let data = Dataset::from_samples([sample])?;
    /// assert!(data.check_vocabulary(7).is_ok());
    /// let error = data.check_vocabulary(6).unwrap_err();
    /// assert!(error.to_string().starts_with("samples:1: token 6 "));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Example`] for the first example with another token, by file and line.
    pub fn check_vocabulary(&self, rows: usize) -> Result<(), TrainError> {
        if (self.store.highest as usize) < rows {
            return Ok(());
        }
        for index in 0..self.len() {
            let sample = self.sample(index);
            let Some(id) = sample.ids.into_iter().find(|id| *id as usize >= rows) else { continue };
            let text = self.tokenizer().and_then(|tokenizer| tokenizer.id_to_token(id));
            let text = text.map(|text| format!(", `{text}`,")).unwrap_or_default();
            let reason = format!(
                "token {id}{text} is not in the vocabulary of the model, whose embedding has {rows} rows: \
                 take the model's own tokenizer, or resize the model's embedding"
            );
            return Err(self.wrong(index, reason));
        }
        Ok(())
    }

    /// Writes `generation_config.json` into a folder if turns end with a token at which generation
    /// does not stop by the model's files: generated text would go on after the answer. The other
    /// settings are those of the tokenizer's folder.
    ///
    /// # Errors
    /// [`TrainError::Text`] if the file cannot be written.
    pub fn save_generation_config(&self, folder: &Path) -> Result<(), TrainError> {
        let (Some(tokenizer), ends) = (&self.store.tokenizer, &self.store.ends) else {
            return Ok(());
        };
        if !ends.is_empty() {
            tokenizer.save_generation_config(folder, ends.iter().copied())?;
        }
        Ok(())
    }

    /// Saves the tokenizer into a folder, beside an adapter, if it is not the one of the base model
    /// ([`Tokenizer::is_changed`]).
    ///
    /// # Errors
    /// [`TrainError::Text`] if a file cannot be written.
    pub fn save_tokenizer(&self, folder: &Path) -> Result<(), TrainError> {
        match &self.store.tokenizer {
            Some(tokenizer) if tokenizer.is_changed() => Ok(tokenizer.save(folder)?),
            _ => Ok(()),
        }
    }

    fn part(&self, examples: &mut [Range<usize>]) -> Self {
        examples.sort_unstable_by_key(|samples| samples.start);
        self.chosen(examples.iter().cloned().flatten())
    }

    /// The data set of some samples.
    pub(super) fn chosen(&self, samples: impl Iterator<Item = usize> + Clone) -> Self {
        let shared = self.shared.as_ref();
        let of = |Added { values, derived }: &Added| Added {
            values: samples.clone().map(|at| values[at]).collect(),
            derived: *derived,
        };
        Self {
            group: self.group,
            store: self.store.clone(),
            order: samples.clone().map(|at| self.order[at]).collect(),
            added: self.added.iter().map(|(name, added)| (name.clone(), of(added))).collect(),
            // Other samples may be beside each other now.
            mismatched: None,
            top_logits: self.top_logits.clone(),
            shared: shared.map(|shared| samples.clone().map(|at| shared[at]).collect()),
        }
    }

    /// Returns the first examples, or all if there are fewer.
    ///
    /// ```
    /// # use burn_lora_train::data::{Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// assert_eq!(Dataset::from_samples(vec![sample; 10])?.take(3).len(), 3);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    pub fn take(&self, count: usize) -> Self {
        let count = count.saturating_mul(self.group);
        self.chosen(0..count.min(self.len()))
    }
}
