//! Jinja as transformers runs chat templates: Jinja2 with the values, methods and errors of Python, in
//! its immutable sandbox, and within limits of steps and memory, as templates are files of others.
//!
//! What the templates of models are written against is Python: `None` is not iterable, `+` of text and a
//! number is an error, `{{ [true] }}` is `[True]`. A reference is Jinja2's source, release 3.1.

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
        run::render(&self.body, variables, marks, limits)
    }
}
