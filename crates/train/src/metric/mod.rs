//! Metrics of evaluations during a run: functions of the model and the validation data.

mod answers;
mod best;
mod labels;

pub use answers::{Answer, Answers};
pub(crate) use best::Best;
pub use labels::LabelScores;

use crate::{data::Dataset, error::TrainError, watch::EvalMetrics};
use serde::{Deserialize, Serialize};

/// Direction in which a metric improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Lower is better, as of a loss.
    Lower,
    /// Higher is better, as of an accuracy.
    Higher,
}

impl Goal {
    /// The direction that the name of a metric tells: those whose name ends with `loss`, `perplexity` or `error`
    /// are better lower, all others higher.
    pub(crate) fn of(metric: &str) -> Self {
        let lower = ["loss", "perplexity", "error"].iter().any(|end| metric.ends_with(end));
        if lower { Self::Lower } else { Self::Higher }
    }
}

/// Metrics of a model on validation data, beside those of the [objective](crate::Objective).
///
/// [`Validation::metric`] adds them to a run: their values are in
/// [`EvalMetrics`], and a run can keep the best model, or stop, by any
/// of them ([`TrainConfig::metric_for_best_model`](crate::TrainConfig::metric_for_best_model)).
/// [`Answers`] are metrics of generated text; [`Validation::metric_fn`] takes a function.
pub trait Metric<M> {
    /// Names of the metrics, and their directions, in the order of the values of
    /// [`measure`](Self::measure).
    fn names(&self) -> Vec<(String, Goal)>;

    /// Computes the metrics of a model without a graph.
    ///
    /// # Errors
    /// An error ends the run.
    fn measure(&self, model: &M, data: &Dataset) -> Result<Vec<f64>, TrainError>;

    /// Adds the metrics of a model to those of its evaluation.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    fn add_to(&self, found: &mut EvalMetrics, model: &M, data: &Dataset) -> Result<(), TrainError> {
        let names = self.names().into_iter().map(|(name, _)| name);
        found.metrics.extend(names.zip(self.measure(model, data)?));
        Ok(())
    }
}

/// Validation data of a run, with what is measured on them beside the objective's loss and metrics.
///
/// ```
/// # use burn::tensor::Device;
/// # use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// # use burn_lora_llama::{GenerateConfig, Llama};
/// # use burn_lora_text::Tokenizer;
/// # use serde_json::json;
/// use burn_lora_train::{
///     Dataset, Every, TrainConfig, Trainer,
///     metric::{Answers, Goal, Validation},
/// };
///
/// # let folder = "../../testdata/quickstart/model";
/// # let tokenizer = Tokenizer::from_pretrained(folder)?;
/// # let records = (0..4).map(|price| json!({ "prompt": "Price is $", "completion": format!("{price}") }));
/// # let train = Dataset::from_records(records).load(&tokenizer)?;
/// # let valid = train.clone();
/// # let mut model = Llama::from_pretrained(folder)
/// #     .load(&Device::default())?
/// #     .with_adapter(&LoraConfig::new(4, 8).all_linear())?;
/// let price = |text: &str| text.trim().parse::<f64>().unwrap_or(100.0);
/// let answers = Answers::new(GenerateConfig::new(4)).exact_match().score(
///     "price_error",
///     Goal::Lower,
///     |answers| {
///         let errors = answers.iter().map(|a| (price(&a.given) - price(&a.expected)).abs());
///         errors.sum::<f64>() / answers.len() as f64
///     },
/// );
/// let valid = Validation::new(&valid).metric(answers);
/// let config =
///     TrainConfig::new(1e-3).evaluate(Every::Epochs(1)).metric_for_best_model("price_error");
/// let report = Trainer::new(config).fit(&mut model, &train, valid)?;
/// assert!(report.evaluations[0].metrics.get("price_error").is_some());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Validation<'a, M> {
    pub(crate) data: Option<&'a Dataset>,
    pub(crate) metrics: Vec<Box<dyn Metric<M> + 'a>>,
}

impl<'a, M: 'a> Validation<'a, M> {
    /// Creates validation data that only the objective is evaluated on.
    pub fn new(data: &'a Dataset) -> Self {
        Some(data).into()
    }

    /// Adds metrics.
    pub fn metric(mut self, metric: impl Metric<M> + 'a) -> Self {
        self.metrics.push(Box::new(metric));
        self
    }

    /// Adds a metric that a function computes of the model and the validation data.
    ///
    /// ```
    /// # use burn_lora_llama::Llama;
    /// # use burn_lora_train::{BatchConfig, Dataset, TrainError, data::Sample};
    /// use burn_lora_train::{evaluate, metric::{Goal, Validation}};
    ///
    /// # let sample = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
    /// # let valid = Dataset::from_samples([sample])?;
    /// # let general = valid.clone();
    /// // What the model forgets of other texts.
    /// let general_loss = |model: &Llama, _: &Dataset| {
    ///     Ok(evaluate(model, &general, &BatchConfig::default())?.loss)
    /// };
    /// let valid = Validation::new(&valid).metric_fn("general_loss", Goal::Lower, general_loss);
    /// # Ok::<_, TrainError>(())
    /// ```
    pub fn metric_fn(
        self,
        name: impl Into<String>,
        goal: Goal,
        measure: impl Fn(&M, &Dataset) -> Result<f64, TrainError> + 'a,
    ) -> Self {
        self.metric(Function { name: name.into(), goal, measure })
    }

    /// Returns the validation data, if there are any.
    pub(crate) fn examples(&self) -> Option<&'a Dataset> {
        self.data.filter(|data| !data.is_empty())
    }
}

impl<'a, M> From<Option<&'a Dataset>> for Validation<'a, M> {
    fn from(data: Option<&'a Dataset>) -> Self {
        Self { data, metrics: vec![] }
    }
}

impl<'a, M> From<&'a Dataset> for Validation<'a, M> {
    fn from(data: &'a Dataset) -> Self {
        Some(data).into()
    }
}

/// A metric that a function computes.
struct Function<F> {
    name: String,
    goal: Goal,
    measure: F,
}

impl<M, F: Fn(&M, &Dataset) -> Result<f64, TrainError>> Metric<M> for Function<F> {
    fn names(&self) -> Vec<(String, Goal)> {
        vec![(self.name.clone(), self.goal)]
    }

    fn measure(&self, model: &M, data: &Dataset) -> Result<Vec<f64>, TrainError> {
        Ok(vec![(self.measure)(model, data)?])
    }
}
