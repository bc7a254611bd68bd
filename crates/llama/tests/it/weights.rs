//! Checkpoints: what is refused, and what is written.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, LoraConfig, PackedMerge};
use burn_lora_llama::{Llama, LlamaError, SaveOptions, Segments};
use burn_lora_quant::QuantConfig;
use std::{fs, path::Path};
use tempfile::TempDir;

/// A copy of a golden checkpoint that a test may break.
fn copy(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

fn error(folder: &Path) -> String {
    match Llama::from_pretrained(folder).load(&device()) {
        Ok(_) => panic!("it was loaded"),
        Err(error) => error.to_string(),
    }
}

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no `{from}`");
    fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let folder = copy(&golden("gqa"));
    let folder = folder.path();
    let cases = [
        ("LlamaForCausalLM", "GPT2LMHeadModel", "`architectures` is GPT2LMHeadModel"),
        ("\"silu\"", "\"gelu\"", "`hidden_act` is gelu"),
        ("\"rope_type\": \"default\"", "\"rope_type\": \"longrope\"", "rope_type` is \"longrope\""),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "`num_key_value_heads` is 3"),
        ("\"hidden_size\": 64", "\"hidden_size\": 0", "`hidden_size` is 0"),
        ("\"vocab_size\": 128", "\"vocab_size\": 129", "`model.embed_tokens.weight` is [128, 64]"),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4", "9 tensors are missing"),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2", "9 tensors are unexpected"),
        ("\"mlp_bias\": false", "\"mlp_bias\": true", "`model.layers.0.mlp.gate_proj.bias`"),
    ];
    for (from, to, expected) in cases {
        edit(folder, "config.json", from, to);
        let found = error(folder);
        assert!(found.contains(expected), "{found}");
        assert!(found.contains(&folder.display().to_string()), "{found}");
        edit(folder, "config.json", to, from);
    }
    fs::remove_file(folder.join("config.json")).unwrap();
    assert!(error(folder).contains("config.json"));
}

#[test]
fn files_that_were_cut_off_are_named() {
    let folder = copy(&golden("gqa"));
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let found = error(folder.path());
        assert!(found.contains("model.safetensors"), "{length}: {found}");
    }
    // A header that says it is longer than the file, and one that is no JSON.
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(&path, &lying).unwrap();
    assert!(error(folder.path()).contains("model.safetensors"));
    lying = whole;
    lying[9] = b'!';
    fs::write(&path, &lying).unwrap();
    assert!(error(folder.path()).contains("model.safetensors"));
}

#[test]
fn shards_that_are_missing_or_lie_are_named() {
    let folder = copy(&golden("gqa").join("sharded"));
    let shard = "model-00003-of-00007.safetensors";
    let away = folder.path().join("away");
    fs::rename(folder.path().join(shard), &away).unwrap();
    let found = error(folder.path());
    assert!(found.contains(shard) && found.contains("index.json"), "{found}");
    fs::copy(folder.path().join("model-00002-of-00007.safetensors"), folder.path().join(shard))
        .unwrap();
    let found = error(folder.path());
    assert!(found.contains(shard) && found.contains("missing"), "{found}");
    fs::copy(&away, folder.path().join(shard)).unwrap();
    edit(folder.path(), "model.safetensors.index.json", shard, "../secret.safetensors");
    let found = error(folder.path());
    assert!(found.contains("../secret.safetensors"), "{found}");
}

#[test]
fn a_saved_model_is_the_same() {
    let device = device();
    let out = tempfile::tempdir().unwrap();
    for variant in VARIANTS {
        let load = |folder: &Path| {
            Llama::from_pretrained(folder).dtype(FloatDType::F32).load(&device).unwrap()
        };
        let model = load(&golden(variant));
        let (tokens, segments, _) = batch(variant, &device);
        let expected = vec(model.forward(tokens.clone(), &segments));
        // In many shards, then in one: what the first left is not read again.
        for limit in [100_000, usize::MAX] {
            let options = SaveOptions::new().dtype(FloatDType::F32).max_shard_bytes(limit);
            model.save_pretrained(out.path(), &options).unwrap();
            let names = fs::read_dir(out.path()).unwrap().count();
            assert!(if limit == usize::MAX { names >= 2 } else { names > 4 });
            let again = load(out.path());
            assert_eq!(vec(again.forward(tokens.clone(), &segments)), expected);
            assert_eq!(again.config.tie_word_embeddings, variant == "llama3");
        }
    }
}

