//! Texts that are generated token by token: their cache, and what the device knows of them.

use super::step::{self, Shared, Size, Step, TextState, int, layers};
use crate::{
    cache::{KvCache, Turn},
    causal_lm::Generate,
    context::Segments,
    error::LlamaError,
};
use burn::tensor::{Device, FloatDType, Int, Tensor};
use burn_lora_adapter::{ActiveAdapters, AdaptableExt, BASE, Selection};
use burn_lora_kernels::{abandon_recording, prepare_recording, record, records};
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
    /// The rows of the last step, as the device knows them.
    known: Vec<usize>,
    /// What the last step was for, and steps by that.
    last: Size,
    steps: BTreeMap<Size, Step<M>>,
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
        Self {
            shared,
            device,
            rows,
            longest: 0,
            known,
            last: Size::default(),
            steps,
            records,
            prepared,
        }
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
        let going = self.going();
        if self.known != going {
            let texts = self.room_for(&going);
            let state = step::chained(&self.state_of(&going), texts, &self.device);
            self.tell(&going, Size { texts, tokens: 1 }, state)?;
            self.known = going.clone();
        }
        let logits = self.run(longest, left)?;
        if logits.is_some() {
            going.iter().for_each(|row| self.rows[*row].length += 1);
        }
        Ok(logits)
    }

    /// Returns `true` if so many tokens of each row can be [checked](Self::check): the frequencies of positions do not change.
    pub fn can_check(&self, tokens: usize) -> bool {
        let longest = self.next_longest() + tokens - 1;
        !self.shared.model.outdates_cache(self.longest, longest)
    }

    /// Reads the next token of each row that goes on and `drafts` after it, `tokens` in all, without appending them, and returns
    /// the logits of the tokens after each, `[rows that go on or more, tokens, vocabulary]`; `None` as in [`step`](Self::step).
    /// [`append`](Self::append) has to follow, and [`set`](Self::set), for each row.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn check(
        &mut self,
        drafts: &[Vec<u32>],
        tokens: usize,
        left: usize,
    ) -> Result<Option<Tensor<3>>, LlamaError> {
        let longest = self.next_longest() + tokens - 1;
        self.make_room(longest, longest + left);
        let (going, before) = (self.going(), self.longest);
        let size = Size { texts: self.room_for(&going), tokens };
        let state = step::given(&self.state_of(&going), drafts, size, &self.device);
        self.known.clear();
        self.tell(&going, size, state)?;
        let logits = self.run(longest, left)?;
        // What is not appended was never there.
        self.longest = before;
        Ok(logits.map(|logits| {
            let [all, width] = logits.dims();
            logits.reshape([all / tokens, tokens, width])
        }))
    }

    /// Appends so many of the tokens that were [checked](Self::check) to a row.
    pub fn append(&mut self, row: usize, count: usize) {
        self.rows[row].length += count;
        self.longest = self.longest.max(self.rows[row].length);
    }

    /// The step that the device knows of, which is recorded if that pays.
    fn run(&mut self, longest: usize, left: usize) -> Result<Option<Tensor<2>>, LlamaError> {
        self.longest = longest;
        let step = self.steps.get_mut(&self.last).expect("the device knows its texts");
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
        let Some((recorded, logits)) = &step.recorded else {
            step.runs += 1;
            return Ok(Some(step.run(longest)));
        };
        // SAFETY: what the step reads and writes is in it, and in what it shares; all of it is used by this thread alone.
        let replayed = unsafe { recorded.replay() };
        replayed.map_err(|reason| LlamaError::Device { tensor: "logits".into(), reason })?;
        Ok(Some(logits.clone()))
    }

    /// Number of texts of a step of these rows: what is recorded is for few numbers of texts.
    fn room_for(&self, going: &[usize]) -> usize {
        if self.records { going.len().next_power_of_two() } else { going.len() }
    }

    /// Tells the device which rows go on, and with which adapters, by the state of a step of this size.
    fn tell(
        &mut self,
        going: &[usize],
        size: Size,
        state: Tensor<1, Int>,
    ) -> Result<(), LlamaError> {
        let adapters = self.adapters_of(going, size.texts)?;
        self.last = size;
        let step = self.steps.get_mut(&size);
        // A step by rows goes on with other rows: what is recorded reads whose they are.
        let moved = step.as_ref().and_then(|step| match step.adapters == adapters {
            true => Some(adapters.clone()),
            false => step.adapters.moved(&names_of_rows(&adapters, size.texts)?),
        });
        match (step, moved) {
            (Some(step), Some(moved)) => {
                step.adapters = moved;
                step.overwrite(state);
            }
            _ => _ = self.steps.insert(size, Step::new(&self.shared, size, adapters, state)),
        }
        Ok(())
    }

    /// The texts of these rows, as a step takes them.
    fn state_of(&self, going: &[usize]) -> Vec<TextState> {
        let state = |row: &usize| {
            let Row { length, next, .. } = &self.rows[*row];
            TextState { row: *row, length: *length, next: next.unwrap_or(0) }
        };
        going.iter().map(state).collect()
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
        self.steps[&self.last].likeliest(self.known.len())
    }

    /// Says that the next tokens of the rows of the last step are the likeliest, which these are.
    pub fn keep(&mut self, tokens: &[u32]) {
        for (row, token) in self.known.iter().zip(tokens) {
            self.rows[*row].next = Some(*token);
        }
    }

    /// The rows that go on.
    fn going(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|row| self.rows[*row].next.is_some()).collect()
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

impl<M> Drop for Engine<M> {
    fn drop(&mut self) {
        *engines() -= 1;
        if self.prepared {
            abandon_recording(&self.device);
        }
    }
}
