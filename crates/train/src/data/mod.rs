//! Data: from files to batches of tokens.

use burn_lora_llama::Segments;

/// A micro-batch: rows of tokens of one length.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Row by row, padded on the right.
    pub ids: Vec<u32>,
    /// Rows.
    pub rows: usize,
    /// Tokens a row, with padding.
    pub length: usize,
    /// Which tokens see each other.
    pub segments: Segments,
    /// For each token its successor where that is trained, else -100.
    pub targets: Vec<i32>,
    /// The samples in it, by their number in the data set.
    pub sources: Vec<usize>,
}

impl Batch {
    /// Tokens whose successor is trained.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|target| **target >= 0).count()
    }

    /// Where they are, row after row, and their successors.
    pub(crate) fn target_places(&self) -> Vec<(i32, i32)> {
        let all = self.targets.iter().enumerate();
        all.filter(|(_, id)| **id >= 0).map(|(place, id)| (place as i32, *id)).collect()
    }
}
