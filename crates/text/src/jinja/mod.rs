//! Jinja as transformers runs chat templates: Jinja2 with the values, methods and errors of Python, in
//! its immutable sandbox, and within limits of steps and memory, as templates are files of others.
//!
//! What the templates of models are written against is Python: `None` is not iterable, `+` of text and a
//! number is an error, `{{ [true] }}` is `[True]`. A reference is Jinja2's source, release 3.1.

mod arguments;
mod ast;
mod filters;
mod format;
mod lexer;
mod machine;
mod methods;
mod operators;
mod parser;
mod strings;
mod tests;
mod value;
mod write;

pub use machine::Limits;
pub use value::Value;

use std::fmt;

/// A template that was read.
#[derive(Debug)]
pub struct Template {
    body: Vec<ast::Statement>,
}

impl Template {
    /// Reads a template.
    pub fn parse(source: &str) -> Result<Self, Error> {
        Ok(Self { body: parser::parse(lexer::tokens(source)?)? })
    }

    /// Whether it has `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        ast::any(&self.body, &|kind| matches!(kind, ast::Kind::Generation(_)))
    }

    /// The text that it writes. A `{% generation %}` block stands between `marks`.
    pub fn render(
        &self,
        variables: Vec<(&str, Value)>,
        marks: [char; 2],
        limits: Limits,
    ) -> Result<String, Error> {
        machine::render(&self.body, variables, marks, limits)
    }
}

/// Why a template could not be read or rendered.
#[derive(Debug)]
pub struct Error {
    reason: String,
    line: Option<usize>,
}

impl Error {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), line: None }
    }

    /// On a line, unless it has one already.
    fn at(mut self, line: usize) -> Self {
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

type Result<T, E = Error> = std::result::Result<T, E>;

/// An error with a formatted reason.
macro_rules! fail {
    ($($text:tt)*) => { return Err($crate::jinja::Error::new(format!($($text)*))) };
}
use fail;
