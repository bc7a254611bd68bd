//! [`LoraConfig`] in the format of PEFT 0.21: `adapter_config.json`.

use super::settings::{Settings, is_on, shown};
use crate::{
    config::LoraConfig,
    init::Init,
    target::{Bias, OneOrMany, Targets},
};
use burn_lora_io::escaped;
use burn_lora_quant::QuantConfig;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Version of PEFT whose file format this is.
pub(crate) const PEFT_VERSION: &str = "0.21.2";

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
    /// Not of PEFT, and never written to its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    target_modules: Option<OneOrMany<String>>,
    target_parameters: Option<Vec<String>>,
    task_type: Option<String>,
    trainable_token_indices: Option<Value>,
    use_bdlora: Option<Value>,
    use_dora: bool,
    use_qalora: bool,
    use_rslora: bool,
    velora_config: Option<Value>,
}

/// Number that is written as an integer if it is one.
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
            target_parameters: some(&config.target_parameters),
            task_type: Some(config.task_type.clone().unwrap_or_else(|| "CAUSAL_LM".into())),
            trainable_token_indices: None,
            use_bdlora: None,
            use_dora: config.dora,
            use_qalora: false,
            use_rslora: config.rslora,
            velora_config: None,
        }
    }
}

impl Fields {
    /// Reads the known settings, as PEFT's reader does.
    ///
    /// `null` means the default, as in PEFT's code. An unknown setting that is off is ignored; one that
    /// is on is warned of.
    fn read(mut settings: Map<String, Value>) -> Result<Self, String> {
        if let Some(kind) = settings.get("peft_type").filter(|kind| **kind != "LORA") {
            return Err(format!("peft_type is {}: these are the settings of LORA", shown(kind)));
        }
        if settings.get("init_lora_weights").is_some_and(Value::is_null) {
            settings.insert("init_lora_weights".into(), false.into());
        }
        settings.retain(|name, value| !value.is_null() || matches!(&**name, "r" | "lora_alpha"));
        let known = serde_json::to_value(Self::default()).map_err(|error| error.to_string())?;
        // `runtime_config` belongs to a running program, and PEFT ignores it.
        let known =
            |name: &str| known.get(name).is_some() || matches!(name, "seed" | "runtime_config");
        let unknown = settings.iter().filter(|(name, value)| !known(name) && is_on(value));
        let unknown: Vec<_> = unknown
            .map(|(name, value)| format!("`{}` = {}", escaped(name), shown(value)))
            .collect();
        if !unknown.is_empty() {
            burn_lora_io::warn!(
                "settings of an adapter that PEFT {PEFT_VERSION} does not know are passed over, and \
                 what they do is not done: {}",
                unknown.join(", ")
            );
        }
        settings.retain(|name, _| known(name));
        let settings = Value::Object(settings);
        Self::deserialize(&settings).map_err(|error| {
            // serde does not say which field it was.
            let fields = settings.as_object().into_iter().flatten();
            let alone = |(name, value): (&String, &Value)| {
                let alone = Value::from_iter([(name.clone(), value.clone())]);
                let error = Self::deserialize(&alone).err()?;
                Some(format!("`{name}` is {}: {error}", shown(value)))
            };
            fields.into_iter().find_map(alone).unwrap_or_else(|| error.to_string())
        })
    }

    /// First setting that is on and not supported here.
    fn unsupported(&self) -> Option<&'static str> {
        let on = |value: &Option<Value>| value.as_ref().is_some_and(is_on);
        let asked = [
            ("alora_invocation_tokens", on(&self.alora_invocation_tokens)),
            ("arrow_config", on(&self.arrow_config)),
            ("ensure_weight_tying", self.ensure_weight_tying && self.names_embeddings()),
            ("kasa_config", on(&self.kasa_config)),
            ("layer_replication", on(&self.layer_replication)),
            ("lora_bias", self.lora_bias),
            ("monteclora_config", on(&self.monteclora_config)),
            ("trainable_token_indices", on(&self.trainable_token_indices)),
            ("use_bdlora", on(&self.use_bdlora)),
            ("use_qalora", self.use_qalora),
            ("velora_config", on(&self.velora_config)),
        ];
        asked.into_iter().find_map(|(field, asked)| asked.then_some(field))
    }

    /// Returns `true` if an embedding or a head is named: without one there is nothing to tie.
    fn names_embeddings(&self) -> bool {
        let saved = self.modules_to_save.iter().flatten();
        let targets = self.target_modules.iter().flat_map(|names| match names {
            OneOrMany::One(name) => std::slice::from_ref(name),
            OneOrMany::Many(names) => names,
        });
        saved.chain(targets).any(|name| name.contains("embed") || name.contains("head"))
    }

    /// Warns of settings that are on and have no effect here.
    fn report_ignored(&self) {
        if self.fan_in_fan_out {
            burn_lora_io::warn!(
                "fan_in_fan_out is true, which is for layers of another kind: taken as false, as PEFT \
                 does for linear layers"
            );
        }
        if self.megatron_config.as_ref().is_some_and(is_on) {
            burn_lora_io::warn!("megatron_config is passed over: each layer is on one device");
        }
    }
}

impl LoraConfig {
    /// Reads the settings of a saved adapter. Its initialisation matters only if it changed the base.
    pub(super) fn of_a_file(mut settings: Map<String, Value>) -> Result<Self, String> {
        if let Some(init) = settings.get_mut("init_lora_weights")
            && *init == "mica"
        {
            burn_lora_io::warn!(
                "init_lora_weights is `mica`, which trains A alone: the adapter computes the same here, \
                 but training that goes on with it trains B, too"
            );
            *init = true.into();
        }
        Fields::read(settings)?.try_into()
    }
}

impl TryFrom<Fields> for LoraConfig {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        if let Some(field) = fields.unsupported() {
            return Err(format!(
                "`{field}` is set, which this library does not support: merge the adapter in Python \
                 (`merge_and_unload`), and load the merged model"
            ));
        }
        fields.report_ignored();
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
        let layers = fields.layers_to_transform.map(OneOrMany::many);
        // An empty list means all layers, whatever the pattern.
        let all_layers = layers.as_ref().is_some_and(Vec::is_empty);
        let layers_pattern = fields.layers_pattern.map(OneOrMany::many).unwrap_or_default();
        Ok(Self {
            rank: fields.r,
            alpha: fields.lora_alpha.0,
            targets: targets(fields.target_modules),
            exclude: targets(fields.exclude_modules).filter(|exclude| {
                *exclude != Targets::Names(vec![]) && *exclude != Targets::Regex(String::new())
            }),
            dropout: fields.lora_dropout,
            rslora: fields.use_rslora,
            dora: fields.use_dora,
            bias: fields.bias,
            layers: layers.filter(|layers| !layers.is_empty()),
            layers_pattern: layers_pattern
                .into_iter()
                .filter(|pattern| !pattern.is_empty() && !all_layers)
                .collect(),
            rank_pattern: fields.rank_pattern,
            alpha_pattern: alphas.map(|(key, alpha)| (key, alpha.0)).collect(),
            modules_to_save: fields.modules_to_save.unwrap_or_default(),
            target_parameters: fields.target_parameters.unwrap_or_default(),
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
        let Settings(settings) = Settings::deserialize(deserializer)?;
        Fields::read(settings).and_then(Self::try_from).map_err(Error::custom)
    }
}
