//! Python's access to values: truth, length, items and attributes.

use super::{
    ast::Name,
    error::{Result, fail},
    machine::{Machine, Object},
    names,
    value::{Undefined, Value, View, range},
    write::{range_length, string},
};
use std::sync::Arc;

/// Bounds of a slice of a sequence of `length` items.
pub fn bounds(start: Option<i128>, end: Option<i128>, length: usize) -> (usize, usize) {
    let place = |at: i128| {
        let at = if at < 0 { at.saturating_add(length as i128) } else { at };
        at.clamp(0, length as i128) as usize
    };
    (start.map_or(0, place), end.map_or(length, place))
}

/// Indices that a slice selects.
fn positions(parts: &[Option<i128>; 3], length: usize) -> Result<Vec<usize>> {
    let [start, end, step] = *parts;
    let step = step.unwrap_or(1);
    if step == 0 {
        fail!("slice step cannot be zero");
    }
    if step > 0 {
        let (start, end) = bounds(start, end, length);
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        return Ok((start..end).step_by(step).collect());
    }
    let length = length as i128;
    let place =
        |at: i128| (if at < 0 { at.saturating_add(length) } else { at }).clamp(-1, length - 1);
    let start = start.map_or(length - 1, place);
    let end = end.map_or(-1, place);
    Ok(range(&[start, end, step]).map(|at| at as usize).collect())
}

