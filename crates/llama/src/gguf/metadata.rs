//! A configuration as metadata of a GGUF file: the inverse of [`config`](super::config).

use super::{
    config::{DIVISORS, LONG_DIVISORS, SHORT_DIVISORS},
    model::GgufModel,
};
use crate::{
    config::{GgufFamily, LlamaConfig},
    error::LlamaError,
    rope::{RopeConfig, RopeScaling},
    spec::FeedForwardSpec,
};
use burn_lora_io::gguf::{Entry, GgufWriter};
use std::path::Path;

/// Tensors with divisors of the rotary frequencies.
pub(super) fn divisors(rope: &RopeConfig, family: &GgufFamily) -> Vec<(&'static str, Vec<f32>)> {
    match &rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let plain = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() };
            let ((plain, _), (scaled, _)) = (plain.frequencies(0), rope.frequencies(0));
            let divisors = plain.iter().zip(scaled).map(|(plain, scaled)| plain / scaled);
            vec![(DIVISORS, divisors.collect())]
        }
        RopeScaling::LongRope { short, long, .. } if family.extra.contains(&LONG_DIVISORS) => {
            vec![(LONG_DIVISORS, long.clone()), (SHORT_DIVISORS, short.clone())]
        }
        RopeScaling::LongRope { short, long, .. } if short == long => {
            vec![(DIVISORS, short.clone())]
        }
        _ => vec![],
    }
}

/// Creates a file with the metadata of a model.
pub(super) fn metadata(config: &LlamaConfig, family: &GgufFamily) -> GgufWriter {
    let architecture = family.architecture;
    let mut file = GgufWriter::new(architecture);
    file.set("general.type", Entry::Text("model".into()));
    file.set("general.quantization_version", Entry::U32(2));
    let layer = &config.layers[0];
    let (attention, rope) = (&layer.attention, &config.ropes[0]);
    let width = attention.head_dim;
    let mut set = |key: &str, value: Entry| file.set(format!("{architecture}.{key}"), value);
    let sizes = [
        ("block_count", config.layers.len()),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", layer.feed_forward.mlp().intermediate_size),
        ("attention.head_count", attention.num_heads),
        ("attention.head_count_kv", attention.num_kv_heads),
        ("attention.key_length", width),
        ("attention.value_length", width),
        ("rope.dimension_count", rope.dim),
        ("vocab_size", config.vocab_size),
    ];
    for (key, value) in sizes {
        set(key, Entry::U32(value as u32));
    }
    set("attention.layer_norm_rms_epsilon", Entry::F32(config.norm.eps as f32));
    set("rope.freq_base", Entry::F32(rope.theta as f32));
    if let FeedForwardSpec::Experts(experts) = &layer.feed_forward {
        set("expert_count", Entry::U32(experts.num_experts as u32));
        set("expert_used_count", Entry::U32(experts.experts_per_token as u32));
        set("expert_feed_forward_length", Entry::U32(experts.mlp.intermediate_size as u32));
    }
    let window = config.layers.iter().find_map(|layer| layer.attention.window);
    let phi3 = architecture == "phi3";
    if let Some(window) = window.filter(|window| phi3 && *window < config.max_position_embeddings) {
        burn_lora_io::warn!(
            "llama.cpp computes Phi-3 without its sliding window: beyond {window} tokens its answers differ"
        );
    }
    // Phi-3 has to say that it has none.
    if let Some(window) = window.or(phi3.then_some(0)) {
        set("attention.sliding_window", Entry::U32(window as u32));
    }
    if let Some(local) = config.ropes.get(1) {
        set("rope.freq_base_swa", Entry::F32(local.theta as f32));
    }
    if let Some(cap) = config.final_logit_softcapping {
        set("final_logit_softcapping", Entry::F32(cap as f32));
    }
    match &rope.scaling {
        RopeScaling::Linear { factor } => {
            set("rope.scaling.type", Entry::Text("linear".into()));
            set("rope.scaling.factor", Entry::F32(*factor as f32));
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
            set("rope.scaling.type", Entry::Text("yarn".into()));
            set("rope.scaling.factor", Entry::F32(*factor as f32));
            set("rope.scaling.original_context_length", Entry::U32(*original as u32));
            set("rope.scaling.yarn_beta_fast", Entry::F32(*beta_fast as f32));
            set("rope.scaling.yarn_beta_slow", Entry::F32(*beta_slow as f32));
        }
        RopeScaling::LongRope { original, attention_factor, .. } => {
            set("rope.scaling.original_context_length", Entry::U32(*original as u32));
            set("rope.scaling.attn_factor", Entry::F32(*attention_factor as f32));
        }
        _ => {}
    }
    file
}

/// Checks that the file describes the same model: its format has no place for some settings.
pub(super) fn check(config: &LlamaConfig, written: &Path, path: &Path) -> Result<(), LlamaError> {
    let found = GgufModel::open(written)?.config().clone();
    let architecture = config.family.gguf().map_or("", |family| family.architecture);
    let o_bias = config.layers.iter().any(|layer| layer.attention.o_bias);
    let differs = if o_bias && !["llama", "gpt-oss"].contains(&architecture) {
        // llama.cpp does not load a file with tensors that it does not use.
        Some("llama.cpp has no bias of `o_proj` there".to_owned())
    } else if found.layers != config.layers {
        let layers = found.layers.iter().zip(&config.layers);
        let (i, (found, own)) = layers
            .enumerate()
            .find(|(_, (a, b))| a != b)
            .unwrap_or_else(|| (0, (&found.layers[0], &config.layers[0])));
        Some(format!("layer {i} would be {found:?}, and is {own:?}"))
    } else if !same_ropes(&found.ropes, &config.ropes) {
        Some(format!("rotary positions would be {:?}, and are {:?}", found.ropes, config.ropes))
    } else if (found.norm.eps as f32, found.norm.offset)
        != (config.norm.eps as f32, config.norm.offset)
        || found.embedding_multiplier != config.embedding_multiplier
        || found.logits_scaling != config.logits_scaling
        || found.final_logit_softcapping != config.final_logit_softcapping
    {
        Some("norms, or factors of embeddings and logits, would be others".to_owned())
    } else {
        None
    };
    let Some(differs) = differs else { return Ok(()) };
    let reason = format!(
        "GGUF of {} has no place for a setting of this model: {differs}. Save the model, and convert it by \
         llama.cpp's convert_hf_to_gguf.py",
        config.family.model_type()
    );
    Err(LlamaError::format(path, reason))
}

/// Compares what is computed: frequencies, as files have them in float32.
fn same_ropes(a: &[RopeConfig], b: &[RopeConfig]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            let lengths = [1, b.max_positions, 8 * b.max_positions];
            lengths.into_iter().all(|length| {
                let ((a, scale_a), (b, scale_b)) = (a.frequencies(length), b.frequencies(length));
                let near = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-5;
                a.len() == b.len() && a.iter().zip(&b).all(near) && near((&scale_a, &scale_b))
            })
        })
}
