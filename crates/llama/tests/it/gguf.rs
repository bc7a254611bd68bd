//! GGUF: files written here from golden checkpoints, block formats against llama.cpp's Python package
//! (testdata/make_gguf.py), a real file, and files that are broken.

mod broken;
mod writer;

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptedLayer};
use burn_lora_llama::{Llama, LlamaError, RopeScaling, SaveOptions, Segments};
use burn_lora_quant::QuantConfig;
use safetensors::SafeTensors;
use std::fs;
use tempfile::TempDir;
use writer::{F16, File, Q8_0, converted, llama3_divisors, q8_0, text};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn load(file: &File) -> Result<Llama, LlamaError> {
    let folder = folder();
    Llama::from_pretrained(file.write(folder.path())).dtype(FloatDType::F32).load(&device())
}

fn logits(model: &Llama, variant: &str) -> Vec<f32> {
    let (tokens, segments, _) = batch(variant, &device());
    vec(model.forward(tokens, &segments))
}

fn expected(variant: &str) -> Vec<f32> {
    tensors(&golden(variant).join("io.safetensors"))["logits"].1.clone()
}

fn weight(model: &Llama, path: &str) -> Vec<f32> {
    let layers = model.layers();
    let layer = layers.iter().find(|(name, _)| name == path).unwrap().1;
    vec(layer.weight())
}

/// Llama 3's rotary frequencies, as llama.cpp has them beside the weights.
fn llama3() -> File {
    let mut file = converted("llama3", "llama");
    let divisors = llama3_divisors(500_000.0, 32, 8.0, 64.0);
    file.push("rope_freqs.weight", &[16], &divisors);
    file
}

#[test]
fn models_agree() {
    for (variant, file) in [("gqa", converted("gqa", "llama")), ("llama3", llama3())] {
        for version in [2, 3] {
            let model = load(&File { version, ..file.clone() }).unwrap();
            let found = difference(&logits(&model, variant), &expected(variant));
            assert!(found < 1e-4, "{variant}, version {version}: logits differ by {found}");
            assert_eq!(model.config.tie_word_embeddings, variant == "llama3");
        }
    }
}

#[test]
fn a_model_of_blocks_agrees() {
    let mut file = converted("gqa", "llama");
    for tensor in file.tensors.iter_mut().filter(|tensor| tensor.dims.len() == 2) {
        tensor.data = q8_0(bytemuck::cast_slice(&tensor.data));
        tensor.kind = Q8_0;
    }
    let found = relative(&logits(&load(&file).unwrap(), "gqa"), &expected("gqa"));
    assert!(found > 0.0 && found < 0.03, "{found}");

    // Packed again on the device, as any checkpoint.
    let folder = folder();
    let path = file.write(folder.path());
    let model = Llama::from_pretrained(path).quantize(QuantConfig::nf4()).load(&device()).unwrap();
    assert!(
        model.model.layers[0]
            .mlp
            .as_ref()
            .unwrap()
            .up_proj
            .as_ref()
            .unwrap()
            .base
            .weight
            .dense()
            .is_none()
    );
}

#[test]
fn dense_types_are_kept() {
    let mut file = converted("gqa", "llama");
    let tensor = file.tensor("blk.1.attn_q.weight");
    let values: &[f32] = bytemuck::cast_slice(&tensor.data);
    tensor.data = values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    tensor.kind = F16;
    let path = "model.layers.1.self_attn.q_proj";
    let (_, values) = tensors(&golden("gqa").join("model.safetensors"))
        .remove(&format!("{path}.weight"))
        .unwrap();
    let values: Vec<f32> = values.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect();
    assert_eq!(weight(&load(&file).unwrap(), path), values);
}

#[test]
fn a_saved_model_is_hugging_faces() {
    let out = folder();
    let options = SaveOptions::new().dtype(FloatDType::F32);
    for (variant, file) in [("gqa", converted("gqa", "llama")), ("llama3", llama3())] {
        let model = load(&file).unwrap();
        model.save_pretrained(out.path(), &options).unwrap();
        let again =
            Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device()).unwrap();
        assert_eq!(logits(&again, variant), logits(&model, variant));
        assert_eq!(again.config.norm.eps, 1e-5);
        assert_eq!(again.config.raw["eos_token_id"], 2);
    }
}

