//! Samples and padding in a batch, and the inputs that its layers share.

use crate::rope::RopeConfig;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_adapter::ActiveAdapters;
use std::sync::{Arc, Mutex};

/// Samples and padding in the rows of a batch: each token sees itself and the tokens before it in
/// its own sample.
///
/// ```
/// use burn_lora_llama::Segments;
///
/// let whole = Segments::whole(2, 5); // two rows of five tokens
/// let padded = Segments::from_mask(&[vec![1, 1, 1, 0, 0], vec![0, 0, 1, 1, 1]])?;
/// let packed = Segments::packed(5, &[vec![2, 3], vec![1, 3]])?; // several samples a row
/// assert_eq!(packed.tokens(), 9);
/// # Ok::<_, String>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    length: usize,
    /// Samples of each row in order: the first token, and one past the last.
    rows: Vec<Vec<(usize, usize)>>,
    adapters: Option<ActiveAdapters>,
}

impl Context {
    /// Returns the adapters of the batch.
    pub fn adapters(&self) -> Option<&ActiveAdapters> {
        self.adapters.as_ref()
    }
}

impl Segments {
    fn new(length: usize, rows: Vec<Vec<(usize, usize)>>) -> Self {
        Self { length, rows, adapters: None }
    }

    /// Creates rows of one sample each, without padding.
    pub fn whole(rows: usize, length: usize) -> Self {
        Self::new(length, vec![vec![(0, length)]; rows])
    }

    /// Creates rows from an attention mask: 1 for a token, 0 for padding at either end of a row.
    ///
    /// # Errors
    /// If rows differ in length, or a row has padding between tokens.
    pub fn from_mask(mask: &[Vec<u8>]) -> Result<Self, String> {
        let length = mask.first().map_or(0, Vec::len);
        let rows = mask.iter().enumerate().map(|(number, row)| {
            if row.len() != length {
                return Err(format!(
                    "row {number} of the mask has {} items, the first {length}",
                    row.len()
                ));
            }
            let first = row.iter().position(|&item| item != 0).unwrap_or(0);
            let end = row.iter().rposition(|&item| item != 0).map_or(first, |last| last + 1);
            if row[first..end].contains(&0) {
                return Err(format!("row {number} of the mask has padding between tokens"));
            }
            Ok(vec![(first, end)])
        });
        Ok(Self::new(length, rows.collect::<Result<_, _>>()?))
    }

    /// Creates rows of `length` tokens that hold several samples one after the other, given by
    /// their lengths; the rest of a row is padding. Samples do not see each other, and positions
    /// start anew.
    ///
    /// # Errors
    /// If the samples of a row exceed `length` together.
    pub fn packed(length: usize, rows: &[Vec<usize>]) -> Result<Self, String> {
        let rows = rows.iter().enumerate().map(|(number, samples)| {
            let mut end = 0usize;
            let row: Vec<_> = samples
                .iter()
                .map(|sample| {
                    let start = end;
                    end = end.saturating_add(*sample);
                    (start, end)
                })
                .collect();
            if end > length {
                return Err(format!("row {number} has {end} tokens, of {length}"));
            }
            Ok(row)
        });
        Ok(Self::new(length, rows.collect::<Result<_, _>>()?))
    }

    /// Creates rows with padding on the left, so that their last tokens are aligned.
    pub(crate) fn ending_together(length: usize, tokens: impl Iterator<Item = usize>) -> Self {
        Self::new(length, tokens.map(|count| vec![(length - count, length)]).collect())
    }

