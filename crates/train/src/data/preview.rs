//! Preview of a sample as text.

use super::Dataset;
use crate::error::TrainError;
use burn_lora_io::pictured;
use burn_lora_text::Tokenizer;

/// Green, and reset.
const COLOUR: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
const BRACKETS: [&str; 2] = ["«", "»"];

/// Text of successive tokens of a sample that are of one kind.
///
/// Created by [`Dataset::spans`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Text, with control characters as pictures (`␛`) or escapes.
    pub text: String,
    /// Whether the loss of the tokens counts.
    pub trained: bool,
    /// Whether the tokens are added tokens, such as `<|im_end|>`.
    pub special: bool,
}

impl Dataset {
    /// Returns the text of a sample with its special tokens. The trained part is green, or in
    /// brackets without colour; control characters are shown as pictures (`␛`) or escapes.
    ///
    /// ```
    /// use burn_lora_text::Tokenizer;
    /// use burn_lora_train::data::Dataset;
    ///
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = serde_json::json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).load(&tokenizer)?;
    /// assert_eq!(data.preview(0, &tokenizer, false)?, "hello« world<|im_end|>»");
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Text`] if the tokenizer's decoder rejects the tokens.
    ///
    /// # Panics
    /// If the index is not less than [`len`](Self::len).
    pub fn preview(
        &self,
        index: usize,
        tokenizer: &Tokenizer,
        colour: bool,
    ) -> Result<String, TrainError> {
        let [begin, end] = if colour { COLOUR } else { BRACKETS };
        let (mut text, mut inside) = (String::new(), false);
        for span in self.spans(index, tokenizer)? {
            if span.trained != inside {
                text += if span.trained { begin } else { end };
                inside = span.trained;
            }
            text += &span.text;
        }
        if inside {
            text += end;
        }
        Ok(text)
    }

    /// Returns the text of a sample in spans: trained or not, special tokens or not.
    ///
    /// ```
    /// use burn_lora_text::Tokenizer;
    /// use burn_lora_train::data::Dataset;
    ///
    /// let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// let record = serde_json::json!({ "prompt": "hello", "completion": " world" });
    /// let data = Dataset::from_records([record]).load(&tokenizer)?;
    /// let spans = data.spans(0, &tokenizer)?;
    /// let texts: Vec<_> = spans.iter().map(|span| (span.text.as_str(), span.trained)).collect();
    /// assert_eq!(texts, [("hello", false), (" world", true), ("<|im_end|>", true)]);
    /// assert!(spans[2].special);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Text`] if the tokenizer's decoder rejects the tokens.
    ///
    /// # Panics
    /// If the index is not less than [`len`](Self::len).
    pub fn spans(&self, index: usize, tokenizer: &Tokenizer) -> Result<Vec<Span>, TrainError> {
        let sample = self.sample(index);
        let mut spans: Vec<Span> = Vec::new();
        let mut stream = tokenizer.decode_stream(false);
        for (place, (id, trained)) in sample.ids.iter().zip(&sample.loss_mask).enumerate() {
            let (trained, special) = (*trained && place > 0, tokenizer.is_added_token(*id));
            let last = spans.last().map(|span| (span.trained, span.special));
            if last != Some((trained, special)) {
                spans.push(Span { text: String::new(), trained, special });
            }
            if let (Some(text), Some(span)) = (stream.push(*id)?, spans.last_mut()) {
                span.text += &pictured(&text);
            }
        }
        if let Some(span) = spans.last_mut() {
            span.text += &pictured(&stream.finish()?);
        }
        Ok(spans)
    }
}
