//! Facts of a file or folder, as text and as JSON.

use burn_lora::prelude::Tokenizer;
use burn_lora_io::{TensorHeader, escaped};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Map, Value, json};
use std::{collections::BTreeMap, error::Error, fmt, path::Path};

/// Longest text of a fact, in characters.
const LONGEST: usize = 300;

/// Facts by name, in the order in which they are shown.
pub struct Facts {
    kind: &'static str,
    facts: Vec<Fact>,
    warnings: Vec<String>,
}

struct Fact {
    name: &'static str,
    value: Value,
    text: String,
}

impl Facts {
    pub fn new(kind: &'static str) -> Self {
        Self { kind, facts: vec![], warnings: vec![] }
    }

    /// Puts the path before all facts.
    pub fn path(&mut self, path: &Path) {
        let path = path.display().to_string();
        let text = escaped(&path).to_string();
        self.facts.insert(0, Fact { name: "path", value: path.into(), text });
    }

    /// Adds a fact, unless it is `null`.
    pub fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        if let Some(text) = text(&value) {
            self.add_as(name, value, text);
        }
    }

    /// Adds a fact whose text says more than its value.
    pub fn add_as(&mut self, name: &'static str, value: impl Into<Value>, text: impl Into<String>) {
        self.facts.push(Fact { name, value: value.into(), text: text.into() });
    }

    /// Adds a count, with separators in its text.
    pub fn count(&mut self, name: &'static str, count: u64) {
        self.add_as(name, count, HumanCount(count).to_string());
    }

    /// Adds a size in bytes.
    pub fn size(&mut self, name: &'static str, bytes: u64) {
        self.add_as(name, bytes, HumanBytes(bytes).to_string());
    }

    /// Adds a field of a JSON object under its own name, if it says something.
    pub fn field(&mut self, fields: &Value, name: &'static str) {
        let value = &fields[name];
        let empty = value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(Map::is_empty)
            || *value == json!(false);
        if !empty {
            self.add(name, value.clone());
        }
    }

    /// Adds how many tensors there are of each dtype, with their values and bytes.
    pub fn tensors(&mut self, tensors: &[TensorHeader]) {
        let headers = tensors.iter();
        self.types(headers.map(|tensor| (tensor.dtype.clone(), tensor.values(), tensor.bytes)));
    }

    /// Adds how many tensors there are of each type, from type, values and bytes of each.
    pub fn types(&mut self, tensors: impl Iterator<Item = (String, u64, u64)>) {
        let mut types: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for (kind, values, bytes) in tensors {
            let sums = types.entry(kind).or_default();
            *sums = [sums[0] + 1, sums[1].saturating_add(values), sums[2].saturating_add(bytes)];
        }
        let mut types: Vec<_> = types.into_iter().collect();
        types.sort_by_key(|(_, [_, values, _])| std::cmp::Reverse(*values));
        let text: Vec<_> = types
            .iter()
            .map(|(kind, [count, _, bytes])| {
                format!("{} ({count} tensors, {})", escaped(kind), HumanBytes(*bytes))
            })
            .collect();
        let value = types.into_iter().map(|(kind, [count, values, bytes])| {
            (kind, json!({ "tensors": count, "values": values, "bytes": bytes }))
        });
        let value: Map<String, Value> = value.collect();
        self.add_as("stored_as", value, text.join(", "));
    }

    /// Adds what a tokenizer is, or why it cannot be loaded.
    pub fn tokenizer(&mut self, path: &Path) {
        let tokenizer = match Tokenizer::from_pretrained(path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                let reason = escaped(&error.to_string()).to_string();
                let value = json!({ "loads": false, "reason": error.to_string() });
                return self.add_as(
                    "tokenizer",
                    value,
                    format!("none that can be loaded: {reason}"),
                );
            }
        };
        let (kind, size) = (tokenizer.kind(), tokenizer.vocab_size());
        let value = json!({ "loads": true, "kind": kind, "vocabulary": size });
        self.add_as("tokenizer", value, format!("{kind}, {} tokens", HumanCount(size as u64)));
        self.add("chat_template", tokenizer.chat_template().is_some());
        let mut ends = tokenizer.eos_token_ids().to_vec();
        ends.extend(tokenizer.end_of_turn().filter(|id| !ends.contains(id)));
        let named = ends.iter().map(|id| (*id, tokenizer.id_to_token(*id).unwrap_or_default()));
        let named: Vec<_> = named.collect();
        let text: Vec<_> =
            named.iter().map(|(id, token)| format!("{id} `{}`", escaped(token))).collect();
        let value: Vec<_> =
            named.iter().map(|(id, token)| json!({ "id": id, "token": token })).collect();
        let text = if text.is_empty() { "none".into() } else { text.join(", ") };
        self.add_as("end_tokens", value, text);
    }

    /// Adds whether it can be loaded, and why not.
    pub fn loads(&mut self, loaded: Result<(), impl Error>) {
        self.verdict("loads", loaded);
    }

    /// Adds whether something is so, and the `reason` why not.
    pub fn verdict(&mut self, name: &'static str, found: Result<(), impl Error>) {
        match found {
            Ok(()) => self.add(name, true),
            Err(error) => {
                let reason = error.to_string();
                let text = format!("no: {}", burn_lora_io::escaped_lines(&reason));
                self.add_as(name, false, text);
                self.facts.push(Fact { name: "reason", value: reason.into(), text: String::new() });
            }
        }
    }

    /// Adds a warning.
    pub fn warn(&mut self, warning: &str) {
        self.warnings.push(warning.to_owned());
    }

    /// All of it as an object.
    pub fn into_json(self) -> Value {
        let mut fields = Map::new();
        fields.insert("kind".into(), self.kind.into());
        fields.extend(self.facts.into_iter().map(|fact| (fact.name.to_owned(), fact.value)));
        fields.insert("warnings".into(), self.warnings.into());
        fields.into()
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = || self.facts.iter().filter(|fact| !fact.text.is_empty());
        let width = shown().map(|fact| fact.name.len()).max().unwrap_or(0);
        write!(out, "{:width$}  {}", "kind", self.kind)?;
        for Fact { name, text, .. } in shown() {
            write!(out, "\n{:width$}  {text}", name.replace('_', " "))?;
        }
        for warning in &self.warnings {
            write!(out, "\n{:width$}  {}", "warning", burn_lora_io::escaped_lines(warning))?;
        }
        Ok(())
    }
}

/// A value for people, `None` if it is `null`.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => escaped(text).to_string(),
        Value::Array(items) => items.iter().filter_map(self::text).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let pairs = fields.iter().filter_map(|(name, value)| {
                Some(format!("{} = {}", escaped(name), self::text(value)?))
            });
            pairs.collect::<Vec<_>>().join(", ")
        }
        number => number.to_string(),
    };
    Some(match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    })
}
