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

/// Places of a row in the cache at first.
const ROOM: usize = 1024;

/// Steps from which on recording one pays: it takes as long as a few.
const RECORDED: usize = 16;

/// Rows of a batch, each with a text of its own, which begin and end at any step.
pub(super) struct Engine<M> {
    shared: Rc<Shared<M>>,
    device: Device,
    rows: Vec<Row>,
    /// Most tokens that any row has had: frequencies of positions may depend on it.
    longest: usize,
    /// Whether the device does not know the rows as they are.
    changed: bool,
    graph: Option<Graph<Tensor<2>, Box<dyn FnMut() -> Tensor<2>>>>,
}

#[derive(Clone, Copy, Default)]
struct Row {
    /// Number of tokens in the cache.
    length: usize,
    /// Next token; `None` if the row does not go on.
    next: Option<u32>,
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
    /// Creates rows without tokens, with the adapters of each or of all.
    pub fn new(model: &M, rows: usize, adapters: ActiveAdapters) -> Self {
        // Without a graph for gradients.
        let model = model.valid();
        let device = model.device().inner();
        let cache = RefCell::new(KvCache::new(model.depth(), rows, ROOM));
        let state = RefCell::new(int(vec![0; 4 * rows], [4, rows], &device));
        let shared = Rc::new(Shared { model, adapters, cache, state });
        let rows = vec![Row::default(); rows];
        Self { shared, device, rows, longest: 0, changed: true, graph: None }
    }

