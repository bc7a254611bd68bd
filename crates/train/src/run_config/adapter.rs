//! `[adapter]` of a run file: the settings of [`LoraConfig`] that a user may set, under PEFT's
//! names. `adapter_config.json` has more, most of which are off; and unknown ones are allowed there.

use burn_lora_adapter::{Bias, LoraConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use std::collections::BTreeMap;
use toml::{Table, Value};

#[derive(Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fields {
    r: usize,
    lora_alpha: f64,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    layers_to_transform: Option<Vec<usize>>,
    layers_pattern: Option<Names>,
    lora_dropout: f64,
    use_rslora: bool,
    use_dora: bool,
    bias: Bias,
    modules_to_save: Option<Vec<String>>,
    target_parameters: Option<Vec<String>>,
    /// Tokens of the input embedding, or tokens by layer.
    trainable_token_indices: Option<Value>,
    init_lora_weights: Value,
    seed: u64,
    base_model_name_or_path: Option<String>,
    task_type: Option<String>,
    rank_pattern: BTreeMap<String, usize>,
    alpha_pattern: BTreeMap<String, f64>,
    loftq_config: Option<Table>,
    eva_config: Option<Table>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Names {
    /// `all-linear`, or a regular expression.
    One(String),
    Many(Vec<String>),
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 32.0,
            target_modules: Some(Names::One("all-linear".into())),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            bias: Bias::None,
            modules_to_save: None,
            target_parameters: None,
            trainable_token_indices: None,
            init_lora_weights: true.into(),
            seed: 0,
            base_model_name_or_path: None,
            task_type: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            loftq_config: None,
            eva_config: None,
        }
    }
}

// Both ways by PEFT's names, and by way of TOML, which has NaN and leaves out what is not set.

pub(super) fn serialize<S: Serializer>(lora: &LoraConfig, to: S) -> Result<S::Ok, S::Error> {
    let mut table = Table::try_from(lora).map_err(S::Error::custom)?;
    let known = serde_json::to_value(Fields::default()).map_err(S::Error::custom)?;
    let is_default = |name: &str, value: &Value| match name {
        "task_type" => value.as_str() == Some("CAUSAL_LM"),
        "loftq_config" => value.as_table().is_some_and(Table::is_empty),
        _ => false,
    };
    table.retain(|name, value| known.get(name).is_some() && !is_default(name, value));
    table.try_into::<Fields>().map_err(S::Error::custom)?.serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<LoraConfig, D::Error> {
    let table = Table::try_from(Fields::deserialize(from)?).map_err(D::Error::custom)?;
    table.try_into().map_err(|error: toml::de::Error| D::Error::custom(error.message()))
}
