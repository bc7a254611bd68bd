//! Reward models.

use super::{
    GradientSums, Objective, Outcome, floats, log_sigmoid,
    logits::{self, LogitLoss},
    pairs::{Pairs, each},
    total,
};
use crate::{
    TrainError,
    data::{Batch, Dataset},
};
use burn::tensor::{Tensor, activation::sigmoid};
use burn_lora_adapter::Adaptable;
use burn_lora_llama::CausalLm;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Reward modelling as TRL's `RewardTrainer`: a head of one label gives the reward of an answer at its last token, and
/// the chosen answer of a pair is to have the higher one (Bradley and Terry; arXiv:2203.02155).
///
/// With the rewards `c` of the chosen and `r` of the rejected answer, the margin `m` of the pair, and the coefficient
/// `k`, the loss of a pair is `-log σ(c - r - m) + k·(c + r)²`.
///
/// The data are [pairs](crate::data::Format::Preference). The margins are numbers beside the tokens, by the name
/// `margin`, if there are any: [`DatasetBuilder::value`](crate::data::DatasetBuilder::value) reads them.
///
/// | metric | what |
/// |---|---|
/// | `accuracy` | fraction of pairs whose chosen answer has the higher reward |
/// | `margin` | `c - r` |
/// | `mean_reward` | mean of all rewards |
/// | `min_reward`, `max_reward` | of a batch; of several batches, the mean by their pairs |
///
/// ```
/// use burn::tensor::Device;
/// use burn_lora_adapter::{AdaptableExt, LoraConfig};
/// use burn_lora_llama::{Llama, Tokenizer};
/// use burn_lora_train::{Dataset, TrainConfig, Trainer, objective::Reward};
/// use serde_json::json;
///
/// let folder = "../../testdata/quickstart/model";
/// let pair = json!({ "prompt": "Price is", "chosen": " $5", "rejected": " 5 dollars", "margin": 0.5 });
/// let data = Dataset::from_records(vec![pair; 8]).value("margin");
/// let data = data.load(&Tokenizer::from_pretrained(folder)?)?;
/// let model = Llama::from_pretrained(folder).load_classifier(1, &Device::default())?;
/// let lora = LoraConfig::new(8, 16).all_linear().modules_to_save(["score"]).task_type("SEQ_CLS");
/// let mut model = model.with_adapter(&lora)?;
/// let objective = Reward::for_model(&model)?.center_rewards(0.01);
/// let report = Trainer::new(TrainConfig::new(1e-3).epochs(2)).fit_with(objective, &mut model, &data, None)?;
/// assert_eq!(report.log[0].metrics.get("accuracy"), Some(1.0));
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reward {
    /// The coefficient `k`, which keeps rewards around 0 (arXiv:2312.09244); `None` for 0. TRL's documentation
    /// recommends 0.01.
    pub center_rewards_coefficient: Option<f64>,
}

impl Reward {
    /// Name of the margins among the numbers beside the tokens.
    pub const MARGIN: &str = "margin";

    /// Creates the objective for a model.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if its head has another number of labels than one.
    pub fn for_model<M: Adaptable>(model: &M) -> Result<Self, TrainError> {
        match logits::labels(model) {
            1 => Ok(Self::default()),
            found => {
                let reason =
                    "a reward is a single number: load the model by `load_classifier(1, ..)`";
                Err(TrainError::setting("labels of the head", found, reason))
            }
        }
    }

    /// Sets the coefficient of the rewards' square.
    pub fn center_rewards(mut self, coefficient: f64) -> Self {
        self.center_rewards_coefficient = Some(coefficient);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the coefficient is negative or not finite.
    pub fn validate(&self) -> Result<(), TrainError> {
        match self.center_rewards_coefficient {
            Some(found) if !(found >= 0.0 && found.is_finite()) => {
                let reason = "it has to be 0 at least";
                Err(TrainError::setting("objective.center_rewards_coefficient", found, reason))
            }
            _ => Ok(()),
        }
    }

    /// Loss and metrics of rewards, `[samples, 1]`, the two of a pair one after the other.
    fn loss(&self, rewards: Tensor<2>, margins: Option<&Vec<f32>>) -> LogitLoss {
        let device = rewards.device();
        let samples = rewards.dims()[0];
        let pairs = samples / 2;
        let rewards = rewards.reshape([samples]);
        let [c, r] = each(&rewards);
        let margin = c.clone() - r.clone();
        let sum = c + r;
        let x = match margins {
            // Both samples of a pair have it.
            Some(margins) => {
                let of_pairs: Vec<f32> = margins.iter().step_by(2).copied().collect();
                margin.clone() - floats(&of_pairs, &device)
            }
            None => margin.clone(),
        };
        let k = self.center_rewards_coefficient.unwrap_or(0.0);
        let loss = sum.clone().square() * k - log_sigmoid(x.clone());
        let (slope, pull) = (-sigmoid(-x), sum.clone() * (2.0 * k));
        let grad = Tensor::stack::<2>(vec![slope.clone() + pull.clone(), pull - slope], 1);
        let extreme = |value: Tensor<1>| value * pairs as f64;
        let metrics = vec![
            total(margin.clone().greater_elem(0.0).float()),
            total(margin),
            total(sum) * 0.5,
            extreme(rewards.clone().min()),
            extreme(rewards.max()),
        ];
        LogitLoss { loss: total(loss), metrics, grad: grad.reshape([samples, 1]) }
    }
}

impl<M: CausalLm> Objective<M> for Reward {
    fn settings(&self) -> Value {
        json!({ "reward": self })
    }

    fn check(&self, data: &Dataset) -> Result<(), TrainError> {
        self.validate()?;
        Pairs::check(data)
    }

    fn labels(&self) -> Option<usize> {
        Some(1)
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["accuracy", "margin", "mean_reward", "min_reward", "max_reward"]
    }

    fn count(&self, batch: &Batch) -> usize {
        Pairs::count(batch)
    }

    fn run(
        &self,
        model: &M,
        hidden: Tensor<3>,
        batch: &Batch,
        context: &M::Context,
        sums: Option<&mut GradientSums>,
    ) -> Outcome {
        let loss = |rewards| self.loss(rewards, batch.values.get(Self::MARGIN));
        logits::run((model, hidden, context), &batch.last_tokens, 1, sums, loss)
    }
}
