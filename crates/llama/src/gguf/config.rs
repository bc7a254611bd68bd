//! Conversion of GGUF metadata to the equivalent `config.json`.

use super::keys::GgufKeys;
use crate::{
    config::{GgufFamily, LlamaConfig, ModelFamily},
    error::LlamaError,
    families::FAMILIES,
    rope::RopeScaling,
};
use burn_lora_io::gguf::{Gguf, Value};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Tensor of the divisors of the rotary frequencies.
pub(super) const DIVISORS: &str = "rope_freqs.weight";
/// Those of sequences beyond the original length, and of others (Phi-3).
pub(crate) const LONG_DIVISORS: &str = "rope_factors_long.weight";
pub(crate) const SHORT_DIVISORS: &str = "rope_factors_short.weight";

/// Builds the configuration of the model, and returns how its family is stored.
///
/// # Errors
/// - [`LlamaError::Field`], which names the key, if the architecture or a setting is not supported,
///   or a setting is missing or contradicts another.
/// - [`LlamaError::Shape`] or [`LlamaError::Format`] if the divisors of the frequencies are
///   unusable.
pub(super) fn config(gguf: &Gguf) -> Result<(LlamaConfig, GgufFamily), LlamaError> {
    let (family, stored) = family(gguf)?;
    let keys = GgufKeys::new(gguf, stored.architecture);
    let mut raw = json(&keys, family, stored)?;
    (stored.fields)(&keys, &mut raw)?;
    let mut config = LlamaConfig::from_value(&raw.into(), gguf.path(), &[])?;
    // llama.cpp has the divisors beside the scaling, and applies both.
    let divisors = keys.floats(DIVISORS)?;
    if let Some(divisors) = divisors.filter(|divisors| divisors.iter().any(|value| *value != 1.0)) {
        if config.ropes[0].scaling != RopeScaling::Default {
            let key = "rope.scaling.type";
            let found = keys.get(key).map_or_else(String::new, Value::brief);
            return Err(keys.wrong(key, found, "not supported together with `rope_freqs.weight`"));
        }
        stretch(&mut config, divisors, gguf.path())?;
    }
    Ok((config, stored))
}

/// Returns the family of `general.architecture`.
fn family(gguf: &Gguf) -> Result<(&'static dyn ModelFamily, GgufFamily), LlamaError> {
    let found = gguf.get("general.architecture").and_then(Value::as_str).unwrap_or("missing");
    let known = || FAMILIES.iter().filter_map(|family| Some((*family, family.gguf()?)));
    // One architecture may be several families: Mixtral is a Llama with experts.
    let experts = gguf.get(&format!("{found}.expert_count")).and_then(Value::as_u64).unwrap_or(0);
    let fits = |stored: &GgufFamily| stored.architecture == found;
    let exact = known().find(|(_, stored)| fits(stored) && stored.experts == (experts > 0));
    exact.or_else(|| known().find(|(_, stored)| fits(stored))).ok_or_else(|| {
        let mut names: Vec<_> = known().map(|(_, stored)| stored.architecture).collect();
        names.dedup();
        LlamaError::Field {
            path: gguf.path().into(),
            field: "general.architecture".into(),
            found: found.into(),
            reason: format!("supported are {}", names.join(", ")),
        }
    })
}

/// Applies the divisors of the frequencies: as Llama 3's scaling if its formula gives them, as in
/// Hugging Face's files, else as `longrope`.
fn stretch(config: &mut LlamaConfig, divisors: Vec<f32>, path: &Path) -> Result<(), LlamaError> {
    let rope = config.ropes[0].clone();
    if divisors.len() != rope.dim / 2 {
        return Err(LlamaError::Shape {
            path: path.into(),
            tensor: DIVISORS.into(),
            found: vec![divisors.len()],
            expected: vec![rope.dim / 2],
        });
    }
    let (plain, _) = rope.frequencies(0);
    let fits = |(frequency, divisor): (&f32, &f32)| {
        divisor.is_finite() && *divisor > 0.0 && (frequency / divisor).is_finite()
    };
    if let Some((_, wrong)) = plain.iter().zip(&divisors).find(|pair| !fits(*pair)) {
        let reason = format!("`rope_freqs.weight` has {wrong:e}, expected numbers above 0");
        return Err(LlamaError::format(path, reason));
    }
    let factor = f64::from(divisors[divisors.len() - 1]);
    let found = (6..=20).map(|power| f64::from(1 << power)).find(|original| {
        let mut rope = rope.clone();
        rope.scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: *original,
        };
        let (stretched, _) = rope.frequencies(0);
        let pairs = plain.iter().zip(stretched).zip(&divisors);
        pairs
            .into_iter()
            .all(|((plain, stretched), divisor)| (plain / stretched / divisor - 1.0).abs() < 1e-4)
    });
    let (scaling, json) = match found {
        Some(original) => {
            let json = json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": original as u64,
            });
            let (low_freq_factor, high_freq_factor) = (1.0, 4.0);
            (RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original }, json)
        }
        // transformers' type for arbitrary divisors, so that a saved model means the same.
        None => {
            let json = json!({
                "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
                "attention_factor": 1.0, "factor": 1.0,
                "original_max_position_embeddings": config.max_position_embeddings,
            });
            let scaling = RopeScaling::LongRope {
                short: divisors.clone(),
                long: divisors,
                original: config.max_position_embeddings as f64,
                attention_factor: 1.0,
            };
            (scaling, json)
        }
    };
    config.ropes[0].scaling = scaling;
    config.raw["rope_scaling"] = json;
    Ok(())
}

