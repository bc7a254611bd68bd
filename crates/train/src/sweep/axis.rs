//! The settings that a sweep varies.

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use toml::{Table, Value};

/// A setting with the values to try, or several settings that vary together. Names are those of a
/// [run file](crate::RunConfig): `adapter.r`, `train.learning_rate`.
///
/// In a file it is `{ name = "adapter.r", values = [8, 16] }`, or for several settings
/// `{ names = ["adapter.r", "adapter.lora_alpha"], values = [[8, 16], [16, 32]] }`.
///
/// ```
/// use burn_lora_train::sweep::Axis;
///
/// let ranks: Axis = "adapter.r=8,16,32".parse()?;
/// assert_eq!(ranks, Axis::new("adapter.r", [8, 16, 32])?);
/// let both: Axis = "adapter.r,adapter.lora_alpha=[8,16],[16,32]".parse()?;
/// assert_eq!(both, Axis::together(["adapter.r", "adapter.lora_alpha"], [(8, 16), (16, 32)])?);
/// assert!("adapter.r=".parse::<Axis>().is_err());
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Axis {
    pub(super) names: Vec<String>,
    /// A value of each name.
    pub(super) points: Vec<Vec<Value>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    names: Option<Vec<String>>,
    values: Vec<Value>,
}

impl Axis {
    /// Creates an axis of one setting.
    ///
    /// # Errors
    /// [`TrainError::Settings`] without values, or for a value that TOML does not have.
    pub fn new<V: Serialize>(
        name: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Result<Self, TrainError> {
        let name = name.into();
        let values = values_of(&name, values)?.into_iter().map(|value| vec![value]).collect();
        Self::checked(vec![name], values)
    }

    /// Creates an axis of several settings: each item has a value for each of them, as an array or a tuple.
    ///
    /// # Errors
    /// As [`new`](Self::new), and for an item with more or fewer values than there are names.
    pub fn together<N: Into<String>, V: Serialize>(
        names: impl IntoIterator<Item = N>,
        points: impl IntoIterator<Item = V>,
    ) -> Result<Self, TrainError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let points = values_of(&names.join(","), points)?;
        let points = points.into_iter().map(|point| match point {
            Value::Array(values) => values,
            other => vec![other],
        });
        Self::checked(names, points.collect())
    }

    fn checked(names: Vec<String>, points: Vec<Vec<Value>>) -> Result<Self, TrainError> {
        let all = names.join(",");
        let wrong = |reason: String| Err(TrainError::settings(&all, reason));
        if names.is_empty() || names.iter().any(String::is_empty) {
            let reason = "it has to name a setting, as in adapter.r=8,16,32";
            return Err(TrainError::settings("an axis of the sweep", reason));
        }
        if points.is_empty() {
            return wrong(format!("it has no values to try, as in {all}=8,16,32"));
        }
        match points.iter().find(|values| values.len() != names.len()) {
            Some(values) => wrong(format!(
                "{} values for {} settings: each item needs a value for each, as in [8, 16]",
                values.len(),
                names.len()
            )),
            None => Ok(Self { names, points }),
        }
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.points.len()
    }

    /// The values of the first setting, if all are numbers.
    pub(super) fn numbers(&self) -> Option<Vec<f64>> {
        let number = |value: &Value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        };
        self.points.iter().map(|values| number(&values[0])).collect()
    }
}

fn values_of<V: Serialize>(
    name: &str,
    values: impl IntoIterator<Item = V>,
) -> Result<Vec<Value>, TrainError> {
    let value = |value: V| {
        Value::try_from(value).map_err(|error| TrainError::settings(name, error.to_string()))
    };
    values.into_iter().map(value).collect()
}

impl FromStr for Axis {
    type Err = TrainError;