impl Machine<'_> {
    /// Python's `bool`.
    pub fn truth(&self, value: &Value) -> bool {
        match value {
            Value::Undefined(_) | Value::None => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Float(value) => *value != 0.0,
            Value::Str(text) | Value::Markup(text) => !text.is_empty(),
            Value::List(items) | Value::Tuple(items) => !items.items.is_empty(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len() > 0,
            Value::Range(bounds) => range(bounds).next().is_some(),
            _ => true,
        }
    }

    /// Python's `len`.
    pub fn length(&self, value: &Value) -> Result<usize> {
        Ok(match value {
            Value::Undefined(_) => 0,
            Value::Str(text) | Value::Markup(text) => text.chars().count(),
            Value::List(items) | Value::Tuple(items) => items.items.len(),
            Value::Dict(dict) | Value::View(_, dict) => dict.len(),
            Value::Range(bounds) => range_length(bounds),
            Value::Loop(number) => self.loop_state(*number)?.items.len(),
            other => fail!("object of type '{}' has no len()", other.kind()),
        })
    }

    /// Returns the items that a loop iterates over.
    pub fn iterate(&mut self, value: &Value) -> Result<Vec<Value>> {
        let items: Vec<Value> = match value {
            Value::Undefined(_) => vec![],
            Value::Str(text) | Value::Markup(text) => {
                self.work(text.len().saturating_mul(2 * size_of::<Value>()))?;
                let mut buffer = [0; 4];
                text.chars().map(|char| Value::from(&*char.encode_utf8(&mut buffer))).collect()
            }
            Value::List(items) | Value::Tuple(items) => items.items.clone(),
            Value::Dict(dict) | Value::View(View::Keys, dict) => dict.keys().cloned().collect(),
            Value::View(View::Values, dict) => dict.values().cloned().collect(),
            Value::View(View::Items, dict) => {
                let pair =
                    |(key, value): (&Value, &Value)| Value::tuple(vec![key.clone(), value.clone()]);
                dict.iter().map(pair).collect::<Result<_>>()?
            }
            Value::Range(bounds) => range(bounds).map(Value::Int).collect(),
            Value::Object(number) => match self.object(*number)? {
                Object::Iterator(items) => std::mem::replace(items, Ok(vec![]))?,
                Object::Group(name, items) => vec![name.clone(), items.clone()],
                other => fail!("'{}' object is not iterable", other.kind()),
            },
            other => fail!("'{}' object is not iterable", other.kind()),
        };
        self.work(items.len().saturating_mul(size_of::<Value>()))?;
        Ok(items)
    }

    /// `value.name`: a method of the value, else its item with this name.
    pub fn attribute(&mut self, value: &Value, name: &Name) -> Result<Value> {
        if let Some(found) = self.python_attribute(value, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = value
            && let Some(item) = dict.get(name)
        {
            return Ok(item.clone());
        }
        Ok(missing(value, name))
    }

    /// `value[key]`: an item of the value, else its method with this name.
    pub fn item(&mut self, value: &Value, key: &Value) -> Result<Value> {
        let found = match value {
            Value::Undefined(what) => fail!("{}", what.reason()),
            Value::Dict(dict) => dict.get_value(key).ok().flatten().cloned(),
            Value::Str(text) | Value::Markup(text) => key.as_int().and_then(|at| {
                let length = if at < 0 { text.chars().count() } else { text.len() };
                let at = index(at, length)?;
                text.chars().nth(at).map(|char| Value::from(char.to_string()))
            }),
            Value::List(items) | Value::Tuple(items) => {
                let at = key.as_int().and_then(|at| index(at, items.items.len()));
                at.map(|at| items.items[at].clone())
            }
            Value::Range(bounds) => key.as_int().and_then(|at| {
                let at = index(at, range_length(bounds))?;
                range(bounds).nth(at).map(Value::Int)
            }),
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        match key {
            Value::Str(name) | Value::Markup(name) => match self.python_attribute(value, name)? {
                Some(found) => Ok(found),
                None => Ok(missing(value, name)),
            },
            key => {
                let name: Name = string(key).unwrap_or_default().into();
                Ok(missing(value, &name))
            }
        }
    }

    /// Python's `getattr`.
    fn python_attribute(&mut self, value: &Value, name: &Name) -> Result<Option<Value>> {
        // Numbers have few attributes.
        let part = match (value, &**name) {
            (Value::Int(_) | Value::Bool(_), "real" | "numerator") => {
                value.as_int().map(Value::Int)
            }
            (Value::Int(_) | Value::Bool(_), "imag") => Some(Value::Int(0)),
            (Value::Int(_) | Value::Bool(_), "denominator") => Some(Value::Int(1)),
            (Value::Float(_), "real") => Some(value.clone()),
            (Value::Float(_), "imag") => Some(Value::Float(0.0)),
            _ => None,
        };
        if part.is_some() {
            return Ok(part);
        }
        let changes = match value {
            Value::Undefined(what) => fail!("{}", what.reason()),
            Value::Loop(number) => return self.loop_attribute(*number, name),
            Value::Object(number) => return self.object_attribute(value, *number, name),
            _ => names::changes(value),
        };
        if changes.contains(&&**name) || name.starts_with("__") {
            let kind = value.kind();
            let unsafe_attribute = Undefined::Unsafe(kind, name.clone());
            return Ok(Some(Value::Undefined(Arc::new(unsafe_attribute))));
        }
        let known = names::methods(value).contains(&&**name);
        Ok(known.then(|| Value::Method(Arc::new((value.clone(), name.clone())))))
    }

    fn loop_attribute(&mut self, number: usize, name: &Name) -> Result<Option<Value>> {
        let state = self.loop_state(number)?;
        let (at, count) = (state.at, state.items.len());
        let neighbour = |at: Option<usize>, reason| {
            let item = at.and_then(|at| state.items.get(at));
            item.cloned().unwrap_or_else(|| Value::undefined(reason))
        };
        Ok(Some(match &**name {
            "index" => (at + 1).into(),
            "index0" => at.into(),
            "revindex" => (count - at).into(),
            "revindex0" => (count - at - 1).into(),
            "first" => (at == 0).into(),
            "last" => (at + 1 == count).into(),
            "length" => count.into(),
            "depth" => state.depth.into(),
            "depth0" => (state.depth - 1).into(),
            "previtem" => neighbour(at.checked_sub(1), "there is no previous item"),
            "nextitem" => neighbour(at.checked_add(1), "there is no next item"),
            "cycle" | "changed" => Value::Method(Arc::new((Value::Loop(number), name.clone()))),
            _ => return Ok(None),
        }))
    }

    fn object_attribute(
        &mut self,
        value: &Value,
        number: usize,
        name: &Name,
    ) -> Result<Option<Value>> {
        let method = || Value::Method(Arc::new((value.clone(), name.clone())));
        Ok(match (self.object(number)?, &**name) {
            (Object::Namespace(fields), _) => {
                fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            }
            (Object::Cycler(items, at), "current") => items.get(*at).cloned(),
            (Object::Cycler(..), "next" | "reset") => Some(method()),
            (Object::Macro(own, _), "name") => Some(Value::Str(own.name.clone())),
            (Object::Group(key, _), "grouper") => Some(key.clone()),
            (Object::Group(_, items), "list") => Some(items.clone()),
            _ => None,
        })
    }

    pub fn slice(&mut self, value: &Value, parts: &[Option<Value>; 3]) -> Result<Value> {
        let mut numbers = [None; 3];
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = match part {
                None | Some(Value::None) => None,
                Some(part) => match part.as_int() {
                    Some(at) => Some(at),
                    None => fail!("slice indices must be integers or None"),
                },
            };
        }
        Ok(match value {
            Value::Undefined(what) => fail!("{}", what.reason()),
            Value::Str(text) | Value::Markup(text) => {
                self.work(text.len().saturating_mul(4))?;
                let chars: Vec<char> = text.chars().collect();
                let part: String =
                    positions(&numbers, chars.len())?.into_iter().map(|at| chars[at]).collect();
                match value {
                    Value::Markup(_) => Value::Markup(part.into()),
                    _ => part.into(),
                }
            }
            Value::List(items) | Value::Tuple(items) => {
                let at = positions(&numbers, items.items.len())?;
                let part = at.into_iter().map(|at| items.items[at].clone()).collect();
                if matches!(value, Value::List(_)) { self.list(part)? } else { self.tuple(part)? }
            }
            Value::Range(_) => {
                let items = self.iterate(value)?;
                let at = positions(&numbers, items.len())?;
                self.list(at.into_iter().map(|at| items[at].clone()).collect())?
            }
            other => fail!("'{}' object is not subscriptable", other.kind()),
        })
    }
}

fn index(at: i128, length: usize) -> Option<usize> {
    let at = if at < 0 { at.checked_add(length as i128)? } else { at };
    usize::try_from(at).ok().filter(|at| *at < length)
}

fn missing(value: &Value, name: &Name) -> Value {
    Value::Undefined(Arc::new(Undefined::Attribute(value.kind(), name.clone())))
}
