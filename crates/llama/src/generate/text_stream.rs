//! Text of tokens that come one by one.

use super::stop::{Found, StopText};
use crate::error::LlamaError;
use burn_lora_text::{DecodeStream, Tokenizer};

/// Text of generated tokens as they come, up to a stop string: for those who drive a [`Generation`](crate::Generation).
///
/// ```
/// use burn_lora_llama::{TextStream, Tokenizer};
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let mut text = TextStream::new(&tokenizer).stops(["\n".to_owned()]);
/// for token in tokenizer.encode("Hello\nthere", false)? {
///     print!("{}", text.push(token)?);
///     if text.is_stopped() {
///         break;
///     }
/// }
/// text.finish()?;
/// assert_eq!(text.into_text(), "Hello");
/// # Ok::<_, burn_lora_llama::LlamaError>(())
/// ```
pub struct TextStream {
    stream: DecodeStream,
    stop: StopText,
    text: String,
    stopped: bool,
}

impl TextStream {
    /// Creates a text of no tokens. Special tokens are left out.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let (stream, stop) = (tokenizer.decode_stream(true), StopText::default());
        Self { stream, stop, text: String::new(), stopped: false }
    }

    /// Sets the tokens before, on which the text of the first ones may depend: in some vocabularies a space is written only
    /// after other text.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn after(mut self, tokens: &[u32]) -> Result<Self, LlamaError> {
        // As far back as a character goes, and a token more.
        for token in &tokens[tokens.len().saturating_sub(5)..] {
            self.stream.push(*token)?;
        }
        Ok(self)
    }

    /// Adds strings at the first of which the text ends; it is not part of the text.
    pub fn stops(mut self, stops: impl IntoIterator<Item = String>) -> Self {
        self.stop.stops.extend(stops);
        self
    }

    /// Adds a token, and returns the text that is certain now: what may be the beginning of a stop string, and characters of
    /// which bytes are missing, are held back.
    ///
    /// # Errors
    /// [`LlamaError::Text`] if the tokenizer fails.
    pub fn push(&mut self, token: u32) -> Result<String, LlamaError> {
        let new = self.stream.push(token)?.unwrap_or_default();
        Ok(self.take(&new))
    }

    /// Returns `true` if a stop string was found.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the text, and returns what had been held back.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String, LlamaError> {
        if self.stopped {
            return Ok(String::new());
        }
        let left = self.stream.clone().finish()?;
        let mut rest = self.take(&left);
        if !self.stopped {
            let held = self.stop.take();
            self.text.push_str(&held);
            rest.push_str(&held);
        }
        Ok(rest)
    }

    /// The whole text.
    pub fn into_text(self) -> String {
        self.text
    }

    fn take(&mut self, new: &str) -> String {
        let new = match self.stop.push(new) {
            Found::Go(new) => new,
            Found::Stop(new) => {
                self.stopped = true;
                new
            }
        };
        self.text.push_str(&new);
        new
    }
}
