//! What a user says about an adapter.

use crate::init::Init;
use std::collections::BTreeMap;

/// Where LoRA layers go, and how they are made.
///
/// The defaults are PEFT's. In files it has PEFT's names: see [`serde`](#serde) below.
///
/// ```
/// use burn_lora_adapter::LoraConfig;
///
/// let lora = LoraConfig::new(32, 64).targets(["q_proj", "v_proj"]).dropout(0.05);
/// assert_eq!(lora.rank(), 32);
/// assert_eq!(lora.alpha(), 64.0); // the update is scaled by alpha / rank = 2
///
/// let error = LoraConfig::new(0, 64).targets(["q_proj"]).validate().unwrap_err();
/// assert!(error.to_string().contains("r is 0"));
/// ```
///
/// # Serde
///
/// ```
/// # use burn_lora_adapter::LoraConfig;
/// let lora: LoraConfig = serde_json::from_str(
///     r#"{"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "use_rslora": true}"#,
/// )?;
/// assert_eq!(lora, LoraConfig::new(16, 32).targets(["q_proj"]).rslora(true));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub(crate) rank: usize,
    pub(crate) alpha: f64,
    pub(crate) targets: Option<Targets>,
    pub(crate) exclude: Option<Targets>,
    pub(crate) dropout: f64,
    pub(crate) rslora: bool,
    pub(crate) dora: bool,
    pub(crate) bias: Bias,
    pub(crate) layers: Option<Vec<usize>>,
    pub(crate) layers_pattern: Vec<String>,
    pub(crate) rank_pattern: BTreeMap<String, usize>,
    pub(crate) alpha_pattern: BTreeMap<String, f64>,
    pub(crate) modules_to_save: Vec<String>,
    pub(crate) init: Init,
    pub(crate) seed: u64,
    pub(crate) base_model: Option<String>,
    pub(crate) task_type: Option<String>,
}

/// Which layers are meant.
///
/// ```
/// use burn_lora_adapter::{LoraConfig, Targets};
///
/// let lora = LoraConfig::new(8, 16).all_linear();
/// assert_eq!(lora.target_modules(), Some(&Targets::AllLinear));
/// let lora = LoraConfig::new(8, 16).targets(["q_proj"]);
/// assert_eq!(lora.target_modules(), Some(&Targets::Names(vec!["q_proj".into()])));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Whole paths, or their last parts: `q_proj`, `self_attn.q_proj`.
    Names(Vec<String>),
    /// A regular expression that has to match the whole path.
    Regex(String),
    /// Every linear layer but the output head.
    AllLinear,
}

/// Which biases of the base are trained.
///
/// ```
/// use burn_lora_adapter::{Bias, LoraConfig};
///
/// let lora = LoraConfig::new(8, 16).all_linear().bias(Bias::LoraOnly);
/// assert_eq!(serde_json::to_value(lora)?["bias"], "lora_only");
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of all linear layers.
    All,
    /// Those of the layers that get an adapter.
    LoraOnly,
}

/// A scaling numerator: made from any number.
///
/// ```
/// use burn_lora_adapter::LoraConfig;
///
/// assert_eq!(LoraConfig::new(8, 16), LoraConfig::new(8, 16.0));
/// assert_eq!(LoraConfig::new(8, 16usize).alpha(), 16.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alpha(f64);

macro_rules! alpha_from {
    ($($number:ty),*) => {$(
        impl From<$number> for Alpha {
            fn from(alpha: $number) -> Self {
                Self(alpha as f64)
            }
        }
    )*};
}

alpha_from!(i32, u32, i64, u64, usize, f32, f64);

fn strings(names: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
    names.into_iter().map(|name| name.as_ref().to_owned()).collect()
}

impl LoraConfig {
    /// Adapters of rank `rank`, their update scaled by `alpha / rank`.
    pub fn new(rank: usize, alpha: impl Into<Alpha>) -> Self {
        Self { rank, alpha: alpha.into().0, ..Self::default() }
    }

    /// The layers to adapt, by path or by the last parts of it: `q_proj` is every
    /// `model.layers.0.self_attn.q_proj`.
    ///
    /// ```
    /// # use burn_lora_adapter::LoraConfig;
    /// let names: Vec<String> = vec!["gate_proj".into(), "up_proj".into()];
    /// let lora = LoraConfig::new(8, 16).targets(&names);
    /// assert_eq!(lora, LoraConfig::new(8, 16.0).targets(["gate_proj", "up_proj"]));
    /// ```
    pub fn targets(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.targets = Some(Targets::Names(strings(names)));
        self
    }

    /// The layers to adapt, by a regular expression that has to match the whole path (the syntax is
    /// Python's, look-around included).
    ///
    /// ```
    /// # use burn_lora_adapter::LoraConfig;
    /// let lora = LoraConfig::new(8, 16).targets_regex(r".*\.layers\.[01]\..*(q|v)_proj");
    /// assert!(lora.validate().is_ok());
    /// ```
    pub fn targets_regex(mut self, pattern: impl Into<String>) -> Self {
        self.targets = Some(Targets::Regex(pattern.into()));
        self
    }

