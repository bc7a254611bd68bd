//! A teacher's most probable tokens, by the samples of a store.

use super::store::Store;
use std::{collections::HashMap, sync::Arc};

/// For each target token of a data set the most probable tokens by a teacher, with their log-probabilities: what
/// [`Distillation`](crate::objective::Distillation) needs of a teacher that is not there any more.
#[derive(Clone, Debug)]
pub struct TopLogits {
    /// Number of tokens for each target.
    pub(crate) k: usize,
    /// Temperature of the log-probabilities.
    pub(crate) temperature: f64,
    /// What the teacher is called, if that is known.
    pub(crate) teacher: Option<String>,
    /// What the rows are of.
    pub(super) store: Arc<Store>,
    /// First row of each sample, by its index in the store.
    pub(super) starts: HashMap<usize, usize>,
    /// Tokens, `k` for each target, the most probable first.
    pub(super) ids: Vec<i32>,
    pub(super) logps: Vec<f32>,
}

/// The rows of a batch, one for each target.
#[derive(Clone, Debug, PartialEq)]
pub struct TopRows {
    /// Number of tokens of a row.
    pub k: usize,
    /// Tokens.
    pub ids: Vec<i32>,
    /// Log-probabilities.
    pub logps: Vec<f32>,
}
