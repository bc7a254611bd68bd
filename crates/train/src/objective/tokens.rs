//! Token classification.

use super::{
    GradientSums, Objective, Outcome,
    logits::{self, check_weights, weighted_entropy},
};
use crate::{
    TrainError,
    data::{Batch, Dataset, IGNORE_INDEX},
};
use burn::tensor::Tensor;
use burn_lora_adapter::Adaptable;
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Mean cross-entropy of the label of each token that has one, given its own logits: transformers'
/// `ForTokenClassification`, for a model with such a head
/// ([`load_token_classifier`](burn_lora_llama::Loader::load_token_classifier)).
///
/// The data are [words with labels](crate::data::Format::Tokens), or tokens with labels
/// ([`Dataset::from_labeled_tokens`]). The metric is `accuracy`, of the tokens that have a label.
///
/// With a weight for each class, the loss of a batch is `Σ w[label]·loss / Σ w[label]`, as PyTorch's
/// `CrossEntropyLoss(weight)`; several batches count by their labels. transformers' dropout of the head's input is left
/// out.
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{Dataset, TrainConfig, Trainer, objective::TokenClassification};
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let sentence = json!({ "tokens": ["Rings", "of", "Paris"], "ner_tags": ["O", "O", "B-LOC"] });
/// let data = Dataset::from_records(vec![sentence; 8]).token_labels(["O", "B-LOC", "I-LOC"]);
/// let data = data.load(&Tokenizer::from_pretrained(folder)?)?;
/// let model = Llama::from_pretrained(folder).load_token_classifier(3, &Device::default())?;
/// let lora = LoraConfig::new(8, 16).all_linear().modules_to_save(["score"]).task_type("TOKEN_CLS");
/// let mut model = model.with_adapter(&lora)?;
/// let objective = TokenClassification::for_model(&model);
/// let report = Trainer::new(TrainConfig::new(5e-3).epochs(5)).fit_with(objective, &mut model, &data, None)?;
/// assert!(report.log[0].metrics.get("accuracy").unwrap() > 0.5);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TokenClassification {
    /// Number of classes: logits of the head.
    pub num_labels: usize,
    /// Weight of each class; empty for the same for all.
    pub class_weights: Vec<f32>,
}

impl TokenClassification {
    /// Creates the objective for this number of classes.
    pub fn new(num_labels: usize) -> Self {
        Self { num_labels, class_weights: vec![] }
    }

    /// Creates the objective for the classes of a model's head.
    pub fn for_model<M: Adaptable>(model: &M) -> Self {
        Self::new(logits::labels(model))
    }

    /// Sets the weights of the classes.
    pub fn class_weights(mut self, weights: impl IntoIterator<Item = f32>) -> Self {
        self.class_weights = weights.into_iter().collect();
        self
    }
}

impl<M: CausalLm> Objective<M> for TokenClassification {
    fn settings(&self) -> Value {
        let Self { num_labels, class_weights } = self;
        json!({ "token_classification": num_labels, "class_weights": class_weights })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        check_weights("class_weights", &self.class_weights, self.num_labels)?;
        if !data.has_token_labels() {
            let reason = "the data have no label for each token: they need the columns `tokens` and `ner_tags`, or \
                          `Dataset::from_labeled_tokens`";
            return Err(TrainError::setting("token labels", "missing", reason));
        }
        let most = self.num_labels.saturating_sub(1);
        let fits = |label: &i32| *label == IGNORE_INDEX || (0..=most as i32).contains(label);
        for sample in 0..data.len() {
            if let Some(label) = data.token_labels(sample).iter().find(|label| !fits(label)) {
                let reason = format!("a token has the label {label}: the classes are 0 to {most}");
                return Err(data.wrong(sample, reason));
            }
        }
        Ok(())
    }

    fn labels(&self) -> Option<usize> {
        Some(self.num_labels)
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["accuracy"]
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.labeled_tokens().count()
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let (places, labels): (Vec<usize>, Vec<i32>) = batch.labeled_tokens().unzip();
        let loss = |logits| weighted_entropy(logits, labels, &self.class_weights);
        logits::run((model, hidden, context), &places, self.num_labels, sums, loss)
    }
}