#[test]
fn a_merged_model_is_saved_dense() {
    let device = device();
    let out = tempfile::tempdir().unwrap();
    let mut model = Llama::from_pretrained(golden("llama3"))
        .quantize(QuantConfig::nf4())
        .dtype(FloatDType::F32)
        .load(&device)
        .unwrap();
    model.load_adapter("default", golden("llama3").join("lora_all")).unwrap();
    let options = SaveOptions::new().dtype(FloatDType::F32);
    let refused = model.save_pretrained(out.path(), &options).unwrap_err().to_string();
    assert!(refused.contains("merge_and_unload"), "{refused}");

    let (tokens, segments, _) = batch("llama3", &device);
    let expected = vec(model.forward(tokens.clone(), &segments));
    model.merge_and_unload(PackedMerge::Dense(FloatDType::F32)).unwrap();
    model.save_pretrained(out.path(), &options).unwrap();
    let again = Llama::from_pretrained(out.path()).dtype(FloatDType::F32).load(&device).unwrap();
    let found = difference(&vec(again.forward(tokens, &segments)), &expected);
    assert!(found < 1e-4, "{found}");
}

#[test]
fn a_tied_head_is_one_parameter() {
    let device = device();
    let model = Llama::from_pretrained(golden("llama3")).load(&device).unwrap();
    let file = fs::metadata(golden("llama3").join("model.safetensors")).unwrap().len() as usize;
    let summary = model.summary();
    assert!(summary.dense_bytes <= file, "{} of {file}", summary.dense_bytes);
    // An adapter on the head leaves the embedding alone.
    let model = model.with_adapter(&LoraConfig::new(2, 4).targets(["lm_head"])).unwrap();
    assert_eq!(model.summary().trainable, 2 * (96 + 128));
}

#[test]
fn quantization_takes_the_bytes_it_should() {
    let model = Llama::from_pretrained(golden("gqa"))
        .quantize(QuantConfig::nf4().double_quant(true))
        .load(&device())
        .unwrap();
    let linears = 3 * (64 * 64 * 2 + 32 * 64 * 2 + 160 * 64 * 3);
    assert_eq!(model.summary().code_bytes, linears / 2);
}

#[test]
fn packed_samples_do_not_see_each_other() {
    let device = device();
    let model = Llama::from_pretrained(golden("gqa")).dtype(FloatDType::F32).load(&device).unwrap();
    let ids: Vec<i32> = (0..12).map(|i| 3 + i * 7 % 100).collect();
    let run = |ids: &[i32], segments: Segments| {
        vec(model.forward(int(ids.to_vec(), [1, ids.len()], &device), &segments))
    };
    let packed = run(&ids, Segments::packed(12, &[vec![5, 7]]).unwrap());
    let alone = [run(&ids[..5], Segments::whole(1, 5)), run(&ids[5..], Segments::whole(1, 7))];
    assert!(difference(&packed, &alone.concat()) < 1e-5);
}

#[test]
fn segments_that_do_not_fit_are_refused() {
    let error = |result: Result<Segments, String>| result.unwrap_err();
    assert!(error(Segments::from_mask(&[vec![1, 0, 1]])).contains("row 0"));
    assert!(error(Segments::from_mask(&[vec![1], vec![1, 1]])).contains("row 1"));
    assert!(error(Segments::packed(4, &[vec![3, 2]])).contains("5 tokens"));
}

#[test]
fn errors_are_of_one_type() {
    let missing = Llama::from_pretrained("no/such/folder").load(&device()).unwrap_err();
    assert!(matches!(missing, LlamaError::Io { .. }));
}
