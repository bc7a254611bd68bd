//! Precision, recall and F1 of labels.

use super::{Goal, Metric};
use crate::{
    data::{Batch, BatchConfig, Dataset},
    error::TrainError,
    objective::{SequenceClassification, ints},
    step,
};
use burn_lora_llama::CausalLm;

/// Precision, recall and F1 of predicted labels, the mean over all labels that the data have or the model predicts, as
/// scikit-learn's with `average="macro"`. Of tokens with labels
/// ([`TokenClassification`](crate::objective::TokenClassification)) each counts, of other data the last token of each
/// sample ([`SequenceClassification`]).
///
/// ```
/// # use burn::tensor::Device;
/// # use burn_lora_llama::Llama;
/// # let model = Llama::from_pretrained("../../testdata/gqa").load_token_classifier(3, &Device::default())?;
/// use burn_lora_train::{Dataset, metric::{LabelScores, Validation}};
///
/// let data = Dataset::from_labeled_tokens([(vec![5, 6, 7], vec![0, 0, 2])])?;
/// let valid = Validation::new(&data).metric(LabelScores::default());
/// # let _: Validation<burn_lora_llama::SequenceClassifier> = valid;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct LabelScores {
    /// How the data are put into batches.
    pub batches: BatchConfig,
}

/// How often a label was right, predicted, and there.
#[derive(Clone, Copy, Default)]
struct Counts {
    right: f64,
    predicted: f64,
    there: f64,
}

impl<M: CausalLm> Metric<M> for LabelScores {
    fn names(&self) -> Vec<(String, Goal)> {
        ["precision", "recall", "f1"].map(|name| (name.to_owned(), Goal::Higher)).to_vec()
    }

    fn measure(&self, model: &M, data: &Dataset) -> Result<Vec<f64>, TrainError> {
        let mut counts: Vec<Counts> = vec![];
        for batch in data.in_order("scoring labels", &self.batches)? {
            let (places, expected) = labels(&batch)?;
            let (hidden, context) = step::forward(model, &batch);
            let [rows, length, width] = hidden.dims();
            let places = ints(places, &hidden.device());
            let hidden = hidden.reshape([rows * length, width]).select(0, places);
            let found = model.head(hidden, &context).argmax(1).into_data();
            for (found, expected) in found.iter::<i64>().zip(expected) {
                let (found, expected) = (found as usize, expected as usize);
                counts.resize(counts.len().max(found + 1).max(expected + 1), Counts::default());
                counts[found].predicted += 1.0;
                counts[expected].there += 1.0;
                counts[found].right += f64::from(u8::from(found == expected));
            }
        }
        counts.retain(|count| count.predicted + count.there > 0.0);
        let mean = |of: &dyn Fn(&Counts) -> (f64, f64)| {
            let ratio = |(part, all)| if all > 0.0 { part / all } else { 0.0 };
            counts.iter().map(|count| ratio(of(count))).sum::<f64>() / counts.len().max(1) as f64
        };
        Ok(vec![
            mean(&|count| (count.right, count.predicted)),
            mean(&|count| (count.right, count.there)),
            mean(&|count| (2.0 * count.right, count.predicted + count.there)),
        ])
    }
}

/// Places of the labels of a batch, with the labels.
fn labels(batch: &Batch) -> Result<(Vec<i32>, Vec<i32>), TrainError> {
    if !batch.token_labels.is_empty() {
        return Ok(batch.labeled_tokens().map(|(place, label)| (place as i32, label)).unzip());
    }
    let Some(labels) = batch.values.get(SequenceClassification::LABEL) else {
        let reason = "the data have no labels: neither of tokens, nor numbers `label`";
        return Err(TrainError::setting("label", "missing", reason));
    };
    let places = batch.last_tokens.iter().map(|place| *place as i32).collect();
    Ok((places, labels.iter().map(|label| *label as i32).collect()))
}
