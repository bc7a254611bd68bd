//! Assignment of samples to batches.

use super::{Dataset, pack::best_fit_decreasing, read::example};
use crate::error::TrainError;
use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use serde::{Deserialize, Deserializer, Serialize};
use std::{cmp::Reverse, ops::Range};

/// Maximum number of rows, and of tokens per row: more is a mistake, which no device can hold.
const MOST: usize = 1 << 24;

/// Maximum of `pad_to_multiple_of`: padding serves only to have few different row lengths.
const MOST_PADDING: usize = 1 << 16;

/// Rows of a micro-batch, each the indices of its samples.
pub type Rows = Vec<Vec<usize>>;

/// Settings of the batches.
///
/// ```
/// use burn_lora_train::data::BatchConfig;
///
/// let config: BatchConfig = serde_json::from_str(r#"{"size": 8, "packing": 2048}"#)?;
/// assert_eq!(config, BatchConfig { size: 8, packing: Some(2048), ..BatchConfig::default() });
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Rows per micro-batch.
    pub size: usize,
    /// Shuffles the samples in each epoch; otherwise they keep the order of the data.
    pub shuffle: bool,
    /// Seed of the order, together with the epoch.
    pub seed: u64,
    /// Groups samples of about the same length, to reduce padding.
    pub group_by_length: bool,
    /// Packs several samples into each row of this many tokens. They do not attend to each other. `None`, or 0 in
    /// a file, disables it.
    #[serde(deserialize_with = "zero_is_none")]
    pub packing: Option<usize>,
    /// Drops a last batch that has fewer rows than the others.
    pub drop_last: bool,
    /// Pads rows to a multiple of this many tokens.
    pub pad_to_multiple_of: Option<usize>,
    /// Reads the prompt of both answers of a pair once, in training and evaluations: the answers are then in one row.
    /// Models with a sliding window cannot, and read it twice.
    pub share_prompts: bool,
}

fn zero_is_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|tokens| *tokens > 0))
}

impl Default for BatchConfig {
    /// One sample per batch, shuffled.
    fn default() -> Self {
        Self {
            size: 1,
            shuffle: true,
            seed: 42,
            group_by_length: false,
            packing: None,
            drop_last: false,
            pad_to_multiple_of: None,
            share_prompts: true,
        }
    }
}

impl BatchConfig {
    /// Checks the settings, independent of the data.
    ///
    /// ```
    /// use burn_lora_train::data::BatchConfig;
    ///
    /// let config = BatchConfig { size: 0, ..BatchConfig::default() };
    /// assert_eq!(config.validate().unwrap_err().to_string(), "`batches.size` is 0: it must be 1 at least");
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        let counts = [
            ("batches.size", Some(self.size), MOST),
            ("batches.packing", self.packing, MOST),
            ("batches.pad_to_multiple_of", self.pad_to_multiple_of, MOST_PADDING),
        ];
        for (name, count, most) in counts {
            match count {
                Some(0) => return Err(TrainError::setting(name, 0, "it must be 1 at least")),
                Some(count) if count > most => {
                    let reason = format!("it must be {most} at most");
                    return Err(TrainError::setting(name, count, reason));
                }
                _ => (),
            }
        }
        if self.packing.is_some() && self.group_by_length {
            let reason = "packed rows all have the same length: use `packing` without it";
            return Err(TrainError::setting("batches.group_by_length", true, reason));
        }
        Ok(())
    }

    /// Returns the same generator for the same epoch, so that a resumed run continues in the same
    /// order.
    fn generator(&self, epoch: u64) -> Xoshiro256PlusPlus {
        let key = Xoshiro256PlusPlus::seed_from_u64(self.seed).next_u64();
        Xoshiro256PlusPlus::seed_from_u64(key.wrapping_add(epoch))
    }
}

