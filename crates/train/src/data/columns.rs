//! Columns beside the text, as a user names them: numbers, classes, labels.

use super::{DatasetBuilder, values::Column};

impl DatasetBuilder {
    /// Keeps a column of numbers beside the tokens, for an objective: `Batch::values` has them by
    /// this name.
    pub fn value(mut self, column: impl Into<String>) -> Self {
        self.values.insert(column.into(), Column::One(vec![]));
        self
    }

    /// Keeps a column of labels beside the tokens, as numbers: the first name is 0. A number stands
    /// for itself.
    ///
    /// ```
    /// # use burn_lora_llama::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_train::{BatchConfig, Dataset};
    /// use serde_json::json;
    ///
    /// let reviews = [json!({"text": "bread", "label": "bad"}), json!({"text": "water", "label": "good"})];
    /// let data = Dataset::from_records(reviews).labels("label", ["bad", "good"]).load(&tokenizer)?;
    /// let batch = data.batch(&[vec![0], vec![1]], &BatchConfig::default());
    /// assert_eq!(batch.values["label"], [0.0, 1.0]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn labels<N: Into<String>>(
        mut self,
        column: impl Into<String>,
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        self.values.insert(column.into(), Column::One(names.into_iter().map(Into::into).collect()));
        self
    }

    /// Keeps a column of lists of labels beside the tokens, for an example that may have several: each name is a number,
    /// 1 if it is in the list, else 0. A number in a list stands for the name at this place.
    ///
    /// ```
    /// # use burn_lora_llama::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_train::{BatchConfig, Dataset};
    /// use serde_json::json;
    ///
    /// let offers = [json!({"text": "bread", "labels": ["new", "cheap"]}), json!({"text": "water", "labels": []})];
    /// let data = Dataset::from_records(offers).label_set("labels", ["cheap", "old", "new"]).load(&tokenizer)?;
    /// let batch = data.batch(&[vec![0], vec![1]], &BatchConfig::default());
    /// assert_eq!((&batch.values["cheap"], &batch.values["old"]), (&vec![1.0, 0.0], &vec![0.0, 0.0]));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn label_set<N: Into<String>>(
        mut self,
        column: impl Into<String>,
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        self.values.insert(column.into(), Column::Set(names.into_iter().map(Into::into).collect()));
        self
    }

    /// Keeps a column of lists of numbers beside the tokens, one for each of these names.
    ///
    /// ```
    /// # use burn_lora_llama::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_train::{BatchConfig, Dataset};
    /// use serde_json::json;
    ///
    /// let record = json!({"text": "bread", "scores": [0.5, 3]});
    /// let data = Dataset::from_records([record]).value_list("scores", ["taste", "price"]).load(&tokenizer)?;
    /// let batch = data.batch(&[vec![0]], &BatchConfig::default());
    /// assert_eq!((&batch.values["taste"], &batch.values["price"]), (&vec![0.5], &vec![3.0]));
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn value_list<N: Into<String>>(
        mut self,
        column: impl Into<String>,
        names: impl IntoIterator<Item = N>,
    ) -> Self {
        self.values
            .insert(column.into(), Column::List(names.into_iter().map(Into::into).collect()));
        self
    }

    /// Names the labels of words ([`Format::Tokens`](super::Format::Tokens)): the first name is 0. A number stands for itself.
    ///
    /// ```
    /// # use burn_lora_llama::Tokenizer;
    /// # let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer")?;
    /// use burn_lora_train::Dataset;
    /// use serde_json::json;
    ///
    /// let record = json!({"tokens": ["hello", "Rome"], "ner_tags": ["O", "B-LOC"]});
    /// let data = Dataset::from_records([record]).token_labels(["O", "B-LOC"]).load(&tokenizer)?;
    /// assert_eq!(data.token_labels(0)[..2], [0, 1]);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn token_labels<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.token_labels = names.into_iter().map(Into::into).collect();
        self
    }
}
