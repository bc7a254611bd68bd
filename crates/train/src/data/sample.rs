//! A sample: tokens, and their loss mask.

/// An example as tokens, with its loss mask.
///
/// ```
/// use burn_lora_train::data::Sample;
///
/// let sample = Sample { ids: vec![5, 6, 7], loss_mask: vec![false, false, true] };
/// assert_eq!(sample.target_count(), 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Loss mask: for each token whether its loss counts.
    pub loss_mask: Vec<bool>,
}

impl Sample {
    /// Number of tokens before the first that is trained on.
    pub(crate) fn prompt_length(&self) -> usize {
        self.loss_mask.iter().position(|trained| *trained).unwrap_or(self.ids.len())
    }

    /// Returns the number of tokens whose loss counts. The first is never one: nothing predicts it.
    ///
    /// ```
    /// use burn_lora_train::data::Sample;
    ///
    /// assert_eq!(Sample { ids: vec![5, 6], loss_mask: vec![true, true] }.target_count(), 1);
    /// ```
    pub fn target_count(&self) -> usize {
        self.loss_mask.iter().skip(1).filter(|trained| **trained).count()
    }
}
