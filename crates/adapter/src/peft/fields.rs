//! [`LoraConfig`] as PEFT 0.21 writes it: `adapter_config.json`.

use crate::{
    config::{Bias, LoraConfig, Targets},
    init::Init,
};
use burn_lora_quant::QuantConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;

/// The version of PEFT whose files these are.
const PEFT_VERSION: &str = "0.21.2";

/// Every field of PEFT's `LoraConfig`, sorted as in its files.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    alora_invocation_tokens: Option<Value>,
    alpha_pattern: BTreeMap<String, Number>,
    arrow_config: Option<Value>,
    auto_mapping: Option<Value>,
    base_model_name_or_path: Option<String>,
    bias: Bias,
    corda_config: Option<Value>,
    ensure_weight_tying: bool,
    eva_config: Option<Eva>,
    exclude_modules: Option<OneOrMany<String>>,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: InitName,
    kasa_config: Option<Value>,
    layer_replication: Option<Value>,
    layers_pattern: Option<OneOrMany<String>>,
    layers_to_transform: Option<OneOrMany<usize>>,
    loftq_config: Option<Loftq>,
    lora_alpha: Number,
    lora_bias: bool,
    lora_dropout: f64,
    lora_ga_config: Option<Value>,
    megatron_config: Option<Value>,
    megatron_core: Option<String>,
    modules_to_save: Option<Vec<String>>,
    monteclora_config: Option<Value>,
    peft_type: String,
    peft_version: Option<String>,
    qalora_group_size: usize,
    r: usize,
    rank_pattern: BTreeMap<String, usize>,
    revision: Option<String>,
    /// Ours, and never in a file for PEFT.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    target_modules: Option<OneOrMany<String>>,
    target_parameters: Option<Value>,
    task_type: Option<String>,
    trainable_token_indices: Option<Value>,
    use_bdlora: Option<Value>,
    use_dora: bool,
    use_qalora: bool,
    use_rslora: bool,
    velora_config: Option<Value>,
    #[serde(flatten, skip_serializing)]
    unknown: BTreeMap<String, Value>,
}

