//! Checkpoints: what is refused, and what is written.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, LoraConfig, PackedMerge};
use burn_lora_io::collect;
use burn_lora_llama::{Llama, LlamaError, SaveOptions, Segments};
use burn_lora_quant::QuantConfig;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::BTreeMap, fs, path::Path};
use tempfile::TempDir;

/// A copy of a golden checkpoint that a test may break.
pub fn copy(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

pub fn error(folder: &Path) -> String {
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
        ("\"rope_type\": \"default\"", "\"rope_type\": \"ntk\"", "rope_type` is \"ntk\""),
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

/// Writes tensors as a file of safetensors.
fn write(path: &Path, tensors: &BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// The tensors of a checkpoint.
fn read(folder: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, it)| (name, (it.dtype(), it.shape().into(), it.data().into()))).collect()
}

/// The logits of a golden batch.
fn logits(model: &Llama, variant: &str) -> Vec<f32> {
    let (tokens, segments, _) = batch(variant, &device());
    vec(model.forward(tokens, &segments))
}

#[test]
fn one_file_goes_over_shards_as_in_transformers() {
    let folder = copy(&golden("gqa").join("sharded"));
    let load = || collect(|| Llama::from_pretrained(folder.path()).load(&device()).unwrap());
    let (shards, warnings) = load();
    assert_eq!(warnings, [""; 0]);
    // Another model, in one file.
    let mut other = read(&golden("gqa"));
    let (_, _, bytes) = other.get_mut("model.embed_tokens.weight").unwrap();
    bytes[..128].fill(0);
    write(&folder.path().join("model.safetensors"), &other);
    let (single, warnings) = load();
    assert_ne!(logits(&single, "gqa"), logits(&shards, "gqa"));
    assert_eq!(warnings, [""; 0]);
    // An index that does not even fit says that it is not used.
    edit(folder.path(), "model.safetensors.index.json", "layers.2", "layers.3");
    let (_, warnings) = load();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("index.json is of another model than model.safetensors"));
}

/// `torch.save` in both of its formats, parameters, views that are not contiguous; shards.
#[test]
fn files_of_pytorch_are_read() {
    let tensors = |folder: &Path| {
        let model = Llama::from_pretrained(folder).dtype(FloatDType::F32).load(&device()).unwrap();
        (
            logits(&model, "gqa"),
            model.layers().into_iter().map(|(_, layer)| vec(layer.weight())).collect::<Vec<_>>(),
        )
    };
    let expected = tensors(&golden("gqa"));
    assert_eq!(tensors(&golden("torch/gqa")), expected);

    // Safetensors are read where there are both.
    let folder = copy(&golden("torch/gqa"));
    let mut other = read(&golden("gqa"));
    let (_, _, bytes) = other.get_mut("model.embed_tokens.weight").unwrap();
    bytes[..128].fill(0);
    write(&folder.path().join("model.safetensors"), &other);
    assert_ne!(tensors(folder.path()).0, expected.0);
}

