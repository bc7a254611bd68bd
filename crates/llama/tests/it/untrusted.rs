//! Files that were damaged, or made to do damage: each gives an error that names it, and none a
//! panic or a large allocation.

use crate::common::*;
use burn_lora_llama::{Llama, LlamaConfig};
use proptest::{collection::vec as list, prelude::*, sample::Index};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::{fs, path::Path};
use tempfile::TempDir;

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A number that may be too much for something.
fn number() -> impl Strategy<Value = Value> {
    let whole = [0, 1, 2, 3, 7, 1 << 20, 1 << 28, 1 << 32, 1 << 53, i64::MAX as u64, u64::MAX];
    let float = [0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 1e-9, 1e9, 1e308, -1e308];
    prop_oneof![
        prop::sample::select(whole.to_vec()).prop_map(Value::from),
        prop::sample::select(float.to_vec()).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let words = "llama mistral qwen3 MistralForCausalLM silu default linear yarn dynamic llama3 \
                 sliding_attention full_attention bitsandbytes nf4 fp4 float32 ../x \
                 model.safetensors F64 U8 BF16 é\u{0}";
    let words: Vec<&str> = words.split(' ').chain([""]).collect();
    let leaf = prop_oneof![
        4 => number(),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        2 => prop::sample::select(words).prop_map(Value::from),
    ];
    let names = "rope_type type factor rope_theta low_freq_factor high_freq_factor beta_fast beta_slow \
                 original_max_position_embeddings attention_factor mscale mscale_all_dim truncate \
                 quant_method load_in_4bit shape dtype data_offsets";
    let names: Vec<&str> = names.split(' ').collect();
    leaf.prop_recursive(2, 12, 4, move |inner| {
        let entry = (prop::sample::select(names.clone()), inner.clone());
        prop_oneof![
            list(inner, 0..4).prop_map(Value::from),
            list(entry, 0..5).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

/// Rotary settings of a kind that exists, with numbers that may not make sense.
fn rope() -> impl Strategy<Value = Value> {
    let kind = prop::sample::select(vec!["linear", "dynamic", "llama3", "yarn"]);
    let names = "factor rope_theta low_freq_factor high_freq_factor beta_fast beta_slow mscale \
                 original_max_position_embeddings attention_factor mscale_all_dim";
    let names: Vec<&str> = names.split(' ').collect();
    let positive = prop_oneof![1e-3..1e6, Just(1.0), Just(1e308), Just(1e-308)];
    (kind, list(positive, names.len())).prop_map(move |(kind, numbers)| {
        let mut rope = json!({ "rope_type": kind });
        names.iter().zip(numbers).for_each(|(name, number): (_, f64)| rope[*name] = number.into());
        rope
    })
}

/// A change of some bytes, or of the length.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let one = prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        4 => (any::<Index>(), prop::sample::select(b"09[]{},:\"-e".to_vec()))
            .prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => any::<Index>().prop_map(Damage::Cut),
        1 => (any::<Index>(), list(any::<u8>(), 1..9)).prop_map(|(at, b)| Damage::Insert(at, b)),
    ];
    list(one, 1..4)
}

/// Damages the first `within` bytes.
fn apply(bytes: &mut Vec<u8>, within: usize, damage: &[Damage]) {
    for one in damage {
        let within = within.min(bytes.len());
        match one {
            _ if within == 0 => {}
            Damage::Set(at, byte) => bytes[at.index(within)] = *byte,
            Damage::Cut(at) => bytes.truncate(at.index(within)),
            Damage::Insert(at, new) => {
                let at = at.index(within);
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
}

/// The error of a folder, if there is one, names it.
fn load(folder: &Path) -> Result<(), TestCaseError> {
    if let Err(error) = Llama::from_pretrained(folder).load(&device()) {
        let error = error.to_string();
        prop_assert!(error.contains(&folder.display().to_string()), "{}", error);
        prop_assert!(error.len() < 2000, "{} bytes of message", error.len());
    }
    Ok(())
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(golden("").join(path)).unwrap()).unwrap()
}

/// A folder with this config and these weights.
fn folder(config: &str, weights: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    folder
}

/// A header with its length, before the data.
fn with_header(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// The header of a safetensors file, and the data.
fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..length]).unwrap(), &bytes[length..])
}

/// A config is an error that names the file, or it has sizes that can be worked with.
fn check_config(json: &str) -> Result<(), TestCaseError> {
    match LlamaConfig::from_json(json) {
        Err(error) => {
            let error = error.to_string();
            prop_assert!(error.starts_with("config.json: "), "{}", error);
            prop_assert!(error.len() < 2000, "{} bytes of message", error.len());
        }
        Ok(config) => {
            prop_assert!((1..=2).contains(&config.ropes.len()));
            prop_assert!(config.layers.len() <= 4096);
            prop_assert!(config.layers[0].attention.q_width() <= 1 << 28);
            for length in [0, 1, 100_000] {
                let (frequencies, factor) = config.ropes[0].frequencies(length);
                prop_assert!(frequencies.len() == config.ropes[0].dim / 2);
                let finite = frequencies.iter().all(|frequency| frequency.is_finite());
                prop_assert!(finite && factor.is_finite(), "{:?}", config.ropes);
            }
        }
    }
    Ok(())
}

/// The fields that any of the families has, and some that none has.
fn field() -> impl Strategy<Value = String> {
    let mut names = vec!["num_experts".to_owned(), "quantization_config".into()];
    for family in ["mistral", "qwen2_window", "qwen3", "yarn"] {
        for file in ["config.json", "config_old.json"] {
            let config = read(format!("families/{family}/{file}"));
            names.extend(config.as_object().unwrap().keys().cloned());
        }
    }
    names.sort();
    names.dedup();
    prop::sample::select(names)
}

fn family() -> impl Strategy<Value = Value> {
    let families = ["mistral", "qwen2_window", "qwen3", "yarn"];
    let configs = families.map(|family| read(format!("families/{family}/config.json")));
    prop::sample::select(configs.to_vec())
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn config_with_any_values(
        config in family(),
        changes in list((field(), json_value()), 1..4),
    ) {
        let mut config = config;
        for (field, value) in changes {
            config[field] = value;
        }
        check_config(&config.to_string())?;
    }

    #[test]
    fn config_with_any_rotary_settings(value in rope(), dim in 1usize..70) {
        let mut config = read("families/yarn/config.json");
        config["rope_scaling"] = value;
        config["head_dim"] = (2 * dim).into();
        check_config(&config.to_string())?;
    }

    #[test]
    fn config_with_any_bytes(damage in damage()) {
        let mut json = read("families/qwen3/config.json").to_string().into_bytes();
        let length = json.len();
        apply(&mut json, length, &damage);
        check_config(&String::from_utf8_lossy(&json))?;
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn config_that_contradicts_the_tensors(
        field in field(),
        value in prop_oneof![json_value(), (1u64..70).prop_map(Value::from)],
    ) {
        let mut config = read("families/qwen3/config.json");
        config[field] = value;
        let weights = fs::read(golden("families/qwen3/model.safetensors")).unwrap();
        load(folder(&config.to_string(), &weights).path())?;
    }

    #[test]
    fn safetensors_with_any_bytes(damage in damage(), in_length in prop::bool::weighted(0.1)) {
        let config = read("families/linear/config.json").to_string();
        let mut weights = fs::read(golden("families/linear/model.safetensors")).unwrap();
        let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        apply(&mut weights, if in_length { 8 } else { 8 + header }, &damage);
        load(folder(&config, &weights).path())?;
    }

    #[test]
    fn safetensors_whose_header_lies(
        tensor in any::<Index>(),
        field in prop::sample::select(vec!["shape", "dtype", "data_offsets"]),
        value in prop_oneof![
            json_value(),
            list(prop_oneof![number(), (0u64..5000).prop_map(Value::from)], 1..4)
                .prop_map(Value::from),
        ],
    ) {
        let config = read("families/linear/config.json").to_string();
        let weights = fs::read(golden("families/linear/model.safetensors")).unwrap();
        let (mut header, data) = split(&weights);
        let names: Vec<String> = header.as_object().unwrap().keys().cloned().collect();
        let name = tensor.get(&names);
        if name == "__metadata__" {
            header[name] = value;
        } else {
            header[name][field] = value;
        }
        load(folder(&config, &with_header(&header, data)).path())?;
    }

    #[test]
    fn index_with_any_values(
        shard in any::<Index>(),
        change in prop_oneof![json_value(), "\\PC{0,8}".prop_map(Value::from)],
        of_all in prop::bool::weighted(0.1),
        damage in prop::option::weighted(0.3, damage()),
    ) {
        let config = read("families/linear/config.json").to_string();
        let weights = fs::read(golden("families/linear/model.safetensors")).unwrap();
        let names = split(&weights).0;
        let names = names.as_object().unwrap().keys().filter(|name| *name != "__metadata__");
        let names: Vec<&String> = names.collect();
        let mut map = json!({});
        names.iter().for_each(|name| map[*name] = "model.safetensors".into());
        map[shard.get(&names)] = change.clone();
        let index = json!({ "weight_map": if of_all { change } else { map } });
        let mut json = index.to_string().into_bytes();
        let length = json.len();
        apply(&mut json, length, &damage.unwrap_or_default());
        let folder = folder(&config, &weights);
        fs::write(folder.path().join("model.safetensors.index.json"), json).unwrap();
        load(folder.path())?;
    }
}

/// What a checkpoint by bitsandbytes has of one weight.
const PACKED: &str = "model.layers.0.self_attn.k_proj.weight";

fn load_packed(
    part: &str,
    change: impl Fn(&TensorView<'_>) -> Vec<u8>,
) -> Result<(), TestCaseError> {
    let config = read("gqa/bnb4bit/config.json").to_string();
    let bytes = fs::read(golden("gqa/bnb4bit/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let changed = format!("{PACKED}{part}");
    let new = change(&file.tensor(&changed).unwrap());
    let tensors = file.iter().map(|(name, view)| {
        if name != changed {
            return (name, view);
        }
        let size = view.dtype().bitsize() / 8;
        (name, TensorView::new(view.dtype(), vec![new.len() / size], &new).unwrap())
    });
    let weights = safetensors::serialize(tensors, None).unwrap();
    load(folder(&config, &weights).path())
}

proptest! {
    #![proptest_config(cases(150))]

    #[test]
    fn quantization_state_with_any_values(
        field in prop::sample::select(vec![
            "quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype",
            "nested_offset",
        ]),
        value in prop_oneof![json_value(), list(number(), 2).prop_map(Value::from)],
        damage in prop::option::weighted(0.3, damage()),
    ) {
        load_packed(".quant_state.bitsandbytes__nf4", |state| {
            let mut json: Value = serde_json::from_slice(state.data()).unwrap();
            json[field] = value.clone();
            let mut json = json.to_string().into_bytes();
            let length = json.len();
            apply(&mut json, length, damage.as_deref().unwrap_or_default());
            json
        })?;
    }

    #[test]
    fn quantized_tensors_of_any_length(
        part in prop::sample::select(vec![
            "", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
        ]),
        length in 0usize..2000,
    ) {
        load_packed(part, |tensor| {
            tensor.data().iter().copied().cycle().take(length * 4).collect()
        })?;
    }
}

#[test]
fn sizes_that_would_fill_the_memory_are_refused() {
    let weights = fs::read(golden("families/qwen3/model.safetensors")).unwrap();
    let cases = [
        ("num_hidden_layers", json!(1u64 << 28)),
        ("num_hidden_layers", json!(4096)),
        ("num_attention_heads", json!(1u64 << 40)),
        ("head_dim", json!(1u64 << 28)),
        ("vocab_size", json!(1u64 << 28)),
        ("hidden_size", json!(1u64 << 28)),
        ("max_position_embeddings", json!(u64::MAX)),
        ("sliding_window", json!(u64::MAX)),
    ];
    for (field, value) in cases {
        let mut config = read("families/qwen3/config.json");
        config["use_sliding_window"] = true.into();
        config[field] = value;
        config.as_object_mut().unwrap().remove("layer_types");
        let folder = folder(&config.to_string(), &weights);
        let error = Llama::from_pretrained(folder.path()).load(&device()).unwrap_err().to_string();
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }
}

#[test]
fn an_index_of_nothing_is_refused() {
    let config = read("families/linear/config.json").to_string();
    let folder = folder(&config, &[]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{ "weight_map": {} }"#).unwrap();
    let error = Llama::from_pretrained(folder.path()).load(&device()).unwrap_err().to_string();
    assert!(error.starts_with(&index.display().to_string()), "{error}");
}

#[test]
fn sizes_that_make_no_model_together_are_refused() {
    let mut config = read("families/linear/config.json");
    for (field, size) in [
        ("vocab_size", 1 << 28),
        ("hidden_size", 1 << 28),
        ("intermediate_size", 1 << 28),
        ("num_hidden_layers", 1 << 12),
    ] {
        config[field] = json!(size);
    }
    let error = LlamaConfig::from_json(&config.to_string()).err().map(|error| error.to_string());
    assert!(error.as_ref().is_some_and(|error| error.contains("`hidden_size` is 268435456")));
}

#[test]
fn fields_that_are_wrong_are_named() {
    let cases = [
        ("hidden_size", json!("64"), "`hidden_size` is \"64\""),
        ("hidden_size", json!(-1), "`hidden_size` is -1"),
        ("hidden_size", json!(null), "`hidden_size` is missing"),
        ("rms_norm_eps", json!([1]), "`rms_norm_eps` is [1]"),
        ("rope_scaling", json!(3), "`rope_scaling` is 3"),
        ("rope_scaling", json!({ "rope_type": "linear" }), "`rope_scaling.factor` is missing"),
        ("rope_parameters", json!({ "full_attention": {} }), "`rope_parameters.full_attention`"),
        ("layer_types", json!(["full_attention"]), "`layer_types` is 1"),
        ("quantization_config", json!({ "quant_method": "gptq" }), "quant_method` is gptq"),
        ("num_attention_heads", json!(0), "`num_attention_heads` is 0"),
    ];
    for (field, value, expected) in cases {
        let mut config = read("families/qwen3/config.json");
        config[field] = value;
        let error = LlamaConfig::from_json(&config.to_string()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
