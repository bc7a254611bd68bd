//! Examples as tokens, and which of these are trained on.

use super::{
    DatasetBuilder, Sample, TrainOn, Truncation,
    format::{Chat, Example},
};
use burn_lora_llama::{ChatOptions, EncodedChat, LlamaError, Tokenizer};

/// Why an example cannot be trained on.
#[derive(Debug)]
pub(crate) enum Fault {
    Malformed(String),
    /// None of its tokens is trained on.
    Empty(String),
    TooLong(String),
    /// No other conversation can be trained on either.
    NoTemplate,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Malformed(reason)
    }
}

impl From<LlamaError> for Fault {
    fn from(error: LlamaError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// Makes samples of examples.
pub(crate) struct Encoder<'a> {
    config: &'a DatasetBuilder,
    tokenizer: &'a Tokenizer,
    /// What the tokenizer puts before and after a text.
    around: [Vec<u32>; 2],
}

impl<'a> Encoder<'a> {
    pub fn new(config: &'a DatasetBuilder, tokenizer: &'a Tokenizer) -> Result<Self, LlamaError> {
        let text = tokenizer.encode("a", false)?;
        let whole = tokenizer.encode("a", true)?;
        let start = whole.windows(text.len().max(1)).position(|part| part == text).unwrap_or(0);
        let end = (start + text.len()).min(whole.len());
        let around = [whole[..start].to_vec(), whole[end..].to_vec()];
        Ok(Self { config, tokenizer, around })
    }

    /// The sample of an example, and whether it was truncated.
    pub fn sample(&self, example: &Example) -> Result<(Sample, bool), Fault> {
        let sample = match example {
            Example::Text(text) => self.plain("", text)?,
            Example::PromptCompletion { prompt, completion } => self.plain(prompt, completion)?,
            Example::Chat(chat) => self.chat(chat)?,
        };
        let length = sample.ids.len();
        let (sample, truncated) = self.truncate(sample)?;
        if sample.target_count() > 0 {
            return Ok((sample, truncated));
        }
        Err(Fault::Empty(if truncated {
            let kept = sample.ids.len();
            format!(
                "none of its tokens is left to train on after truncation from {length} to {kept}"
            )
        } else {
            format!("none of its {length} tokens is one to train on")
        }))
    }

    /// Text without a template, between what the tokenizer puts around it and with the end of a text
    /// after it. Text that has these already does not get them again.
    fn plain(&self, prompt: &str, completion: &str) -> Result<Sample, LlamaError> {
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
        if let Some(eos) = self.tokenizer.eos_token_id()
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        trained.resize(ids.len(), true);
        Ok(Sample { ids, trained })
    }

    fn chat(&self, chat: &Chat) -> Result<Sample, Fault> {
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
            return Ok(Sample { trained: vec![true; ids.len()], ids });
        }
        let EncodedChat { ids, turns, .. } = self.tokenizer.encode_chat(messages, &options)?;
        let last = messages.iter().rposition(|message| message.role() == "assistant");
        let mut trained = vec![everything; ids.len()];
        for (message, tokens) in turns {
            let chosen = match (train_on, prompt) {
                (TrainOn::Everything | TrainOn::AssistantTurns, _) => true,
                (TrainOn::Completion, Some(prompt)) => message >= *prompt,
                (TrainOn::Completion, None) | (TrainOn::LastTurn, _) => Some(message) == last,
            };
            trained[tokens].fill(train[message].unwrap_or(chosen));
        }
        Ok(Sample { ids, trained })
    }

    fn truncate(&self, mut sample: Sample) -> Result<(Sample, bool), Fault> {
        let length = sample.ids.len();
        let Some(max) = self.config.max_length.filter(|max| *max < length) else {
            return Ok((sample, false));
        };
        match self.config.truncation {
            Truncation::KeepStart => {
                sample.ids.truncate(max);
                sample.trained.truncate(max);
            }
            Truncation::KeepEnd => {
                sample.ids.drain(..length - max);
                sample.trained.drain(..length - max);
            }
            Truncation::Drop | Truncation::Error => {
                return Err(Fault::TooLong(format!(
                    "{length} tokens, more than the {max} allowed"
                )));
            }
        }
        Ok((sample, true))
    }
}