#[test]
fn pytorchs_files_that_go_wrong_are_named() {
    let golden = golden("torch");
    let with = |name: &str, bytes: &[u8]| {
        let folder = copy(&golden.join("gqa"));
        fs::write(folder.path().join(name), bytes).unwrap();
        error(folder.path())
    };
    let shard = "pytorch_model-00001-of-00002.bin";
    let bytes = fs::read(golden.join("gqa").join(shard)).unwrap();
    for cut in [0, 3, 100, bytes.len() / 2, bytes.len() - 1] {
        let error = with(shard, &bytes[..cut]);
        assert!(error.contains(shard) && error.contains("cut off"), "{cut}: {error}");
    }
    let single = "pytorch_model.bin";
    // Nothing in a file is run.
    let ran = std::env::temp_dir().join(format!("burn-lora-pickle-{}", std::process::id()));
    let program = format!("cos\nsystem\n(S'touch {}'\ntR.", ran.display());
    let error = with(single, program.as_bytes());
    assert!(error.contains(single), "{error}");
    assert!(!ran.exists());
    let error = with(single, &fs::read(golden.join("expanded.bin")).unwrap());
    assert!(error.contains(single) && error.contains("would take 4294967296 bytes"), "{error}");
    let error = with(single, &fs::read(golden.join("lora/adapter_model.bin")).unwrap());
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn a_head_is_tied_if_it_is_the_embedding() {
    let folder = copy(&golden("llama3"));
    let path = folder.path();
    let load = || {
        let (model, warnings) = collect(|| Llama::from_pretrained(path).load(&device()).unwrap());
        (logits(&model, "llama3"), model, warnings)
    };
    let (expected, model, warnings) = load();
    assert_eq!((model.config.tie_word_embeddings, warnings), (true, vec![]));

    let mut tensors = read(path);
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".into(), embedding.clone());
    write(&path.join("model.safetensors"), &tensors);
    let (found, model, warnings) = load();
    assert_eq!((model.config.tie_word_embeddings, warnings), (true, vec![]));
    assert_eq!(found, expected);

    // Either of the two may be the one that was kept.
    tensors.remove("model.embed_tokens.weight");
    write(&path.join("model.safetensors"), &tensors);
    let (found, model, warnings) = load();
    assert_eq!((model.config.tie_word_embeddings, warnings), (true, vec![]));
    assert_eq!(found, expected);

    // Another head is not tied, and saved with the model.
    tensors.insert("model.embed_tokens.weight".into(), embedding);
    tensors.get_mut("lm_head.weight").unwrap().2.rotate_left(4 * 128);
    write(&path.join("model.safetensors"), &tensors);
    let (found, model, warnings) = load();
    assert!(!model.config.tie_word_embeddings);
    let rotated: Vec<f32> =
        expected.chunks(96).flat_map(|row| row[1..].iter().chain(&row[..1]).copied()).collect();
    assert!(difference(&found, &rotated) < 1e-4);
    let named = |part| warnings[0].contains(part);
    assert!(
        warnings.len() == 1 && named("`lm_head.weight`") && named("config.json"),
        "{warnings:?}"
    );
    let out = tempfile::tempdir().unwrap();
    model.save_pretrained(out.path(), &SaveOptions::new().dtype(FloatDType::F32)).unwrap();
    let again = Llama::from_pretrained(out.path()).load(&device()).unwrap();
    assert_eq!(logits(&again, "llama3"), found);
}

#[test]
fn a_head_that_is_not_there_says_what_to_do() {
    let folder = copy(&golden("gqa"));
    let mut tensors = read(folder.path());
    tensors.remove("lm_head.weight").unwrap();
    write(&folder.path().join("model.safetensors"), &tensors);
    let error = error(folder.path());
    assert!(
        error.contains("`lm_head.weight`") && error.contains("`tie_word_embeddings`"),
        "{error}"
    );
}

#[test]
fn values_that_are_no_numbers_are_named_with_their_tensor() {
    let name = "model.layers.1.self_attn.q_proj.weight";
    let folder = copy(&golden("gqa"));
    let path = folder.path().join("model.safetensors");
    let good = read(folder.path());
    let load = |dtype| {
        let load = || Llama::from_pretrained(folder.path()).dtype(dtype).load(&device());
        let (result, warnings) = collect(load);
        (result.map(|_| ()).map_err(|error| error.to_string()), warnings)
    };
    // The bits of a value in each dtype, in the middle of a tensor.
    let put = |dtype: Dtype, bits: &[u8]| {
        let mut tensors = good.clone();
        let tensor = tensors.get_mut(name).unwrap();
        if dtype != tensor.0 {
            *tensor = (dtype, tensor.1.clone(), vec![0; tensor.2.len() * bits.len() / 4]);
        }
        let at = tensor.2.len() / 2;
        tensor.2[at..at + bits.len()].copy_from_slice(bits);
        write(&path, &tensors);
    };
    let (f32s, f16s) = (f32::to_le_bytes, |value: f32| half::f16::from_f32(value).to_le_bytes());
    let bf16s = |value: f32| half::bf16::from_f32(value).to_le_bytes();
    for (value, what) in [(f32::NAN, "NaN"), (-f32::NAN, "NaN"), (f32::NEG_INFINITY, "infinite")] {
        for (dtype, bits) in [
            (Dtype::F32, f32s(value).to_vec()),
            (Dtype::F16, f16s(value).to_vec()),
            (Dtype::BF16, bf16s(value).to_vec()),
        ] {
            put(dtype, &bits);
            let error = load(FloatDType::F32).0.unwrap_err();
            for part in [name, what, "model.safetensors"] {
                assert!(error.contains(part), "{dtype:?}, no {part}: {error}");
            }
        }
    }
    // As large as it may be: said, and loaded.
    put(Dtype::F32, &f32s(-3e38));
    let (result, warnings) = load(FloatDType::F32);
    assert_eq!(result, Ok(()));
    assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
    let error = load(FloatDType::F16).0.unwrap_err();
    assert!(error.contains(name) && error.contains("float16"), "{error}");
    put(Dtype::F32, &f32s(-1e4));
    assert_eq!(load(FloatDType::F32), (Ok(()), vec![]));
    // A row that no text uses.
    let mut tensors = good.clone();
    let name = "model.embed_tokens.weight";
    tensors.get_mut(name).unwrap().2[..4].copy_from_slice(&f32s(f32::INFINITY));
    write(&path, &tensors);
    let (result, warnings) = load(FloatDType::F32);
    assert_eq!(result, Ok(()));
    assert!(warnings.len() == 1 && warnings[0].contains(name), "{warnings:?}");
}

#[test]
fn a_folder_without_weights_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden("gqa").join("config.json"), folder.path().join("config.json")).unwrap();
    for (file, part) in [
        ("README.md", "there is neither model.safetensors nor model.safetensors.index.json, nor"),
        ("consolidated.safetensors", "`consolidated.safetensors` is not in Hugging Face's layout"),
        ("consolidated.00.pth", "convert_llama_weights_to_hf.py"),
        ("pytorch_model-00001-of-00002.bin", "download the index"),
        ("model-00001-of-00002.safetensors", "download the index"),
        ("adapter_config.json", "it names no base"),
        ("model.Q4_0.gguf", "`model.Q4_0.gguf` is read when it is named itself"),
    ] {
        fs::write(folder.path().join(file), if file.starts_with("adapter") { "{}" } else { "" })
            .unwrap();
        let error = error(folder.path());
        assert!(error.contains(part), "{file}: {error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
        if file.starts_with("adapter") {
            fs::remove_file(folder.path().join(file)).unwrap();
        }
    }
}

