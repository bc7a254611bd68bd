//! Prompts with the answers to others.

use super::{BatchConfig, Dataset, Sample, store::Writer};
use crate::error::TrainError;

impl Dataset {
    /// Adds for each sample its prompt with the answer of the one before, of the first in each block of `block` samples
    /// with that of the last: answers that are no better than chance. As in TRL, blocks are in the order of the
    /// data, and a sample that is alone in its block keeps its answer.
    pub(crate) fn with_mismatched(mut self, block: usize) -> Result<Self, TrainError> {
        let (count, block) = (self.len(), block.max(1));
        let most = self.store.max_length.unwrap_or(usize::MAX);
        let samples = (0..count).map(|index| {
            let first = index / block * block;
            let last = count.min(first + block) - 1;
            let from = if index == first { last } else { index - 1 };
            let (prompt, answer) = (self.sample(index), self.sample(from));
            let (end, begin) = (prompt.prompt_length(), answer.prompt_length());
            let mut ids = [&prompt.ids[..end], &answer.ids[begin..]].concat();
            let mut loss_mask = [&prompt.loss_mask[..end], &answer.loss_mask[begin..]].concat();
            ids.truncate(most);
            loss_mask.truncate(most);
            let found = Sample { ids, loss_mask };
            // An answer of one token to no prompt has nothing to predict.
            if found.target_count() == 0 { self.sample(index) } else { found }
        });
        let mut writer = Writer::new(Some(&self.store.folder), vec!["mismatched".into()])?;
        for (number, sample) in samples.enumerate() {
            writer.push(&sample, 0, number + 1)?;
        }
        self.mismatched = Some(Self::new(writer.finish(None)?).into());
        Ok(self)
    }

    /// The samples of [`with_mismatched`](Self::with_mismatched), if they are there.
    pub(crate) fn mismatched(&self) -> Option<&Self> {
        self.mismatched.as_deref()
    }

    /// Settings of the rows of mismatched samples: packed rows hold the longest.
    pub(crate) fn batches_of_mismatched(&self, config: &BatchConfig) -> BatchConfig {
        let packing = config.packing.map(|room| room.max(self.store.longest));
        BatchConfig { packing, ..config.clone() }
    }

    /// The data set with other mismatched samples.
    pub(crate) fn set_mismatched(&mut self, samples: Self) {
        self.mismatched = Some(samples.into());
    }
}
