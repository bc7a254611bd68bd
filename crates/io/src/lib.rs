//! What the crates of `burn-lora` share on the way in and out: warnings that reach the user, files
//! that are read only if they are files and written whole or not at all, and text of others that is
//! shown without its control characters.

mod escape;
mod file;
mod panic;
mod warning;

pub use escape::{Escaped, escaped, escaped_lines, listed};
pub use file::{open, read, read_to_string, replace, replace_with};
pub use panic::{caught, panic_text};
pub use warning::{collect, report};
