//! Execution of a template.

mod calls;
mod expressions;
mod statements;

pub use statements::render;
