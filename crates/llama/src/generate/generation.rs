//! Texts that are continued together, and begin and end at any token.

use super::{
    config::{GenerateConfig, wrong},
    engine::Engine,
    lookup::draft,
    sample::{LogProbs, Sampler, log_probs},
};
use crate::{causal_lm::Generate, error::LlamaError};
use burn::tensor::{DType, FloatDType, Int, Tensor};
use burn_lora_adapter::{ActiveAdapters, AdaptableExt, Selection};
use burn_lora_kernels::argmax_rows;
use std::collections::VecDeque;

/// Texts that are continued together: others join at any token, and each has settings and adapters of its own. What a text
/// becomes does not depend on the others.
///
/// ```no_run
/// # let model: burn_lora_llama::Llama = unimplemented!();
/// use burn_lora_llama::{GenerateConfig, Generation};
///
/// let mut texts = Generation::new(&model, 16);
/// texts.push(1, vec![1, 450, 7483], GenerateConfig::new(16))?;
/// texts.push(2, vec![1, 15043], GenerateConfig::new(8).temperature(0.7))?;
/// while !texts.is_empty() {
///     for found in texts.step()? {
///         println!("{}: {:?} {:?}", found.id, found.token, found.stopped);
///     }
/// }
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
pub struct Generation<M> {
    model: M,
    engine: Engine<M>,
    rows: Vec<Option<Text>>,
    waiting: VecDeque<Text>,
    ends: Vec<u32>,
    /// Whether the last step read texts that had come: then the next one continues the others.
    has_read: bool,
}

/// What a step added to a text.
#[derive(Clone, Debug, PartialEq)]
pub struct NextToken {
    /// Id of the text.
    pub id: u64,
    /// New token; `None` if it is one that ends the text.
    pub token: Option<u32>,
    /// Log-probabilities of its place, if the settings of the text ask for them.
    pub log_probs: Option<LogProbs>,
    /// Reason why the text has ended, if it has.
    pub stopped: Option<Stopped>,
}

/// The token that was chosen for a text.
type Chosen = (u32, Option<LogProbs>);

/// Reason why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// `max_new_tokens` was reached.
    Length,
    /// An end-of-text token or a stop token was generated.
    Token,
    /// A stop string was found.
    Text,
    /// The callback ended the row.
    Callback,
}

struct Text {
    id: u64,
    /// The prompt, and what follows it.
    tokens: Vec<u32>,
    /// Number of new tokens that may still follow.
    left: usize,
    config: GenerateConfig,
    adapters: ActiveAdapters,
    sampler: Sampler,
    /// Whether its tokens have to be read from the first.
    unread: bool,
}

impl Text {
    /// The next token, from its logits, which may change.
    fn choose(&mut self, logits: &mut [f32]) -> Chosen {
        let Self { sampler, config, .. } = self;
        let Some(count) = config.log_probs else { return (sampler.next(config, logits), None) };
        let own = logits.to_vec();
        let token = sampler.next(config, logits);
        (token, Some(log_probs(&own, token, count)))
    }

    /// What may come after the next token.
    fn draft(&self) -> &[u32] {
        draft(&self.tokens, self.config.prompt_lookup.min(self.left - 1))
    }
}

impl<M: Generate> Generation<M> {
    /// Creates a generation of at most so many texts at the same time; further ones wait.
    ///
    /// # Panics
    /// If that is none.
    pub fn new(model: &M, rows: usize) -> Self {
        assert!(rows > 0, "a generation of no texts");
        let (engine, ends) = (Engine::new(model, rows), model.eos_token_ids());
        let rows = (0..rows).map(|_| None).collect();
        let waiting = VecDeque::new();
        Self { model: model.clone(), engine, rows, waiting, ends, has_read: false }
    }

    /// Adds a text to continue, under an id that no other has. Its adapters are those of the settings, or else those
    /// selected in the model.
    ///
    /// # Errors
    /// [`LlamaError::Generate`] if a setting is outside its range, there is no new token to make, the prompt is empty, or a
    /// token is not in the vocabulary.
    pub fn push(
        &mut self,
        id: u64,
        prompt: Vec<u32>,
        config: GenerateConfig,
    ) -> Result<(), LlamaError> {
        config.validate()?;
        check_prompt(id, &prompt, self.model.vocabulary())?;
        if config.max_new_tokens == 0 {
            return Err(wrong("max_new_tokens", 0, "expected at least 1"));
        }
        let adapters = config.adapters.clone().unwrap_or_else(|| self.model.active());
        if let Selection::Rows(names) = adapters.selection() {
            let found = format!("{} for the rows of a batch", names.len());
            return Err(wrong("adapters", found, "a text has those of one"));
        }
        let sampler = Sampler::new(&config, &prompt);
        let left = config.max_new_tokens;
        let text = Text { id, tokens: prompt, left, config, adapters, sampler, unread: true };
        self.waiting.push_back(text);
        Ok(())
    }