impl Dataset {
    /// Returns the micro-batches of an epoch, which depend on nothing but the data, `config` and
    /// `epoch`.
    ///
    /// ```
    /// use burn_lora_train::data::{BatchConfig, Dataset, Sample};
    ///
    /// let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// let data = Dataset::from_samples(vec![sample; 3])?;
    /// let config = BatchConfig { size: 2, shuffle: false, ..BatchConfig::default() };
    /// assert_eq!(data.epoch(&config, 0)?, [vec![vec![0], vec![1]], vec![vec![2]]]);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Setting`] if a setting is invalid, settings contradict each other, a batch has
    /// more tokens than can be numbered, or `drop_last` leaves no batch; [`TrainError::Example`] if
    /// a sample is longer than a packed row.
    pub fn epoch(&self, config: &BatchConfig, epoch: u64) -> Result<Vec<Rows>, TrainError> {
        config.validate()?;
        let mut rng = config.generator(epoch);
        let groups: Vec<_> = self.examples().collect();
        let mut examples: Vec<usize> = (0..groups.len()).collect();
        if config.shuffle {
            examples.shuffle(&mut rng);
        }
        let samples = |examples: Vec<usize>| -> Vec<usize> {
            examples.into_iter().flat_map(|example| groups[example].clone()).collect()
        };
        let rows = match config.packing {
            Some(room) => {
                self.check_lengths(room)?;
                let length = |example: usize| self.total_length(&groups[example]);
                let rows = best_fit_decreasing(examples, length, room).into_iter();
                let mut rows: Vec<_> = rows.map(samples).collect();
                // Packing puts the longest samples first.
                if config.shuffle {
                    rows.shuffle(&mut rng);
                } else {
                    rows.sort_by_key(|row| row.iter().copied().min());
                }
                rows
            }
            None => {
                if config.group_by_length {
                    examples = self.grouped(examples, &groups, config.size);
                }
                match self.shares_prompts() {
                    true => examples.into_iter().map(|example| samples(vec![example])).collect(),
                    false => samples(examples).into_iter().map(|sample| vec![sample]).collect(),
                }
            }
        };
        // The samples of a pair belong to one batch, or even to one row.
        let together = config.packing.is_some() || self.shares_prompts();
        let rows_per_example = if together { 1 } else { self.samples_per_example() };
        let size = config.size * rows_per_example;
        let longest = groups.iter().map(|group| self.longest_row(group)).max().unwrap_or(0);
        let length = config.packing.unwrap_or(longest);
        let length = length.next_multiple_of(config.pad_to_multiple_of.unwrap_or(1));
        let tokens = size.min(rows.len()).saturating_mul(length);
        if tokens > i32::MAX as usize {
            let reason = format!("{tokens} tokens of a batch are more than can be numbered");
            return Err(TrainError::setting("batches.size", config.size, reason));
        }
        let mut batches: Vec<Rows> = rows.chunks(size).map(<[_]>::to_vec).collect();
        if config.drop_last {
            batches.retain(|batch| batch.len() == size);
            if batches.is_empty() && !rows.is_empty() {
                let reason = format!("nothing is left: there are {} rows in all", rows.len());
                let found = format!("true with a size of {}", config.size);
                return Err(TrainError::setting("batches.drop_last", found, reason));
            }
        }
        Ok(batches)
    }

    fn check_lengths(&self, room: usize) -> Result<(), TrainError> {
        match self.examples().find(|samples| self.total_length(samples) > room) {
            None => Ok(()),
            Some(samples) => {
                let (path, line) = self.origin(samples.start);
                let length = self.total_length(&samples);
                let (what, most) = match samples.len() {
                    1 => ("", room),
                    _ => (" of both answers", room / 2),
                };
                let reason = format!(
                    "{length} tokens{what} do not fit into packed rows of {room}: load the data with a \
                     `max_length` of {most} at most, or raise `packing`"
                );
                Err(example(path, line, reason))
            }
        }
    }

    /// Number of tokens of an example's samples in a row.
    fn total_length(&self, samples: &Range<usize>) -> usize {
        samples.clone().map(|sample| self.length(sample) - self.shared(sample)).sum()
    }

    /// Number of tokens of the longest row of an example's samples, which are not packed with others.
    fn longest_row(&self, samples: &Range<usize>) -> usize {
        match self.shares_prompts() {
            true => self.total_length(samples),
            false => samples.clone().map(|sample| self.length(sample)).max().unwrap_or(0),
        }
    }

    /// Groups examples as transformers' `LengthGroupedSampler` does: groups of about 50 batches
    /// each, sorted from long to short. The longest example comes first, so that insufficient memory
    /// shows at once.
    fn grouped(
        &self,
        mut examples: Vec<usize>,
        samples: &[Range<usize>],
        size: usize,
    ) -> Vec<usize> {
        let length = |example: &usize| self.longest_row(&samples[*example]);
        let batches = (examples.len() / (4 * size)).clamp(1, 50);
        let group = batches * size;
        for group in examples.chunks_mut(group) {
            group.sort_by_key(|example| Reverse(length(example)));
        }
        let firsts = (0..examples.len()).step_by(group);
        // The first of those that are equally long.
        if let Some(longest) = firsts.rev().max_by_key(|place| length(&examples[*place])) {
            examples.swap(0, longest);
        }
        examples
    }
}