/// A number that was perhaps written as an integer.
#[derive(Clone, Copy, Deserialize)]
#[serde(transparent)]
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let integer = self.0 as i64;
        if integer as f64 == self.0 {
            serializer.serialize_i64(integer)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn many(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum InitName {
    Default(bool),
    Name(String),
}

#[derive(Serialize, Deserialize)]
struct Loftq {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loftq_bits: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loftq_iter: Option<usize>,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Eva {
    rho: f64,
    tau: f64,
    use_label_mask: bool,
    label_mask_value: i64,
    whiten: bool,
    adjust_scaling_factors: bool,
}

impl Default for Eva {
    fn default() -> Self {
        Self {
            rho: 2.0,
            tau: 0.99,
            use_label_mask: true,
            label_mask_value: -100,
            whiten: false,
            adjust_scaling_factors: true,
        }
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self::from(&LoraConfig::default())
    }
}

impl From<&LoraConfig> for Fields {
    fn from(config: &LoraConfig) -> Self {
        let (init, mut loftq, mut eva) = (config.init.name(), (None, None), None);
        match &config.init {
            Init::Loftq { iterations, .. } => loftq = (Some(4), Some(*iterations)),
            Init::Eva { rho } => eva = Some(Eva { rho: *rho, ..Eva::default() }),
            _ => {}
        }
        let some = |names: &Vec<String>| (!names.is_empty()).then(|| names.clone());
        let targets = |targets: &Option<Targets>| {
            targets.as_ref().map(|targets| match targets {
                Targets::Names(names) => OneOrMany::Many(names.clone()),
                Targets::Regex(pattern) => OneOrMany::One(pattern.clone()),
                Targets::AllLinear => OneOrMany::One("all-linear".into()),
            })
        };
        let alphas = config.alpha_pattern.iter();
        Self {
            alora_invocation_tokens: None,
            alpha_pattern: alphas.map(|(key, &alpha)| (key.clone(), Number(alpha))).collect(),
            arrow_config: None,
            auto_mapping: None,
            base_model_name_or_path: config.base_model.clone(),
            bias: config.bias,
            corda_config: None,
            ensure_weight_tying: false,
            eva_config: eva,
            exclude_modules: targets(&config.exclude),
            fan_in_fan_out: false,
            inference_mode: false,
            init_lora_weights: match init.as_str() {
                "true" => InitName::Default(true),
                "false" => InitName::Default(false),
                name => InitName::Name(name.into()),
            },
            kasa_config: None,
            layer_replication: None,
            layers_pattern: some(&config.layers_pattern).map(OneOrMany::Many),
            layers_to_transform: config.layers.clone().map(OneOrMany::Many),
            loftq_config: Some(Loftq { loftq_bits: loftq.0, loftq_iter: loftq.1 }),
            lora_alpha: Number(config.alpha),
            lora_bias: false,
            lora_dropout: config.dropout,
            lora_ga_config: None,
            megatron_config: None,
            megatron_core: Some("megatron.core".into()),
            modules_to_save: some(&config.modules_to_save),
            monteclora_config: None,
            peft_type: "LORA".into(),
            peft_version: Some(PEFT_VERSION.into()),
            qalora_group_size: 16,
            r: config.rank,
            rank_pattern: config.rank_pattern.clone(),
            revision: None,
            seed: (config.seed != 0).then_some(config.seed),
            target_modules: targets(&config.targets),
            target_parameters: None,
            task_type: Some(config.task_type.clone().unwrap_or_else(|| "CAUSAL_LM".into())),
            trainable_token_indices: None,
            use_bdlora: None,
            use_dora: config.dora,
            use_qalora: false,
            use_rslora: config.rslora,
            velora_config: None,
            unknown: BTreeMap::new(),
        }
    }
}

impl Fields {
    /// As PEFT writes them beside an adapter's values.
    pub(super) fn for_file(config: &LoraConfig) -> Self {
        Self { inference_mode: true, seed: None, ..Self::from(config) }
    }

    /// What is asked for and not built here.
    fn unsupported(&self) -> Option<&'static str> {
        let asked = [
            ("alora_invocation_tokens", self.alora_invocation_tokens.is_some()),
            ("arrow_config", self.arrow_config.is_some()),
            ("ensure_weight_tying", self.ensure_weight_tying),
            ("kasa_config", self.kasa_config.is_some()),
            ("layer_replication", self.layer_replication.is_some()),
            ("lora_bias", self.lora_bias),
            ("monteclora_config", self.monteclora_config.is_some()),
            ("target_parameters", self.target_parameters.as_ref().is_some_and(|p| !is_empty(p))),
            ("trainable_token_indices", self.trainable_token_indices.is_some()),
            ("use_bdlora", self.use_bdlora.is_some()),
            ("use_qalora", self.use_qalora),
            ("velora_config", self.velora_config.is_some()),
        ];
        asked.into_iter().find_map(|(field, asked)| asked.then_some(field))
    }
}

fn is_empty(value: &Value) -> bool {
    matches!(value, Value::Array(items) if items.is_empty())
}

impl TryFrom<Fields> for LoraConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        if fields.peft_type != "LORA" {
            return Err(format!("peft_type is `{}`: only LORA is supported", fields.peft_type));
        }
        if let Some(field) = fields.unsupported() {
            return Err(format!("`{field}` is set, which this library does not support"));
        }
        for name in fields.unknown.keys() {
            burn_lora_io::warn!("LoraConfig: unknown field `{name}` is ignored");
        }
        let targets = |names: Option<OneOrMany<String>>| {
            names.map(|names| match names {
                OneOrMany::One(name) if name.eq_ignore_ascii_case("all-linear") => {
                    Targets::AllLinear
                }
                OneOrMany::One(pattern) => Targets::Regex(pattern),
                OneOrMany::Many(names) => Targets::Names(names),
            })
        };
        let mut init = match &fields.init_lora_weights {
            InitName::Default(true) => Init::Kaiming,
            InitName::Default(false) => Init::Random,
            InitName::Name(name) => name.parse()?,
        };
        match &mut init {
            Init::Loftq { iterations, config } => {
                if let Some(Loftq { loftq_bits: Some(bits), .. }) = &fields.loftq_config
                    && *bits != 4
                {
                    return Err(format!("loftq_config: {bits} bits, only 4 are supported"));
                }
                *config = QuantConfig::nf4();
                *iterations = fields.loftq_config.and_then(|l| l.loftq_iter).unwrap_or(1);
            }
            Init::Eva { rho } => *rho = fields.eva_config.unwrap_or_default().rho,
            _ => {}
        }
        let alphas = fields.alpha_pattern.into_iter();
        Ok(Self {
            rank: fields.r,
            alpha: fields.lora_alpha.0,
            targets: targets(fields.target_modules),
            exclude: targets(fields.exclude_modules).filter(|e| *e != Targets::Names(vec![])),
            dropout: fields.lora_dropout,
            rslora: fields.use_rslora,
            dora: fields.use_dora,
            bias: fields.bias,
            layers: fields.layers_to_transform.map(OneOrMany::many).filter(|l| !l.is_empty()),
            layers_pattern: fields.layers_pattern.map(OneOrMany::many).unwrap_or_default(),
            rank_pattern: fields.rank_pattern,
            alpha_pattern: alphas.map(|(key, alpha)| (key, alpha.0)).collect(),
            modules_to_save: fields.modules_to_save.unwrap_or_default(),
            init,
            seed: fields.seed.unwrap_or(0),
            base_model: fields.base_model_name_or_path,
            task_type: fields.task_type.filter(|task| task != "CAUSAL_LM"),
        })
    }
}

impl Serialize for LoraConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Fields::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LoraConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        fields.try_into().map_err(serde::de::Error::custom)
    }
}