    /// Adapt every linear layer but the output head.
    pub fn all_linear(mut self) -> Self {
        self.targets = Some(Targets::AllLinear);
        self
    }

    /// Layers to leave out, by the rules of [`targets`](Self::targets).
    pub fn exclude(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.exclude = Some(Targets::Names(strings(names)));
        self
    }

    /// Layers to leave out, by the rules of [`targets_regex`](Self::targets_regex).
    pub fn exclude_regex(mut self, pattern: impl Into<String>) -> Self {
        self.exclude = Some(Targets::Regex(pattern.into()));
        self
    }

    /// The probability that an input of an adapter is zeroed in training.
    pub fn dropout(mut self, probability: f64) -> Self {
        self.dropout = probability;
        self
    }

    /// Rank-stabilised scaling: `alpha / sqrt(rank)` (arXiv:2312.03732).
    pub fn rslora(mut self, rslora: bool) -> Self {
        self.rslora = rslora;
        self
    }

    /// Weight-decomposed adaptation: a trained magnitude for each output (arXiv:2402.09353).
    pub fn dora(mut self, dora: bool) -> Self {
        self.dora = dora;
        self
    }

    /// Biases of the base to train. They are trained in place: switching the adapter off does not
    /// bring the old ones back (nor does it in PEFT).
    pub fn bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// The layers of the decoder to adapt, by index; only with targets by name. None is all of them,
    /// and a target that is a whole path is adapted wherever it lies.
    pub fn layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers =
            Some(layers.into_iter().collect()).filter(|layers: &Vec<_>| !layers.is_empty());
        self
    }

    /// The names of the lists that [`layers`](Self::layers) counts in (`layers`, `h`), where the
    /// first number in a path is not the layer's.
    pub fn layers_pattern(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.layers_pattern = strings(names);
        self
    }

    /// Other ranks for the layers whose path ends with a match of a regular expression. In
    /// alphabetical order (as files have them) the first that matches counts.
    ///
    /// ```
    /// # use burn_lora_adapter::LoraConfig;
    /// let lora = LoraConfig::new(8, 16)
    ///     .all_linear()
    ///     .rank_pattern([("down_proj", 16), (r"layers\.0\..*", 4)]);
    /// # assert!(lora.validate().is_ok());
    /// ```
    pub fn rank_pattern(
        mut self,
        ranks: impl IntoIterator<Item = (impl Into<String>, usize)>,
    ) -> Self {
        self.rank_pattern = ranks.into_iter().map(|(key, rank)| (key.into(), rank)).collect();
        self
    }

    /// Other alphas, by the rules of [`rank_pattern`](Self::rank_pattern).
    pub fn alpha_pattern(
        mut self,
        alphas: impl IntoIterator<Item = (impl Into<String>, impl Into<Alpha>)>,
    ) -> Self {
        let alphas = alphas.into_iter().map(|(key, alpha)| (key.into(), alpha.into().0));
        self.alpha_pattern = alphas.collect();
        self
    }

    /// Layers of which the adapter trains and saves a whole copy: `lm_head`, `embed_tokens`.
    ///
    /// ```
    /// # use burn_lora_adapter::LoraConfig;
    /// // Everything that a new chat format may need.
    /// let lora = LoraConfig::new(64, 16)
    ///     .all_linear()
    ///     .exclude(["layers.0.mlp.up_proj"])
    ///     .modules_to_save(["embed_tokens", "lm_head"])
    ///     .dropout(0.05)
    ///     .rslora(true)
    ///     .dora(true)
    ///     .seed(7);
    /// assert!(lora.validate().is_ok() && lora.is_dora());
    /// ```
    pub fn modules_to_save(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.modules_to_save = strings(names);
        self
    }

    /// How A and B start.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// What random initialisation starts from. The same seed gives a layer the same values on every
    /// device, whichever other layers are adapted. Not in PEFT's files.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The name of the base model, for the files.
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into());
        self
    }

    /// The task, for the files; `CAUSAL_LM` unless said otherwise.
    pub fn task_type(mut self, task: impl Into<String>) -> Self {
        self.task_type = Some(task.into());
        self
    }

    /// The rank, where no pattern says otherwise.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The alpha, where no pattern says otherwise.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// What is adapted.
    pub fn target_modules(&self) -> Option<&Targets> {
        self.targets.as_ref()
    }

    /// Which biases of the base are trained.
    pub fn trained_bias(&self) -> Bias {
        self.bias
    }

    /// Whether the update has trained magnitudes.
    pub fn is_dora(&self) -> bool {
        self.dora
    }

    /// Whether inputs of the adapters are dropped in training.
    pub fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    /// The scale of the update `B · A` at a rank and an alpha.
    pub(crate) fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Default for LoraConfig {
    /// PEFT's defaults: rank 8, alpha 8, no targets yet.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 8.0,
            targets: None,
            exclude: None,
            dropout: 0.0,
            rslora: false,
            dora: false,
            bias: Bias::None,
            layers: None,
            layers_pattern: vec![],
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: vec![],
            init: Init::Kaiming,
            seed: 0,
            base_model: None,
            task_type: None,
        }
    }
}
