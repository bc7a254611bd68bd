//! What the program does with output that nobody reads, and with errors.

use crate::{burn_lora, errors, root};
use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

#[test]
fn a_reader_that_leaves_ends_a_program_quietly() {
    for words in [
        &["plan"][..],
        &["train", "--print-config"],
        &["train", "--help"],
        &["info", "testdata/gqa"],
        &["info", "testdata/gqa", "--json"],
        &["completions", "bash"],
    ] {
        let mut command = burn_lora(words.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && !line.is_empty(), "{words:?}: {output:?}");
        assert_eq!(errors(&output), "", "{words:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = burn_lora(["plan"]).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).starts_with("error: standard output: "), "{}", errors(&output));
    // Of what cannot be said nothing is said.
    let output = burn_lora(["plan", "no/such/config.json"]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn errors_are_messages_with_their_control_characters_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m");
    fs::create_dir(&model).unwrap();
    fs::copy(root("testdata/quickstart/model/tokenizer.json"), model.join("tokenizer.json"))
        .unwrap();
    let config = r#"{ "architectures": ["\u001b[31m\u0007\u202e\u009b"] }"#;
    fs::write(model.join("config.json"), config).unwrap();
    let model = model.to_str().unwrap();
    for words in [
        &["generate", model, "hello"][..],
        &["chat", model],
        &["plan", model],
        &["quantize", model],
    ] {
        let name = words[0];
        let output = burn_lora(words.iter().copied()).output().unwrap();
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{name}: {error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{name}: {error}");
        assert!(error.contains(r"\u{1b}[31m\u{7}\u{202e}\u{9b}"), "{name}: {error}");
        let is_odd = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!error.contains(is_odd), "{name}: {error:?}");
    }
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    for (name, part) in [("cuda", "device cuda: "), ("cuda:9", "device cuda:9: ")] {
        let words = ["generate", "no/such/model", "hello", "--device", name];
        let output = burn_lora(words).output().unwrap();
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
        // Where there is one, the model is missed.
        assert!(error.contains(part) || error.contains("no/such/model"), "{error}");
    }
    for name in ["gpu", "auto"] {
        let output = burn_lora(["quantize"]).env("BURN_DEVICE", name).output().unwrap();
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(&format!("error: BURN_DEVICE={name}: ")), "{error}");
    }
}
