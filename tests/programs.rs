//! The examples as programs: what they do with their output and their errors. They are those that
//! `cargo test` has built.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
};

/// A program that was built with these tests. Where a part of the tests is built alone there is none.
fn program(name: &str) -> Option<Command> {
    let tests = env::current_exe().unwrap();
    let folder: PathBuf = tests.parent()?.parent()?.join("examples");
    let path = folder.join(name).with_extension(env::consts::EXE_EXTENSION);
    if !path.exists() {
        assert!(env::var_os("CI").is_none(), "{} is not built", path.display());
        eprintln!("skipped: {} is not built (`cargo build --examples`)", path.display());
        return None;
    }
    let mut command = Command::new(path);
    command.env("BURN_DEVICE", "flex").stdin(Stdio::null());
    Some(command)
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_reader_that_leaves_ends_a_program_quietly() {
    for (name, arguments) in [("memory_plan", &[][..]), ("finetune", &["--print-config"])] {
        let Some(mut command) = program(name) else { return };
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && !line.is_empty(), "{name}: {output:?}");
        assert_eq!(errors(&output), "", "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let Some(mut command) = program("memory_plan") else { return };
    let output = command.stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).starts_with("error: standard output: "), "{}", errors(&output));
    // Of what cannot be said nothing is said.
    let Some(mut command) = program("memory_plan") else { return };
    let output = command.arg("no/such/config.json").stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn errors_are_messages_with_their_control_characters_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m");
    fs::create_dir(&model).unwrap();
    fs::copy("testdata/quickstart/model/tokenizer.json", model.join("tokenizer.json")).unwrap();
    let config = r#"{ "architectures": ["\u001b[31m\u0007\u202e\u009b"] }"#;
    fs::write(model.join("config.json"), config).unwrap();
    let model = model.to_str().unwrap();
    for (name, arguments) in
        [("generate", &[model, "hello"][..]), ("chat", &[model]), ("memory_plan", &[model])]
    {
        let Some(mut command) = program(name) else { return };
        let output = command.args(arguments).output().unwrap();
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
    for (name, part) in [("cuda", "--device cuda"), ("cuda:9", "--device cuda:9")] {
        let Some(mut command) = program("generate") else { return };
        let output = command.args(["no/such/model", "hello", "--device", name]).output().unwrap();
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
        // Where there is one, the model is missed.
        assert!(error.contains(part) || error.contains("no/such/model"), "{error}");
    }
    for name in ["gpu", "auto"] {
        let Some(mut command) = program("quantize") else { return };
        let output = command.env("BURN_DEVICE", name).output().unwrap();
        let error = errors(&output);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.starts_with(&format!("error: BURN_DEVICE={name}: ")), "{error}");
    }
}
