//! Settings that every adapter method has: which layers it adapts.

use crate::error::AdapterError;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// Layers selected by name, by pattern or by kind. In files a list, a string, or `"all-linear"`.
///
/// ```
/// use burn_lora_adapter::{LoraConfig, Targets};
///
/// let lora = LoraConfig::new(8, 16).all_linear();
/// assert_eq!(lora.target_modules(), Some(&Targets::AllLinear));
/// let lora = LoraConfig::new(8, 16).targets(["q_proj"]);
/// assert_eq!(lora.target_modules(), Some(&Targets::from(["q_proj"])));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Full paths, or their last parts: `q_proj`, `self_attn.q_proj`.
    Names(Vec<String>),
    /// Regular expression that has to match the full path.
    Regex(String),
    /// Every linear layer except the output head.
    AllLinear,
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Targets {
    fn from(names: [S; N]) -> Self {
        Self::Names(names.map(Into::into).into())
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Names(names) => names.serialize(serializer),
            Self::Regex(pattern) => pattern.serialize(serializer),
            Self::AllLinear => "all-linear".serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match OneOrMany::<String>::deserialize(deserializer)? {
            OneOrMany::One(name) if name.eq_ignore_ascii_case("all-linear") => Self::AllLinear,
            OneOrMany::One(pattern) => Self::Regex(pattern),
            OneOrMany::Many(names) => Self::Names(names),
        })
    }
}

/// An item alone, or a list.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub fn many(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Name of the embedding whose tokens are meant if no layer is named.
pub(crate) const EMBEDDING: &str = "embed_tokens";

/// Tokens of which another method trains the rows: of the input embedding, or by layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIndices {
    OfEmbedding(Vec<usize>),
    ByLayer(BTreeMap<String, Vec<usize>>),
}

impl TokenIndices {
    /// Names of the layers.
    pub fn layers(&self) -> Vec<String> {
        match self {
            Self::OfEmbedding(_) => vec![EMBEDDING.into()],
            Self::ByLayer(layers) => layers.keys().cloned().collect(),
        }
    }

    /// Returns `true` if there are no tokens: the setting is off.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty())
    }

    /// Lists of the tokens.
    pub fn lists(&self) -> Vec<&[usize]> {
        match self {
            Self::OfEmbedding(tokens) => vec![tokens],
            Self::ByLayer(layers) => layers.values().map(Vec::as_slice).collect(),
        }
    }

    /// Tokens of a layer, if it is named.
    pub fn of(&self, path: &str) -> Option<&[usize]> {
        let ends = |name: &str| {
            path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        match self {
            Self::OfEmbedding(tokens) => ends(EMBEDDING).then_some(tokens),
            Self::ByLayer(layers) => {
                layers.iter().find(|(name, _)| ends(name)).map(|(_, tokens)| tokens.as_slice())
            }
        }
    }
}

/// Checks that a rank is at least 1, and not beyond the size of any layer.
pub(crate) fn check_rank(
    config: &'static str,
    field: &'static str,
    rank: usize,
    usual: &str,
) -> Result<(), AdapterError> {
    const MOST: usize = 1 << 20;
    let reason = match rank {
        0 => format!("a rank is at least 1 ({usual})"),
        1..=MOST => return Ok(()),
        _ => format!("a rank is at most {MOST} ({usual})"),
    };
    Err(AdapterError::Config { config, field, found: rank.to_string(), reason })
}

/// Checks that there are tokens, and each once.
pub(crate) fn check_tokens(
    config: &'static str,
    field: &'static str,
    tokens: &[usize],
) -> Result<(), AdapterError> {
    let error = |found: String, reason: &str| {
        Err(AdapterError::Config { config, field, found, reason: reason.into() })
    };
    if tokens.is_empty() {
        return error("empty".into(), "name at least one token by its id");
    }
    match (1..tokens.len()).find(|&i| tokens[..i].contains(&tokens[i])) {
        None => Ok(()),
        Some(i) => error(format!("{tokens:?}"), &format!("token {} is there twice", tokens[i])),
    }
}

