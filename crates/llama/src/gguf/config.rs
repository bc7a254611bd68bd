//! Conversion of GGUF metadata to the equivalent `config.json`.

use crate::{config::LlamaConfig, error::LlamaError, rope::RopeScaling};
use burn_lora_io::gguf::{Gguf, Value};
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Builds the configuration of the model.
///
/// # Errors
/// - [`LlamaError::Field`], which names the key, if the architecture or a setting is not supported,
///   or a setting is missing or contradicts another.
/// - [`LlamaError::Shape`] or [`LlamaError::Format`] if the divisors of the frequencies are
///   unusable.
pub(super) fn config(gguf: &Gguf, divisors: Option<Vec<f32>>) -> Result<LlamaConfig, LlamaError> {
    let keys = Keys { gguf, prefix: architecture(gguf)? };
    let raw = keys.json()?;
    let mut config = LlamaConfig::from_value(&raw, gguf.path(), &[])?;
    // llama.cpp has the divisors beside the scaling, and applies both.
    if let Some(divisors) = divisors.filter(|divisors| divisors.iter().any(|value| *value != 1.0)) {
        if config.ropes[0].scaling != RopeScaling::Default {
            let key = "rope.scaling.type";
            let found = keys.get(key).map_or_else(String::new, Value::brief);
            return Err(keys.wrong(key, found, "not supported together with `rope_freqs.weight`"));
        }
        stretch(&mut config, divisors, gguf.path())?;
    }
    Ok(config)
}

/// Returns `general.architecture`, which is also the prefix of most keys.
pub(super) fn architecture(gguf: &Gguf) -> Result<&str, LlamaError> {
    let found = gguf.get("general.architecture").and_then(Value::as_str).unwrap_or("missing");
    match found {
        "llama" | "qwen2" | "qwen3" => Ok(found),
        _ => Err(LlamaError::Field {
            path: gguf.path().into(),
            field: "general.architecture".into(),
            found: found.into(),
            reason: "supported are llama (also Mistral and SmolLM2), qwen2 and qwen3".into(),
        }),
    }
}

