//! Safe display of untrusted text on a terminal.

use std::fmt::{self, Write};

/// A text whose control characters are displayed as escapes: `\u{7}` for a bell.
///
/// Created by [`escaped`].
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(&'a str);

/// Returns a display of untrusted text (a name, a sample) that cannot control a terminal: control
/// characters (C0, DEL, C1) and Unicode's direction marks become escapes. Tabs and newlines are
/// escaped, too; [`escaped_lines`] keeps the lines.
///
/// ```
/// assert_eq!(burn_lora_io::escaped("a\u{7}b").to_string(), "a\\u{7}b");
/// assert_eq!(burn_lora_io::escaped("Zürich 東京").to_string(), "Zürich 東京");
/// ```
pub fn escaped(text: &str) -> Escaped<'_> {
    Escaped(text)
}

/// Escapes a text line by line, as [`escaped`] does; the line breaks stay.
///
/// ```
/// assert_eq!(burn_lora_io::escaped_lines("a\u{7}\nb"), "a\\u{7}\nb");
/// ```
pub fn escaped_lines(text: &str) -> String {
    text.lines().map(|line| escaped(line).to_string()).collect::<Vec<_>>().join("\n")
}

/// Returns a text to be read rather than quoted, which cannot control a terminal either: control
/// characters are their pictures, or else escapes. Newlines and tabs stay.
///
/// ```
/// assert_eq!(burn_lora_io::pictured("a\u{7}\u{7f}b\n\u{202e}"), "a␇␡b\n\\u{202e}");
/// ```
pub fn pictured(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' | '\t' => shown.push(char),
            '\0'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + char as u32)),
            '\u{7f}' => shown.push('\u{2421}'),
            _ if char.is_control() || turns(char) => shown.extend(char.escape_unicode()),
            _ => shown.push(char),
        }
    }
    shown
}

/// Formats the first 8 of some names for a message, and the number of the others.
///
/// ```
/// assert_eq!(burn_lora_io::listed(["a", "b"]), "`a`, `b`");
/// ```
pub fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    const SHOWN: usize = 8;
    let mut names = names.into_iter();
    let shown: Vec<_> =
        names.by_ref().take(SHOWN).map(|name| format!("`{}`", escaped(name.as_ref()))).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Returns the first 100 characters of a text, for a message.
///
/// ```
/// assert_eq!(burn_lora_io::brief(&"a".repeat(101)), "a".repeat(100) + "...");
/// ```
pub fn brief(value: &impl ToString) -> String {
    const SHOWN: usize = 100;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        None => text,
        Some((at, _)) => format!("{}...", &text[..at]),
    }
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '\n' => out.write_str("\\n")?,
                '\r' => out.write_str("\\r")?,
                '\t' => out.write_str("\\t")?,
                _ if char.is_control() || turns(char) => write!(out, "{}", char.escape_unicode())?,
                _ => out.write_char(char)?,
            }
        }
        Ok(())
    }
}

/// Returns `true` for direction marks, and for separators that a terminal takes for line breaks.
fn turns(char: char) -> bool {
    matches!(
        char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}
