//! Answers that are desirable or not, one an example.

use super::{
    Dataset, DatasetBuilder,
    read::Record,
    values::{self, LABEL},
};
use burn_lora_text::ChatValue;

/// Answers of this many pairs are separated together, as in TRL, whose `map` has batches of this size.
const BLOCK: usize = 1000;

impl DatasetBuilder {
    /// Makes each answer an example of its own, with the number `label` beside its tokens: 1 for a desirable answer and 0
    /// for another. That is the column `label`; pairs are taken apart ([`Dataset::unpaired`]).
    ///
    /// ```
    /// # use burn_lora_text::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_train::{BatchConfig, Dataset};
    /// use serde_json::json;
    ///
    /// let answer = json!({ "prompt": "hello", "completion": " world", "label": false });
    /// let pair = json!({ "prompt": "hello", "chosen": " world", "rejected": " you" });
    /// for (record, labels) in [(answer, vec![0.0]), (pair, vec![1.0, 0.0])] {
    ///     let data = Dataset::from_records([record]).unpaired().load(&tokenizer)?;
    ///     let rows: Vec<_> = (0..data.len()).map(|sample| vec![sample]).collect();
    ///     assert_eq!(data.batch(&rows, &BatchConfig::default()).values["label"], labels);
    /// }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn unpaired(mut self) -> Self {
        self.unpaired = true;
        self.labeled()
    }

    /// Reads labels of single answers, and leaves pairs together, for a split.
    pub(crate) fn labeled(mut self) -> Self {
        self.labeled = true;
        self
    }
}

impl Dataset {
    /// Takes pairs apart: each answer is an example of its own, with the number `label` beside its tokens, 1 for a chosen
    /// one and 0 for a rejected one. Of 1,000 pairs the chosen answers come first, as in TRL. Other data stay as they
    /// are.
    ///
    /// Split data before: else both answers to a prompt may be on either side.
    pub fn unpaired(self) -> Self {
        if self.samples_per_example() == 1 {
            return self;
        }
        let order: Vec<usize> = order(self.len()).collect();
        let labels: Vec<f32> = order.iter().map(|at| f32::from(u8::from(at % 2 == 0))).collect();
        let mut data = self.chosen(order.into_iter()).sharing_prompts(false);
        data.group = 1;
        data.with_values(LABEL, labels).expect("a label for each")
    }
}

/// Takes the label out of a record.
pub(super) fn label(record: &mut Record) -> Result<f32, String> {
    let missing = || format!("no column `{LABEL}`, which says whether the answer is desirable");
    let value = record.shift_remove(LABEL).ok_or_else(missing)?;
    let found = match &value {
        ChatValue::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" => Ok(1.0),
            "false" => Ok(0.0),
            _ => values::number(&value, &[]),
        },
        _ => values::number(&value, &[]),
    };
    match found {
        Ok(label) if label == 0.0 || label == 1.0 => Ok(label),
        Ok(label) => Err(format!("`{LABEL}` is {label}, but must be true or false")),
        Err(reason) => Err(format!("`{LABEL}` is {reason}, and must be true or false")),
    }
}

/// Order of the answers of pairs, which are one pair after the other.
fn order(answers: usize) -> impl Iterator<Item = usize> {
    (0..answers).step_by(2 * BLOCK).flat_map(move |from| {
        let to = answers.min(from + 2 * BLOCK);
        (from..to).step_by(2).chain((from + 1..to).step_by(2))
    })
}
