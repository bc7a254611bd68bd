//! A step of a generation, which a GPU records once and replays.

use crate::{
    cache::{KvCache, Turn},
    causal_lm::Generate,
    context::Segments,
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use burn_lora_adapter::{ActiveAdapters, Selection};
use burn_lora_kernels::{Recorded, argmax_rows, overwrite};
use std::{cell::RefCell, rc::Rc};

/// What steps of a generation share.
pub(super) struct Shared<M> {
    pub model: M,
    pub cache: RefCell<KvCache>,
}

/// What a step is for: a number of texts, and of new tokens of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size {
    pub texts: usize,
    pub tokens: usize,
}

/// A text: its row of the cache, the number of its tokens there, and the next one.
pub(super) struct TextState {
    pub row: usize,
    pub length: usize,
    pub next: u32,
}

/// A step of some texts: what it reads and writes.
pub(super) struct Step<M> {
    shared: Rc<Shared<M>>,
    size: Size,
    pub adapters: ActiveAdapters,
    /// Number of times that it has run.
    pub runs: usize,
    /// The recorded step, and the logits that it writes.
    pub recorded: Option<(Recorded, Tensor<2>)>,
    /// [`chained`], or [`given`] for several tokens of a text.
    state: Tensor<1, Int>,
}

/// Of each text the next token, its position, what that grows by, and the row: `[4 · texts]`. The step writes those of the next
/// one. Where there is no text the position does not grow, and the row is -1.
pub(super) fn chained(states: &[TextState], texts: usize, device: &Device) -> Tensor<1, Int> {
    let none = || std::iter::repeat_n(0, texts - states.len());
    let tokens = states.iter().map(|text| text.next as i32).chain(none());
    let positions = states.iter().map(|text| text.length as i32).chain(none());
    let grows = states.iter().map(|_| 1).chain(none());
    let rows = states.iter().map(|text| text.row as i32).chain(none().map(|_| -1));
    let all: Vec<_> = tokens.chain(positions).chain(grows).chain(rows).collect();
    int(all, [4 * texts], device)
}

/// Of each new token itself, its row and its position; then of each text the row, and the number of tokens with the new ones:
/// `[(3 · tokens + 2) · texts]`. The rows of a text that is not there are -1; tokens without a draft are there in form alone.
pub(super) fn given(
    states: &[TextState],
    drafts: &[Vec<u32>],
    size: Size,
    device: &Device,
) -> Tensor<1, Int> {
    let Size { texts, tokens } = size;
    let mut all: [Vec<i32>; 5] = Default::default();
    for number in 0..texts {
        let text = states.get(number);
        let (row, length) = text.map_or((-1, 0), |text| (text.row as i32, text.length));
        let next = text.map(|text| text.next);
        let draft = drafts.get(number).into_iter().flatten().copied();
        let new = next.into_iter().chain(draft).chain(std::iter::repeat(0)).take(tokens);
        all[0].extend(new.map(|token| token as i32));
        all[1].extend(std::iter::repeat_n(row, tokens));
        all[2].extend((length..length + tokens).map(|position| position as i32));
        all[3].push(row);
        all[4].push((length + tokens) as i32);
    }
    int(all.concat(), [(3 * tokens + 2) * texts], device)
}

impl<M: Generate> Step<M> {
    pub fn new(
        shared: &Rc<Shared<M>>,
        size: Size,
        adapters: ActiveAdapters,
        state: Tensor<1, Int>,
    ) -> Self {
        Self { shared: shared.clone(), size, adapters, runs: 0, recorded: None, state }
    }

    /// Stores the new tokens of each text, and returns the logits of those after, `[texts · tokens, vocabulary]`. A step with one
    /// of each sets the likeliest as the next ones.
    pub fn run(&mut self, longest: usize) -> Tensor<2> {
        let Size { texts, tokens: new } = self.size;
        let state = self.state.clone();
        let part = |at: usize, count: usize| state.clone().narrow(0, at * texts, count * texts);
        if new > 1 {
            let turn = Turn {
                places: part(new, 2 * new).reshape([2, texts, new]),
                texts: Some(part(3 * new, 2).reshape([2, texts])),
            };
            let [tokens, positions] = [0, 2].map(|at| part(at * new, new).reshape([texts, new]));
            return self.logits(tokens, positions, turn, longest);
        }
        let [tokens, positions, grows, rows] = [0, 1, 2, 3].map(|at| part(at, 1));
        let after = positions.clone() + grows.clone();
        let turn = Turn {
            places: Tensor::cat(vec![rows.clone(), positions.clone()], 0).reshape([2, texts, 1]),
            texts: Some(
                Tensor::cat(vec![rows.clone(), positions.clone() + 1], 0).reshape([2, texts]),
            ),
        };
        let [tokens, positions] = [tokens, positions].map(|all| all.reshape([texts, 1]));
        let logits = self.logits(tokens, positions, turn, longest);
        let next = argmax_rows(logits.clone());
        self.overwrite(Tensor::cat(vec![next, after, grows, rows], 0));
        logits
    }

    /// # Shapes
    /// - tokens, positions: `[texts, tokens]`
    /// - output: `[texts · tokens, vocabulary]`
    fn logits(
        &self,
        tokens: Tensor<2, Int>,
        positions: Tensor<2, Int>,
        turn: Turn,
        longest: usize,
    ) -> Tensor<2> {
        let Shared { model, cache } = &*self.shared;
        let mut cache = cache.borrow_mut();
        cache.set_turn(&turn);
        let segments = Segments::cached(positions, cache.capacity(), longest);
        let segments = segments.with_adapters(self.adapters.clone());
        let context = model.context_of_last(&segments, self.size.tokens);
        let tokens = tokens.to_device(&model.embedding_device());
        let hidden = layers(model, tokens, &context, &mut cache);
        let Size { texts, tokens: new } = self.size;
        if new == 1 || !matches!(self.adapters.selection(), Selection::Rows(_)) {
            return model.head(hidden.flatten(0, 1), &context);
        }
        // Rows with adapters of their own have one token each.
        let at = |at| model.head(hidden.clone().narrow(1, at, 1).squeeze_dim(1), &context);
        let logits: Tensor<3> = Tensor::stack((0..new).map(at).collect(), 1);
        logits.reshape([texts * new, model.vocabulary()])
    }

    /// The likeliest tokens of the first texts, after a step with one token of each.
    pub fn likeliest(&self, texts: usize) -> Tensor<1, Int> {
        self.state.clone().narrow(0, 0, texts)
    }

    /// Sets what the next step reads.
    pub fn overwrite(&mut self, new: Tensor<1, Int>) {
        self.state = overwrite(self.state.clone(), new);
    }
}

/// Embeddings and all layers.
pub(super) fn layers<M: Generate>(
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
pub(super) fn int<const D: usize>(
    values: Vec<i32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let count = values.len();
    let flat = Tensor::<1, Int>::from_data(TensorData::new(values, [count]), (device, DType::I32));
    flat.reshape(shape)
}