    /// Sets adapters for this batch ([`activate`](burn_lora_adapter::AdaptableExt::activate)), in
    /// place of those selected in the model.
    pub fn with_adapters(self, adapters: ActiveAdapters) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// Number of rows, and tokens per row with padding.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows.len(), self.length]
    }

    /// Number of tokens without padding.
    pub fn tokens(&self) -> usize {
        self.rows.iter().flatten().map(|(first, end)| end - first).sum()
    }

    /// Returns `true` if no row has padding or a second sample.
    fn is_whole(&self) -> bool {
        self.rows.iter().all(|row| row[..] == [(0, self.length)])
    }

    /// Position of each token in a row, and the range of keys that it may see. Padding after a
    /// sample sees that sample, as in transformers; padding before one sees nothing.
    fn tokens_of(&self, row: &[(usize, usize)]) -> Vec<(i32, [i32; 2])> {
        let mut tokens = vec![(0, [0, 0]); self.length];
        for (number, &(first, end)) in row.iter().enumerate() {
            let next = row.get(number + 1).map_or(self.length, |next| next.0);
            for (at, token) in tokens.iter_mut().enumerate().take(next).skip(first) {
                *token = ((at - first) as i32, [first as i32, end as i32]);
            }
        }
        tokens
    }

    /// Length of the longest sample.
    fn longest(&self) -> usize {
        self.rows.iter().flatten().map(|(first, end)| end - first).max().unwrap_or(0)
    }

    /// Adapters of this batch, if it has its own.
    pub fn adapters(&self) -> Option<&ActiveAdapters> {
        self.adapters.as_ref()
    }

    /// Builds the context of the last `count` tokens of each row, whose keys include those of the
    /// tokens before. It has no tables of rotary positions.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_lora_llama::Segments;
    ///
    /// let padded = Segments::from_mask(&[vec![1, 1, 1, 1], vec![0, 0, 1, 1]])?;
    /// let next = padded.context(1, &Device::default()); // the first three are in a cache
    /// assert_eq!(next.positions.into_data().iter::<i32>().collect::<Vec<_>>(), [3, 1]);
    /// assert_eq!(next.spans.into_data().iter::<i32>().collect::<Vec<_>>(), [0, 2, 4, 4]);
    /// # Ok::<_, String>(())
    /// ```
    ///
    /// # Panics
    /// If a row has fewer tokens than `count`, padding included.
    pub fn context(&self, count: usize, device: &Device) -> Context {
        assert!(count <= self.length, "{count} tokens at the end of {}", self.length);
        let rows = if self.is_whole() { &self.rows[..1.min(self.rows.len())] } else { &self.rows };
        let tokens: Vec<_> = rows
            .iter()
            .flat_map(|row| self.tokens_of(row).split_off(self.length - count))
            .collect();
        let positions: Vec<i32> = tokens.iter().map(|token| token.0).collect();
        let ends = |end: usize| tokens.iter().map(move |token| token.1[end]);
        let spans: Vec<i32> = ends(0).chain(ends(1)).collect();
        let count_rows = rows.len();
        Context {
            positions: int(positions, [count_rows, count], device),
            spans: int(spans, [2, count_rows, count], device),
            tables: vec![],
            adapters: self.adapters.clone(),
        }
    }
}

fn int<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

/// Context of a batch, which all layers share ([`Segments::context`]).
///
/// `rows` is 1 if no row has padding or a second sample: all rows are alike.
#[derive(Clone, Debug)]
pub struct Context {
    /// Position of each token in its sample, `[rows, sequence]`.
    pub positions: Tensor<2, Int>,
    /// First key and one past the last that each token may see, `[2, rows, sequence]`.
    pub spans: Tensor<3, Int>,
    /// Cosines and sines of positions, `[positions, rotary_dim]`: a table for each of the model's
    /// rotary embeddings.
    pub tables: Vec<Tensor<2>>,
    /// Adapters of the batch; with `None`, those selected in the model are used.
    pub adapters: Option<ActiveAdapters>,
}

/// Cache of the last tables of positions, which most batches can reuse.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables(Arc<Mutex<Vec<(usize, Tensor<2>)>>>);

impl Tables {
    /// Returns the tables for the positions of a batch.
    pub fn get(
        &self,
        ropes: &[RopeConfig],
        segments: &Segments,
        device: &Device,
    ) -> Vec<Tensor<2>> {
        let positions = segments.length.next_power_of_two().max(256);
        let longest = segments.longest();
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let get = |(index, rope): (usize, &RopeConfig)| {
            let length = rope.length(longest);
            let fits = |(found, table): &&(usize, Tensor<2>)| {
                *found == length && table.dims()[0] >= positions && table.device() == *device
            };
            if let Some((_, table)) = kept.get(index).filter(fits) {
                return table.clone();
            }
            let table = rope.table(positions, length, device);
            kept.truncate(index);
            kept.push((length, table.clone()));
            table
        };
        ropes.iter().enumerate().map(get).collect()
    }
}
