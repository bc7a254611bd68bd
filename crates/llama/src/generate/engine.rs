//! Texts that are generated token by token: their cache, and a step that a GPU records once and replays.

use crate::{
    cache::{KvCache, Turn},
    causal_lm::Generate,
    context::Segments,
    error::LlamaError,
};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use burn_lora_adapter::{ActiveAdapters, AdaptableExt, BASE, Selection};
use burn_lora_kernels::{
    Recorded, abandon_recording, argmax_rows, overwrite, prepare_recording, record, records,
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Mutex, MutexGuard},
};

/// Tokens of prompts that are read at once, unless one alone has more.
const READ_AT_ONCE: usize = 8192;

/// Places of a row in the cache at first, unless texts need fewer.
const ROOM: usize = 1024;

/// Steps that run before one is recorded, so that its kernels are compiled and there is memory.
const WARM: usize = 3;

/// Further steps for which recording one pays: it takes as long as a few.
const RECORDED: usize = 8;

/// Number of engines: while a GPU records, no other may read from one, and CUDA refuses it in the whole process.
static ENGINES: Mutex<usize> = Mutex::new(0);

fn engines() -> MutexGuard<'static, usize> {
    ENGINES.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Rows of a cache, each with a text of its own, which begin and end at any step.
pub(super) struct Engine<M> {
    shared: Rc<Shared<M>>,
    device: Device,
    rows: Vec<Row>,
    /// Most tokens that any row has had: frequencies of positions may depend on it.
    longest: usize,
    /// The rows of the last step, as the device knows them, and the room that it had.
    known: Vec<usize>,
    room: usize,
    /// Steps by the number of texts that they have room for.
    steps: BTreeMap<usize, Step<M>>,
    /// Whether the device records, and whether it is prepared to.
    records: bool,
    prepared: bool,
}

#[derive(Clone, Default)]
struct Row {
    /// Number of tokens in the cache.
    length: usize,
    /// Next token; `None` if the row does not go on.
    next: Option<u32>,
    adapters: ActiveAdapters,
}

struct Shared<M> {
    model: M,
    cache: RefCell<KvCache>,
}

/// A step of some texts: what it reads and writes.
struct Step<M> {
    shared: Rc<Shared<M>>,
    adapters: ActiveAdapters,
    /// Number of times that it has run.
    runs: usize,
    /// The recorded step, and the logits that it writes.
    recorded: Option<(Recorded, Tensor<2>)>,
    /// Of each text the next token, its position, what that grows by, and the row; `[4, texts]`. Where there is no text
    /// the position does not grow, and the row is -1.
    state: Tensor<2, Int>,
}

impl<M: Generate> Engine<M> {
    /// Creates rows without texts.
    pub fn new(model: &M, rows: usize) -> Self {
        *engines() += 1;
        let model = without_gradients(model);
        let device = model.device().inner();
        let cache = RefCell::new(KvCache::new(model.depth(), rows, 0));
        let shared = Rc::new(Shared { model, cache });
        let (rows, known, steps) = (vec![Row::default(); rows], vec![], BTreeMap::new());
        let (records, prepared) = (records(&device), false);
        Self { shared, device, rows, longest: 0, known, room: 0, steps, records, prepared }
    }

    /// Replaces the model by one with other adapters.
    pub fn set_model(&mut self, model: &M) {
        let cache = self.shared.cache.replace(KvCache::new(model.depth(), 0, 0));
        let model = without_gradients(model);
        self.shared = Rc::new(Shared { model, cache: RefCell::new(cache) });
        self.steps.clear();
        self.known.clear();
    }