    /// Reads `NAME=VALUE,VALUE`, or `NAME,NAME=[VALUE,VALUE],[VALUE,VALUE]`. A value is TOML, or else text; a comma in
    /// brackets, braces or quotes does not end it.
    fn from_str(text: &str) -> Result<Self, TrainError> {
        let Some((names, values)) = text.split_once('=') else {
            let reason = "it has to be NAME=VALUE,VALUE, as in adapter.r=8,16,32";
            return Err(TrainError::settings(text, reason));
        };
        let names: Vec<_> = names.split(',').map(|name| name.trim().to_owned()).collect();
        let values: Vec<_> = pieces(values).into_iter().map(str::trim).collect();
        // `NAME=` has no value rather than an empty one.
        let values = if values == [""] { vec![] } else { values };
        if values.contains(&"") {
            let reason = "there is no value between two commas, or after the last one";
            return Err(TrainError::settings(text, reason));
        }
        let values = values.into_iter().map(parsed);
        match names.as_slice() {
            [name] => Self::new(name, values),
            _ => Self::together(names, values),
        }
    }
}

/// Parts between commas that are not in brackets, braces or quotes.
fn pieces(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start, mut found) = (0usize, None, 0, vec![]);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), _) => quote = (c != open).then_some(open),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{' | '(') => depth += 1,
            (None, ']' | '}' | ')') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

/// A value of TOML, or else text.
fn parsed(text: &str) -> Value {
    let table = format!("value = {text}").parse::<Table>().ok();
    // Text with a line break could be more than one setting.
    let value = table.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| text.into())
}

impl TryFrom<Fields> for Axis {
    type Error = TrainError;

    fn try_from(fields: Fields) -> Result<Self, TrainError> {
        match (fields.name, fields.names) {
            (Some(name), None) => Self::new(name, fields.values),
            (None, Some(names)) => Self::together(names, fields.values),
            _ => Err(TrainError::settings("an axis of the sweep", "it needs `name` or `names`")),
        }
    }
}

impl From<Axis> for Fields {
    fn from(Axis { mut names, points }: Axis) -> Self {
        if names.len() == 1 {
            let values = points.into_iter().flatten().collect();
            return Self { name: names.pop(), names: None, values };
        }
        let values = points.into_iter().map(Value::Array).collect();
        Self { name: None, names: Some(names), values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_text() {
        let axis = |text: &str| text.parse::<Axis>().unwrap();
        assert_eq!(axis("a.b=1e-4, 2e-4"), Axis::new("a.b", [1e-4, 2e-4]).unwrap());
        assert_eq!(axis("a=linear,cosine"), Axis::new("a", ["linear", "cosine"]).unwrap());
        let targets = axis("t=['q_proj', 'v_proj'],all-linear");
        assert_eq!(targets.points[0][0], Value::from(vec!["q_proj", "v_proj"]));
        assert_eq!(targets.points[1][0], Value::from("all-linear"));
        let warmup = axis("w={ steps = 2 },{ ratio = 0.1 }");
        assert_eq!(warmup.points[0][0].get("steps"), Some(&Value::from(2)));
        let quoted = axis("q='a,b',\"c\"");
        assert_eq!(quoted, Axis::new("q", ["a,b", "c"]).unwrap());
        assert_eq!(parsed("1\nx = 2"), Value::from("1\nx = 2"));
        assert_eq!(axis("r=8,16").numbers(), Some(vec![8.0, 16.0]));
        assert_eq!(axis("r=8,all").numbers(), None);
    }

    #[test]
    fn what_is_no_axis_says_why() {
        for (text, part) in [
            ("adapter.r", "NAME=VALUE,VALUE"),
            ("adapter.r=", "no values to try"),
            ("adapter.r=8,,16", "between two commas"),
            ("=8", "has to name a setting"),
            ("a,b=[1,2],[3]", "1 values for 2 settings"),
            ("a,b=1,2", "1 values for 2 settings"),
        ] {
            let error = text.parse::<Axis>().unwrap_err().to_string();
            assert!(error.contains(part), "no `{part}` in: {error}");
        }
    }
}
