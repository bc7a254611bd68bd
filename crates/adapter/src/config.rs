//! Settings of an adapter.

use crate::{
    init::Init,
    target::{Bias, TargetConfig, Targets},
};
use std::collections::BTreeMap;

/// Settings of a LoRA adapter: targets, rank, scaling, initialisation.
///
/// The defaults are PEFT's. Serialized fields have PEFT's names: see [`serde`](#serde) below.
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
    pub(crate) target_parameters: Vec<String>,
    pub(crate) init: Init,
    pub(crate) seed: u64,
    pub(crate) base_model: Option<String>,
    pub(crate) task_type: Option<String>,
}

/// Alpha, the numerator of the scaling: converts from any number.
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
    /// Creates settings with a rank and the scaling `alpha / rank`.
    pub fn new(rank: usize, alpha: impl Into<Alpha>) -> Self {
        Self { rank, alpha: alpha.into().0, ..Self::default() }
    }

    /// Sets the layers to adapt, by path or by the last parts of it: `q_proj` matches every
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

    /// Sets the layers to adapt, by a regular expression that has to match the full path (Python's
    /// syntax, including look-around).
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

    /// Targets every linear layer except the output head.
    pub fn all_linear(mut self) -> Self {
        self.targets = Some(Targets::AllLinear);
        self
    }

    /// Sets the layers to exclude, by the rules of [`targets`](Self::targets).
    pub fn exclude(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.exclude = Some(Targets::Names(strings(names)));
        self
    }

    /// Sets the layers to exclude, by the rules of [`targets_regex`](Self::targets_regex).
    pub fn exclude_regex(mut self, pattern: impl Into<String>) -> Self {
        self.exclude = Some(Targets::Regex(pattern.into()));
        self
    }

    /// Sets the probability that an input of an adapter is zeroed in training, in [0, 1).
    pub fn dropout(mut self, probability: f64) -> Self {
        self.dropout = probability;
        self
    }

    /// Enables rank-stabilised scaling: `alpha / sqrt(rank)` (rsLoRA, arXiv:2312.03732).
    pub fn rslora(mut self, rslora: bool) -> Self {
        self.rslora = rslora;
        self
    }

    /// Enables weight-decomposed adaptation: a trained magnitude per output (DoRA, arXiv:2402.09353).
    pub fn dora(mut self, dora: bool) -> Self {
        self.dora = dora;
        self
    }

    /// Sets the biases of the base to train. They are trained in place: disabling the adapter does not
    /// restore the original ones (nor does it in PEFT).
    pub fn bias(mut self, bias: Bias) -> Self {
        self.bias = bias;
        self
    }

    /// Sets the decoder layers to adapt, by index; only with targets by name. An empty list means all of
    /// them, and a target that is a full path is adapted in any layer.
    pub fn layers(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.layers =
            Some(layers.into_iter().collect()).filter(|layers: &Vec<_>| !layers.is_empty());
        self
    }

    /// Sets the names of the lists that [`layers`](Self::layers) indexes (`layers`, `h`), for models where
    /// the first number in a path is not the layer's.
    pub fn layers_pattern(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.layers_pattern = strings(names);
        self
    }

    /// Sets other ranks for the layers whose path ends with a match of a regular expression. The first
    /// match in alphabetical order (the order of files) counts.
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

    /// Sets other alphas, by the rules of [`rank_pattern`](Self::rank_pattern).
    pub fn alpha_pattern(
        mut self,
        alphas: impl IntoIterator<Item = (impl Into<String>, impl Into<Alpha>)>,
    ) -> Self {
        let alphas = alphas.into_iter().map(|(key, alpha)| (key.into(), alpha.into().0));
        self.alpha_pattern = alphas.collect();
        self
    }

    /// Sets the layers of which the adapter trains and saves a whole copy: `lm_head`, `embed_tokens`.
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

    /// Sets the parameters of experts to adapt, by path or by the last parts of it. Each expert has an A
    /// and a B of its own. They cannot have dropout or DoRA, as in PEFT.
    ///
    /// ```
    /// # use burn_lora_adapter::LoraConfig;
    /// let lora = LoraConfig::new(8, 16)
    ///     .targets(["q_proj", "v_proj"])
    ///     .target_parameters(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]);
    /// # assert!(lora.validate().is_ok());
    /// ```
    pub fn target_parameters(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        self.target_parameters = strings(names);
        self
    }

    /// Sets the initialisation of A and B.
    pub fn init(mut self, init: Init) -> Self {
        self.init = init;
        self
    }

    /// Sets the seed of random initialisation. The same seed gives a layer the same values on every
    /// device, whichever other layers are adapted. Not saved in PEFT's files.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the name of the base model, for the files.
    pub fn base_model(mut self, name: impl Into<String>) -> Self {
        self.base_model = Some(name.into());
        self
    }

    /// Sets the task, for the files; `CAUSAL_LM` by default.
    pub fn task_type(mut self, task: impl Into<String>) -> Self {
        self.task_type = Some(task.into());
        self
    }

    /// Rank, unless a pattern sets another.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Alpha, unless a pattern sets another.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// Layers to adapt.
    pub fn target_modules(&self) -> Option<&Targets> {
        self.targets.as_ref()
    }

    /// Biases of the base to train.
    pub fn trained_bias(&self) -> Bias {
        self.bias
    }

    /// Returns `true` if DoRA is enabled: the update has trained magnitudes.
    pub fn is_dora(&self) -> bool {
        self.dora
    }

    /// Returns `true` if inputs of the adapters are dropped in training.
    pub fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    /// Which layers these settings adapt.
    pub(crate) fn target_config(&self) -> TargetConfig {
        TargetConfig {
            config: "LoraConfig",
            targets: self.targets.clone(),
            exclude: self.exclude.clone(),
            layers: self.layers.clone(),
            layers_pattern: self.layers_pattern.clone(),
            modules_to_save: self.modules_to_save.clone(),
            rank: self.rank,
            alpha: self.alpha,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            parameters: self.target_parameters.clone(),
            beside: vec![],
        }
    }

    /// Scaling of the update `B · A` at a rank and an alpha.
    pub(crate) fn scaling(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Default for LoraConfig {
    /// Returns PEFT's defaults: rank 8, alpha 8, no targets yet.
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
            target_parameters: vec![],
            init: Init::Kaiming,
            seed: 0,
            base_model: None,
            task_type: None,
        }
    }
}
