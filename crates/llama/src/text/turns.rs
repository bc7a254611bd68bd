//! Which tokens of a conversation are the assistant's.

use super::{ChatOptions, Message, tokenizer::Tokenizer};
use crate::error::LlamaError;
use std::ops::Range;

/// A conversation as tokens.
///
/// Made by [`Tokenizer::encode_chat`].
///
/// ```
/// use burn_lora_llama::{ChatOptions, Message, Tokenizer};
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let messages = [Message::user("hello"), Message::assistant("hello world")];
/// let chat = tokenizer.encode_chat(&messages, &ChatOptions::new())?;
/// let (message, turn) = chat.turns[0].clone();
/// assert_eq!(message, 1);
/// assert!(chat.assistant[turn.clone()].iter().all(|assistant| *assistant));
/// assert_eq!(tokenizer.decode(&chat.ids[turn], false)?, "hello world<|im_end|>");
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedChat {
    /// The tokens of the whole conversation.
    pub ids: Vec<u32>,
    /// For each token whether the assistant wrote it.
    pub assistant: Vec<bool>,
    /// Which tokens of the assistant belong to which message, in their order: the message's index,
    /// and its tokens. A template may write a message in several blocks, or in none.
    pub turns: Vec<(usize, Range<usize>)>,
}

impl Tokenizer {
    /// The tokens of a conversation, and which of them the assistant wrote.
    ///
    /// The text of [`apply_chat_template`](Self::apply_chat_template) is encoded once, without
    /// special tokens around it. The assistant's part of it is
    ///
    /// - with `{% generation %}` blocks in the template: what these blocks wrote, exactly;
    /// - without: for each message of role `assistant`, what the template writes for it after the
    ///   messages before it and the generation prompt, up to and with the last special token (the
    ///   end of the turn) if only whitespace follows that one, else to its end.
    ///
    /// A token belongs to where its first byte is.
    ///
    /// ```
    /// # use burn_lora_llama::{ChatOptions, Message, Tokenizer};
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let messages = [Message::user("hello"), Message::assistant("hello world")];
    /// let chat = tokenizer.encode_chat(&messages, &ChatOptions::new())?;
    /// // `hello`, ` world` and `<|im_end|>`.
    /// assert_eq!(chat.assistant.iter().filter(|assistant| **assistant).count(), 3);
    /// # Ok::<_, burn_lora_llama::LlamaError>(())
    /// ```
    ///
    /// # Errors
    /// As [`apply_chat_template`](Self::apply_chat_template), and templates without blocks that
    /// write a message otherwise when others follow, as those that drop earlier reasoning do.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<EncodedChat, LlamaError> {
        let (text, blocks) = self.render(messages, options)?;
        let (ids, offsets) = self.encode_with_offsets(&text)?;
        let marked = self.template(options)?.has_generation_blocks();
        let blocks = if marked {
            self.owners(messages, options, &text, blocks)?
        } else {
            self.answers(messages, options, &text)?
        };
        let mut chat = EncodedChat { assistant: vec![false; ids.len()], ids, turns: vec![] };
        for (message, bytes) in blocks {
            let first = |byte| offsets.partition_point(|offset| offset.start < byte);
            let mut tokens = first(bytes.start)..first(bytes.end);
            if !marked {
                tokens.end = self.end_of_turn(&chat.ids, &offsets, &text, tokens.clone());
            }
            chat.assistant[tokens.clone()].fill(true);
            chat.turns.push((message, tokens));
        }
        Ok(chat)
    }

    /// Which message each block belongs to: the one that adds it to the conversation.
    fn owners(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        text: &str,
        blocks: Vec<Range<usize>>,
    ) -> Result<Vec<(usize, Range<usize>)>, LlamaError> {
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
        // A template may write a message otherwise when others follow, if each has one block.
        if owners.len() == blocks.len() && (single || same) {
            return Ok(owners.into_iter().zip(blocks).collect());
        }
        let reason = format!(
            "which messages the {} `{{% generation %}}` blocks belong to cannot be told: the template \
             writes them otherwise when messages follow. Write one block for each message of the \
             assistant",
            blocks.len(),
        );
        Err(LlamaError::Template { reason })
    }

    /// The bytes of each answer in the text of the conversation.
    fn answers(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        text: &str,
    ) -> Result<Vec<(usize, Range<usize>)>, LlamaError> {
        let prompted = options.clone().add_generation_prompt(true);
        let closed = options.clone().add_generation_prompt(false);
        let knows_prompt = self.template(options)?.source().contains("add_generation_prompt");
        let answer = |message: usize| {
            let refused = |reason: String| {
                let reason = format!(
                    "message {message} of the assistant: {reason}, so that its tokens cannot be told \
                     from others. Give the tokenizer a template with `{{% generation %}}` blocks by \
                     `set_chat_template`, or split the conversation so that each part ends with the \
                     answer to be learnt"
                );
                LlamaError::Template { reason }
            };
            let render = |messages: &[Message], options: &ChatOptions| {
                let rendered = self.apply_chat_template(messages, options);
                rendered.map_err(|error| {
                    refused(format!("the template refuses the messages up to it ({error})"))
                })
            };
            let before = render(&messages[..message], &prompted)?;
            let with = render(&messages[..=message], &closed)?;
            let Some(own) = with.strip_prefix(before.as_str()) else {
                return Err(refused(
                    "the template does not write it after its generation prompt".into(),
                ));
            };
            if !text.starts_with(&with) {
                let reason = "the template writes it, or what is before it, otherwise when other \
                              messages follow (it may drop earlier reasoning)";
                return Err(refused(reason.into()));
            }
            let content = messages[message].text().unwrap_or_default();
            if !knows_prompt && !own.trim_start().starts_with(content.trim()) {
                let reason = "the template knows no `add_generation_prompt` and writes a header";
                return Err(refused(reason.into()));
            }
            Ok((message, before.len()..with.len()))
        };
        answers(messages).map(answer).collect()
    }

    /// The end of a turn without the whitespace after its last special token.
    fn end_of_turn(
        &self,
        ids: &[u32],
        offsets: &[Range<usize>],
        text: &str,
        tokens: Range<usize>,
    ) -> usize {
        let blank = |token: &usize| {
            let text = text.get(offsets[*token].clone()).unwrap_or_default();
            !self.is_added(ids[*token]) && text.trim().is_empty()
        };
        let last = tokens.clone().rev().find(|token| !blank(token));
        match last {
            Some(last) if self.is_added(ids[last]) => last + 1,
            _ => tokens.end,
        }
    }
}

/// The messages of the assistant.
fn answers(messages: &[Message]) -> impl Iterator<Item = usize> {
    let roles = messages.iter().enumerate();
    roles.filter(|(_, message)| message.role() == "assistant").map(|(index, _)| index)
}