    /// Reads texts in rows, each from its first token and with its adapters, and returns the logits of their next tokens,
    /// `[texts, vocabulary]`. Texts with the same adapters are read one after the other in one row, without padding. None
    /// becomes longer than `most` tokens.
    pub fn read(&mut self, texts: &[(usize, &[u32], ActiveAdapters)], most: usize) -> Tensor<2> {
        let longest = texts.iter().map(|(_, text, _)| text.len()).max().unwrap_or(0);
        self.make_room(longest, most);
        let others = self.rows.iter().any(|row| row.next.is_some());
        self.longest = if others { self.longest.max(longest) } else { longest };
        self.known.clear();
        for (row, text, adapters) in texts {
            self.rows[*row] = Row { length: text.len(), next: None, adapters: adapters.clone() };
        }
        let (mut logits, mut order) = (vec![], vec![]);
        let mut left: Vec<usize> = (0..texts.len()).collect();
        while let Some(first) = left.first() {
            let (adapters, mut tokens) = (&texts[*first].2, 0);
            let (group, rest): (Vec<_>, Vec<_>) = left.iter().partition(|number| {
                let (_, text, own) = &texts[**number];
                let fits = own == adapters && (tokens == 0 || tokens + text.len() <= READ_AT_ONCE);
                tokens += if fits { text.len() } else { 0 };
                fits
            });
            logits.push(self.read_together(texts, &group));
            order.extend(group);
            left = rest;
        }
        let logits = Tensor::cat(logits, 0);
        if order.is_sorted() {
            return logits;
        }
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, text)| places[*text] = place as i32);
        logits.select(0, int(places, [order.len()], &self.device))
    }

    /// Reads some of the texts, with the same adapters, in one row of tokens.
    fn read_together(
        &self,
        texts: &[(usize, &[u32], ActiveAdapters)],
        group: &[usize],
    ) -> Tensor<2> {
        let Shared { model, cache } = &*self.shared;
        let adapters = texts[group[0]].2.clone();
        let group = || group.iter().map(|number| (texts[*number].0, texts[*number].1));
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
        let segments = segments.of_batch(self.longest).with_adapters(adapters);
        let context = model.context_of_last(&segments, total);
        let mut cache = cache.borrow_mut();
        cache.set_turn(&Turn { places, texts: None });
        let tokens = int(tokens, [1, total], &model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        model.head(hidden.squeeze_dim::<2>(0).select(0, ends), &context)
    }

    /// Sets the next token of a row; with `None` the row ends.
    pub fn set(&mut self, row: usize, next: Option<u32>) {
        self.rows[row].next = next;
        self.known.clear();
    }

    /// Returns `true` if the texts that go on have to be [read](Self::read) again before the next step, or before texts of up to
    /// `reading` tokens are read.
    pub fn is_outdated(&self, reading: usize) -> bool {
        let next = self.next_longest().max(reading);
        self.longest > 0 && self.shared.model.outdates_cache(self.longest, next)
    }

    /// Appends the next token of each row that goes on, and returns the logits of those after, `[rows that go on or more,
    /// vocabulary]`; `None` if all that go on have to be [read](Self::read) again. `left` is the number of steps that may
    /// follow. On the device the [likeliest](Self::likeliest) tokens are the next ones: [`keep`](Self::keep) has to follow, or
    /// [`set`](Self::set) for each row.
    ///
    /// # Errors
    /// - [`LlamaError::Generate`] if rows with several adapters each are mixed with others.
    /// - [`LlamaError::Device`] if the device cannot do what it has recorded.
    pub fn step(&mut self, left: usize) -> Result<Option<Tensor<2>>, LlamaError> {
        let longest = self.next_longest();
        self.make_room(longest, longest + left);
        self.longest = longest;
        let going: Vec<_> = (0..self.rows.len()).filter(|row| self.goes_on(*row)).collect();
        if self.known != going {
            self.tell(&going)?;
        }
        let step = self.steps.get_mut(&self.room).expect("the device knows its texts");
        let more = left >= RECORDED && self.records;
        if step.recorded.is_none() && more && self.shared.model.is_recordable(longest + left) {
            if step.runs == 0 || !self.prepared {
                (step.runs, self.prepared) = (0, true);
                prepare_recording(&self.device);
            }
            let others = engines();
            if step.runs >= WARM && *others == 1 {
                self.prepared = false;
                match record(&self.device, || step.run(longest)) {
                    Ok((logits, recorded)) => step.recorded = Some((recorded, logits)),
                    Err(reason) => {
                        burn_lora_io::warn!(
                            "a step of generation cannot be recorded, and takes longer: {reason}"
                        );
                        self.start_anew();
                        return Ok(None);
                    }
                }
            }
        }
        for row in going {
            self.rows[row].length += 1;
        }
        let Some((recorded, logits)) = &step.recorded else {
            step.runs += 1;
            return Ok(Some(step.run(longest)));
        };
        // SAFETY: what the step reads and writes is in it, and in what it shares; all of it is used by this thread alone.
        let replayed = unsafe { recorded.replay() };
        replayed.map_err(|reason| LlamaError::Device { tensor: "logits".into(), reason })?;
        Ok(Some(logits.clone()))
    }

    /// Tells the device which rows go on, and with which adapters.
    fn tell(&mut self, going: &[usize]) -> Result<(), LlamaError> {
        // What is recorded is for few numbers of texts.
        self.room = if self.records { going.len().next_power_of_two() } else { going.len() };
        let adapters = self.adapters_of(going, self.room)?;
        let state = state(&self.rows, going, self.room, &self.device);
        let step = self.steps.get_mut(&self.room);
        // A step by rows goes on with other rows: what is recorded reads whose they are.
        let moved = step.as_ref().and_then(|step| match step.adapters == adapters {
            true => Some(adapters.clone()),
            false => step.adapters.moved(&names_of_rows(&adapters, self.room)?),
        });
        match (step, moved) {
            (Some(step), Some(moved)) => {
                step.adapters = moved;
                step.overwrite(state);
            }
            _ => _ = self.steps.insert(self.room, Step::new(&self.shared, adapters, state)),
        }
        self.known = going.to_vec();
        Ok(())
    }

    /// Forgets all that was stored, and does not record any more.
    fn start_anew(&mut self) {
        self.records = false;
        self.steps.clear();
        self.known.clear();
        let mut cache = self.shared.cache.borrow_mut();
        *cache = KvCache::new(self.shared.model.depth(), self.rows.len(), cache.capacity());
    }

    /// The likeliest next token of each row of the last step.
    pub fn likeliest(&self) -> Tensor<1, Int> {
        let tokens = self.steps[&self.room].state.clone().narrow(0, 0, 1);
        tokens.narrow(1, 0, self.known.len()).squeeze_dim(0)
    }

    /// Says that the next tokens of the rows of the last step are the likeliest, which these are.
    pub fn keep(&mut self, tokens: &[u32]) {
        for (row, token) in self.known.iter().zip(tokens) {
            self.rows[*row].next = Some(*token);
        }
    }

    fn goes_on(&self, row: usize) -> bool {
        self.rows[row].next.is_some()
    }

    /// The adapters of a batch of these rows, with room for more.
    fn adapters_of(&self, going: &[usize], room: usize) -> Result<ActiveAdapters, LlamaError> {
        let first = &self.rows[going[0]].adapters;
        if going.iter().all(|row| self.rows[*row].adapters == *first) {
            return Ok(first.clone());
        }
        let name = |row: &usize| match self.rows[*row].adapters.selection() {
            Selection::Adapters(names) if names.is_empty() => BASE.to_owned(),
            Selection::Adapters(names) | Selection::Rows(names) => names.join(" and "),
        };
        let names = going.iter().map(name);
        let names = names.chain(std::iter::repeat_n(BASE.to_owned(), room - going.len()));
        let found = self.shared.model.activate(Selection::rows(names));
        found.map_err(|error| LlamaError::Generate {
            field: "adapters",
            found: "texts with adapters of their own".into(),
            reason: error.to_string(),
        })
    }

    /// Most tokens that any row has had after the next step.
    fn next_longest(&self) -> usize {
        let going = self.rows.iter().filter(|row| row.next.is_some());
        going.map(|row| row.length + 1).max().unwrap_or(0).max(self.longest)
    }

    /// Makes room in the cache for rows of a length, which may reach `most`. What was recorded is for the old one.
    fn make_room(&mut self, length: usize, most: usize) {
        let mut cache = self.shared.cache.borrow_mut();
        if length > cache.capacity() {
            self.steps.clear();
            self.known.clear();
            cache.grow(length.next_power_of_two().max(ROOM).min(most));
        }
    }
}

