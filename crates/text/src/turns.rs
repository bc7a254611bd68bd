//! The assistant's tokens of a conversation.

use crate::{
    bounds::Bounds,
    chat::{ChatOptions, Message},
    error::TextError,
    template::ChatTemplate,
    tokenizer::Tokenizer,
};
use std::ops::Range;

/// A conversation as tokens.
///
/// Created by [`Tokenizer::encode_chat`].
///
/// ```
/// use burn_lora_text::{ChatOptions, Message, Tokenizer};
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let messages = [Message::user("hello"), Message::assistant("hello world")];
/// let chat = tokenizer.encode_chat(&messages, &ChatOptions::new())?;
/// let (message, turn) = chat.turns[0].clone();
/// assert_eq!(message, 1);
/// assert!(chat.assistant[turn.clone()].iter().all(|assistant| *assistant));
/// assert_eq!(tokenizer.decode(&chat.ids[turn], false)?, "hello world<|im_end|>");
/// # Ok::<_, burn_lora_text::TextError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedChat {
    /// The tokens of the whole conversation.
    pub ids: Vec<u32>,
    /// `true` for each token that the assistant wrote.
    pub assistant: Vec<bool>,
    /// Turns of the assistant, in order: the index of the message, and its tokens. A template may
    /// write a message in several blocks, or in none.
    pub turns: Vec<(usize, Range<usize>)>,
    /// Indices of messages whose text begins within a token that belongs to the header of their
    /// turn: that token is not theirs.
    pub swallowed: Vec<usize>,
}

