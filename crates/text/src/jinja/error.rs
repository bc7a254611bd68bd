//! The error of a template.

use std::fmt;

/// Error of parsing or rendering a template.
#[derive(Debug)]
pub struct Error {
    reason: String,
    line: Option<usize>,
}

impl Error {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), line: None }
    }

    /// Sets the line, unless the error has one.
    pub fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(out, "{} (in chat_template:{line})", self.reason),
            None => out.write_str(&self.reason),
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns an error with a formatted reason.
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::jinja::error::Error::new(format!($($text)*))) };
}
pub(super) use fail;
