//! Settings of a run.

use crate::{
    OptimizerConfig, Recompute, TrainError,
    course::StepConfig,
    data::BatchConfig,
    objective::NextToken,
    schedule::{Schedule, Warmup},
};
use burn_lora_llama::Keep;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

/// Interval of an evaluation or a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Every {
    /// Number of optimizer steps.
    Steps(usize),
    /// Number of passes over the data.
    Epochs(usize),
}

/// Early stopping when evaluations no longer get better, by
/// [`metric_for_best_model`](TrainConfig::metric_for_best_model).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Number of evaluations without a better value before the run stops.
    pub patience: usize,
    /// Gain over the best value that resets the patience. The best itself is the best value, however
    /// small the gain.
    #[serde(default)]
    pub threshold: f64,
}

/// Settings of a run. The names are those of Hugging Face's `TrainingArguments` where it has them;
/// every method sets the field of its name.
///
/// ```
/// use burn_lora_train::{Every, Schedule, TrainConfig, Warmup};
///
/// let config = TrainConfig::new(2e-4)
///     .epochs(3)
///     .batch_size(4)
///     .gradient_accumulation_steps(4)
///     .schedule(Schedule::Cosine)
///     .warmup(Warmup::Ratio(0.03))
///     .max_grad_norm(0.3)
///     .evaluate(Every::Epochs(1))
///     .output("out");
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Peak learning rate. That of LoRA is about ten times that of full fine-tuning, and nearly independent of
    /// the rank at a fixed [`alpha`](burn_lora_adapter::LoraConfig::new) (Schulman et al., *LoRA Without Regret*,
    /// 2025): 2e-4 to 5e-4 for AdamW and models of 1 to 8 billion parameters. A run with AdamW, LoRA-FA or Lion
    /// warns of a rate over 0.01.
    pub learning_rate: f64,
    /// Passes over the data; 1.5 is one and a half.
    pub epochs: f64,
    /// Maximum number of optimizer steps, whatever the epochs.
    pub max_steps: Option<usize>,
    /// Batch settings: samples, or packed rows, per micro-batch, and how they are formed.
    pub batches: BatchConfig,
    /// Micro-batches per optimizer step, on each device.
    pub gradient_accumulation_steps: usize,
    /// Optimizer.
    #[serde(deserialize_with = "choice::optimizer")]
    pub optimizer: OptimizerConfig,
    /// Decoupled weight decay. Biases and norms are exempt.
    pub weight_decay: f64,
    /// Maximum norm over all gradients, for clipping; `None`, or 0 in a file, disables it.
    #[serde(with = "zero_is_none")]
    pub max_grad_norm: Option<f64>,
    /// Learning rate schedule after the warm-up.
    #[serde(deserialize_with = "choice::schedule")]
    pub schedule: Schedule,
    /// Length of the linear warm-up of the learning rate, from 0.
    #[serde(deserialize_with = "choice::warmup")]
    pub warmup: Warmup,
    /// LoRA+ (arXiv:2402.12354): ratio of the learning rate of B, magnitudes and biases to that of
    /// A.
    pub lora_plus: Option<f64>,
    /// Recomputation of layers in the backward pass.
    #[serde(deserialize_with = "choice::recompute")]
    pub recompute: Recompute,
    /// What the layers that are run again keep beside their inputs, if they can: not with dropout, whose
    /// numbers would be drawn in another order.
    pub keep: Keep,
    /// Number of these layers, the last ones, that [keep all of their attention](Keep::Attention), on
    /// the device also with [`offload`](Self::offload).
    pub keep_attention_of: usize,
    /// Offloads what is kept of the layers to host memory: their inputs, and what [`keep`](Self::keep) adds
    /// of their attention. On CUDA the copies run beside the computation.
    pub offload: bool,
    /// Target tokens per chunk of head and loss. The logits of a chunk are the memory that they
    /// need.
    pub loss_chunk: Option<usize>,
    /// Tokens that a layer which is run again computes at a time in its feed-forward block, where the
    /// most memory of a long row goes; by default 8,192. Not with dropout, whose numbers would be others.
    pub mlp_chunk: Option<usize>,
    /// Label smoothing.
    pub label_smoothing: f32,
    /// NEFTune's alpha (arXiv:2310.05914): scale of the noise on the embeddings.
    pub neftune: Option<f32>,
    /// Seed of dropout, noise and (with [`BatchConfig::seed`]) the order of the samples. Burn has
    /// one generator per process: concurrent runs in one process disturb each other's dropout.
    pub seed: u64,
    /// Optimizer steps between two lines of the log. Only then are the losses read from the device.
    pub log_steps: usize,
    /// Interval between evaluations on the validation data.
    #[serde(deserialize_with = "choice::every")]
    pub evaluate: Option<Every>,
    /// Interval between checkpoints; the last step and a better evaluation write one, too.
    #[serde(deserialize_with = "choice::every")]
    pub save: Option<Every>,
    /// Number of checkpoints to keep, beside the best.
    pub save_total_limit: usize,
    /// Early stopping.
    pub early_stopping: Option<EarlyStopping>,
    /// Restores the parameters of the best evaluation at the end.
    pub load_best_at_end: bool,
    /// Metric of the best evaluation: a name of [`EvalMetrics`](crate::watch::EvalMetrics), such as
    /// `mean_token_accuracy` or that of a [`Metric`](crate::metric::Metric), which also says whether
    /// higher or lower is better; the validation loss if not set.
    pub metric_for_best_model: Option<String>,
    /// Output folder of adapter, checkpoints, metrics and plot; `None` writes nothing.
    pub output: Option<PathBuf>,
}

