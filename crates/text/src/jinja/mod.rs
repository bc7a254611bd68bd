//! Jinja as transformers runs chat templates: Jinja2 with the values, methods and errors of Python,
//! in its immutable sandbox, and with limits of steps and memory, because templates are untrusted
//! files.
//!
//! Real templates are written for Python: `None` is not iterable, `+` of text and a number is an
//! error, `{{ [true] }}` is `[True]`. The reference is Jinja2's source, release 3.1.

mod access;
mod arguments;
mod ast;
mod error;
mod filters;
mod format;
mod lexer;
mod machine;
mod methods;
mod names;
mod operators;
mod parser;
mod run;
mod strings;
mod tests;
mod value;
mod write;

pub use error::Error;
pub use machine::Limits;
pub use value::Value;

/// A parsed template.
#[derive(Debug)]
pub struct Template {
    body: Vec<ast::Statement>,
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Self, Error> {
        Ok(Self { body: parser::parse(lexer::tokens(source)?)? })
    }

    /// Returns `true` if the template has `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        ast::any(&self.body, &|kind| matches!(kind, ast::Kind::Generation(_)))
    }

    /// Renders the template. The output of a `{% generation %}` block is put between `marks`.
    pub fn render(
        &self,
        variables: Vec<(&str, Value)>,
        marks: [char; 2],
        limits: Limits,
    ) -> Result<String, Error> {
        run::render(&self.body, variables, marks, limits)
    }
}