    /// Replaces the model by one that differs in its adapters alone: others were loaded, or some that no text uses have gone.
    /// Texts go on where they are.
    pub fn set_model(&mut self, model: &M) {
        self.model = model.clone();
        self.engine.set_model(model);
    }

    /// Ends a text, if it is there.
    pub fn stop(&mut self, id: u64) {
        self.waiting.retain(|text| text.id != id);
        let is = |text: &Option<Text>| text.as_ref().is_some_and(|text| text.id == id);
        if let Some(row) = self.rows.iter().position(is) {
            self.free(row);
        }
    }

    /// Returns `true` if no text is left.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rows.iter().all(Option::is_none)
    }

    /// Number of texts that are being continued.
    pub fn running(&self) -> usize {
        self.rows.iter().flatten().count()
    }

    /// Number of texts that wait for others to end.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Adds a token to texts, or several to those that [look them up](GenerateConfig::prompt_lookup): to those that have just come, or
    /// to all others.
    ///
    /// # Errors
    /// - [`LlamaError::Device`] if the logits cannot be read from the device.
    /// - [`LlamaError::Generate`] if texts with several adapters each are mixed with others.
    pub fn step(&mut self) -> Result<Vec<NextToken>, LlamaError> {
        for row in self.rows.iter_mut().filter(|row| row.is_none()) {
            *row = self.waiting.pop_front();
        }
        let texts = self.rows.iter().flatten();
        let longest = texts.filter(|text| text.unread).map(|text| text.tokens.len()).max();
        if self.engine.is_outdated(longest.unwrap_or(0)) {
            self.rows.iter_mut().flatten().for_each(|text| text.unread = true);
        }
        let all =
            || self.rows.iter().enumerate().filter_map(|(row, text)| Some((row, text.as_ref()?)));
        let (unread, all): (Vec<_>, Vec<_>) = all().partition(|(_, text)| text.unread);
        // Texts that keep coming do not stop the others.
        self.has_read = !unread.is_empty() && (all.is_empty() || !self.has_read);
        if self.has_read {
            let most = unread.iter().map(|(_, text)| text.tokens.len() + text.left).max();
            let texts =
                unread.iter().map(|(row, text)| (*row, &text.tokens[..], text.adapters.clone()));
            let logits = self.engine.read(&texts.collect::<Vec<_>>(), most.unwrap_or(0));
            let rows: Vec<_> = unread.into_iter().map(|(row, _)| row).collect();
            let next = self.choose(logits, &rows)?;
            let found = rows.iter().zip(next).map(|(row, next)| self.accept(*row, next, true));
            return Ok(found.collect());
        }
        let rows: Vec<_> = all.iter().map(|(row, _)| *row).collect();
        let Some(left) = all.iter().map(|(_, text)| text.left).max() else { return Ok(vec![]) };
        let most = all.iter().map(|(_, text)| text.config.prompt_lookup).max().unwrap_or(0);
        let drafts = all.iter().map(|(_, text)| text.draft().to_vec()).collect::<Vec<_>>();
        if drafts.iter().any(|draft| !draft.is_empty()) && self.engine.can_check(1 + most) {
            return self.step_checked(&rows, &drafts, 1 + most, left - 1);
        }
        let likeliest = all.iter().all(|(_, text)| text.config.is_plain_greedy());
        let Some(logits) = self.engine.step(left - 1)? else {
            return self.read_again();
        };
        let next = if likeliest {
            let next = read(self.engine.likeliest())?;
            self.engine.keep(&next);
            plain(next)
        } else {
            self.choose(logits, &rows)?
        };
        let found = rows.iter().zip(next).map(|(row, next)| self.accept(*row, next, !likeliest));
        Ok(found.collect())
    }

    /// Adds to the texts in these rows what a pass over their next token and drafts confirms: up to `tokens` each.
    fn step_checked(
        &mut self,
        rows: &[usize],
        drafts: &[Vec<u32>],
        tokens: usize,
        left: usize,
    ) -> Result<Vec<NextToken>, LlamaError> {
        let Some(logits) = self.engine.check(drafts, tokens, left)? else {
            return self.read_again();
        };
        let texts = rows.iter().map(|row| self.rows[*row].as_ref().expect("a text"));
        let plain = texts.into_iter().all(|text| text.config.is_plain_greedy());
        let logits = logits.narrow(0, 0, rows.len());
        let width = logits.dims()[2];
        let (mut likeliest, mut values) = (vec![], vec![]);
        if plain {
            likeliest = read(argmax_rows(logits.flatten(0, 1)))?;
        } else {
            values = logits.cast(FloatDType::F32).try_into_vec_as().map_err(failed)?;
        }
        let mut found = vec![];
        for ((number, row), draft) in rows.iter().enumerate().zip(drafts) {
            for at in 0..=draft.len() {
                let place = number * tokens + at;
                let chosen = match likeliest.get(place) {
                    Some(token) => (*token, None),
                    None => {
                        let text = self.rows[*row].as_mut().expect("a text");
                        text.choose(&mut values[place * width..(place + 1) * width])
                    }
                };
                let confirmed = draft.get(at) == Some(&chosen.0);
                self.engine.append(*row, 1);
                let next = self.accept(*row, chosen, true);
                let ended = next.stopped.is_some();
                found.push(next);
                if ended || !confirmed {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// A step that reads all texts from their first token.
    fn read_again(&mut self) -> Result<Vec<NextToken>, LlamaError> {
        self.rows.iter_mut().flatten().for_each(|text| text.unread = true);
        self.step()
    }

    /// Next token of the texts in these rows, from their logits.
    fn choose(&mut self, logits: Tensor<2>, rows: &[usize]) -> Result<Vec<Chosen>, LlamaError> {
        let texts = || rows.iter().map(|row| self.rows[*row].as_ref().expect("a text"));
        if texts().all(|text| text.config.is_plain_greedy()) {
            return Ok(plain(read(argmax_rows(logits))?));
        }
        let width = logits.dims()[1];
        let logits = logits.cast(FloatDType::F32);
        let mut logits: Vec<f32> = logits.try_into_vec_as().map_err(failed)?;
        let tokens = rows
            .iter()
            .zip(logits.chunks_mut(width))
            .map(|(row, logits)| self.rows[*row].as_mut().expect("a text").choose(logits));
        Ok(tokens.collect())
    }

    /// Adds a token to the text of a row, and tells the engine if that does not know it.
    fn accept(&mut self, row: usize, (token, log_probs): Chosen, tell: bool) -> NextToken {
        let text = self.rows[row].as_mut().expect("a text");
        (text.unread, text.left) = (false, text.left - 1);
        let id = text.id;
        if self.ends.contains(&token) || text.config.stop_tokens.contains(&token) {
            self.free(row);
            return NextToken { id, token: None, log_probs: None, stopped: Some(Stopped::Token) };
        }
        text.tokens.push(token);
        let stopped = (text.left == 0).then_some(Stopped::Length);
        if stopped.is_some() {
            self.free(row);
        } else if tell {
            self.engine.set(row, Some(token));
        }
        NextToken { id, token: Some(token), log_probs, stopped }
    }

    fn free(&mut self, row: usize) {
        self.rows[row] = None;
        self.engine.set(row, None);
    }
}

/// Checks the prompt of this number.
pub(super) fn check_prompt(
    number: u64,
    prompt: &[u32],
    vocabulary: usize,
) -> Result<(), LlamaError> {
    if prompt.is_empty() {
        let reason =
            "there is nothing to continue: give it a token, such as the first of all texts";
        return Err(wrong("prompt", format!("number {number}, empty"), reason));
    }
    if let Some(token) = prompt.iter().find(|token| **token as usize >= vocabulary) {
        let found = format!("number {number} with token {token}");
        let reason = format!("the vocabulary has {vocabulary}: is this its tokenizer?");
        return Err(wrong("prompt", found, &reason));
    }
    Ok(())
}

/// Tokens that were chosen without a look at others.
fn plain(tokens: Vec<u32>) -> Vec<Chosen> {
    tokens.into_iter().map(|token| (token, None)).collect()
}

/// Reads tokens from the device.
fn read(tokens: Tensor<1, Int>) -> Result<Vec<u32>, LlamaError> {
    let tokens: Vec<i32> = tokens.cast(DType::I32).try_into_vec_as().map_err(failed)?;
    Ok(tokens.into_iter().map(|token| token as u32).collect())
}

fn failed(error: impl ToString) -> LlamaError {
    LlamaError::Device { tensor: "logits".into(), reason: error.to_string() }
}
