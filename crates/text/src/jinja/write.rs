//! Python's conversions of values to text: `str`, `repr`, and JSON.

use super::{
    error::{Result, fail},
    value::{Value, View, range},
};
use std::fmt::Write;

/// Python's `str`.
pub fn string(value: &Value) -> Result<String> {
    match value {
        Value::Undefined(_) => Ok(String::new()),
        Value::Str(text) | Value::Markup(text) => Ok(text.to_string()),
        _ => repr(value),
    }
}

/// Python's `repr`.
pub fn repr(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(&mut out, value)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => *out += "Undefined",
        Value::None => *out += "None",
        Value::Bool(value) => *out += if *value { "True" } else { "False" },
        Value::Int(value) => *out += &value.to_string(),
        Value::Float(value) => *out += &float(*value),
        Value::Str(text) => quote_repr(out, text),
        Value::Markup(text) => {
            *out += "Markup(";
            quote_repr(out, text);
            out.push(')');
        }
        Value::List(items) => list(out, ["[", "]"], items.items.iter(), write_repr)?,
        Value::Tuple(items) => {
            let end = if items.items.len() == 1 { ",)" } else { ")" };
            list(out, ["(", end], items.items.iter(), write_repr)?;
        }
        Value::Dict(dict) => list(out, ["{", "}"], dict.iter(), |out, (key, value)| {
            write_repr(out, key)?;
            *out += ": ";
            write_repr(out, value)
        })?,
        Value::View(View::Keys, dict) => list(out, ["dict_keys([", "])"], dict.keys(), write_repr)?,
        Value::View(View::Values, dict) => {
            list(out, ["dict_values([", "])"], dict.values(), write_repr)?;
        }
        Value::View(View::Items, dict) => {
            list(out, ["dict_items([", "])"], dict.iter(), |out, (key, value)| {
                list(out, ["(", ")"], [key, value].into_iter(), write_repr)
            })?;
        }
        Value::Range(bounds) => {
            let [start, stop, step] = **bounds;
            *out += &format!("range({start}, {stop}");
            if step != 1 {
                *out += &format!(", {step}");
            }
            out.push(')');
        }
        // Python would write their addresses.
        Value::Method(method) => {
            fail!("the method {} of '{}' is written without a call", method.1, method.0.kind(),)
        }
        _ => fail!("a {} is written as text: use `| list` for its items", value.kind()),
    }
    Ok(())
}

fn list<T>(
    out: &mut String,
    [open, close]: [&str; 2],
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut String, T) -> Result<()>,
) -> Result<()> {
    *out += open;
    for (number, item) in items.enumerate() {
        if number > 0 {
            *out += ", ";
        }
        write(out, item)?;
    }
    *out += close;
    Ok(())
}

/// Returns the shortest text of a number that parses to the same number.
pub fn float(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = value.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// Returns `true` for characters that Python's `repr` escapes. Unassigned characters are not
/// included: they depend on the Unicode release.
fn hidden(char: char) -> bool {
    char.is_control()
        || (char.is_whitespace() && char != ' ')
        || matches!(char,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{fdd0}'..='\u{fdef}' | '\u{fffe}'..='\u{ffff}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{10ffff}')
            && !('\u{e0100}'..='\u{e01ef}').contains(&char)
}

fn quote_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => *out += "\\\\",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            char if char == quote => out.extend(['\\', quote]),
            char if hidden(char) => {
                let code = u32::from(char);
                _ = match code {
                    ..0x100 => write!(out, "\\x{code:02x}"),
                    0x100..0x10000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
            char => out.push(char),
        }
    }
    out.push(quote);
}

/// Python's `json.dumps`.
pub struct Json {
    pub ascii: bool,
    pub indent: Option<String>,
    /// Separators after an item, and after a key.
    pub separators: [String; 2],
    pub sort: bool,
    /// Maximal length of the text.
    pub limit: usize,
}

impl Json {
    pub fn write(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        self.value(&mut out, value, 1)?;
        Ok(out)
    }

    fn value(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        if out.len() > self.limit {
            fail!("tojson: the text is longer than {} bytes", self.limit);
        }
        match value {
            Value::Str(text) | Value::Markup(text) => self.quote(out, text),
            Value::List(items) | Value::Tuple(items) => {
                self.list(out, ["[", "]"], items.items.iter(), depth, |out, item| {
                    self.value(out, item, depth + 1)
                })?;
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> = dict.iter().collect();
                if self.sort {
                    let mut failed = None;
                    entries.sort_by(|(a, _), (b, _)| {
                        let order = a.compare(b, "<");
                        order
                            .unwrap_or_else(|error| {
                                failed.get_or_insert(error);
                                None
                            })
                            .unwrap_or(std::cmp::Ordering::Equal)
                    });
                    if let Some(error) = failed {
                        return Err(error);
                    }
                }
                self.list(out, ["{", "}"], entries.into_iter(), depth, |out, (key, value)| {
                    match key.as_str() {
                        Some(key) => self.quote(out, key),
                        None => {
                            let Some(key) = scalar(key) else {
                                fail!(
                                    "keys must be str, int, float, bool or None, not {}",
                                    key.kind()
                                )
                            };
                            self.quote(out, &key);
                        }
                    }
                    *out += &self.separators[1];
                    self.value(out, value, depth + 1)
                })?;
            }
            other => match scalar(other) {
                Some(text) => *out += &text,
                None => {
                    let why = match other {
                        Value::Undefined(what) => format!(" ({})", what.reason()),
                        _ => String::new(),
                    };
                    fail!("Object of type {} is not JSON serializable{why}", other.kind())
                }
            },
        }
        Ok(())
    }

    fn list<T>(
        &self,
        out: &mut String,
        [open, close]: [&str; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        mut write: impl FnMut(&mut String, T) -> Result<()>,
    ) -> Result<()> {
        let count = items.len();
        *out += open;
        for (number, item) in items.enumerate() {
            if number > 0 {
                *out += &self.separators[0];
            }
            self.line(out, depth)?;
            write(out, item)?;
        }
        if count > 0 {
            self.line(out, depth - 1)?;
        }
        *out += close;
        Ok(())
    }

    fn line(&self, out: &mut String, depth: usize) -> Result<()> {
        if let Some(indent) = &self.indent {
            if indent.len().saturating_mul(depth).saturating_add(out.len()) > self.limit {
                fail!("tojson: the text is longer than {} bytes", self.limit);
            }
            out.push('\n');
            *out += &indent.repeat(depth);
        }
        Ok(())
    }

    fn quote(&self, out: &mut String, text: &str) {
        out.push('"');
        for char in text.chars() {
            match char {
                '"' => *out += "\\\"",
                '\\' => *out += "\\\\",
                '\n' => *out += "\\n",
                '\r' => *out += "\\r",
                '\t' => *out += "\\t",
                '\u{8}' => *out += "\\b",
                '\u{c}' => *out += "\\f",
                char if char < ' ' || (self.ascii && char > '~') => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                char => out.push(char),
            }
        }
        out.push('"');
    }
}

/// Returns the JSON of a value without items.
fn scalar(value: &Value) -> Option<String> {
    Some(match value {
        Value::None => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) if value.is_nan() => "NaN".into(),
        Value::Float(value) if value.is_infinite() => {
            if *value > 0.0 { "Infinity" } else { "-Infinity" }.into()
        }
        Value::Float(value) => float(*value),
        _ => return None,
    })
}

/// Length of a range, counted up to 2^20.
pub fn range_length(bounds: &[i128; 3]) -> usize {
    range(bounds).take(1 << 20).count()
}
