//! Rows of a batch that are generated token by token: their cache, and a step that a GPU records once and replays.

use crate::{
    cache::{KvCache, Turn},
    causal_lm::Generate,
    context::Segments,
};
use burn::tensor::{DType, Device, Graph, Int, Tensor, TensorData, capture};
use burn_lora_adapter::{ActiveAdapters, AdaptableExt, Selection};
use burn_lora_kernels::{captures, overwrite};
use std::{cell::RefCell, rc::Rc};

/// Tokens of prompts that are read at once, unless one alone has more.
const READ_AT_ONCE: usize = 8192;

/// Places that a cache has at first, if no row needs more.
const ROOM: usize = 1024;

/// Steps from which on recording one pays: it takes as long as a few.
const RECORDED: usize = 16;

/// Rows of a batch.
pub(super) struct Engine<M> {
    shared: Rc<Shared<M>>,
    device: Device,
    /// Number of tokens of each row in the cache.
    lengths: Vec<usize>,
    /// Rows that do not go on.
    ended: Vec<bool>,
    /// Whether the next tokens are set.
    set: bool,
    graph: Option<Graph<Tensor<2>, Box<dyn FnMut() -> Tensor<2>>>>,
}

/// What a recorded step reads and writes.
struct Shared<M> {
    model: M,
    adapters: ActiveAdapters,
    cache: RefCell<KvCache>,
    /// Of each row the next token, its position, what that grows by (1, or 0 if the row has ended), and its number;
    /// `[4, rows]`.
    state: RefCell<Tensor<2, Int>>,
}

impl<M: Generate> Engine<M> {
    /// Creates rows without tokens, for at most `capacity` tokens each, with the adapters of each or of all.
    pub fn new(model: &M, rows: usize, capacity: usize, adapters: ActiveAdapters) -> Self {
        // Without a graph for gradients.
        let model = model.valid();
        let device = model.device().inner();
        let cache = RefCell::new(KvCache::new(model.depth(), rows, capacity.min(ROOM)));
        let state = RefCell::new(int(vec![0; 4 * rows], [4, rows], &device));
        let shared = Rc::new(Shared { model, adapters, cache, state });
        Self {
            shared,
            device,
            lengths: vec![0; rows],
            ended: vec![false; rows],
            set: false,
            graph: None,
        }
    }

