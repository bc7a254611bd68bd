//! Numbers beside the tokens, read from columns.

use crate::error::TrainError;
use burn_lora_io::escaped;
use burn_lora_text::ChatValue as Value;
use std::collections::{BTreeMap, BTreeSet};

/// Name of the number beside the tokens of an answer: 1 if it is desirable, else 0.
pub(crate) const LABEL: &str = "label";

/// What a column of numbers has.
#[derive(Clone, Debug)]
pub(crate) enum Column {
    /// A number, or one of the names, which stand for 0, 1 and so on.
    One(Vec<String>),
    /// A list of those of the names that apply: 1 for each, and 0 for the others.
    Set(Vec<String>),
    /// A list of a number for each name.
    List(Vec<String>),
}

impl Column {
    /// Names under which the numbers are kept.
    pub fn names<'a>(&'a self, column: &'a str) -> Vec<&'a str> {
        match self {
            Self::One(_) => vec![column],
            Self::Set(names) | Self::List(names) => names.iter().map(String::as_str).collect(),
        }
    }

    /// Reads the numbers, in the order of [`names`](Self::names).
    pub fn read(&self, column: &str, value: &Value) -> Result<Vec<f32>, String> {
        let named = |reason| format!("`{column}` is {reason}");
        match self {
            Self::One(names) => Ok(vec![number(value, names).map_err(named)?]),
            Self::Set(names) => {
                let mut present = vec![0.0; names.len()];
                for item in items(column, value)? {
                    let label = number(&item, names)
                        .map_err(|reason| format!("`{column}` has a label that is {reason}"))?;
                    let place = (label.fract() == 0.0).then_some(label as usize);
                    let found =
                        place.and_then(|place| present.get_mut(place)).filter(|_| label >= 0.0);
                    *found.ok_or_else(|| {
                        let most = names.len().saturating_sub(1);
                        format!("`{column}` has the label {label}: they are 0 to {most}")
                    })? = 1.0;
                }
                Ok(present)
            }
            Self::List(names) => {
                let items = items(column, value)?;
                if items.len() != names.len() {
                    let (found, wanted) = (items.len(), names.len());
                    return Err(format!(
                        "`{column}` has {found} numbers, and there are {wanted} names"
                    ));
                }
                let read = |item: &Value| number(item, &[]);
                items
                    .iter()
                    .map(read)
                    .collect::<Result<_, _>>()
                    .map_err(|reason| format!("`{column}` has an item that is {reason}"))
            }
        }
    }
}

/// Checks that no two numbers have the same name.
pub(super) fn check(columns: &BTreeMap<String, Column>) -> Result<(), TrainError> {
    let mut seen = BTreeSet::new();
    let names = columns.iter().flat_map(|(column, of)| of.names(column));
    for name in names {
        if !seen.insert(name) {
            let reason = "two numbers beside the tokens have this name";
            return Err(TrainError::setting("labels", name, reason));
        }
    }
    Ok(())
}

/// Returns the number that a value is, or stands for by its place among names.
pub(super) fn number(value: &Value, names: &[String]) -> Result<f32, String> {
    match value {
        Value::Int(number) => Ok(*number as f32),
        Value::Float(number) if number.is_finite() => Ok(*number as f32),
        Value::Bool(is) => Ok((*is).into()),
        Value::Text(name) => match names.iter().position(|known| known == name) {
            Some(place) => Ok(place as f32),
            None if names.is_empty() => {
                Err("text, but must be a number: name what it stands for by `labels`".into())
            }
            None => Err(format!("`{}`, expected one of {}", escaped(name), names.join(", "))),
        },
        other => Err(format!("{}, but must be a number", other.kind())),
    }
}

/// Returns the items of a list, which a table may store as text.
pub(super) fn items(name: &str, value: &Value) -> Result<Vec<Value>, String> {
    match value {
        Value::List(items) => Ok(items.clone()),
        Value::Text(text) => serde_json::from_str(text)
            .map_err(|error| format!("`{name}` is text, but not that of a JSON list: {error}")),
        other => Err(format!("`{name}` is {}, but must be a list", other.kind())),
    }
}
