//! Batches: samples side by side, as input of a model.

use super::{BatchConfig, Dataset, pack::best_fit_decreasing, top_rows::TopRows};
use crate::error::TrainError;
use burn_lora_io::progress::Work;
use burn_lora_llama::Segments;
use std::collections::BTreeMap;

/// Target of a position that the loss ignores, as in PyTorch.
pub const IGNORE_INDEX: i32 = -100;

/// A batch: rows of tokens, padded on the right.
///
/// Created by [`Dataset::batch`].
///
/// ```
/// use burn_lora_train::data::{BatchConfig, Dataset, Sample};
///
/// let long = Sample { ids: vec![5, 6, 7], loss_mask: vec![false, true, true] };
/// let short = Sample { ids: vec![8, 9], loss_mask: vec![false, true] };
/// let data = Dataset::from_samples([long, short])?;
/// let batch = data.batch(&[vec![0], vec![1]], &BatchConfig::default());
/// assert_eq!(batch.ids, [5, 6, 7, 8, 9, 0]);
/// assert_eq!(batch.targets, [6, 7, -100, 9, -100, -100]);
/// assert_eq!((batch.tokens, batch.target_count), (5, 3));
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Tokens, row by row.
    pub ids: Vec<u32>,
    /// Number of rows.
    pub rows: usize,
    /// Tokens per row, with padding.
    pub length: usize,
    /// Segments of tokens that belong together.
    pub segments: Segments,
    /// For each token the next one, if that belongs to the same sample and its loss counts, else
    /// [`IGNORE_INDEX`].
    pub targets: Vec<i32>,
    /// Number of tokens without padding.
    pub tokens: usize,
    /// Number of targets whose loss counts.
    pub target_count: usize,
    /// Indices of the samples, row by row.
    pub sources: Vec<usize>,
    /// Index of each sample's last token among all `rows · length`, in the order of `sources`.
    pub last_tokens: Vec<usize>,
    /// Numbers beside the tokens, by name, one for each of `sources`:
    /// [`DatasetBuilder::value`](super::DatasetBuilder::value).
    pub values: BTreeMap<String, Vec<f32>>,
    /// Label of each token, [`IGNORE_INDEX`] for none; empty if the data have no labels of tokens.
    pub token_labels: Vec<i32>,
    /// Number of first tokens of each of `sources` that are those of the one before it, and are read there.
    pub shared: Vec<usize>,
    /// The prompts of `sources` with answers to others, in any order, if an objective has prepared them.
    pub mismatched: Option<Box<Self>>,
    /// A teacher's most probable tokens for each target, in their order, if the data have them.
    pub top_logits: Option<TopRows>,
}

