//! Sequence classification with several labels at once.

use super::{
    GradientSums, Objective, Outcome, floats, log_sigmoid,
    logits::{self, LogitLoss, check_values, check_weights, columns},
    total,
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::{Tensor, activation::sigmoid};
use burn_lora_llama::CausalLm;
use serde_json::{Value, json};

/// Mean binary cross-entropy of each label, given the logits of a sample's last token: transformers'
/// `ForSequenceClassification` with the problem type `multi_label_classification`.
///
/// For the logit `x` of a label that applies (`y = 1`) or not (`y = 0`), and the label's weight `w` (1 by default),
/// the loss is `-w·y·log σ(x) - (1 - y)·log σ(-x)`, as PyTorch's `BCEWithLogitsLoss(pos_weight)`.
///
/// Each label is a number beside the tokens, by its own name: columns of the data
/// ([`DatasetBuilder::value`](crate::data::DatasetBuilder::value)) or one column of lists
/// ([`DatasetBuilder::label_set`](crate::data::DatasetBuilder::label_set),
/// [`DatasetBuilder::value_list`](crate::data::DatasetBuilder::value_list)).
///
/// | metric | what |
/// |---|---|
/// | `accuracy` | fraction of samples all of whose labels are right, as scikit-learn's `accuracy_score` |
/// | `label_accuracy` | fraction of labels that are right |
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{Dataset, TrainConfig, Trainer, objective::MultiLabelClassification};
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let labels = ["cheap", "new"];
/// let offer = json!({ "text": "Price is $5", "labels": ["cheap"] });
/// let data = Dataset::from_records(vec![offer; 8]).label_set("labels", labels);
/// let data = data.load(&Tokenizer::from_pretrained(folder)?)?;
/// let model = Llama::from_pretrained(folder).load_classifier(2, &Device::default())?;
/// let lora = LoraConfig::new(8, 16).all_linear().modules_to_save(["score"]).task_type("SEQ_CLS");
/// let mut model = model.with_adapter(&lora)?;
/// let objective = MultiLabelClassification::new(labels);
/// Trainer::new(TrainConfig::new(1e-3).epochs(2)).fit_with(objective, &mut model, &data, None)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MultiLabelClassification {
    /// Names of the labels, in the order of the head's logits.
    pub labels: Vec<String>,
    /// Weight of each label where it applies; empty for 1.
    pub pos_weights: Vec<f32>,
}

impl MultiLabelClassification {
    /// Creates the objective of these labels.
    pub fn new<N: Into<String>>(labels: impl IntoIterator<Item = N>) -> Self {
        Self { labels: labels.into_iter().map(Into::into).collect(), pos_weights: vec![] }
    }

    /// Sets the weights of labels that apply.
    pub fn pos_weights(mut self, weights: impl IntoIterator<Item = f32>) -> Self {
        self.pos_weights = weights.into_iter().collect();
        self
    }

    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> LogitLoss {
        let [rows, labels] = x.dims();
        let sum = |values: Tensor<2>| total(values.reshape([rows * labels]));
        let right = x.clone().greater_elem(0.0).equal(y.clone().greater_elem(0.5)).float();
        // The factor of -log σ(x).
        let factor = match self.pos_weights.as_slice() {
            [] => y.ones_like(),
            weights => {
                let weights = floats(weights, &x.device()).reshape([1, labels]);
                y.clone() * (weights - 1.0) + 1.0
            }
        };
        let other = -y + 1.0;
        let loss = other.clone() * x.clone() - factor.clone() * log_sigmoid(x.clone());
        let grad = (other - factor * sigmoid(-x)) / labels as f64;
        let all = right.clone().min_dim(1).reshape([rows]);
        let metrics = vec![total(all), sum(right) / labels as f64];
        LogitLoss { loss: sum(loss) / labels as f64, metrics, grad }
    }
}

impl<M: CausalLm> Objective<M> for MultiLabelClassification {
    fn settings(&self) -> Value {
        json!({ "multi_label_classification": self.labels, "pos_weights": self.pos_weights })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        check_weights("pos_weights", &self.pos_weights, self.labels.len())?;
        let fits = |value: f32| (0.0..=1.0).contains(&value);
        let expected = "a label is 0, 1 or a probability between";
        let check = |name: &String| check_values(data, name, "label_set(..)", fits, expected);
        self.labels.iter().try_for_each(check)
    }

    fn labels(&self) -> Option<usize> {
        Some(self.labels.len())
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["accuracy", "label_accuracy"]
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.sources.len()
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let loss = |x: Tensor<2>| {
            let y = columns(batch, &self.labels, &x);
            self.loss(x, y)
        };
        logits::run((model, hidden, context), &batch.last_tokens, self.labels.len(), sums, loss)
    }
}
