//! Streaming decoding of tokens.

use crate::{error::TextError, tokenizer::Tokenizer};

/// Replacement of bytes that are not UTF-8, including the first bytes of an incomplete character.
const REPLACEMENT: char = '\u{fffd}';

/// A streaming decoder: returns text as soon as its characters are complete; all parts together are
/// the text of all tokens.
///
/// Created by [`Tokenizer::decode_stream`].
///
/// ```
/// use burn_lora_text::Tokenizer;
///
/// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
/// let mut stream = tokenizer.decode_stream(true);
/// assert_eq!(stream.push(281)?.as_deref(), Some("hello"));
/// assert_eq!(stream.push(285)?.as_deref(), Some(" world"));
/// assert_eq!(stream.finish()?, "");
/// # Ok::<_, burn_lora_text::TextError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DecodeStream {
    tokenizer: Tokenizer,
    skip_special_tokens: bool,
    /// The last tokens that gave text, followed by those that have not yet. The text of a token
    /// depends on the one before it: SentencePiece drops the first space of a text.
    tokens: Vec<u32>,
    /// Number of `tokens` that have given text.
    read: usize,
}

impl Tokenizer {
    /// Creates a streaming decoder.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let mut stream = tokenizer.decode_stream(true);
    /// let mut text = String::new();
    /// for id in tokenizer.encode("hello wörld", false)? {
    ///     text.extend(stream.push(id)?);
    /// }
    /// assert_eq!(text + &stream.finish()?, "hello wörld");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    pub fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream {
        DecodeStream { tokenizer: self.clone(), skip_special_tokens, tokens: vec![], read: 0 }
    }
}

impl DecodeStream {
    /// Adds a token, and returns the text that it completes; `None` if a character is still
    /// incomplete, or if the token is special and skipped.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let mut stream = tokenizer.decode_stream(true);
    /// let parts: Result<Vec<_>, _> =
    ///     tokenizer.encode("é", false)?.into_iter().map(|id| stream.push(id)).collect();
    /// assert_eq!(parts?, [None, Some("é".to_owned())]);
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>, TextError> {
        self.tokens.push(token);
        let new = self.new_text()?;
        if new.is_empty() || new.ends_with(REPLACEMENT) {
            return Ok(None);
        }
        self.tokens.drain(..self.read);
        self.read = self.tokens.len();
        Ok(Some(new))
    }

    /// Returns the rest of the text after the last token: an incomplete character becomes U+FFFD.
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let mut stream = tokenizer.decode_stream(true);
    /// stream.push(tokenizer.encode("é", false)?[0])?;
    /// assert_eq!(stream.finish()?, "\u{fffd}");
    /// # Ok::<_, burn_lora_text::TextError>(())
    /// ```
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(self) -> Result<String, TextError> {
        self.new_text()
    }

    /// Text of the tokens that have not given any.
    fn new_text(&self) -> Result<String, TextError> {
        let decode = |tokens| self.tokenizer.decode(tokens, self.skip_special_tokens);
        let (before, all) = (decode(&self.tokens[..self.read])?, decode(&self.tokens)?);
        match all.strip_prefix(&before) {
            Some(new) => Ok(new.to_owned()),
            // An invalid byte also invalidates those before it, whose text was returned already.
            None => decode(&self.tokens[self.read..]),
        }
    }
}
