//! The fuzz targets, and what they share: how an input becomes files, what a target begins with.
//!
//! An input that is several files has them one after the other, with a byte 0xFF between, which no
//! UTF-8 has; the last may be binary. Seeds are made by the targets themselves, with the library that
//! is fuzzed: they are always in its formats.

use burn_lora::prelude::*;
use std::{
    array,
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{LazyLock, OnceLock},
};

mod adapter;
mod bitsandbytes;
mod chat_template;
mod checkpoint;
mod config;
mod data;
mod gguf;
mod parquet;
mod run_file;
mod safetensors;
mod tokenizer;

/// What is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    run: fn(&[u8]),
}

macro_rules! targets {
    ($($name:ident)*) => {
        const TARGETS: &[Target] = &[$(
            Target { name: stringify!($name), seeds: $name::seeds, run: $name::run },
        )*];
    };
}
targets! {
    adapter bitsandbytes chat_template checkpoint config data gguf parquet run_file safetensors tokenizer
}

static TARGET: OnceLock<Target> = OnceLock::new();

/// The program of a target.
#[macro_export]
macro_rules! target {
    ($name:expr) => {
        libfuzzer_sys::fuzz_target!(init: $crate::start($name), |data: &[u8]| $crate::run(data));
    };
}

/// The name of this program's file.
pub fn program() -> String {
    let path = env::args_os().next().map(PathBuf::from).unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Chooses a target. Where `FUZZ_SEEDS` names a folder, writes its seeds there, and beside them their
/// words as a dictionary, and ends.
pub fn start(name: &str) {
    // libfuzzer-sys has set a hook that aborts. A panic that the library catches is no fault; one that
    // it does not catch arrives at libFuzzer, which aborts.
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("`{name}` is none of the targets: {}", names.join(" "));
        process::exit(2);
    };
    let target = TARGET.get_or_init(|| *target);
    let Some(folder) = env::var_os("FUZZ_SEEDS").map(PathBuf::from) else { return };
    fs::create_dir_all(&folder).expect("the folder of seeds can be made");
    let mut words = BTreeSet::new();
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        let text = String::from_utf8_lossy(&seed);
        let runs = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named = runs.filter(|run| (3..=24).contains(&run.len()));
        words.extend(named.map(|word| format!("\"{word}\"\n")));
        fs::write(folder.join(format!("seed-{number:02}")), seed).expect("a seed can be written");
    }
    let words: String = words.into_iter().take(1000).collect();
    fs::write(folder.with_extension("dictionary"), words).expect("a file can be written");
    fs::remove_dir_all(&*FOLDER).ok();
    process::exit(0);
}

/// One input.
pub fn run(data: &[u8]) {
    (TARGET.get().expect("it was chosen").run)(data);
}

/// The files of an input.
fn files<const N: usize>(input: &[u8]) -> [&[u8]; N] {
    let mut parts = input.splitn(N, |byte| *byte == 0xff);
    array::from_fn(|_| parts.next().unwrap_or_default())
}

/// An input of files.
fn input<T: AsRef<[u8]>>(files: impl IntoIterator<Item = T>) -> Vec<u8> {
    let files: Vec<_> = files.into_iter().collect();
    files.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>().join(&0xff)
}

/// A folder of this process, in the system's temporary one.
static FOLDER: LazyLock<PathBuf> =
    LazyLock::new(|| env::temp_dir().join(format!("burn-lora-fuzz-{}", process::id())));

/// A folder with these files and nothing else; one that is empty is not there.
fn folder(name: &str, files: &[(&str, &[u8])]) -> PathBuf {
    let folder = FOLDER.join(name);
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).expect("a folder can be made");
    for (name, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        fs::write(folder.join(name), bytes).expect("a file can be written");
    }
    folder
}

/// A file of [`folder`].
fn read(folder: &Path, name: &str) -> Vec<u8> {
    fs::read(folder.join(name)).unwrap_or_default()
}

/// The tokenizer of the tests: bytes, and ChatML.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let folder = folder(
            "tokenizer",
            &[("tokenizer.json", TOKENIZER_FILE), ("tokenizer_config.json", TOKENIZER_CONFIG)],
        );
        Tokenizer::from_pretrained(folder).expect("it is that of the tests")
    });
    &TOKENIZER
}

/// `tokenizer.json` of the tests.
const TOKENIZER_FILE: &[u8] = include_bytes!("../../testdata/tokenizer/tokenizer.json");

/// `tokenizer_config.json` of the tests.
const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../testdata/tokenizer/tokenizer_config.json");

/// A `config.json` of a very small model, with other fields in place of some.
fn settings(fields: serde_json::Value) -> String {
    let mut config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 288,
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 2,
        "tie_word_embeddings": true,
    });
    let (all, fields) = (config.as_object_mut().unwrap(), fields.as_object().unwrap().clone());
    all.extend(fields);
    config.to_string()
}

/// The model of [`settings`].
fn model(fields: serde_json::Value) -> Llama {
    let config = LlamaConfig::from_json(&settings(fields)).expect("it is right");
    Llama::random(&config, 1, &Device::flex())
}