mod choice {
    //! Settings with a fixed set of choices: the error for any other value lists them.

    use crate::{Every, OptimizerConfig, Recompute, Schedule, Warmup};
    use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error};
    use serde_json::Value;

    fn one_of<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
        choices: &str,
    ) -> Result<T, D::Error> {
        let value = Value::deserialize(from)?;
        serde_json::from_value(value.clone())
            .map_err(|error| D::Error::custom(format!("{value}: it has to be {choices} ({error})")))
    }

    pub fn every<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Every>, D::Error> {
        one_of(from, "`{ steps = 100 }` or `{ epochs = 1 }`")
    }

    pub fn warmup<'de, D: Deserializer<'de>>(from: D) -> Result<Warmup, D::Error> {
        one_of(from, "`{ steps = 20 }` or `{ ratio = 0.03 }`")
    }

    pub fn recompute<'de, D: Deserializer<'de>>(from: D) -> Result<Recompute, D::Error> {
        one_of(from, "`none`, `every_layer`, `{ every = 2 }` or `{ all_but = 8 }`")
    }

    pub fn schedule<'de, D: Deserializer<'de>>(from: D) -> Result<Schedule, D::Error> {
        one_of(
            from,
            "the name of a schedule, or with its settings `{ polynomial = { power = 2 } }`",
        )
    }

    pub fn optimizer<'de, D: Deserializer<'de>>(from: D) -> Result<OptimizerConfig, D::Error> {
        one_of(from, "`{ name = \"adamw\" }`, or another name, with its settings")
    }
}

/// Serialization of an optional number whose default, if left out, is not `None`: 0 stands for
/// `None`.
mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.unwrap_or(0.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        Ok(Option::deserialize(from)?.filter(|value| *value != 0.0))
    }
}

impl Default for TrainConfig {
    /// One epoch at a rate of 2e-4, one row per step; AdamW, a linear schedule without warm-up.
    fn default() -> Self {
        Self {
            learning_rate: 2e-4,
            epochs: 1.0,
            max_steps: None,
            batches: BatchConfig::default(),
            gradient_accumulation_steps: 1,
            optimizer: OptimizerConfig::default(),
            weight_decay: 0.0,
            max_grad_norm: Some(1.0),
            schedule: Schedule::default(),
            warmup: Warmup::default(),
            lora_plus: None,
            recompute: Recompute::default(),
            keep: Keep::Inputs,
            keep_attention_of: 0,
            offload: false,
            loss_chunk: None,
            mlp_chunk: None,
            label_smoothing: 0.0,
            neftune: None,
            seed: 0,
            log_steps: 10,
            evaluate: None,
            save: None,
            save_total_limit: 2,
            early_stopping: None,
            load_best_at_end: false,
            metric_for_best_model: None,
            output: None,
        }
    }
}