fn json(
    keys: &GgufKeys<'_>,
    family: &'static dyn ModelFamily,
    stored: GgufFamily,
) -> Result<Map<String, Json>, LlamaError> {
    if !stored.experts {
        keys.equals("expert_count", keys.number("expert_count")?, 0.0)?;
    }
    let layers = keys.required("block_count")?;
    // A false number would cost memory before missing tensors are noticed.
    let tensors = keys.gguf().tensors();
    if layers > tensors.len() as u64 {
        let reason = format!("the file has {} tensors: it is incomplete", tensors.len());
        return Err(keys.wrong("block_count", layers, &reason));
    }
    let hidden = keys.required("embedding_length")?;
    let heads = keys.required("attention.head_count")?;
    if heads == 0 {
        return Err(keys.wrong("attention.head_count", heads, "expected a number from 1"));
    }
    let width = keys.integer("attention.key_length")?.unwrap_or(hidden / heads);
    keys.equals("attention.value_length", keys.number("attention.value_length")?, width as f64)?;
    let rotated = keys.number("rope.dimension_count")?;
    if !stored.partial_rotary {
        keys.equals("rope.dimension_count", rotated, width as f64)?;
    }
    let embedding = tensors.get("token_embd.weight").and_then(|tensor| tensor.shape.first());
    let vocabulary = match (keys.integer("vocab_size")?, embedding) {
        (Some(size), _) => size,
        (None, Some(rows)) => *rows as u64,
        (None, None) => keys.required("vocab_size")?,
    };
    let eps = "attention.layer_norm_rms_epsilon";
    let eps = keys.number(eps)?.ok_or_else(|| keys.wrong(eps, "missing", "the model needs it"))?;
    let mut raw = json!({
        "architectures": [family.class()],
        "model_type": family.model_type(),
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": width,
        "rms_norm_eps": eps,
        "max_position_embeddings": keys.required("context_length")?,
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        "rope_scaling": scaling(keys)?,
        "hidden_act": "silu",
        "attention_bias": keys.has("blk.0.attn_q.bias"),
        "mlp_bias": keys.has("blk.0.ffn_gate.bias"),
        "tie_word_embeddings": !keys.has("output.weight"),
    });
    for (field, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        let id = keys.gguf().get(&format!("tokenizer.ggml.{key}_token_id"));
        if let Some(id) = id.and_then(Value::as_u64) {
            raw[format!("{field}_token_id")] = id.into();
        }
    }
    if stored.partial_rotary
        && let Some(rotated) = rotated
    {
        raw["partial_rotary_factor"] = (rotated / width as f64).into();
    }
    let Json::Object(raw) = raw else { unreachable!("it is made so") };
    Ok(raw)
}

/// Builds `rope_scaling`.
fn scaling(keys: &GgufKeys<'_>) -> Result<Json, LlamaError> {
    let key = |name: &str| format!("rope.scaling.{name}");
    let kind = match keys.get(&key("type")) {
        None => "none",
        Some(kind) => kind.as_str().unwrap_or("of another type"),
    };
    if !matches!(kind, "none" | "linear" | "yarn") {
        let reason = "supported are none, linear and yarn";
        return Err(keys.wrong(&key("type"), kind, reason));
    }
    let factor = keys.number(&key("factor"))?.unwrap_or(1.0);
    if kind == "none" || factor == 1.0 {
        return Ok(Json::Null);
    }
    let mut fields = Map::new();
    fields.insert("rope_type".into(), kind.into());
    fields.insert("factor".into(), factor.into());
    if kind == "yarn" {
        // llama.cpp multiplies by this what transformers computes; converters write 1.
        for name in ["attn_factor", "yarn_attn_factor"] {
            keys.equals(&key(name), keys.number(&key(name))?, 1.0)?;
        }
        for (name, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")] {
            if let Some(number) = keys.number(&key(name))? {
                fields.insert(field.into(), number.into());
            }
        }
        if let Some(length) = keys.integer(&key("original_context_length"))? {
            fields.insert("original_max_position_embeddings".into(), length.into());
        }
    }
    Ok(fields.into())
}
