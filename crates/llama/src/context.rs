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
#[derive(Clone, Debug)]
pub struct Segments {
    length: usize,
    /// Samples of each row in order: the first token, and one past the last.
    rows: Vec<Vec<(usize, usize)>>,
    /// Number of tokens of the sample before that each sample follows; empty if none does.
    shared: Vec<Vec<usize>>,
    adapters: Option<ActiveAdapters>,
    generated: Option<Generated>,
}

/// What generation knows beside the rows.
#[derive(Clone, Debug)]
struct Generated {
    /// Length of the longest row of the batch.
    longest: usize,
    /// Positions of new tokens, whose keys are appended to a cache, `[rows, new]`.
    positions: Option<Tensor<2, Int>>,
}

/// By rows and adapters.
impl PartialEq for Segments {
    fn eq(&self, other: &Self) -> bool {
        let of = |segments: &Self| (segments.length, segments.adapters.clone());
        of(self) == of(other) && self.rows == other.rows && self.shared == other.shared
    }
}

impl Eq for Segments {}

impl Context {
    /// Returns the adapters of the batch.
    pub fn adapters(&self) -> Option<&ActiveAdapters> {
        self.adapters.as_ref()
    }
}

impl Segments {
    fn new(length: usize, rows: Vec<Vec<(usize, usize)>>) -> Self {
        Self { length, rows, shared: vec![], adapters: None, generated: None }
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

    /// Lets samples begin with tokens of the one before, which are in the row once: of each row and each sample the number
    /// of first tokens of the sample before it that it follows, 0 for none. Its own tokens see those, and their positions go
    /// on from them; the rest of the sample before they do not see.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use burn_lora_llama::Segments;
    ///
    /// // A prompt of two tokens with an answer of one, and another answer of two.
    /// let row = Segments::packed(5, &[vec![3, 2]])?.sharing(&[vec![0, 2]]);
    /// let context = row.context(5, &Device::default());
    /// assert_eq!(context.positions.into_data().iter::<i32>().collect::<Vec<_>>(), [0, 1, 2, 2, 3]);
    /// # Ok::<_, String>(())
    /// ```
    ///
    /// # Panics
    /// If there is not a number for each sample, or the sample before has fewer tokens.
    pub fn sharing(mut self, shared: &[Vec<usize>]) -> Self {
        assert_eq!(self.rows.len(), shared.len(), "a row of numbers for each row");
        for (row, shared) in self.rows.iter().zip(shared) {
            assert_eq!(row.len(), shared.len(), "a number for each sample");
            let before = std::iter::once(0).chain(row.iter().map(|(first, end)| end - first));
            assert!(
                before.zip(shared).all(|(before, shared)| *shared <= before),
                "tokens to share"
            );
        }
        let any = shared.iter().flatten().any(|shared| *shared > 0);
        self.shared = if any { shared.to_vec() } else { vec![] };
        self
    }

    /// Returns `true` if a sample begins with tokens of another.
    pub fn is_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Creates rows whose last tokens are at these positions, `[rows, new]`: the keys of those before are in a cache of
    /// `capacity` tokens a row. The longest row has `longest` tokens.
    pub(crate) fn cached(positions: Tensor<2, Int>, capacity: usize, longest: usize) -> Self {
        let rows = vec![vec![(0, longest)]; positions.dims()[0]];
        let generated = Some(Generated { longest, positions: Some(positions) });
        Self { generated, ..Self::new(capacity, rows) }
    }

    /// Sets the length of the longest row of a batch of which these are a part.
    pub(crate) fn of_batch(self, longest: usize) -> Self {
        Self { generated: Some(Generated { longest, positions: None }), ..self }
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

    /// Position of each token in a row, the range of keys that it may see in its sample, and in the one before. Padding
    /// after a sample sees that sample, as in transformers; padding before one sees nothing.
    fn tokens_of(&self, number: usize) -> Vec<(i32, [i32; 4])> {
        let row = &self.rows[number];
        let mut tokens = vec![(0, [0; 4]); self.length];
        let mut before = 0;
        for (sample, &(first, end)) in row.iter().enumerate() {
            let next = row.get(sample + 1).map_or(self.length, |next| next.0);
            let shared = self.shared.get(number).map_or(0, |shared| shared[sample]);
            let prompt = if shared > 0 { [before, before + shared] } else { [0, 0] };
            for (at, token) in tokens.iter_mut().enumerate().take(next).skip(first) {
                let seen = [first, end, prompt[0], prompt[1]].map(|place| place as i32);
                *token = ((at - first + shared) as i32, seen);
            }
            before = first;
        }
        tokens
    }

    /// Length of the longest sample.
    fn longest(&self) -> usize {
        if let Some(generated) = &self.generated {
            return generated.longest;
        }
        let shared = self.shared.iter().flatten().copied().chain(std::iter::repeat(0));
        let samples = self.rows.iter().flatten().zip(shared);
        samples.map(|((first, end), shared)| end - first + shared).max().unwrap_or(0)
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
        if let Some(positions) = self.generated.as_ref().and_then(|found| found.positions.clone()) {
            assert_eq!(positions.dims()[1], count, "the positions of the new tokens");
            let spans = Tensor::zeros([2, 1, count], (device, DType::I32));
            return Context { positions, spans, tables: vec![], adapters: self.adapters.clone() };
        }
        let rows = if self.is_whole() { 1.min(self.rows.len()) } else { self.rows.len() };
        let tokens: Vec<_> =
            (0..rows).flat_map(|row| self.tokens_of(row).split_off(self.length - count)).collect();
        let positions: Vec<i32> = tokens.iter().map(|token| token.0).collect();
        let ends = if self.is_shared() { 4 } else { 2 };
        let spans = (0..ends).flat_map(|end| tokens.iter().map(move |token| token.1[end]));
        Context {
            positions: int(positions, [rows, count], device),
            spans: int(spans.collect(), [ends, rows, count], device),
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
    /// First key and one past the last that each token may see, `[2, rows, sequence]`; `[4, rows, sequence]` with those of
    /// the sample before, if samples [share](Segments::sharing) tokens.
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
