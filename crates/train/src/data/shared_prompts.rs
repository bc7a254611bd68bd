//! Prompts that both answers of a pair share, and that are read once.

use super::Dataset;

/// Number of tokens from which on a prompt is shared: another pass of the attention is to pay.
const LEAST: usize = 16;

impl Dataset {
    /// The data set whose pairs are one row each, with their prompt once, if they are to be.
    pub(crate) fn sharing_prompts(mut self, share: bool) -> Self {
        let share = share && self.samples_per_example() == 2;
        // (They take reading all samples.)
        if share != self.shares_prompts() {
            let all = (0..self.len()).map(|index| self.same_prompt(index) as u32);
            self.shared = share.then(|| all.collect());
        }
        self
    }

    /// Returns `true` if pairs are one row each.
    pub(super) fn shares_prompts(&self) -> bool {
        self.shared.is_some()
    }

    /// Number of first tokens of a sample that are those of the one before it, the other answer to the same prompt, and are read
    /// there. The last token of the prompt is not among them: each answer begins with one of its own, which predicts its
    /// first token.
    pub(super) fn shared(&self, index: usize) -> usize {
        self.shared.as_ref().map_or(0, |shared| shared[index] as usize)
    }

    fn same_prompt(&self, index: usize) -> usize {
        if index.is_multiple_of(2) {
            return 0;
        }
        let [chosen, rejected] = [index - 1, index].map(|index| self.sample(index));
        let same = chosen.ids.iter().zip(&rejected.ids).take_while(|(a, b)| a == b).count();
        let least = same.min(chosen.prompt_length()).min(rejected.prompt_length());
        let shared = least.saturating_sub(1);
        if shared < LEAST { 0 } else { shared }
    }

    /// [`shared`](Self::shared) of the samples of a row, as far as the one before is there.
    pub(super) fn shared_in(&self, row: &[usize]) -> Vec<usize> {
        let before = std::iter::once(None).chain(row.iter().map(Some));
        let pairs = row.iter().zip(before);
        pairs
            .map(|(sample, before)| match before {
                Some(before) if before + 1 == *sample => self.shared(*sample),
                _ => 0,
            })
            .collect()
    }
}
