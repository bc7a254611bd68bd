//! Which tokens of a batch belong together, and what the layers need of that.

use crate::rope::RopeConfig;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_adapter::ActiveAdapters;
use std::sync::{Arc, Mutex};

/// Which tokens of a batch see each other: every one sees itself and those before it in its own
/// sample.
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
    /// For each row the samples, each from its first token to the one after its last, in order.
    rows: Vec<Vec<(usize, usize)>>,
    adapters: Option<ActiveAdapters>,
}

impl Context {
    /// The adapters that the batch brings.
    pub fn adapters(&self) -> Option<&ActiveAdapters> {
        self.adapters.as_ref()
    }
}

impl Segments {
    fn new(length: usize, rows: Vec<Vec<(usize, usize)>>) -> Self {
        Self { length, rows, adapters: None }
    }

    /// Rows that are one sample each, without padding.
    pub fn whole(rows: usize, length: usize) -> Self {
        Self::new(length, vec![vec![(0, length)]; rows])
    }

    /// From an attention mask: 1 for a token, 0 for padding at either end of a row.
    ///
    /// # Errors
    /// Rows of different lengths, or padding between tokens.
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

    /// Rows of `length` tokens that hold several samples one after the other, by their lengths;
    /// what is left of a row is padding. Samples do not see each other, and positions start anew.
    ///
    /// # Errors
    /// Samples that are longer than the row together.
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

    /// Rows with padding on the left, so that their last tokens are at the same place.
    pub(crate) fn ending_together(length: usize, tokens: impl Iterator<Item = usize>) -> Self {
        Self::new(length, tokens.map(|count| vec![(length - count, length)]).collect())
    }

    /// The same batch with adapters of its own
    /// ([`activate`](burn_lora_adapter::AdaptableExt::activate)), in place of those that the model has
    /// selected.
    pub fn with_adapters(self, adapters: ActiveAdapters) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// Rows, and tokens a row with padding.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows.len(), self.length]
    }

    /// Tokens that are not padding.
    pub fn tokens(&self) -> usize {
        self.rows.iter().flatten().map(|(first, end)| end - first).sum()
    }

    /// Whether no row has padding or a second sample.
    fn is_whole(&self) -> bool {
        self.rows.iter().all(|row| row[..] == [(0, self.length)])
    }

    /// For each token of a row its position, and the keys that it may see. Padding after a sample
    /// sees that sample, as in transformers; padding before one sees nothing.
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

    /// Tokens of the longest sample.
    fn longest(&self) -> usize {
        self.rows.iter().flatten().map(|(first, end)| end - first).max().unwrap_or(0)
    }

    /// The last `count` tokens of each row, for keys that go on before them.
    pub(crate) fn context(&self, count: usize, table: Tensor<2>, device: &Device) -> Context {
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
            table,
            adapters: self.adapters.clone(),
        }
    }
}

fn int<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}

/// What the layers need to know of a batch: made once, used by each.
#[derive(Clone, Debug)]
pub struct Context {
    /// Position of each token in its sample, `[rows, sequence]`.
    pub positions: Tensor<2, Int>,
    /// First key and the one after the last that each token may see, `[2, rows, sequence]`.
    pub spans: Tensor<3, Int>,
    /// Cosines and sines of positions, `[positions, head_dim]`.
    pub table: Tensor<2>,
    /// The adapters that the batch brings; of `None` those that are selected take part.
    pub adapters: Option<ActiveAdapters>,
}

/// The table of positions that was made last, which most batches can use again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables(Arc<Mutex<Option<(usize, Tensor<2>)>>>);

impl Tables {
    /// The table for the positions of a batch.
    pub fn get(&self, rope: &RopeConfig, segments: &Segments, device: &Device) -> Tensor<2> {
        let positions = segments.length.next_power_of_two().max(256);
        let length = rope.length(segments.longest());
        let mut kept = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fits = |found: usize, table: &Tensor<2>| {
            found == length && table.dims()[0] >= positions && table.device() == *device
        };
        match &*kept {
            Some((found, table)) if fits(*found, table) => table.clone(),
            _ => {
                let table = rope.table(positions, length, device);
                *kept = Some((length, table.clone()));
                table
            }
        }
    }
}