impl Tokenizer {
    /// Encodes a conversation to tokens, and marks those that the assistant wrote.
    ///
    /// The text of [`apply_chat_template`](Self::apply_chat_template) is encoded once, without
    /// special tokens around it. The assistant's part of it is
    ///
    /// - with `{% generation %}` blocks in the template: exactly the output of these blocks;
    /// - without: for each message of role `assistant`, what the template writes for it after the
    ///   generation prompt (as far as that is written: an answer may come without the reasoning
    ///   that the prompt opens), up to and including the last special token (the end of the turn)
    ///   if only whitespace follows it, else to its end.
    ///
    /// A token belongs to the part that contains its first byte.
    ///
    /// ```
    /// # use burn_lora_text::{ChatOptions, Message, Tokenizer};
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let messages = [Message::user("hello"), Message::assistant("hello world")];
    /// let chat = tokenizer.encode_chat(&messages, &ChatOptions::new())?;
    /// // `hello`, ` world` and `<|im_end|>`.
    /// assert_eq!(chat.assistant.iter().filter(|assistant| **assistant).count(), 3);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`apply_chat_template`](Self::apply_chat_template) and [`encode`](Self::encode);
    /// [`TextError::Template`] for a template in which the tokens of a message cannot be
    /// distinguished from others.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<EncodedChat, TextError> {
        self.encode_turns(messages, options, |_| true)
    }

    /// Encodes a conversation, as [`encode_chat`](Self::encode_chat) does, with only those turns of
    /// the assistant whose message index is `wanted`: a template may drop the reasoning of earlier
    /// turns, or write them so that they cannot be distinguished from others.
    ///
    /// ```
    /// # use burn_lora_text::{ChatOptions, Message, Tokenizer};
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let messages = [Message::assistant("hello"), Message::assistant("world")];
    /// let chat = tokenizer.encode_turns(&messages, &ChatOptions::new(), |message| message == 1)?;
    /// assert_eq!(chat.turns.len(), 1);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat), for these turns.
    pub fn encode_turns(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        wanted: impl Fn(usize) -> bool,
    ) -> Result<EncodedChat, TextError> {
        let (text, blocks) = self.render(messages, options)?;
        let (ids, offsets) = self.encode_with_offsets(&text)?;
        let marked = self.template(options)?.has_generation_blocks();
        let blocks = if marked {
            self.owners(messages, options, &text, blocks.clone()).or_else(|error| {
                // The blocks within the wanted turns are sufficient.
                let turns = self.bounds(messages, options, &text, &wanted).map_err(|_| error)?;
                let within = |turn: &Range<usize>, block: &Range<usize>| {
                    block.start < turn.end && block.end > turn.start
                };
                Ok::<_, TextError>(
                    turns
                        .iter()
                        .flat_map(|(message, turn)| {
                            let own = blocks.iter().filter(|block| within(turn, block));
                            own.map(|block| (*message, block.clone()))
                        })
                        .collect(),
                )
            })?
        } else {
            self.bounds(messages, options, &text, &wanted)?
        };
        let mut chat = EncodedChat {
            assistant: vec![false; ids.len()],
            ids,
            turns: vec![],
            swallowed: vec![],
        };
        for (message, bytes) in blocks.into_iter().filter(|(message, _)| wanted(*message)) {
            let first = |byte| offsets.partition_point(|offset| offset.start < byte);
            let mut tokens = first(bytes.start)..first(bytes.end);
            if !marked {
                tokens.end = self.without_whitespace(&chat.ids, &offsets, &text, tokens.clone());
            }
            if tokens.start > 0 && offsets[tokens.start - 1].end > bytes.start {
                chat.swallowed.push(message);
            }
            chat.assistant[tokens.clone()].fill(true);
            chat.turns.push((message, tokens));
        }
        Ok(chat)
    }

    /// Returns the byte range of each wanted answer.
    fn bounds(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        text: &str,
        wanted: &impl Fn(usize) -> bool,
    ) -> Result<Vec<(usize, Range<usize>)>, TextError> {
        let bounds = Bounds { tokenizer: self, messages, options, text };
        let mut from = 0;
        let turn = |message: usize| {
            let turn = bounds.turn(message, from).map_err(|reason| {
                let help = self.what_helps(options);
                let reason = format!(
                    "message {message} of the assistant: {reason}, so that its tokens cannot be told \
                     from others. {help}"
                );
                TextError::Template { reason }
            })?;
            from = turn.end;
            Ok((message, turn))
        };
        answers(messages).filter(|message| wanted(*message)).map(turn).collect()
    }

    /// Advice for a template whose turns are not found.
    fn what_helps(&self, options: &ChatOptions) -> String {
        let source = self.template(options).map(ChatTemplate::source).unwrap_or_default();
        let variables: Vec<_> = switches(source).iter().map(|name| format!("`{name}`")).collect();
        let variables = match variables.as_slice() {
            [] => String::new(),
            names => format!(
                "; set a variable of the template ({}: `data.chat_variables` of a run file, \
                 `ChatOptions::variable`)",
                names.join(", ")
            ),
        };
        format!(
            "Train on `last_turn` if that is another one, or on `everything` (`data.train_on` of a run \
             file, `DatasetBuilder::train_on`){variables}; or write `{{% generation %}}` blocks around \
             the answers into the template (`chat_template.jinja` beside the tokenizer, or \
             `Tokenizer::set_chat_template`)"
        )
    }

    /// Assigns each block to a message: the one that adds it to the conversation.
    fn owners(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        text: &str,
        blocks: Vec<Range<usize>>,
    ) -> Result<Vec<(usize, Range<usize>)>, TextError> {
        fn texts<'a>(text: &'a str, blocks: &[Range<usize>]) -> Vec<&'a str> {
            blocks.iter().map(|block| text[block.clone()].trim_end()).collect()
        }
        let options = options.clone().add_generation_prompt(false);
        let whole = texts(text, &blocks);
        let (mut owners, mut single, mut same) = (vec![], true, true);
        for (count, message) in answers(messages).enumerate() {
            let (until, blocks) = self.render(&messages[..=message], &options)?;
            single &= blocks.len() == count + 1;
            same &= whole.starts_with(&texts(&until, &blocks));
            let new = blocks.len().saturating_sub(owners.len());
            owners.extend(std::iter::repeat_n(message, new));
        }
        // A template may write a message differently if others follow, as long as each has one
        // block.
        if owners.len() == blocks.len() && (single || same) {
            return Ok(owners.into_iter().zip(blocks).collect());
        }
        let reason = format!(
            "which messages the {} `{{% generation %}}` blocks belong to cannot be told: the template \
             writes them otherwise when messages follow. Write one block for each message of the \
             assistant",
            blocks.len(),
        );
        Err(TextError::Template { reason })
    }

    /// Returns the end of a turn without the whitespace after its last special token.
    fn without_whitespace(
        &self,
        ids: &[u32],
        offsets: &[Range<usize>],
        text: &str,
        tokens: Range<usize>,
    ) -> usize {
        let blank = |token: &usize| {
            let text = text.get(offsets[*token].clone()).unwrap_or_default();
            !self.is_added_token(ids[*token]) && text.trim().is_empty()
        };
        let last = tokens.clone().rev().find(|token| !blank(token));
        match last {
            Some(last) if self.is_added_token(ids[last]) => last + 1,
            _ => tokens.end,
        }
    }
}

/// Indices of the assistant's messages.
fn answers(messages: &[Message]) -> impl Iterator<Item = usize> {
    let roles = messages.iter().enumerate();
    roles.filter(|(_, message)| message.role() == "assistant").map(|(index, _)| index)
}

/// Variables of a template that control whether reasoning is written.
fn switches(source: &str) -> Vec<&str> {
    let mut names = vec![];
    for (at, _) in
        source.match_indices(" is defined").chain(source.match_indices(" is not defined"))
    {
        let before = &source[..at];
        let mut name = before.rsplit(|char: char| !(char.is_alphanumeric() || char == '_'));
        let name = name.next().unwrap_or_default();
        let own = !before[..before.len() - name.len()].ends_with('.');
        let about = ["think", "reason", "training"].iter().any(|word| name.contains(word));
        if own && about && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::switches;

    #[test]
    fn switches_about_reasoning_are_found_beside_any_character() {
        let source = "{% if enable_thinking is defined %}{{ \u{e200}reasoning is not defined }}";
        assert_eq!(switches(source), ["enable_thinking", "reasoning"]);
        assert!(switches("{{ message.thinking is defined }}{{ é is defined }}").is_empty());
    }
}
