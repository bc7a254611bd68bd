//! Preview of a sample as text.

use super::Dataset;
use crate::error::TrainError;
use burn_lora_io::escaped;
use burn_lora_text::Tokenizer;

/// Green, and reset.
const COLOUR: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
const BRACKETS: [&str; 2] = ["«", "»"];

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
        let sample = self.sample(index);
        let (mut text, mut inside) = (String::new(), false);
        let mut stream = tokenizer.decode_stream(false);
        for (place, (id, trained)) in sample.ids.iter().zip(&sample.loss_mask).enumerate() {
            let target = *trained && place > 0;
            if target != inside {
                text += if target { begin } else { end };
                inside = target;
            }
            show(&mut text, &stream.push(*id)?.unwrap_or_default());
        }
        show(&mut text, &stream.finish()?);
        if inside {
            text += end;
        }
        Ok(text)
    }
}

/// Adds text so that it does not control a terminal: control characters as their pictures, or else
/// escaped. Newlines and tabs stay.
fn show(text: &mut String, new: &str) {
    for char in new.chars() {
        match char {
            '\n' | '\t' => text.push(char),
            '\0'..='\u{1f}' => text.extend(char::from_u32(0x2400 + char as u32)),
            '\u{7f}' => text.push('\u{2421}'),
            _ => text.push_str(&escaped(char.encode_utf8(&mut [0; 4])).to_string()),
        }
    }
}
