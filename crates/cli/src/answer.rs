//! Answers of a model, written as they come.

use burn_lora::prelude::{
    GenerateConfig, GenerateExt, GeneratedText, Llama, LlamaError, Message, Tokenizer,
};
use std::{io::Write, ops::ControlFlow};

/// Prompt of a model.
#[derive(Clone, Copy)]
pub enum Question<'a> {
    /// A conversation, written by the chat template.
    Chat(&'a [Message]),
    /// A text to continue as it is.
    Text(&'a str),
}

/// Writes the answer as it comes. It ends if nobody reads it any more.
pub fn answer(
    model: &Llama,
    tokenizer: &Tokenizer,
    question: Question<'_>,
    config: &GenerateConfig,
    out: &mut impl Write,
) -> Result<GeneratedText, LlamaError> {
    let mut show = |text: &str| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    match question {
        Question::Chat(messages) => model.chat(tokenizer, messages, config, show),
        Question::Text(text) => model
            .generate_text(tokenizer, &[text], config, |_, text| show(text))
            .map(|mut found| found.remove(0)),
    }
}