#[test]
fn rotary_divisors_are_found_again() {
    let with = |divisors: &[f32]| {
        let mut file = converted("llama3", "llama");
        file.push("rope_freqs.weight", &[divisors.len()], divisors);
        load(&file)
    };
    for (factor, original) in [(8.0, 8192.0), (32.0, 8192.0), (8.0, 64.0)] {
        let model = with(&llama3_divisors(500_000.0, 32, factor, original)).unwrap();
        let expected = RopeScaling::Llama3 {
            factor: factor.into(),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: original.into(),
        };
        assert_eq!(model.config.ropes[0].scaling, expected);
    }
    // Ones change nothing.
    let plain = with(&[1.0; 16]).unwrap().config;
    assert!(plain.ropes[0].scaling == RopeScaling::Default && plain.raw["rope_scaling"].is_null());
    // Others are kept, and saved as the type that can say them.
    let others: Vec<f32> = (1..=16).map(|i| i as f32).collect();
    let model = with(&others).unwrap();
    assert_eq!(model.config.raw["rope_scaling"]["rope_type"], "longrope");
    assert_eq!(model.config.raw["rope_scaling"]["long_factor"][15], 16.0);
    let out = folder();
    model.save_pretrained(out.path(), &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
    let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device()).unwrap();
    assert_eq!(again.config.ropes, model.config.ropes);
    let RopeScaling::LongRope { short, long, attention_factor, .. } =
        &again.config.ropes[0].scaling
    else {
        panic!("{:?}", again.config.ropes)
    };
    assert_eq!((short, long, *attention_factor), (&others, &others, 1.0));
    assert_eq!(logits(&again, "llama3"), logits(&model, "llama3"));

    let tiny = [vec![1e-39], vec![1.0; 15]].concat();
    for (wrong, named) in
        [(vec![1.0, 2.0], "[2]"), (vec![f32::NAN; 16], "NaN"), (vec![0.0; 16], "0"), (tiny, "e-39")]
    {
        let error = with(&wrong).unwrap_err().to_string();
        assert!(error.contains("rope_freqs.weight") && error.contains(named), "{error}");
    }
}

