//! Encoding of examples: tokens and loss masks.

use super::{
    DatasetBuilder, IGNORE_INDEX, Sample, TrainOn, Truncation,
    example::{Chat, Example},
    notes::Oddity,
    words,
};
use burn_lora_text::{ChatOptions, ChatValue as Value, EncodedChat, TextError, Tokenizer};
use std::ops::Range;

/// Reason that an example cannot be trained on.
#[derive(Debug)]
pub(crate) enum Fault {
    Malformed(String),
    /// None of its tokens is trained on.
    Empty(String),
    TooLong(String),
    /// Both answers of a pair are the same.
    Equal,
    /// No other conversation can be trained on either.
    NoTemplate,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

impl From<TextError> for Fault {
    fn from(error: TextError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The sample of an example, and its oddities.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub sample: Sample,
    /// Label of each token, of words with labels.
    pub labels: Vec<i32>,
    /// Tokens that end its turns, but no generation.
    pub ends: Vec<u32>,
    pub oddities: Vec<Oddity>,
}

impl Encoded {
    pub fn truncated(&self) -> bool {
        self.oddities.contains(&Oddity::Truncated)
    }
}

/// Encoder of examples to samples.
pub(crate) struct Encoder<'a> {
    config: &'a DatasetBuilder,
    tokenizer: &'a Tokenizer,
    /// Tokens that the tokenizer puts before and after a text.
    around: [Vec<u32>; 2],
}

impl<'a> Encoder<'a> {
    pub fn new(config: &'a DatasetBuilder, tokenizer: &'a Tokenizer) -> Result<Self, TextError> {
        let text = tokenizer.encode("a", false)?;
        let whole = tokenizer.encode("a", true)?;
        let start = whole.windows(text.len().max(1)).position(|part| part == text).unwrap_or(0);
        let end = (start + text.len()).min(whole.len());
        let around = [whole[..start].to_vec(), whole[end..].to_vec()];
        Ok(Self { config, tokenizer, around })
    }

    /// Encodes an example: to one sample, or the two of a pair.
    pub fn samples(&self, example: &Example) -> Result<Vec<Encoded>, Fault> {
        let Example::Pair(pair) = example else {
            return Ok(vec![self.sample(example, self.config.labeled)?]);
        };
        if pair[0] == pair[1] {
            return Err(Fault::Equal);
        }
        let names = ["chosen", "rejected"].into_iter();
        let samples = pair.iter().zip(names).map(|(example, name)| {
            let named = |reason| format!("`{name}`: {reason}");
            self.sample(example, true).map_err(|fault| match fault {
                Fault::Malformed(reason) => Fault::Malformed(named(reason)),
                Fault::Empty(reason) => Fault::Empty(named(reason)),
                Fault::TooLong(reason) => Fault::TooLong(named(reason)),
                other => other,
            })
        });
        let samples = samples.collect::<Result<Vec<_>, _>>()?;
        // Other words may be cut off, or be the same tokens.
        if samples[0].sample == samples[1].sample { Err(Fault::Equal) } else { Ok(samples) }
    }

    /// Encodes an example to one sample. With `to_the_end`, whatever follows the first token that is trained on is
    /// trained on, too, as TRL counts answers: also what a template writes after a turn, and results of tools.
    fn sample(&self, example: &Example, to_the_end: bool) -> Result<Encoded, Fault> {
        let mut encoded = match example {
            Example::Pair(_) => unreachable!("a pair consists of others"),
            Example::Text(text) => self.plain("", text)?,
            Example::PromptCompletion { prompt, completion } => self.plain(prompt, completion)?,
            Example::Chat(chat) => self.chat(chat)?,
            Example::Words { words, labels } => self.words(words, labels)?,
        };
        let mask = &mut encoded.sample.loss_mask;
        if let (true, Some(first)) = (to_the_end, mask.iter().position(|trained| *trained)) {
            mask[first..].fill(true);
        }
        let length = encoded.sample.ids.len();
        self.truncate(&mut encoded)?;
        let Encoded { sample, labels, oddities, .. } = &mut encoded;
        // A label is that of a token itself, which the first can have.
        let targets = match labels.is_empty() {
            true => sample.target_count(),
            false => sample.loss_mask.iter().filter(|trained| **trained).count(),
        };
        if targets == 0 {
            return Err(Fault::Empty(if sample.ids.len() < length {
                let kept = sample.ids.len();
                format!(
                    "none of its tokens is left to train on after truncation from {length} to {kept}"
                )
            } else {
                format!("none of its {length} tokens is one to train on")
            }));
        }
        let mut targets = sample.ids.iter().zip(&sample.loss_mask).skip(1);
        if labels.is_empty()
            && targets.all(|(id, trained)| !trained || self.tokenizer.is_added_token(*id))
        {
            oddities.push(Oddity::OnlyEnd);
        }
        Ok(encoded)
    }

    /// Encodes text without a template, between the tokens that the tokenizer puts around it,
    /// followed by the end-of-text token. They are not added to text that has them already.
    fn plain(&self, prompt: &str, completion: &str) -> Result<Encoded, TextError> {
        let (text, offsets) =
            self.tokenizer.encode_with_offsets(&format!("{prompt}{completion}"))?;
        let everything = self.config.train_on == Some(TrainOn::Everything);
        let [before, after] = &self.around;
        let mut ids = if text.starts_with(before) { vec![] } else { before.clone() };
        let mut trained = vec![everything; ids.len()];
        trained.extend(offsets.iter().map(|token| everything || token.start >= prompt.len()));
        ids.extend(&text);
        if !text.ends_with(after) {
            ids.extend(after);
        }
        let eos = self.tokenizer.eos_token_id();
        if let Some(eos) = eos
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        trained.resize(ids.len(), true);
        let mut oddities = vec![];
        let within = |token: &Range<usize>| token.start < prompt.len() && token.end > prompt.len();
        if !everything && offsets.iter().any(within) {
            oddities.push(Oddity::Swallowed);
        }
        if eos.is_none() && !ids.last().is_some_and(|last| self.tokenizer.is_added_token(*last)) {
            oddities.push(Oddity::NoEnd);
        }
        let sample = Sample { ids, loss_mask: trained };
        Ok(Encoded { sample, labels: vec![], ends: vec![], oddities })
    }