impl Dataset {
    /// Creates a batch of these rows of samples, as [`epoch`](Self::epoch) returns them. Rows are
    /// as long as the longest, or as `config` says.
    ///
    /// ```
    /// # use burn_lora_train::data::{BatchConfig, Dataset, Sample};
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// # let data = Dataset::from_samples(vec![sample; 3])?;
    /// let config = BatchConfig { packing: Some(8), ..BatchConfig::default() };
    /// let batch = data.batch(&[vec![0, 1, 2]], &config);
    /// assert_eq!(batch.ids, [5, 6, 5, 6, 5, 6, 0, 0]);
    /// assert_eq!(batch.targets, [6, -100, 6, -100, 6, -100, -100, -100]);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Panics
    /// If an index is not less than [`len`](Self::len), or a row has more tokens than
    /// `config.packing`.
    pub fn batch(&self, rows: &[Vec<usize>], config: &BatchConfig) -> Batch {
        let shared: Vec<Vec<usize>> = rows.iter().map(|row| self.shared_in(row)).collect();
        let lengths: Vec<Vec<usize>> = rows
            .iter()
            .zip(&shared)
            .map(|(row, shared)| {
                let samples = row.iter().zip(shared);
                samples.map(|(sample, shared)| self.length(*sample) - shared).collect()
            })
            .collect();
        let longest = lengths.iter().map(|row| row.iter().sum()).max().unwrap_or(0);
        let length = config.packing.unwrap_or(longest);
        let length = length.next_multiple_of(config.pad_to_multiple_of.unwrap_or(1).max(1));
        let segments = Segments::packed(length, &lengths);
        let segments = segments.expect("rows that are no longer than `packing`").sharing(&shared);

        let mut ids = vec![];
        let mut targets = vec![];
        let mut last_tokens = vec![];
        let mut token_labels = vec![];
        for (row, samples) in rows.iter().enumerate() {
            for (sample, shared) in samples.iter().zip(&shared[row]) {
                token_labels.extend(self.token_labels(*sample).iter().skip(*shared));
                let sample = self.sample(*sample);
                let next = sample.ids.iter().zip(&sample.loss_mask).skip(1 + shared);
                targets.extend(next.map(|(id, trained)| match trained {
                    true => *id as i32,
                    false => IGNORE_INDEX,
                }));
                targets.push(IGNORE_INDEX);
                ids.extend(&sample.ids[*shared..]);
                last_tokens.push(ids.len().saturating_sub(1));
            }
            // No token attends to them and no loss counts them: the first row of any embedding will
            // do; a tokenizer's padding token may not have one.
            ids.resize((row + 1) * length, 0);
            targets.resize((row + 1) * length, IGNORE_INDEX);
            if self.has_token_labels() {
                token_labels.resize((row + 1) * length, IGNORE_INDEX);
            }
        }
        let mismatched = self.mismatched.as_ref().map(|other| {
            let (samples, config) = (rows.concat(), other.batches_of_mismatched(config));
            let rows = match config.packing {
                Some(room) => best_fit_decreasing(samples, |sample| other.length(sample), room),
                None => samples.into_iter().map(|sample| vec![sample]).collect(),
            };
            Box::new(other.batch(&rows, &config))
        });
        Batch {
            mismatched,
            shared: shared.concat(),
            top_logits: self.top_rows(rows.iter().flatten().copied()),
            rows: rows.len(),
            length,
            tokens: segments.tokens(),
            target_count: targets.iter().filter(|target| **target != IGNORE_INDEX).count(),
            values: self.values(&rows.concat()),
            sources: rows.concat(),
            last_tokens,
            token_labels,
            segments,
            ids,
            targets,
        }
    }

    /// Returns all batches in the order of the data, with their progress.
    pub(crate) fn in_order(
        &self,
        what: &str,
        config: &BatchConfig,
    ) -> Result<impl Iterator<Item = Batch>, TrainError> {
        let config = BatchConfig { shuffle: false, drop_last: false, ..config.clone() };
        let epoch = self.epoch(&config, 0)?;
        let work = Work::items(what, epoch.len());
        Ok(epoch.into_iter().map(move |rows| {
            work.advance(1);
            self.batch(&rows, &config)
        }))
    }
}

impl Batch {
    /// Returns the places of the targets whose loss counts, row after row, with the targets.
    pub(crate) fn target_places(&self) -> Vec<(i32, i32)> {
        let all = self.targets.iter().enumerate();
        all.filter(|(_, id)| **id != IGNORE_INDEX).map(|(place, id)| (place as i32, *id)).collect()
    }

    /// Number of targets of each of `sources`.
    pub(crate) fn targets_of_samples(&self) -> Vec<usize> {
        let mut counts = vec![0; self.sources.len()];
        for (owner, target) in self.owners().into_iter().zip(&self.targets) {
            if let (Some(owner), true) = (owner, *target != IGNORE_INDEX) {
                counts[owner] += 1;
            }
        }
        counts
    }

    /// Returns the places of the tokens that have a label, row after row, with the labels.
    pub(crate) fn labeled_tokens(&self) -> impl Iterator<Item = (usize, i32)> {
        let all = self.token_labels.iter().copied().enumerate();
        all.filter(|(_, label)| *label != IGNORE_INDEX)
    }

    /// Returns for each place of a row, row after row, which of `sources` its token belongs to, if the next token does,
    /// too, and so is predicted from it.
    pub(crate) fn owners(&self) -> Vec<Option<usize>> {
        let mut owners = vec![None; self.ids.len()];
        let mut begin = 0;
        for (sample, last) in self.last_tokens.iter().enumerate() {
            // Padding before a row is no sample's.
            let row = last / self.length * self.length;
            begin = begin.max(row);
            owners[begin..*last].fill(Some(sample));
            begin = last + 1;
        }
        owners
    }
}