    /// Reads the texts of the rows from the first, and returns the logits of their next tokens, `[rows, vocabulary]`.
    /// Texts are read one after the other in one row, without padding.
    pub fn read(&mut self, texts: &[Vec<u32>]) -> Tensor<2> {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        self.lengths = texts.iter().map(Vec::len).collect();
        self.set = false;
        self.make_room(longest);
        let mut logits = vec![];
        let mut order = vec![];
        for (adapters, rows) in self.groups() {
            let mut at = 0;
            while at < rows.len() {
                let mut tokens = 0;
                let fits = rows[at..].iter().take_while(|row| {
                    tokens += texts[**row].len();
                    tokens <= READ_AT_ONCE
                });
                let some = &rows[at..at + fits.count().max(1)];
                logits.push(self.read_some(texts, some, &adapters, longest));
                order.extend_from_slice(some);
                at += some.len();
            }
        }
        let logits = Tensor::cat(logits, 0);
        if order.is_sorted() {
            return logits;
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, row)| places[*row] = place as i32);
        let count = places.len();
        logits.select(0, int(places, [count], &self.device))
    }

    /// Rows by what they run with.
    fn groups(&self) -> Vec<(ActiveAdapters, Vec<usize>)> {
        let Shared { model, adapters, .. } = &*self.shared;
        let Selection::Rows(names) = adapters.selection() else {
            return vec![(adapters.clone(), (0..self.lengths.len()).collect())];
        };
        let mut groups: Vec<(&String, Vec<usize>)> = vec![];
        for (row, name) in names.iter().enumerate() {
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((name, vec![row])),
            }
        }
        // One row of tokens has all texts of an adapter.
        let active = |name: &String| {
            model.activate(Selection::rows([name.as_str()])).expect("it is active already")
        };
        groups.into_iter().map(|(name, rows)| (active(name), rows)).collect()
    }

    /// Reads the texts of some rows.
    fn read_some(
        &self,
        texts: &[Vec<u32>],
        rows: &[usize],
        adapters: &ActiveAdapters,
        longest: usize,
    ) -> Tensor<2> {
        let Shared { model, cache, .. } = &*self.shared;
        let counts: Vec<_> = rows.iter().map(|row| texts[*row].len()).collect();
        let total = counts.iter().sum();
        let tokens = rows.iter().flat_map(|row| &texts[*row]).map(|token| *token as i32).collect();
        let of = rows.iter().zip(&counts).flat_map(|(row, count)| vec![*row as i32; *count]);
        let places = counts.iter().flat_map(|count| 0..*count as i32);
        let places = int(of.chain(places).collect(), [2, 1, total], &self.device);
        let ends = counts.iter().scan(0, |end, count| {
            *end += *count as i32;
            Some(*end - 1)
        });
        let ends = int(ends.collect(), [counts.len()], &self.device);
        let segments = Segments::packed(total, &[counts]).expect("as long as the samples");
        let segments = segments.of_batch(longest).with_adapters(adapters.clone());
        let context = model.context_of_last(&segments, total);
        let mut cache = cache.borrow_mut();
        cache.set_turn(&Turn { places, lengths: None });
        let tokens = int(tokens, [1, total], &model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        model.head(hidden.squeeze_dim::<2>(0).select(0, ends), &context)
    }

    /// Sets the next token of each row; with `None` the row ends, and what is computed for it means nothing.
    pub fn set(&mut self, tokens: &[Option<u32>]) {
        self.ended = tokens.iter().map(Option::is_none).collect();
        self.set = true;
        let places = || self.lengths.iter().zip(tokens).map(|(at, token)| (*at, token.is_some()));
        let next = tokens.iter().map(|token| token.unwrap_or(0) as i32);
        // A row that has ended writes to its first place, over and over.
        let positions = places().map(|(at, goes_on)| if goes_on { at as i32 } else { 0 });
        let grows = places().map(|(_, goes_on)| i32::from(goes_on));
        let rows = 0..tokens.len() as i32;
        let values = next.chain(positions).chain(grows).chain(rows).collect();
        let state = int(values, [4, tokens.len()], &self.device);
        self.shared.overwrite(state);
    }

    /// Appends the next token of each row, and returns the logits of those after, `[rows, vocabulary]`. The likeliest of
    /// those are [set](Self::set) as the next tokens. `left` is the number of steps that may follow.
    pub fn step(&mut self, left: usize) -> Tensor<2> {
        let longest = self.longest() + 1;
        self.make_room(longest);
        let device = &self.device;
        if self.graph.is_none()
            && left >= RECORDED
            && captures(device)
            && self.shared.model.is_recordable(longest + left)
        {
            // Recording runs the step a few times, and what it stores then is stored again.
            let state = self.shared.state.borrow().clone().into_data();
            let shared = self.shared.clone();
            let step: Box<dyn FnMut() -> Tensor<2>> = Box::new(move || shared.step(longest));
            self.graph = Some(capture(device, step));
            self.shared.overwrite(Tensor::from_data(state, (device, DType::I32)));
        }
        for (length, ended) in self.lengths.iter_mut().zip(&self.ended) {
            *length += usize::from(!ended);
        }
        match &mut self.graph {
            None => self.shared.step(longest),
            // SAFETY: the graph owns the step with all that it reads and writes; all of it is used by this thread alone, on
            // the stream that it was recorded on.
            Some(graph) => unsafe { graph.replay() }.clone(),
        }
    }

    /// The next token of each row.
    pub fn next(&self) -> Tensor<1, Int> {
        self.shared.state.borrow().clone().narrow(0, 0, 1).squeeze_dim(0)
    }

    /// Returns `true` if the next tokens are [set](Self::set), by the step before.
    pub fn is_set(&self) -> bool {
        self.set
    }

    /// Number of tokens of the longest row in the cache, of those that go on.
    pub fn longest(&self) -> usize {
        let going = self.lengths.iter().zip(&self.ended).filter(|(_, ended)| !**ended);
        going.map(|(length, _)| *length).max().unwrap_or(0)
    }

    /// Makes room in the cache for rows of a length. What was recorded is for the old one.
    fn make_room(&mut self, length: usize) {
        let mut cache = self.shared.cache.borrow_mut();
        if length > cache.capacity() {
            self.graph = None;
            cache.grow(length.next_power_of_two().max(ROOM));
        }
    }
}

impl<M: Generate> Shared<M> {
    /// Appends the next token of each row, sets the likeliest as those after, and returns their logits.
    fn step(&self, longest: usize) -> Tensor<2> {
        let Self { model, adapters, cache, state } = self;
        let before = state.borrow().clone();
        let rows = before.dims()[1];
        let row = |at| before.clone().narrow(0, at, 1);
        let (tokens, positions, grows, number) = (row(0), row(1), row(2), row(3));
        let places = Tensor::cat(vec![number.clone(), positions.clone()], 0);
        let places = places.reshape([2, rows, 1]);
        let lengths = (positions.clone() + 1).squeeze_dim(0);
        let mut cache = cache.borrow_mut();
        cache.set_turn(&Turn { places, lengths: Some(lengths) });
        let segments =
            Segments::cached(positions.clone().reshape([rows, 1]), cache.capacity(), longest);
        let context = model.context_of_last(&segments.with_adapters(adapters.clone()), 1);
        let tokens = tokens.reshape([rows, 1]).to_device(&model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        let logits = model.head(hidden.squeeze_dim::<2>(1), &context);
        let next = logits.clone().argmax(1).cast(DType::I32).reshape([1, rows]);
        self.overwrite(Tensor::cat(vec![next, positions + grows.clone(), grows, number], 0));
        logits
    }

    fn overwrite(&self, new: Tensor<2, Int>) {
        self.state.replace_with(|state| overwrite(state.clone(), new));
    }
}

/// Embeddings and all layers.
fn layers<M: Generate>(
    model: &M,
    tokens: Tensor<2, Int>,
    context: &M::Context,
    cache: &mut KvCache,
) -> Tensor<3> {
    let hidden = model.embed(tokens, context);
    (0..model.depth()).fold(hidden, |hidden, index| {
        model.cached_layer(index, hidden, context, cache.layer(index))
    })
}

fn int<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::I32))
}