    /// Encodes words one by one, as transformers' tokenizers do with `is_split_into_words`: the first token of each has
    /// its label.
    fn words(&self, words: &[String], labels: &[Value]) -> Result<Encoded, Fault> {
        let names = &self.config.token_labels;
        let of_word =
            words.iter().zip(labels).map(|(word, value)| words::label(word, value, names));
        let of_word = of_word.collect::<Result<Vec<_>, _>>()?;
        let (ids, owners) = self.tokenizer.encode_words(words)?;
        let mut before = None;
        let labels = owners.iter().map(|owner| match owner {
            Some(word) if before.replace(*word) != Some(*word) => of_word[*word],
            _ => IGNORE_INDEX,
        });
        let labels: Vec<i32> = labels.collect();
        let loss_mask = labels.iter().map(|label| *label != IGNORE_INDEX).collect();
        Ok(Encoded { sample: Sample { ids, loss_mask }, labels, ends: vec![], oddities: vec![] })
    }

    fn chat(&self, chat: &Chat) -> Result<Encoded, Fault> {
        if self.tokenizer.chat_template().is_none()
            && self.config.chat_options == ChatOptions::new()
        {
            return Err(Fault::NoTemplate);
        }
        let Chat { messages, train, prompt, tools } = chat;
        let train_on = self.config.train_on.unwrap_or(match prompt {
            Some(_) => TrainOn::Completion,
            None => TrainOn::AssistantTurns,
        });
        let everything = train_on == TrainOn::Everything;
        for (message, train) in messages.iter().zip(train) {
            if message.role() != "assistant" && train.is_some_and(|train| train != everything) {
                let role = message.role();
                return Err(Fault::Malformed(format!(
                    "a message of role `{role}` says for itself whether it is trained on, which only \
                     those of role `assistant` can"
                )));
            }
        }
        let mut options = self.config.chat_options.clone();
        if let Some(tools) = tools {
            options = options.tools(tools);
        }
        if everything && !train.contains(&Some(false)) {
            let text = self.tokenizer.apply_chat_template(messages, &options)?;
            let ids = self.tokenizer.encode(&text, false)?;
            let sample = Sample { loss_mask: vec![true; ids.len()], ids };
            return Ok(Encoded { sample, labels: vec![], ends: vec![], oddities: vec![] });
        }
        let last = messages.iter().rposition(|message| message.role() == "assistant");
        let chosen = |message: usize| match (train_on, prompt) {
            (TrainOn::Everything | TrainOn::AssistantTurns, _) => true,
            (TrainOn::Completion, Some(prompt)) => message >= *prompt,
            (TrainOn::Completion, None) | (TrainOn::LastTurn, _) => Some(message) == last,
        };
        let trains = |message: usize| train[message].unwrap_or(chosen(message));
        // Only turns that differ from their surroundings have to be found.
        let encoded = self.tokenizer.encode_turns(messages, &options, |message| {
            messages[message].role() == "assistant" && trains(message) != everything
        })?;
        let EncodedChat { ids, turns, swallowed, .. } = encoded;
        let mut trained = vec![everything; ids.len()];
        for (_, tokens) in &turns {
            trained[tokens.clone()].fill(!everything);
        }
        let mut oddities = vec![];
        let mut ends = vec![];
        if !everything {
            if !swallowed.is_empty() {
                oddities.push(Oddity::Swallowed);
            }
            // The last block of each message.
            let last = turns.iter().enumerate().filter(|(number, (message, _))| {
                turns.get(number + 1).is_none_or(|(next, _)| next != message)
            });
            let last = last.filter_map(|(_, (_, tokens))| ids[tokens.clone()].last().copied());
            let mut found: Vec<u32> =
                last.filter(|id| self.tokenizer.is_added_token(*id)).collect();
            found.sort_unstable();
            found.dedup();
            if found.is_empty() && !turns.is_empty() {
                oddities.push(Oddity::NoEnd);
            }
            let known = self.tokenizer.eos_token_ids();
            found.retain(|id| !known.contains(id));
            oddities.extend(found.iter().map(|id| Oddity::UnknownEnd(*id)));
            ends = found;
        }
        let sample = Sample { ids, loss_mask: trained };
        Ok(Encoded { sample, labels: vec![], ends, oddities })
    }

    fn truncate(&self, encoded: &mut Encoded) -> Result<(), Fault> {
        let Encoded { sample, labels, oddities, .. } = encoded;
        let length = sample.ids.len();
        let Some(max) = self.config.max_length.filter(|max| *max < length) else { return Ok(()) };
        match self.config.truncation {
            Truncation::KeepStart => {
                sample.ids.truncate(max);
                sample.loss_mask.truncate(max);
                labels.truncate(max);
            }
            Truncation::KeepEnd => {
                sample.ids.drain(..length - max);
                sample.loss_mask.drain(..length - max);
                labels.drain(..labels.len().saturating_sub(max));
            }
            Truncation::Drop | Truncation::Error => {
                return Err(Fault::TooLong(format!(
                    "{length} tokens, more than the {max} allowed"
                )));
            }
        }
        oddities.push(Oddity::Truncated);
        Ok(())
    }
}
