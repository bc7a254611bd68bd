//! Modelfiles of Ollama.

use crate::{
    chat::{ChatOptions, Message},
    error::TextError,
    tokenizer::Tokenizer,
};

/// Stand-ins for the texts of a conversation.
const MARKS: [&str; 3] = ["\u{e000}S\u{e001}", "\u{e000}U\u{e001}", "\u{e000}A\u{e001}"];

impl Tokenizer {
    /// Returns an Ollama `Modelfile` for a GGUF file: its name, the chat template as Ollama writes it, and the
    /// texts that end an answer.
    ///
    /// Ollama's templates are Go's: this one is derived from what the tokenizer's writes around a system
    /// message, a question and an answer. Without a chat template the text goes to the model as it is.
    ///
    /// # Errors
    /// [`TextError::Template`] if the chat template fails on such a conversation.
    pub fn modelfile(&self, gguf: &str) -> Result<String, TextError> {
        let mut file = format!("FROM ./{gguf}\n");
        let template = match self.chat_template() {
            Some(_) => self.go_template()?,
            None => "{{ .Prompt }}".to_owned(),
        };
        file += &format!("TEMPLATE \"\"\"{template}\"\"\"\n");
        for id in self.eos_token_ids() {
            if let Some(token) = self.id_to_token(*id) {
                file += &format!("PARAMETER stop \"{token}\"\n");
            }
        }
        Ok(file)
    }

    fn go_template(&self) -> Result<String, TextError> {
        let [system, user, answer] = MARKS;
        let written = |messages: &[Message], prompt: bool| {
            self.apply_chat_template(messages, &ChatOptions::new().add_generation_prompt(prompt))
        };
        let alone = written(&[Message::user(user)], true)?;
        let (mut before, after) = around(&alone, user);
        let answered = written(&[Message::user(user), Message::assistant(answer)], false)?;
        let end = around(&answered, answer).1;
        // The first token is Ollama's own to write.
        if let Some(bos) = self.bos_token_id().and_then(|id| self.id_to_token(id)) {
            before = before.strip_prefix(&bos).map(str::to_owned).unwrap_or(before);
        }
        // Some templates have no place for a system message, or refuse it.
        let with = written(&[Message::system(system), Message::user(user)], true).ok();
        let with = with.filter(|text| text.contains(system) && text.contains(user));
        let Some(with) = with else {
            return Ok(format!("{before}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{end}"));
        };
        let (mut first, rest) = around(&with, system);
        let between = around(&rest, user).0;
        if let Some(bos) = self.bos_token_id().and_then(|id| self.id_to_token(id)) {
            first = first.strip_prefix(&bos).map(str::to_owned).unwrap_or(first);
        }
        Ok(format!(
            "{{{{ if .System }}}}{first}{{{{ .System }}}}{between}{{{{ else }}}}{before}{{{{ end }}}}\
             {{{{ .Prompt }}}}{after}{{{{ .Response }}}}{end}"
        ))
    }
}

/// What stands before a text and after it.
fn around(text: &str, mark: &str) -> (String, String) {
    let (before, after) = text.split_once(mark).unwrap_or((text, ""));
    (before.to_owned(), after.to_owned())
}
