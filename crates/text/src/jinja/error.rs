//! Why a template fails.

use std::fmt;

/// Why a template could not be read or rendered.
#[derive(Debug)]
pub struct Error {
    reason: String,
    line: Option<usize>,
}

impl Error {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), line: None }
    }

    /// On a line, unless it has one already.
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

/// An error with a formatted reason.
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::jinja::error::Error::new(format!($($text)*))) };
}
pub(super) use fail;
