//! Words with a label each, and labels of tokens.

use super::{
    Dataset, IGNORE_INDEX,
    read::Record,
    sample::Sample,
    store::Writer,
    values::{items, number},
};
use crate::error::TrainError;
use burn_lora_text::ChatValue as Value;

/// Names of the column of labels, by precedence.
pub(super) const LABELS: [&str; 2] = ["labels", "ner_tags"];

/// Returns the name of the column that has the labels of a record.
pub(super) fn labels(record: &Record) -> Option<&'static str> {
    LABELS.into_iter().find(|name| record.contains_key(*name))
}

/// Parses words and their labels, which are numbers or names.
pub(super) fn words(record: &Record) -> Result<(Vec<String>, Vec<Value>), String> {
    let column = |name: &str| record.get(name).ok_or_else(|| format!("no column `{name}`"));
    let words = items("tokens", column("tokens")?)?;
    let words = words.into_iter().enumerate().map(|(at, word)| match word {
        Value::Text(word) => Ok(word.to_string()),
        other => {
            Err(format!("`tokens`, word {}: it is {}, but must be text", at + 1, other.kind()))
        }
    });
    let words = words.collect::<Result<Vec<String>, _>>()?;
    let name = labels(record).ok_or("no column `labels` or `ner_tags`")?;
    let labels = items(name, column(name)?)?;
    if labels.len() != words.len() {
        let (words, labels) = (words.len(), labels.len());
        return Err(format!("`tokens` has {words} words, but `{name}` has {labels} labels"));
    }
    Ok((words, labels))
}

/// Returns the label of a word: a number, one of the names, or none.
pub(super) fn label(word: &str, value: &Value, names: &[String]) -> Result<i32, String> {
    let wrong =
        |reason| format!("the label of the word `{}` is {reason}", burn_lora_io::escaped(word));
    if value.is_null() {
        return Ok(IGNORE_INDEX);
    }
    if let (Value::Text(_), []) = (value, names) {
        return Err(wrong("text, but must be a number: name the labels by `token_labels`".into()));
    }
    let label = number(value, names).map_err(wrong)?;
    let most = if names.is_empty() { f32::MAX } else { names.len() as f32 - 1.0 };
    if label == IGNORE_INDEX as f32 || label.fract() == 0.0 && (0.0..=most).contains(&label) {
        return Ok(label as i32);
    }
    let known = match names.len() {
        0 => "a whole number from 0 on".into(),
        count => format!("0 to {}", count - 1),
    };
    Err(wrong(format!("{label}, but must be {known}, or {IGNORE_INDEX} for none")))
}

impl Dataset {
    /// Creates a data set of tokens with labels from elsewhere: for each token a label, or [`IGNORE_INDEX`] for none.
    ///
    /// ```
    /// use burn_lora_train::{BatchConfig, Dataset, data::IGNORE_INDEX};
    ///
    /// let data = Dataset::from_labeled_tokens([(vec![5, 6, 7], vec![0, IGNORE_INDEX, 2])])?;
    /// let batch = data.batch(&[vec![0]], &BatchConfig::default());
    /// assert_eq!(batch.token_labels, [0, -100, 2]);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// - [`TrainError::Format`] if there are no samples
    /// - [`TrainError::Example`] if a sample has no label, or not one for each token
    /// - [`TrainError::Io`] if the temporary file cannot be written
    pub fn from_labeled_tokens(
        samples: impl IntoIterator<Item = (Vec<u32>, Vec<i32>)>,
    ) -> Result<Self, TrainError> {
        let mut writer = Writer::new(None, vec!["samples".into()])?;
        for (number, (ids, labels)) in samples.into_iter().enumerate() {
            let (tokens, given) = (ids.len(), labels.len());
            if tokens != given {
                let reason = format!("{tokens} tokens, but {given} labels");
                return Err(writer.wrong(0, number + 1, reason));
            }
            let loss_mask: Vec<bool> = labels.iter().map(|label| *label != IGNORE_INDEX).collect();
            if !loss_mask.contains(&true) {
                return Err(writer.wrong(
                    0,
                    number + 1,
                    format!("none of its {tokens} tokens has a label"),
                ));
            }
            writer.push(&Sample { ids, loss_mask }, 0, number + 1)?;
            writer.labels(&labels);
        }
        Ok(Self::new(writer.finish(None)?))
    }

    /// Returns `true` if the tokens have labels.
    pub fn has_token_labels(&self) -> bool {
        self.store.has_labels()
    }

    /// Returns the label of each token of a sample, [`IGNORE_INDEX`] for none; empty if the data have no labels.
    ///
    /// # Panics
    /// If the index is not less than [`len`](Self::len).
    pub fn token_labels(&self, index: usize) -> &[i32] {
        self.store.labels(self.place(index))
    }
}
