//! Counts of a data set, and of what was left out.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Counts of a [`Dataset`](super::Dataset).
///
/// ```
/// use burn_lora_train::data::{Dataset, Sample};
///
/// let sample = Sample { ids: vec![5, 6, 7, 8], loss_mask: vec![false, false, true, true] };
/// let report = Dataset::from_samples([sample])?.report();
/// assert_eq!((report.examples, report.tokens, report.target_tokens), (1, 4, 2));
/// assert_eq!(report.to_string(), "1 example, 4 tokens, 2 (50.0%) of them trained on\n\
///                                 longest 4 tokens, mean 4.0");
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Examples.
    pub examples: usize,
    /// Samples, if an example is several: both answers of a pair.
    #[serde(default)]
    pub samples: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens whose loss counts.
    pub target_tokens: usize,
    /// Tokens of the longest sample.
    pub longest: usize,
    /// Examples truncated to the maximum length.
    pub truncated: usize,
    /// Examples left out because they were too long.
    pub too_long: usize,
    /// Examples left out because they could not be read.
    pub malformed: usize,
    /// Examples left out because none of their tokens is trained on.
    pub empty: usize,
    /// Pairs left out because both answers are the same.
    #[serde(default)]
    pub equal: usize,
    /// First example left out, and why.
    pub first_left_out: Option<String>,
}

impl Report {
    /// Returns the mean number of tokens per sample.
    ///
    /// ```
    /// use burn_lora_train::data::Report;
    ///
    /// let report = Report { examples: 2, tokens: 5, ..Report::default() };
    /// assert_eq!(report.mean_length(), 2.5);
    /// ```
    pub fn mean_length(&self) -> f64 {
        self.tokens as f64 / self.samples.max(self.examples).max(1) as f64
    }

    /// Returns the number of examples left out, for whatever reason.
    ///
    /// ```
    /// use burn_lora_train::data::Report;
    ///
    /// let report = Report { too_long: 2, empty: 1, ..Report::default() };
    /// assert_eq!(report.left_out(), 3);
    /// ```
    pub fn left_out(&self) -> usize {
        self.too_long + self.malformed + self.empty + self.equal
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let Self { examples, tokens, target_tokens, longest, .. } = self;
        let noun = if self.samples > *examples { "pair" } else { "example" };
        let plural = if *examples == 1 { "" } else { "s" };
        let share = 100.0 * *target_tokens as f64 / (*tokens).max(1) as f64;
        writeln!(
            out,
            "{examples} {noun}{plural}, {tokens} tokens, {target_tokens} ({share:.1}%) of them \
             trained on"
        )?;
        write!(out, "longest {longest} tokens, mean {:.1}", self.mean_length())?;
        if self.truncated > 0 {
            write!(out, "\ntruncated: {}", self.truncated)?;
        }
        if self.left_out() > 0 {
            let Self { too_long, malformed, empty, equal, .. } = self;
            let equal = match equal {
                0 => String::new(),
                equal => format!(", {equal} with the same answer twice"),
            };
            write!(
                out,
                "\nleft out: {} ({too_long} too long, {malformed} malformed, {empty} with nothing to \
                 train on{equal})",
                self.left_out()
            )?;
        }
        if let Some(first) = &self.first_left_out {
            write!(out, "; the first: {first}")?;
        }
        Ok(())
    }
}
