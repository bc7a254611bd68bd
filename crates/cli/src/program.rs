//! Shared by all programs: errors shown as messages, and output that nobody may be reading.
//!
//! The macros of the standard library panic if the reader is gone (`| head`) or the disk is full.
//! Those of the same names here replace them in a program that begins with
//! `#[macro_use] mod program`: it continues without output.
//!
//! After [`json_only`], standard output is for [`document`] alone: what is printed for people goes to
//! standard error.

#![allow(dead_code, unused_macros)]

use burn_lora_io::is_coloured;
use serde_json::Value;
use std::{
    error::Error,
    fmt::{Arguments, Display, Write as _},
    io::{self, ErrorKind, IsTerminal, Write, stderr, stdout},
    process::{ExitCode, Termination},
    sync::OnceLock,
};

/// Prints to standard output, if somebody reads it.
macro_rules! print {
    ($($text:tt)*) => { $crate::program::print(format_args!($($text)*)) };
}

/// Prints a line to standard output, if somebody reads it.
macro_rules! println {
    () => { $crate::program::print(format_args!("\n")) };
    ($($text:tt)*) => { $crate::program::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints to standard error, if somebody reads it.
macro_rules! eprint {
    ($($text:tt)*) => { $crate::program::print_error(format_args!($($text)*)) };
}

/// Prints a line to standard error, if somebody reads it.
macro_rules! eprintln {
    () => { $crate::program::print_error(format_args!("\n")) };
    ($($text:tt)*) => { $crate::program::print_error(format_args!("{}\n", format_args!($($text)*))) };
}

/// Reason why nothing more is written to standard output; `None` if its reader has left.
static FAILED: OnceLock<Option<String>> = OnceLock::new();

/// Set if standard output is for JSON.
static JSON: OnceLock<()> = OnceLock::new();

/// Keeps standard output for [`document`], and prints all else on standard error.
pub fn json_only() {
    JSON.get_or_init(|| ());
}

/// Returns `true` after [`json_only`].
pub fn is_json() -> bool {
    JSON.get().is_some()
}

/// Prints a result as a line of JSON, if the program is asked for JSON.
pub fn document(value: &Value) {
    if is_json() {
        write_out(format_args!("{value}\n"));
    }
}

/// Prints a result: as text for people, or as JSON if the program is asked for it.
pub fn result(text: impl Display, value: &Value) {
    match is_json() {
        true => document(value),
        false => print(format_args!("{text}\n")),
    }
}

/// Returns `true` if what is printed may be coloured.
pub fn colours() -> bool {
    if is_json() { is_coloured(&stderr()) } else { is_coloured(&stdout()) }
}

/// Runs the `main` of a program. An error is shown as a message, and so is an output that could not
/// be written. That the reader of the output has left is no error.
pub fn run<T: Termination, E: Into<Box<dyn Error>>>(
    program: impl FnOnce() -> Result<T, E>,
) -> ExitCode {
    let result = program().map_err(|error| message(error.into().as_ref()));
    if let Err(error) = stdout().flush() {
        failed(&error);
    }
    match (result, FAILED.get().cloned().flatten()) {
        (Ok(result), None) => result.report(),
        (Err(error), _) | (Ok(_), Some(error)) => {
            say_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error, of a program that goes on.
pub fn error(error: &dyn Error) {
    say_error(&message(error));
}

fn say_error(message: &str) {
    let [red, reset] = if is_coloured(&stderr()) { ["\x1b[31m", "\x1b[0m"] } else { ["", ""] };
    print_error(format_args!("{red}error{reset}: {message}\n"));
}

/// Message of an error with its causes, as far as it does not name them itself. Control characters,
/// which may come from a file, are escaped.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            _ = write!(text, ": {more}");
        }
        source = cause.source();
    }
    shown(&text)
}

/// Foreign text for a terminal: tabs and newlines are kept, other control characters escaped.
pub fn shown(text: &str) -> String {
    let mut shown = String::new();
    for part in text.split_inclusive(['\n', '\t']) {
        let end = part.trim_end_matches(['\n', '\t']).len();
        _ = write!(shown, "{}{}", burn_lora_io::escaped(&part[..end]), &part[end..]);
    }
    shown
}

/// Implementation of [`print!`].
pub fn print(text: Arguments<'_>) {
    if is_json() { print_error(text) } else { write_out(text) }
}

fn write_out(text: Arguments<'_>) {
    if cfg!(test) {
        std::print!("{text}");
    } else if FAILED.get().is_none()
        && let Err(error) = stdout().write_fmt(text)
    {
        failed(&error);
    }
}

/// Implementation of [`eprint!`].
pub fn print_error(text: Arguments<'_>) {
    _ = stderr().write_fmt(text);
}

fn failed(error: &io::Error) {
    let reason = match error.kind() {
        ErrorKind::BrokenPipe => None,
        _ => Some(format!("standard output: {error}")),
    };
    FAILED.get_or_init(|| reason);
}

/// Output for what a model writes, where all is printed: on a terminal, control characters are escaped. Errors
/// are those of writing, and [`run`] reports them.
pub struct Output {
    out: Box<dyn Write>,
    terminal: bool,
}

impl Output {
    pub fn new() -> Self {
        match is_json() {
            true => Self { out: Box::new(stderr()), terminal: stderr().is_terminal() },
            false => Self { out: Box::new(stdout()), terminal: stdout().is_terminal() },
        }
    }

    fn send(&mut self, text: &[u8]) -> io::Result<()> {
        let result = match self.terminal {
            true => self.out.write_all(shown(&String::from_utf8_lossy(text)).as_bytes()),
            false => self.out.write_all(text),
        };
        result.inspect_err(failed)
    }
}

impl Write for Output {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.send(text).map(|()| text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(failed)
    }
}