/// Maximum number of optimizer steps of a run: bias corrections count them in 32 bits.
pub(crate) const MOST_STEPS: usize = i32::MAX as usize;

/// Learning rate above which a run with a normalizing optimizer warns.
const MOST_RATE: f64 = 0.01;

/// Fields of [`TrainConfig`] that may change when a run is resumed, since they do not affect what a
/// step learns. All others must be the same.
const FREE: [&str; 16] = [
    "early_stopping",
    "epochs",
    "evaluate",
    "gradient_accumulation_steps", // With the devices, it is the number of micro-batches.
    "keep",
    "keep_attention_of",
    "load_best_at_end",
    "log_steps",
    "loss_chunk",
    "max_steps",
    "mlp_chunk",
    "offload",
    "output",
    "recompute",
    "save",
    "save_total_limit",
];

macro_rules! setters {
    ($($name:ident: $kind:ty => |$value:ident| $to:expr;)*) => {
        $(
            #[doc = concat!("Sets [`", stringify!($name), "`](Self#structfield.", stringify!($name), ").")]
            pub fn $name(mut self, $value: $kind) -> Self {
                self.$name = $to;
                self
            }
        )*
    };
}

impl TrainConfig {
    /// Creates the settings of one epoch at this learning rate.
    pub fn new(learning_rate: f64) -> Self {
        Self { learning_rate, ..Self::default() }
    }

    setters! {
        epochs: impl Into<f64> => |epochs| epochs.into();
        max_steps: usize => |steps| Some(steps);
        batches: BatchConfig => |batches| batches;
        gradient_accumulation_steps: usize => |steps| steps;
        optimizer: OptimizerConfig => |optimizer| optimizer;
        weight_decay: f64 => |decay| decay;
        max_grad_norm: impl Into<Option<f64>> => |norm| norm.into();
        schedule: Schedule => |schedule| schedule;
        warmup: Warmup => |warmup| warmup;
        lora_plus: f64 => |ratio| Some(ratio);
        recompute: Recompute => |recompute| recompute;
        keep: Keep => |keep| keep;
        keep_attention_of: usize => |layers| layers;
        offload: bool => |offload| offload;
        loss_chunk: usize => |tokens| Some(tokens);
        mlp_chunk: usize => |tokens| Some(tokens);
        label_smoothing: f32 => |smoothing| smoothing;
        neftune: f32 => |alpha| Some(alpha);
        log_steps: usize => |steps| steps;
        evaluate: Every => |every| Some(every);
        save: Every => |every| Some(every);
        save_total_limit: usize => |count| count;
        early_stopping: EarlyStopping => |early| Some(early);
        load_best_at_end: bool => |load| load;
        metric_for_best_model: impl Into<String> => |name| Some(name.into());
        output: impl Into<PathBuf> => |folder| Some(folder.into());
    }