/// Applies the divisors of the frequencies: as Llama 3's scaling if its formula gives them, as in
/// Hugging Face's files, else as `longrope`.
fn stretch(config: &mut LlamaConfig, divisors: Vec<f32>, path: &Path) -> Result<(), LlamaError> {
    let rope = config.ropes[0].clone();
    if divisors.len() != rope.dim / 2 {
        return Err(LlamaError::Shape {
            path: path.into(),
            tensor: "rope_freqs.weight".into(),
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

/// Metadata under the prefix of the architecture.
struct Keys<'a> {
    gguf: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.gguf.get(&format!("{}.{key}", self.prefix))
    }

    fn wrong(&self, key: &str, found: impl ToString, reason: &str) -> LlamaError {
        LlamaError::Field {
            path: self.gguf.path().into(),
            field: format!("{}.{key}", self.prefix),
            found: found.to_string(),
            reason: reason.into(),
        }
    }

    fn integer(&self, key: &str) -> Result<Option<u64>, LlamaError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some architectures have an array here: a number for each layer.
        let reason = "expected one whole number for all layers";
        value.as_u64().map(Some).ok_or_else(|| self.wrong(key, value.brief(), reason))
    }

    fn required(&self, key: &str) -> Result<u64, LlamaError> {
        self.integer(key)?.ok_or_else(|| self.wrong(key, "missing", "the model needs it"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, LlamaError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            // The decimal that was written, not the float64 next to it.
            Value::F32(number) => number.to_string().parse().ok(),
            other => other.as_f64(),
        };
        let number = number.filter(|number: &f64| number.is_finite());
        number.map(Some).ok_or_else(|| self.wrong(key, value.brief(), "expected a number"))
    }

    fn equals(&self, key: &str, found: Option<f64>, expected: f64) -> Result<(), LlamaError> {
        match found {
            Some(found) if found != expected => {
                Err(self.wrong(key, found, &format!("only {expected} is supported")))
            }
            _ => Ok(()),
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors().contains_key(tensor)
    }

    fn json(&self) -> Result<Json, LlamaError> {
        let (class, kind) = match self.prefix {
            "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
            "qwen3" => ("Qwen3ForCausalLM", "qwen3"),
            _ => ("LlamaForCausalLM", "llama"),
        };
        self.equals("expert_count", self.number("expert_count")?, 0.0)?;
        let layers = self.required("block_count")?;
        // A false number would cost memory before missing tensors are noticed.
        let tensors = self.gguf.tensors();
        if layers > tensors.len() as u64 {
            let reason = format!("the file has {} tensors: it is incomplete", tensors.len());
            return Err(self.wrong("block_count", layers, &reason));
        }
        let hidden = self.required("embedding_length")?;
        let heads = self.required("attention.head_count")?;
        if heads == 0 {
            return Err(self.wrong("attention.head_count", heads, "expected a number from 1"));
        }
        let width = self.integer("attention.key_length")?.unwrap_or(hidden / heads);
        for key in ["attention.value_length", "rope.dimension_count"] {
            self.equals(key, self.number(key)?, width as f64)?;
        }
        let embedding = tensors.get("token_embd.weight").and_then(|tensor| tensor.shape.first());
        let vocabulary = match (self.integer("vocab_size")?, embedding) {
            (Some(size), _) => size,
            (None, Some(rows)) => *rows as u64,
            (None, None) => self.required("vocab_size")?,
        };
        let eps = "attention.layer_norm_rms_epsilon";
        let eps =
            self.number(eps)?.ok_or_else(|| self.wrong(eps, "missing", "the model needs it"))?;
        let mut raw = json!({
            "architectures": [class],
            "model_type": kind,
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": self.required("feed_forward_length")?,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": width,
            "rms_norm_eps": eps,
            "max_position_embeddings": self.required("context_length")?,
            "rope_theta": self.number("rope.freq_base")?.unwrap_or(10_000.0),
            "rope_scaling": self.scaling()?,
            "hidden_act": "silu",
            "attention_bias": self.prefix != "qwen2" && self.has("blk.0.attn_q.bias"),
            "mlp_bias": self.has("blk.0.ffn_gate.bias"),
            "tie_word_embeddings": !self.has("output.weight"),
        });
        for (field, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
            let id = self.gguf.get(&format!("tokenizer.ggml.{key}_token_id"));
            if let Some(id) = id.and_then(Value::as_u64) {
                raw[format!("{field}_token_id")] = id.into();
            }
        }
        Ok(raw)
    }

    /// Builds `rope_scaling`.
    fn scaling(&self) -> Result<Json, LlamaError> {
        let key = |name: &str| format!("rope.scaling.{name}");
        let kind = match self.get(&key("type")) {
            None => "none",
            Some(kind) => kind.as_str().unwrap_or("of another type"),
        };
        if !matches!(kind, "none" | "linear" | "yarn") {
            let reason = "supported are none, linear and yarn";
            return Err(self.wrong(&key("type"), kind, reason));
        }
        let factor = self.number(&key("factor"))?.unwrap_or(1.0);
        if kind == "none" || factor == 1.0 {
            return Ok(Json::Null);
        }
        let mut fields = Map::new();
        fields.insert("rope_type".into(), kind.into());
        fields.insert("factor".into(), factor.into());
        if kind == "yarn" {
            // llama.cpp multiplies by this what transformers computes; converters write 1.
            for name in ["attn_factor", "yarn_attn_factor"] {
                self.equals(&key(name), self.number(&key(name))?, 1.0)?;
            }
            for (name, field) in [("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")]
            {
                if let Some(number) = self.number(&key(name))? {
                    fields.insert(field.into(), number.into());
                }
            }
            if let Some(length) = self.integer(&key("original_context_length"))? {
                fields.insert("original_max_position_embeddings".into(), length.into());
            }
        }
        Ok(fields.into())
    }
}
