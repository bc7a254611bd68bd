//! What transformers' templates take from Python: methods, `tojson`, how values are written.

use chrono::Local;
use minijinja::{
    Error, ErrorKind, Output, State, Value,
    value::{Kwargs, ValueKind, from_args},
};
use minijinja_contrib::pycompat::unknown_method_callback;
use std::fmt::Write;

/// Ends the rendering with the template's own words.
pub fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// The local time in a format of `strftime`.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let written = write!(text, "{}", Local::now().format(format));
    written.map(|()| text).map_err(|_| {
        let reason = format!("strftime_now: `{format}` is no format of a time");
        Error::new(ErrorKind::InvalidOperation, reason)
    })
}

/// Writes a value as Python's `str` does: `True`, `None`, `['a', 1]`.
pub fn format(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool | ValueKind::None | ValueKind::Seq | ValueKind::Map => {
            out.write_str(&string(value)?)?;
            Ok(())
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `str`.
pub fn string(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value.to_string()),
        _ => Writer { names: ["None", "True", "False"], quote: repr, ..Writer::new() }.write(value),
    }
}

/// Unlike in minijinja, nothing goes over `None`.
pub fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// Methods of strings that `pycompat` has not, or whose positions it counts in bytes.
pub fn method(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return unknown_method_callback(state, value, method, args);
    };
    let part = || from_args::<(&str,)>(args).map(|(part,)| part);
    let position = |found: Option<usize>| match found {
        Some(at) => Value::from(text[..at].chars().count()),
        None => Value::from(-1),
    };
    Ok(match method {
        "find" => position(text.find(part()?)),
        "rfind" => position(text.rfind(part()?)),
        "removeprefix" => Value::from(text.strip_prefix(part()?).unwrap_or(text)),
        "removesuffix" => Value::from(text.strip_suffix(part()?).unwrap_or(text)),
        "rsplit" => {
            let (separator, limit): (&str, Option<usize>) = from_args(args)?;
            let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
            let mut parts: Vec<&str> = text.rsplitn(limit, separator).collect();
            parts.reverse();
            parts.into_iter().map(Value::from).collect()
        }
        _ => return unknown_method_callback(state, value, method, args),
    })
}

/// Python's `json.dumps`, as transformers has it: spaces after `,` and `:`, nothing escaped for HTML.
pub fn tojson(
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<usize>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let ascii = ensure_ascii.or(kwargs.get("ensure_ascii")?).unwrap_or(false);
    let indent = indent.or(kwargs.get("indent")?);
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let separators = match separators.as_deref() {
        Some([item, key]) => [item.as_str(), key],
        Some(_) => return Err(invalid("`separators` are two strings")),
        None if indent.is_some() => [",", ": "],
        None => [", ", ": "],
    };
    let quote = if ascii { quote_ascii } else { quote };
    let sort = sort_keys == Some(true);
    Writer { separators, indent, sort, quote, ..Writer::new() }.write(value)
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Writes nested values.
struct Writer<'a> {
    out: String,
    /// Of nothing, true and false.
    names: [&'static str; 3],
    quote: fn(&mut String, &str),
    /// After an item, and after a key.
    separators: [&'a str; 2],
    indent: Option<usize>,
    sort: bool,
}

impl Writer<'_> {
    fn new() -> Self {
        let (names, separators) = (["null", "true", "false"], [", ", ": "]);
        Self { out: String::new(), names, quote, separators, indent: None, sort: false }
    }

    fn write(mut self, value: &Value) -> Result<String, Error> {
        self.value(value, 1)?;
        Ok(self.out)
    }

    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out += self.names[0],
            ValueKind::Bool => self.out += self.names[if value.is_true() { 1 } else { 2 }],
            ValueKind::String => (self.quote)(&mut self.out, value.as_str().unwrap_or_default()),
            ValueKind::Number => {
                self.out += &serde_json::to_string(value).map_err(|e| invalid(e.to_string()))?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], items.len(), depth, |writer, at| {
                    writer.value(&items[at], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list(['{', '}'], keys.len(), depth, |writer, at| {
                    (writer.quote)(&mut writer.out, &keys[at].to_string());
                    writer.out += writer.separators[1];
                    writer.value(&value.get_item(&keys[at])?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("a value that is {kind} cannot be written"))),
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        count: usize,
        depth: usize,
        mut write: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for at in 0..count {
            if at > 0 {
                self.out += self.separators[0];
            }
            self.line(depth);
            write(self, at)?;
        }
        if count > 0 {
            self.line(depth - 1);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent.min(100) * depth));
        }
    }
}

/// A string of JSON.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            char if char < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push('"');
}

/// A string of JSON in ASCII.
fn quote_ascii(out: &mut String, text: &str) {
    let mut quoted = String::new();
    quote(&mut quoted, text);
    for char in quoted.chars() {
        if (' '..='~').contains(&char) {
            out.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
}

/// A string as Python's `repr` writes it.
fn repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == quote => out.extend(['\\', quote]),
            char if char.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(char))),
            char => out.push(char),
        }
    }
    out.push(quote);
}