/// Biases of the base to train.
///
/// ```
/// use burn_lora_adapter::{Bias, LoraConfig};
///
/// let lora = LoraConfig::new(8, 16).all_linear().bias(Bias::LoraOnly);
/// assert_eq!(serde_json::to_value(lora)?["bias"], "lora_only");
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// No biases.
    #[default]
    None,
    /// Biases of all linear layers.
    All,
    /// Biases of the layers that get an adapter.
    LoraOnly,
}

/// Layers that an adapter adapts, by PEFT's rules: what a [`Method`](crate::Method) says of its settings.
///
/// ```
/// use burn_lora_adapter::{TargetConfig, Targets};
///
/// let attention = TargetConfig {
///     targets: Some(Targets::from(["q_proj", "v_proj"])),
///     layers: Some(vec![0, 1]),
///     ..TargetConfig::new("MyConfig")
/// };
/// assert!(attention.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TargetConfig {
    /// Name of the settings, for error messages.
    pub config: &'static str,
    /// Layers to adapt: PEFT's `target_modules`.
    pub targets: Option<Targets>,
    /// Layers to exclude: `exclude_modules`.
    pub exclude: Option<Targets>,
    /// Decoder layers to adapt, by index: `layers_to_transform`.
    pub layers: Option<Vec<usize>>,
    /// Names of the lists that `layers` indexes: `layers_pattern`.
    pub layers_pattern: Vec<String>,
    /// Layers of which a whole copy is trained: `modules_to_save`.
    pub modules_to_save: Vec<String>,
    /// Rank of an update, if the method has one, unless a pattern sets another.
    pub rank: usize,
    /// Alpha of an update, if the method has one, unless a pattern sets another.
    pub alpha: f64,
    /// Ranks of the layers whose path ends with a match: `rank_pattern`.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of the layers whose path ends with a match: `alpha_pattern`.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Parameters of experts to adapt, by path or by the last parts of it: `target_parameters`.
    pub parameters: Vec<String>,
    /// Layers that the method adapts beside the targets, by name.
    pub beside: Vec<String>,
}

impl TargetConfig {
    /// Creates settings that target nothing yet, of a method whose settings are called `config`.
    pub fn new(config: &'static str) -> Self {
        Self {
            config,
            targets: None,
            exclude: None,
            layers: None,
            layers_pattern: vec![],
            modules_to_save: vec![],
            rank: 0,
            alpha: 0.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            parameters: vec![],
            beside: vec![],
        }
    }

    /// Validates what can be checked without a model; regular expressions are compiled when layers are
    /// matched.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for the first setting that cannot be used.
    pub fn validate(&self) -> Result<(), AdapterError> {
        let config = self.config;
        let check = |fits: bool, field, found: String, reason: &str| {
            let error = || AdapterError::Config { config, field, found, reason: reason.into() };
            if fits { Ok(()) } else { Err(error()) }
        };
        match &self.targets {
            None => check(
                !self.parameters.is_empty(),
                "target_modules",
                "not set".into(),
                "say .targets([\"q_proj\", \"v_proj\"]) or .all_linear()",
            )?,
            Some(Targets::Names(names)) => {
                let others = [&self.modules_to_save, &self.beside, &self.parameters];
                let some = !names.is_empty() || others.iter().any(|names| !names.is_empty());
                check(some, "target_modules", "empty".into(), "name at least one layer")?;
            }
            Some(Targets::Regex(_)) => {
                let fits = self.layers.is_none() && self.layers_pattern.is_empty();
                let reason = "it goes with names only; put the layers into the regular expression";
                check(fits, "layers_to_transform", format!("{:?}", self.layers), reason)?;
            }
            Some(Targets::AllLinear) => {}
        }
        let fits = self.layers_pattern.is_empty() || self.layers.is_some();
        let found = format!("{:?}", self.layers_pattern);
        check(fits, "layers_pattern", found, "it needs layers_to_transform")
    }
}
