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
    /// Tokens that are not padding.
    pub tokens: usize,
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

/// tmp
pub type Rows = Vec<Vec<usize>>;

/// tmp
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct BatchConfig {
    /// a
    pub size: usize,
    /// a
    pub shuffle: bool,
    /// a
    pub seed: u64,
    /// a
    pub drop_last: bool,
}
impl Default for BatchConfig {
    fn default() -> Self {
        Self { size: 1, shuffle: true, seed: 0, drop_last: false }
    }
}
/// tmp
#[derive(Clone, Debug)]
pub struct Sample {
    /// a
    pub ids: Vec<u32>,
    /// a
    pub trained: Vec<bool>,
}
/// tmp
pub struct Dataset {
    samples: Vec<Sample>,
}
#[allow(missing_docs)]
impl Dataset {
    pub fn from_samples(samples: Vec<Sample>) -> Self {
        Self { samples }
    }
    pub fn len(&self) -> usize {
        self.samples.len()
    }
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
    pub fn source(&self, i: usize) -> String {
        format!("sample {i}")
    }
    pub fn epoch(&self, c: &BatchConfig, epoch: u64) -> Result<Vec<Rows>, crate::TrainError> {
        use rand::{SeedableRng, seq::SliceRandom};
        let mut order: Vec<usize> = (0..self.len()).collect();
        if c.shuffle {
            order.shuffle(&mut rand::rngs::Xoshiro256PlusPlus::seed_from_u64(c.seed ^ epoch));
        }
        Ok(order.chunks(c.size).map(|c| c.iter().map(|i| vec![*i]).collect()).collect())
    }
    pub fn batch(&self, rows: &Rows, _c: &BatchConfig) -> Result<Batch, crate::TrainError> {
        let samples: Vec<&Sample> = rows.iter().map(|r| &self.samples[r[0]]).collect();
        let length = samples.iter().map(|s| s.ids.len()).max().unwrap();
        let mut b = Batch {
            ids: vec![],
            rows: rows.len(),
            length,
            segments: Segments::packed(
                length,
                &samples.iter().map(|s| vec![s.ids.len()]).collect::<Vec<_>>(),
            )
            .unwrap(),
            targets: vec![],
            tokens: samples.iter().map(|s| s.ids.len()).sum(),
            sources: rows.iter().map(|r| r[0]).collect(),
        };
        for s in samples {
            for i in 0..length {
                b.ids.push(s.ids.get(i).copied().unwrap_or(0));
                b.targets.push(if i + 1 < s.ids.len() && s.trained[i + 1] {
                    s.ids[i + 1] as i32
                } else {
                    -100
                });
            }
        }
        Ok(b)
    }
}