#[test]
fn biases_decide_and_follow_the_rows() {
    let mut file = converted("gqa", "llama");
    let order: Vec<f32> = (0..64).map(|i| i as f32).collect();
    for layer in 0..3 {
        for (name, rows) in [("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", 64)] {
            file.push(&format!("blk.{layer}.{name}.bias"), &[rows], &order[..rows]);
        }
    }
    let model = load(&file).unwrap();
    assert!(model.config.layers[0].attention.qkv_bias && model.config.layers[0].attention.o_bias);
    let attention = &model.model.layers[2].self_attn;
    let bias = |layer: &dyn AdaptedLayer| vec(layer.bias().unwrap().val());
    // Two rows of a head come from the same place of its halves, which are 8 long.
    assert_eq!(bias(attention.q_proj.as_ref().unwrap())[..4], [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(bias(attention.q_proj.as_ref().unwrap())[24..28], [17.0, 19.0, 21.0, 23.0]);
    assert_eq!(bias(attention.k_proj.as_ref().unwrap())[8..10], [1.0, 3.0]);
    assert_eq!(bias(attention.v_proj.as_ref().unwrap()), order[..32]);
}

#[test]
fn qwen_is_not_permuted() {
    let mut file = converted("gqa", "qwen3");
    for layer in 0..3 {
        for name in ["attn_q_norm", "attn_k_norm"] {
            file.push(&format!("blk.{layer}.{name}.weight"), &[16], &[1.0; 16]);
        }
    }
    let model = load(&file).unwrap();
    assert!(model.model.layers[0].self_attn.q_norm.is_some());
    let stored = tensors(&golden("gqa").join("model.safetensors"));
    for path in ["model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.k_proj"] {
        assert_eq!(weight(&model, path), stored[&format!("{path}.weight")].1);
    }
    assert_eq!(model.config.raw["architectures"][0], "Qwen3ForCausalLM");
}

#[test]
fn scaling_is_read() {
    let mut file = converted("gqa", "llama");
    file.set("llama.rope.scaling.type", text("yarn"));
    file.set("llama.rope.scaling.factor", writer::float(4.0));
    file.set("llama.rope.scaling.original_context_length", writer::int(64));
    let scaling = load(&file).unwrap().config.ropes.remove(0).scaling;
    assert!(
        matches!(scaling, RopeScaling::Yarn { factor: 4.0, original: 64.0, .. }),
        "{scaling:?}"
    );
    file.set("llama.rope.scaling.type", text("linear"));
    let scaling = load(&file).unwrap().config.ropes.remove(0).scaling;
    assert_eq!(scaling, RopeScaling::Linear { factor: 4.0 });
}

/// A model whose embedding is of rows of 256 values.
fn wide(kind: u32, rows: usize, bytes: Vec<u8>) -> File {
    let mut file = converted("gqa", "llama");
    file.remove("llama.vocab_size");
    file.tensors.clear();
    for (key, size) in [
        ("block_count", 1),
        ("embedding_length", 256),
        ("feed_forward_length", 2),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 2),
        ("rope.dimension_count", 2),
    ] {
        file.set(&format!("llama.{key}"), writer::int(size));
    }
    file.push_bytes("token_embd.weight", &[rows, 256], kind, bytes);
    file.push("output_norm.weight", &[256], &[1.0; 256]);
    for (name, shape) in [
        ("attn_norm", vec![256]),
        ("ffn_norm", vec![256]),
        ("attn_q", vec![2, 256]),
        ("attn_k", vec![2, 256]),
        ("attn_v", vec![2, 256]),
        ("attn_output", vec![256, 2]),
        ("ffn_gate", vec![2, 256]),
        ("ffn_up", vec![2, 256]),
        ("ffn_down", vec![256, 2]),
    ] {
        let values = vec![0.5; shape.iter().product()];
        file.push(&format!("blk.0.{name}.weight"), &shape, &values);
    }
    file
}

#[test]
fn block_formats_agree() {
    let bytes = fs::read("../../testdata/gguf/blocks.safetensors").unwrap();
    let blocks = SafeTensors::deserialize(&bytes).unwrap();
    for (name, kind) in [
        ("F16", 1),
        ("BF16", 30),
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("IQ4_NL", 20),
        ("IQ4_XS", 23),
        ("MXFP4", 39),
    ] {
        let stored = blocks.tensor(&format!("{name}.bytes")).unwrap();
        let values = blocks.tensor(&format!("{name}.values")).unwrap();
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(values.data());
        // Once as it is, once so often that threads share the work.
        for times in [1, 130] {
            let rows = 6 * times;
            let model = load(&wide(kind, rows, stored.data().repeat(times))).unwrap();
            assert_eq!(model.config.vocab_size, rows);
            let found = vec::<2>(model.model.embed_tokens.weight.val());
            assert_eq!(found, values.repeat(times), "{name}");
        }
    }
}

/// A file of SmolLM2 that others made. Its Q4_1 blocks, their order of rows and its tied Q8_0
/// embedding know where Paris is.
#[test]
#[ignore = "needs BURN_LORA_MODELS"]
fn a_real_file_knows_a_capital() {
    let path = models().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let device = device();
    let model = Llama::from_pretrained(&path).dtype(FloatDType::F32).load(&device).unwrap();
    let config = &model.config;
    assert_eq!((config.layers.len(), config.vocab_size), (30, 49152));
    assert_eq!(
        (config.layers[0].attention.num_heads, config.layers[0].attention.num_kv_heads),
        (9, 3)
    );
    assert!(config.tie_word_embeddings);
    // "The capital of France is", then " Paris".
    let tokens = int(vec![504, 3575, 282, 4649, 314], [1, 5], &device);
    let segments = Segments::whole(1, 5);
    let hidden = model.hidden(tokens, &segments);
    assert!(vec(hidden.clone()).iter().all(|value| value.is_finite()));
    let logits = vec(model.head(hidden, &model.context(&segments)));
    let last = &logits[4 * 49152..];
    let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    assert_eq!(best, 7042);
}