    /// Reads texts of some rows, each from its first token, in place of what the row had, and returns the logits of their
    /// next tokens, `[texts, vocabulary]`. Texts are read one after the other in one row, without padding.
    pub fn read(&mut self, texts: &[(usize, &[u32])]) -> Tensor<2> {
        let longest = texts.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
        self.make_room(longest);
        self.longest = self.longest.max(longest);
        for (row, text) in texts {
            self.rows[*row] = Row { length: text.len(), next: None };
        }
        self.changed = true;
        let (mut logits, mut order) = (vec![], vec![]);
        for (adapters, mut group) in self.groups(texts) {
            while !group.is_empty() {
                let mut tokens = 0;
                let fits = group.iter().take_while(|text| {
                    tokens += texts[**text].1.len();
                    tokens <= READ_AT_ONCE
                });
                let rest = group.split_off(fits.count().max(1));
                logits.push(self.read_together(texts, &group, &adapters));
                order.append(&mut group);
                group = rest;
            }
        }
        let logits = Tensor::cat(logits, 0);
        if order.is_sorted() {
            return logits;
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, text)| places[*text] = place as i32);
        logits.select(0, int(places, [order.len()], &self.device))
    }

    /// Texts by what their rows run with: one row of tokens has an adapter.
    fn groups(&self, texts: &[(usize, &[u32])]) -> Vec<(ActiveAdapters, Vec<usize>)> {
        let Shared { model, adapters, .. } = &*self.shared;
        let Selection::Rows(names) = adapters.selection() else {
            return vec![(adapters.clone(), (0..texts.len()).collect())];
        };
        let mut groups: Vec<(&String, Vec<usize>)> = vec![];
        for (number, (row, _)) in texts.iter().enumerate() {
            let name = &names[*row];
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, group)) => group.push(number),
                None => groups.push((name, vec![number])),
            }
        }
        let active = |name: &String| {
            model.activate(Selection::rows([name.as_str()])).expect("it is active already")
        };
        groups.into_iter().map(|(name, group)| (active(name), group)).collect()
    }

    /// Reads some of the texts in one row of tokens.
    fn read_together(
        &self,
        texts: &[(usize, &[u32])],
        group: &[usize],
        adapters: &ActiveAdapters,
    ) -> Tensor<2> {
        let Shared { model, cache, .. } = &*self.shared;
        let group = || group.iter().map(|number| texts[*number]);
        let counts: Vec<_> = group().map(|(_, text)| text.len()).collect();
        let total = counts.iter().sum();
        let tokens = group().flat_map(|(_, text)| text.iter().map(|token| *token as i32)).collect();
        let rows = group().flat_map(|(row, text)| std::iter::repeat_n(row as i32, text.len()));
        let places = counts.iter().flat_map(|count| 0..*count as i32);
        let places = int(rows.chain(places).collect(), [2, 1, total], &self.device);
        let ends = counts.iter().scan(0, |end, count| {
            *end += *count as i32;
            Some(*end - 1)
        });
        let ends = int(ends.collect(), [counts.len()], &self.device);
        let segments = Segments::packed(total, &[counts]).expect("as long as the samples");
        let segments = segments.of_batch(self.longest).with_adapters(adapters.clone());
        let context = model.context_of_last(&segments, total);
        let mut cache = cache.borrow_mut();
        cache.set_turn(&Turn { places, lengths: None });
        let tokens = int(tokens, [1, total], &model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        model.head(hidden.squeeze_dim::<2>(0).select(0, ends), &context)
    }

    /// Sets the next token of a row; with `None` the row ends, and what is computed for it means nothing.
    pub fn set(&mut self, row: usize, next: Option<u32>) {
        self.rows[row].next = next;
        self.changed = true;
    }

    /// Returns `true` if the texts have to be [read](Self::read) again before the next step.
    pub fn is_outdated(&self) -> bool {
        let model = &self.shared.model;
        self.longest > 0 && model.outdates_cache(self.longest, self.next_longest())
    }

    /// Appends the next token of each row that goes on, and returns the logits of those after, `[rows, vocabulary]`. `left`
    /// is the number of steps that may follow. On the device the likeliest tokens are the next ones: unless others are
    /// [set](Self::set), [`keep_likeliest`](Self::keep_likeliest) has to follow.
    pub fn step(&mut self, left: usize) -> Tensor<2> {
        let longest = self.next_longest();
        self.make_room(longest);
        self.longest = longest;
        if std::mem::take(&mut self.changed) {
            self.shared.overwrite(self.state());
        }
        let device = &self.device;
        if self.graph.is_none()
            && left >= RECORDED
            && captures(device)
            && self.shared.model.is_recordable(longest + left)
        {
            // Recording runs the step a few times, and what it stores then is stored again.
            let shared = self.shared.clone();
            let step: Box<dyn FnMut() -> Tensor<2>> = Box::new(move || shared.step(longest));
            self.graph = Some(capture(device, step));
            self.shared.overwrite(self.state());
        }
        for row in &mut self.rows {
            row.length += usize::from(row.next.is_some());
        }
        match &mut self.graph {
            None => self.shared.step(longest),
            // SAFETY: the graph owns the step with all that it reads and writes; all of it is used by this thread alone, on
            // the stream that it was recorded on.
            Some(graph) => unsafe { graph.replay() }.clone(),
        }
    }

    /// The likeliest next token of each row.
    pub fn likeliest(&self) -> Tensor<1, Int> {
        self.shared.state.borrow().clone().narrow(0, 0, 1).squeeze_dim(0)
    }

    /// Says that the next tokens of the rows that go on are the likeliest, which these are.
    pub fn keep_likeliest(&mut self, tokens: &[u32]) {
        for (row, token) in self.rows.iter_mut().zip(tokens) {
            row.next = row.next.map(|_| *token);
        }
    }

    /// The rows as the device knows them.
    fn state(&self) -> Tensor<2, Int> {
        let tokens = self.rows.iter().map(|row| row.next.unwrap_or(0) as i32);
        // A row that has ended writes to its first place, over and over.
        let positions = self.rows.iter().map(|row| row.next.map_or(0, |_| row.length as i32));
        let grows = self.rows.iter().map(|row| i32::from(row.next.is_some()));
        let count = self.rows.len();
        let values = tokens.chain(positions).chain(grows).chain(0..count as i32).collect();
        int(values, [4, count], &self.device)
    }

    /// Most tokens that any row has had after the next step.
    fn next_longest(&self) -> usize {
        let going = self.rows.iter().filter(|row| row.next.is_some());
        going.map(|row| row.length + 1).max().unwrap_or(0).max(self.longest)
    }

    /// Makes room in the cache for rows of a length. What was recorded is for the old one.
    fn make_room(&mut self, length: usize) {
        let mut cache = self.shared.cache.borrow_mut();
        if length > cache.capacity() {
            self.graph = None;
            cache.grow(length.next_power_of_two());
        }
    }
}

impl<M: Generate> Shared<M> {
    /// Appends the next token of each row, sets the likeliest as those after, and returns their logits.
    fn step(&self, longest: usize) -> Tensor<2> {
        let Self { model, adapters, cache, state } = self;
        let before = state.borrow().clone();
        let rows = before.dims()[1];
        let [tokens, positions, grows, numbers] =
            [0, 1, 2, 3].map(|at| before.clone().narrow(0, at, 1));
        let places = Tensor::cat(vec![numbers.clone(), positions.clone()], 0);
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
        self.overwrite(Tensor::cat(vec![next, positions + grows.clone(), grows, numbers], 0));
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
