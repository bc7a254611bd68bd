//! GGUF files that are broken or lie.

use super::{
    folder, load,
    writer::{File, Tensor, converted, int, string, text},
};
use crate::common::device;
use burn_lora_llama::{Llama, LlamaError};
use proptest::prelude::*;
use std::{fs, path::Path};

fn error(file: &File) -> String {
    load(file).map(|_| ()).expect_err("it was loaded").to_string()
}

fn check(file: &File, expected: &str) {
    let found = error(file);
    assert!(found.contains(expected), "{expected}: {found}");
    assert!(found.contains("model.gguf"), "{found}");
}

#[test]
fn metadata_that_cannot_be_used_is_named() {
    let array = (9, [4u32.to_le_bytes(), [0; 4], [0; 4]].concat());
    for (key, value, expected) in [
        ("general.architecture", text("gemma2"), "is gemma2: supported are llama"),
        ("general.architecture", text("mistral3"), "`general.architecture` is mistral3"),
        ("general.alignment", int(24), "`general.alignment` is 24"),
        ("llama.expert_count", int(8), "`llama.expert_used_count` is missing"),
        ("llama.block_count", int(1 << 28), "`llama.block_count` is 268435456"),
        ("llama.block_count", int(4), "9 tensors are missing"),
        ("llama.block_count", int(2), "9 tensors are unexpected"),
        ("llama.attention.head_count", array, "`llama.attention.head_count` is an array"),
        ("llama.attention.head_count", int(0), "`llama.attention.head_count` is 0"),
        ("llama.rope.dimension_count", int(8), "`llama.rope.dimension_count` is 8"),
        ("llama.rope.scaling.type", text("longrope"), "`llama.rope.scaling.type` is longrope"),
        ("llama.context_length", text("long"), "`llama.context_length` is long"),
        ("llama.vocab_size", int(129), "`model.embed_tokens.weight` is [128, 64]"),
        ("split.count", int(2), "one of 2 parts"),
        ("key", (13, vec![0]), "`key`: unknown kind of value 13"),
        ("key", (8, string(&[0xff])), "`key`: invalid utf-8"),
    ] {
        let mut file = converted("gqa", "llama");
        file.set(key, value);
        check(&file, expected);
    }
    for key in ["general.architecture", "llama.block_count", "llama.context_length"] {
        let mut file = converted("gqa", "llama");
        file.remove(key);
        check(&file, &format!("`{key}` is missing"));
    }
    let mut file = converted("gqa", "llama");
    file.metadata.push(("llama.vocab_size".into(), int(1)));
    check(&file, "`llama.vocab_size` is twice");
}

#[test]
fn tensors_that_cannot_be_used_are_named() {
    type Case = (fn(&mut Tensor), &'static str);
    let cases: [Case; 10] = [
        (|t| t.name = "token_embd.weight".into(), "`token_embd.weight` is twice"),
        (|t| t.name = "model.norm.weight".into(), "are the same tensor"),
        (|t| t.name = "output.sinks".into(), "unexpected: `output.sinks`"),
        (|t| t.kind = 22, "`output.weight` is IQ2_S, expected F32, F16"),
        (|t| t.kind = 12, "`output.weight`: rows of 64 values, Q4_K has"),
        (|t| t.dims = vec![2; 5], "`output.weight`: 5 dimensions"),
        (|t| t.dims = vec![0, 128], "`output.weight`: a dimension of 0"),
        (|t| t.dims = vec![1 << 32, 1 << 32], "larger than memory can be"),
        (|t| t.offset = Some(8), "`output.weight`: its offset 8"),
        (|t| t.offset = Some(1 << 40), "`output.weight`: 32768 bytes at 1099511627776"),
    ];
    for (edit, expected) in cases {
        let mut file = converted("gqa", "llama");
        edit(file.tensor("output.weight"));
        check(&file, expected);
    }
}

#[test]
fn other_files_are_named() {
    for (version, expected) in
        [(1, "version 1; supported are 2 and 3"), (4, "version 4"), (3 << 24, "big-endian")]
    {
        check(&File { version, ..converted("gqa", "llama") }, expected);
    }
    let folder = folder();
    assert!(load_bytes(folder.path(), b"PK\x03\x04").unwrap().contains("no GGUF file"));
    let missing = Llama::from_pretrained("no/such.gguf").load(&device()).unwrap_err();
    assert!(matches!(missing, LlamaError::Io { .. }) && missing.to_string().contains("such.gguf"));
}

/// Loads what is in a file: an error names it, and nothing panics.
fn load_bytes(folder: &Path, bytes: &[u8]) -> Option<String> {
    let path = folder.join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Llama::from_pretrained(path).load(&device()).err()?.to_string();
    assert!(error.contains("model.gguf"), "{error}");
    Some(error)
}

#[test]
fn files_that_were_cut_off_are_named() {
    let folder = folder();
    let whole = converted("gqa", "llama").bytes();
    for length in (0..4000).step_by(37).chain([whole.len() / 2, whole.len() - 1]) {
        let error = load_bytes(folder.path(), &whole[..length]).expect("it was loaded");
        assert!(length < 4 || error.contains("cut off"), "{length}: {error}");
    }
}

/// Every number of the header in turn: a count that is a lie is refused before memory is asked for,
/// which would end the program.
#[test]
fn counts_that_lie_are_refused() {
    let folder = folder();
    let whole = converted("gqa", "llama").bytes();
    for count in [1u64 << 31, 1 << 40, 1 << 61, u64::MAX] {
        // Tensors, values, the first key and the first text.
        let text = 24 + 8 + "general.architecture".len() + 4;
        for at in [8, 16, 24, text] {
            let mut lying = whole.clone();
            lying[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let error = load_bytes(folder.path(), &lying).expect("it was loaded");
            assert!(error.contains(&format!("{count} ")), "{error}");
        }
        // Arrays of numbers, of strings, of arrays.
        for kind in [4u32, 8, 9] {
            let mut file = converted("gqa", "llama");
            file.set("key", (9, [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat()));
            assert!(error(&file).contains("`key`: "), "{}", error(&file));
        }
    }
}

#[test]
fn arrays_in_arrays_end() {
    let nested = |depth: usize| {
        let level = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        let mut bytes = level.repeat(depth);
        bytes.extend([&4u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
        let mut file = converted("gqa", "llama");
        file.set("key", (9, bytes));
        file
    };
    load(&nested(2)).unwrap();
    assert!(error(&nested(100_000)).contains("`key`: arrays in arrays"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600), version in 0u32..5) {
        let folder = folder();
        load_bytes(folder.path(), &bytes);
        let header = [b"GGUF", &version.to_le_bytes()[..], &1u64.to_le_bytes(), &2u64.to_le_bytes()];
        load_bytes(folder.path(), &[&header.concat()[..], &bytes].concat());
    }

    #[test]
    fn a_file_that_was_changed_does_no_harm(
        changes in prop::collection::vec((0usize..4200, any::<u8>()), 1..8),
        numbers in prop::collection::vec((0usize..4200, prop::sample::select(vec![
            0u64, 1, 255, 1 << 31, (1 << 32) - 1, 1 << 40, i64::MAX as u64, u64::MAX,
        ])), 0..2),
        length in prop::option::of(0usize..200_000),
    ) {
        let folder = folder();
        let mut bytes = converted("gqa", "llama").bytes();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        for (at, number) in numbers {
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes.truncate(length.unwrap_or(usize::MAX));
        load_bytes(folder.path(), &bytes);
    }
}