/// A copy of a model that makes no graph for gradients, whose updates have the dtype of what runs through it, and whose head is
/// as small as it can be.
fn without_gradients<M: Generate>(model: &M) -> M {
    let mut model = model.valid();
    let segments = Segments::whole(1, 1).with_adapters(ActiveAdapters::default());
    let token = int(vec![0], [1, 1], &model.embedding_device());
    let dtype = model.embed(token, &model.context(&segments)).dtype();
    model.cast_updates(FloatDType::from(dtype));
    model.compact_head();
    model
}

/// The adapter of each row, or [`BASE`], unless some have several.
fn names_of_rows(adapters: &ActiveAdapters, rows: usize) -> Option<Vec<String>> {
    match adapters.selection() {
        Selection::Rows(names) => Some(names.to_vec()),
        Selection::Adapters(names) if names.len() > 1 => None,
        Selection::Adapters(names) => {
            let name = names.first().cloned().unwrap_or_else(|| BASE.to_owned());
            Some(vec![name; rows])
        }
    }
}

/// The texts of these rows, with room for more, as a step takes them.
fn state(rows: &[Row], going: &[usize], room: usize, device: &Device) -> Tensor<2, Int> {
    let none = || std::iter::repeat_n(0, room - going.len());
    let tokens = going.iter().map(|row| rows[*row].next.unwrap_or(0) as i32).chain(none());
    let positions = going.iter().map(|row| rows[*row].length as i32).chain(none());
    let grows = going.iter().map(|_| 1).chain(none());
    let numbers = going.iter().map(|row| *row as i32).chain(none().map(|_| -1));
    int(tokens.chain(positions).chain(grows).chain(numbers).collect(), [4, room], device)
}

