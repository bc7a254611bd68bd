//! The program, as `cargo test` has built it.

mod commands;
#[cfg(feature = "hub")]
mod hub;
mod info;
mod objectives;
mod output;
mod scripts;
#[cfg(feature = "hub")]
#[path = "../../../io/tests/it/server.rs"]
mod server;
mod sweep;
mod tokens;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// The program with a command and its arguments, in the root of the workspace, on a CPU.
fn burn_lora<'a>(words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_burn-lora"));
    command.args(words).env("BURN_DEVICE", "flex").stdin(Stdio::null()).current_dir(root(""));
    command
}

/// A path of the workspace.
fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// What the program says on standard error.
fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
