//! A sample as text, to look at before training.

use super::Dataset;
use crate::error::TrainError;
use burn_lora_llama::Tokenizer;

/// Green, and back.
const COLOUR: [&str; 2] = ["\u{1b}[32m", "\u{1b}[0m"];
const BRACKETS: [&str; 2] = ["«", "»"];

impl Dataset {
    /// The text of a sample with its special tokens. What is trained on is green, or without colour
    /// in brackets.
    ///
    /// ```
    /// use burn_lora_llama::Tokenizer;
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
    /// Tokens that the tokenizer's decoder refuses.
    ///
    /// # Panics
    /// An index that is not less than [`len`](Self::len).
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
        for (place, (id, trained)) in sample.ids.iter().zip(&sample.trained).enumerate() {
            let target = *trained && place > 0;
            if target != inside {
                text += if target { begin } else { end };
                inside = target;
            }
            // Characters that steer a terminal would do so here.
            let new = stream.push(*id)?.unwrap_or_default();
            text.extend(new.chars().map(|c| if c == '\u{1b}' { '\u{241b}' } else { c }));
        }
        text += &stream.finish()?;
        if inside {
            text += end;
        }
        Ok(text)
    }
}