    /// Sets the number of rows per micro-batch.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batches.size = rows;
        self
    }

    /// Sets the seed of everything: order, dropout, noise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.batches.seed = seed;
        self
    }

    /// Returns the settings that may not change when a run is resumed. `random`: the model draws
    /// random numbers.
    pub(crate) fn compared(&self, random: bool) -> Value {
        let mut config = serde_json::to_value(self).expect("settings are plain values");
        let compared = |name: &str| match name {
            // Random numbers are seeded per segment of layers.
            "recompute" => random || self.neftune.is_some(),
            "evaluate" => matches!(self.schedule, Schedule::ReduceLrOnPlateau { .. }),
            name => !FREE.contains(&name),
        };
        let fields = config.as_object_mut().into_iter();
        fields.for_each(|fields| fields.retain(|name, _| compared(name)));
        config
    }

    /// Warns of a learning rate that is none of an optimizer whose steps have about the size of the rate,
    /// whatever the gradients.
    pub(crate) fn warn_of_rate(&self) {
        let rate = self.learning_rate;
        if rate > MOST_RATE && self.optimizer.is_normalized() {
            let name = self.optimizer.name();
            burn_lora_io::warn!(
                "`learning_rate` is {rate}: with {name} every value moves by about the rate in each step, \
                 and LoRA learns at 1e-4 to 1e-3 (2e-4 is the usual start); over {MOST_RATE} it \
                 rarely learns at all. A number such as 1.0 is a scale, not a rate: alpha / rank, or a \
                 factor of a rate. Set `train.learning_rate=2e-4`"
            );
        }
    }

    pub(crate) fn step(&self) -> StepConfig {
        let Self { recompute, keep, keep_attention_of, offload, mlp_chunk, neftune, .. } = *self;
        StepConfig { recompute, keep, keep_attention_of, offload, mlp_chunk, neftune }
    }

    /// Next-token loss with these settings.
    pub(crate) fn next_token(&self) -> NextToken {
        NextToken { chunk: self.loss_chunk, label_smoothing: self.label_smoothing }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] for the first setting that is invalid.
    pub fn validate(&self) -> Result<(), TrainError> {
        let check = |name, found: &dyn ToString, right: bool, reason: &str| {
            if right { Ok(()) } else { Err(TrainError::setting(name, found.to_string(), reason)) }
        };
        let rate = self.learning_rate;
        // The parameters are float32.
        let right = rate > 0.0 && rate <= f64::from(f32::MAX);
        check(
            "learning_rate",
            &format!("{rate:?}"),
            right,
            "it has to be above 0, and a number of float32",
        )?;
        let epochs = self.epochs;
        let right = epochs > 0.0 && epochs.is_finite();
        check(
            "epochs",
            &format!("{epochs:?}"),
            right,
            "it has to be above 0; `max_steps` limits a run",
        )?;
        check("max_steps", &0, self.max_steps != Some(0), "leave it out for no limit")?;
        let most = format!("it has to be {MOST_STEPS} at most");
        let steps = self.max_steps.unwrap_or(1);
        check("max_steps", &steps, steps <= MOST_STEPS, &most)?;
        let steps = self.gradient_accumulation_steps;
        check("gradient_accumulation_steps", &steps, steps > 0, "1 is none")?;
        check("gradient_accumulation_steps", &steps, steps <= MOST_STEPS, &most)?;
        check("log_steps", &self.log_steps, self.log_steps > 0, "1 logs every step")?;
        for (name, chunk) in [("loss_chunk", self.loss_chunk), ("mlp_chunk", self.mlp_chunk)] {
            check(name, &0, chunk != Some(0), "leave it out for the default")?;
        }
        let decay = self.weight_decay;
        check("weight_decay", &decay, (0.0..1.0).contains(&decay), "it has to be in [0, 1)")?;
        if let Some(norm) = self.max_grad_norm {
            let right = norm > 0.0 && norm.is_finite();
            check("max_grad_norm", &norm, right, "leave it out for no clipping")?;
        }
        let smoothing = self.label_smoothing;
        let right = (0.0..1.0).contains(&smoothing);
        check("label_smoothing", &smoothing, right, "it has to be in [0, 1)")?;
        if let Some(ratio) = self.lora_plus {
            let right = ratio > 0.0 && ratio.is_finite();
            check("lora_plus", &ratio, right, "it has to be above 0; the paper's is 16")?;
        }
        if let Some(alpha) = self.neftune {
            let right = alpha > 0.0 && alpha.is_finite();
            check("neftune", &alpha, right, "leave it out for no noise; the paper's are 5 to 15")?;
        }
        let right = self.recompute != Recompute::Every(0);
        check("recompute", &"every 0 layers", right, "`none` keeps everything")?;
        for (name, every) in [("evaluate", self.evaluate), ("save", self.save)] {
            let right = !matches!(every, Some(Every::Steps(0) | Every::Epochs(0)));
            check(name, &"every 0", right, "leave it out for never")?;
        }
        for (name, set) in [
            ("early_stopping", self.early_stopping.is_some()),
            ("load_best_at_end", self.load_best_at_end),
            ("metric_for_best_model", self.metric_for_best_model.is_some()),
        ] {
            check(name, &"set", !set || self.evaluate.is_some(), "it needs `evaluate`")?;
        }
        if let Some(EarlyStopping { patience, threshold }) = self.early_stopping {
            let reason = "1 stops at the first evaluation that is no better";
            check("early_stopping.patience", &patience, patience > 0, reason)?;
            let right = threshold >= 0.0 && threshold.is_finite();
            check("early_stopping.threshold", &threshold, right, "it has to be 0 or more")?;
        }
        if self.load_best_at_end {
            check("load_best_at_end", &true, self.output.is_some(), "it needs `output`")?;
        }
        self.batches.validate()?;
        self.schedule.validate(self.warmup, rate)?;
        self.optimizer.validate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_can_say_that_gradients_are_not_clipped() {
        let read = |json: &str| serde_json::from_str::<TrainConfig>(json).map(|c| c.max_grad_norm);
        assert_eq!(read("{}").unwrap(), Some(1.0));
        for json in [r#"{"max_grad_norm": 0}"#, r#"{"max_grad_norm": null}"#] {
            assert_eq!(read(json).unwrap(), None);
        }
        let config = TrainConfig::new(1e-3).max_grad_norm(None);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TrainConfig>(&json).unwrap(), config);
        assert!(read(r#"{"max_grad_nrom": 1}"#).is_err());
    }

    /// A new field is compared when a run is resumed, unless it is declared to be free.
    #[test]
    fn every_setting_is_compared_or_declared_free() {
        let config = TrainConfig::default();
        let all = serde_json::to_value(&config).unwrap();
        let compared = config.compared(false);
        for name in all.as_object().unwrap().keys() {
            let is_compared = compared.get(name).is_some();
            assert_ne!(is_compared, FREE.contains(&name.as_str()), "{name}");
        }
        for name in FREE {
            assert!(all.get(name).is_some(), "{name} is no setting");
        }
        // Those that are free only where they change nothing.
        assert!(config.compared(true).get("recompute").is_some());
        assert!(config.clone().neftune(5.0).compared(false).get("recompute").is_some());
        let plateau = config.schedule("reduce_lr_on_plateau".parse().unwrap());
        assert!(plateau.compared(false).get("evaluate").is_some());
    }

    #[test]
    fn choices_that_are_none_are_told_what_there_is() {
        for (json, accepted) in [
            (r#"{"warmup": 0}"#, "{ ratio = 0.03 }"),
            (r#"{"warmup": "ten"}"#, "{ steps = 20 }"),
            (r#"{"warmup": {"step": 3}}"#, "{ steps = 20 }"),
            (r#"{"save": 100}"#, "{ steps = 100 }"),
            (r#"{"evaluate": "epoch"}"#, "{ epochs = 1 }"),
            (r#"{"recompute": true}"#, "every_layer"),
            (r#"{"schedule": 1}"#, "the name of a schedule"),
            (r#"{"schedule": {"polynomial": 2}}"#, "power"),
            (r#"{"optimizer": "adamw"}"#, r#"{ name = "adamw" }"#),
        ] {
            let error = serde_json::from_str::<TrainConfig>(json).unwrap_err().to_string();
            assert!(error.contains(accepted), "{json}: {error}");
        }
        let config: TrainConfig =
            serde_json::from_str(r#"{"save": null, "evaluate": null}"#).unwrap();
        assert_eq!((config.save, config.evaluate), (None, None));
    }
}