#[test]
fn what_an_earlier_model_left_is_removed() {
    let model = Llama::from_pretrained(golden("gqa")).load(&device()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let foreign = out.path().join("model-of-mine.safetensors");
    fs::write(&foreign, "").unwrap();
    let weights = || {
        let names = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| name.contains("safetensors")).collect();
        names.sort();
        names
    };
    let mut found = vec![];
    for limit in [100_000, 200_000, usize::MAX, 100_000] {
        let options = SaveOptions::new().max_shard_bytes(limit);
        model.save_pretrained(out.path(), &options).unwrap();
        let names = weights();
        let shards = names.iter().filter(|name| name.contains("-of-0")).count();
        assert!(
            names
                .iter()
                .filter(|name| name.contains("-of-0"))
                .all(|name| { name.ends_with(&format!("-of-{shards:05}.safetensors")) })
        );
        let index = names.iter().any(|name| name == "model.safetensors.index.json");
        let single = names.iter().any(|name| name == "model.safetensors");
        assert_eq!((index, single), (shards > 0, shards == 0), "{names:?}");
        found.push(shards);
    }
    assert!(found[0] > found[1] && found[1] > 1 && found[2] == 0 && found[3] == found[0]);
    assert!(foreign.exists());
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_waited_for() {
    for name in ["config.json", "model.safetensors"] {
        let folder = copy(&golden("gqa"));
        let path = folder.path().join(name);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = error(folder.path());
        assert!(error.contains(name) && error.contains("device"), "{error}");
    }
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