impl<M> Drop for Engine<M> {
    fn drop(&mut self) {
        *engines() -= 1;
        if self.prepared {
            abandon_recording(&self.device);
        }
    }
}

impl<M: Generate> Step<M> {
    fn new(shared: &Rc<Shared<M>>, adapters: ActiveAdapters, state: Tensor<2, Int>) -> Self {
        Self { shared: shared.clone(), adapters, runs: 0, recorded: None, state }
    }

    /// Appends the next token of each text, sets the likeliest as those after, and returns their logits.
    fn run(&mut self, longest: usize) -> Tensor<2> {
        let shared = self.shared.clone();
        let Shared { model, cache } = &*shared;
        let before = self.state.clone();
        let texts = before.dims()[1];
        let [tokens, positions, grows, rows] =
            [0, 1, 2, 3].map(|at| before.clone().narrow(0, at, 1));
        let after = positions.clone() + grows.clone();
        let turn = Turn {
            places: Tensor::cat(vec![rows.clone(), positions.clone()], 0).reshape([2, texts, 1]),
            texts: Some(Tensor::cat(vec![rows.clone(), positions.clone() + 1], 0)),
        };
        let mut cache = cache.borrow_mut();
        cache.set_turn(&turn);
        let segments = Segments::cached(positions.reshape([texts, 1]), cache.capacity(), longest);
        let context = model.context_of_last(&segments.with_adapters(self.adapters.clone()), 1);
        let tokens = tokens.reshape([texts, 1]).to_device(&model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        let logits = model.head(hidden.squeeze_dim::<2>(1), &context);
        let next = argmax_rows(logits.clone()).reshape([1, texts]);
        self.overwrite(Tensor::cat(vec![next, after, grows, rows], 0));
        logits
    }

    fn overwrite(&mut self, new: Tensor<2, Int>) {
        self.state = overwrite(self.state.clone(), new);
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

/// A tensor whose rows a GPU does not pad.
fn int<const D: usize>(values: Vec<i32>, shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    let count = values.len();
    let flat = Tensor::<1, Int>::from_data(TensorData::new(values, [count]), (device, DType::I32));
    flat.reshape(shape)
}
