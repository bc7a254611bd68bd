//! Python's operators, attributes, items and iteration.

use super::{
    Error, Result,
    ast::{Comparison, Name, Operator},
    fail, format,
    machine::{Machine, Object},
    methods, strings,
    value::{Undefined, Value, View, range},
    write::{range_length, string},
};
use std::{cmp::Ordering, sync::Arc};

/// From and to, of a slice of so many items.
pub fn bounds(start: Option<i128>, end: Option<i128>, length: usize) -> (usize, usize) {
    let place = |at: i128| {
        let at = if at < 0 { at.saturating_add(length as i128) } else { at };
        at.clamp(0, length as i128) as usize
    };
    (start.map_or(0, place), end.map_or(length, place))
}

/// The positions that a slice takes.
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

/// What the characters that HTML knows are escaped as.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&#34;",
            '\'' => out += "&#39;",
            _ => out.push(char),
        }
    }
    out
}

/// The text of a value beside marked-up text.
pub fn escaped(value: &Value) -> Result<String> {
    match value {
        Value::Markup(text) => Ok(text.to_string()),
        other => Ok(escape(&string(other)?)),
    }
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

    /// The items that a loop goes over.
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

    /// A list, which counts as memory.
    pub fn list(&mut self, items: Vec<Value>) -> Result<Value> {
        self.work(items.len().saturating_mul(size_of::<Value>()))?;
        Value::list(items)
    }

    pub fn tuple(&mut self, items: Vec<Value>) -> Result<Value> {
        self.work(items.len().saturating_mul(size_of::<Value>()))?;
        Value::tuple(items)
    }

    /// What a generator gives, which is gone over once. Its error waits until then.
    pub fn iterator(&mut self, items: Result<Vec<Value>>) -> Result<Value> {
        let count = items.as_ref().map_or(0, Vec::len);
        self.work(size_of::<Object>() + count.saturating_mul(size_of::<Value>()))?;
        Ok(self.new_object(Object::Iterator(items)))
    }

    /// A text with so many fillings around it.
    pub fn pad(&mut self, text: &str, fill: &str, left: usize, right: usize) -> Result<String> {
        let length = left.saturating_add(right).saturating_mul(fill.len());
        self.charge(length.saturating_add(text.len()))?;
        Ok(fill.repeat(left) + text + &fill.repeat(right))
    }

    pub fn binary(&mut self, operator: Operator, left: &Value, right: &Value) -> Result<Value> {
        if let Value::Undefined(what) = left {
            fail!("{}", what.reason());
        }
        // Formatting takes what is undefined for an empty text.
        let formats = operator == Operator::Modulo && left.as_str().is_some();
        if let (Value::Undefined(what), false) = (right, formats) {
            fail!("{}", what.reason());
        }
        let unsupported = |sign: &str| {
            let (left, right) = (left.kind(), right.kind());
            Error::new(format!("unsupported operand type(s) for {sign}: '{left}' and '{right}'"))
        };
        let too_large = || Error::new("a number of more than 127 bits");
        let ints = left.as_int().zip(right.as_int());
        let floats = left.as_float().zip(right.as_float());
        Ok(match operator {
            Operator::Add => {
                if let Some((a, b)) = ints {
                    return a.checked_add(b).map(Value::Int).ok_or_else(too_large);
                }
                if let Some((a, b)) = floats {
                    return Ok(Value::Float(a + b));
                }
                match (left, right) {
                    (Value::Str(a), Value::Str(b)) => {
                        self.charge(a.len() + b.len())?;
                        Value::from([&**a, b].concat())
                    }
                    (Value::Markup(_), b) | (b, Value::Markup(_)) if b.as_str().is_some() => {
                        let text = escaped(left)? + &escaped(right)?;
                        self.charge(text.len())?;
                        Value::Markup(text.into())
                    }
                    (Value::List(a), Value::List(b)) => {
                        self.list([&*a.items, &*b.items].concat())?
                    }
                    (Value::Tuple(a), Value::Tuple(b)) => {
                        self.tuple([&*a.items, &*b.items].concat())?
                    }
                    (Value::Str(_), other) => {
                        fail!("can only concatenate str (not \"{}\") to str", other.kind())
                    }
                    (Value::List(_), other) => {
                        fail!("can only concatenate list (not \"{}\") to list", other.kind())
                    }
                    _ => return Err(unsupported("+")),
                }
            }
            Operator::Subtract => match (ints, floats) {
                (Some((a, b)), _) => Value::Int(a.checked_sub(b).ok_or_else(too_large)?),
                (_, Some((a, b))) => Value::Float(a - b),
                _ => return Err(unsupported("-")),
            },
            Operator::Multiply => match (ints, floats) {
                (Some((a, b)), _) => Value::Int(a.checked_mul(b).ok_or_else(too_large)?),
                (_, Some((a, b))) => Value::Float(a * b),
                _ => {
                    let (value, count) = match (left.as_int(), right.as_int()) {
                        (None, Some(count)) => (left, count),
                        (Some(count), None) => (right, count),
                        _ => return Err(unsupported("*")),
                    };
                    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
                    match value {
                        Value::Str(text) => Value::from(self.pad("", text, count, 0)?),
                        Value::Markup(text) => Value::Markup(self.pad("", text, count, 0)?.into()),
                        Value::List(items) | Value::Tuple(items) => {
                            let length = items.items.len().saturating_mul(count);
                            self.work(length.saturating_mul(size_of::<Value>()))?;
                            let own = items.items.iter().cloned().cycle();
                            let items: Vec<Value> = own.take(length).collect();
                            if matches!(value, Value::List(_)) {
                                Value::list(items)?
                            } else {
                                Value::tuple(items)?
                            }
                        }
                        _ => return Err(unsupported("*")),
                    }
                }
            },
            Operator::Divide => match floats {
                Some((_, 0.0)) => fail!("division by zero"),
                Some((a, b)) => Value::Float(a / b),
                None => return Err(unsupported("/")),
            },
            Operator::FloorDivide => match (ints, floats) {
                (Some((_, 0)), _) => fail!("integer division or modulo by zero"),
                (_, Some((_, 0.0))) => fail!("float floor division by zero"),
                (Some((a, b)), _) => {
                    let quotient = a.checked_div(b).ok_or_else(too_large)?;
                    let inexact = a % b != 0 && (a < 0) != (b < 0);
                    Value::Int(quotient - i128::from(inexact))
                }
                (_, Some((a, b))) => Value::Float(((a - modulo(a, b)) / b).round()),
                _ => return Err(unsupported("//")),
            },
            Operator::Modulo => match (left, ints, floats) {
                (Value::Str(template), ..) => Value::from(format::percent(self, template, right)?),
                (Value::Markup(_), ..) => {
                    fail!("formatting of text that was marked safe is not supported")
                }
                (_, Some((_, 0)), _) => fail!("integer modulo by zero"),
                (_, _, Some((_, 0.0))) => fail!("float modulo by zero"),
                (_, Some((a, b)), _) => {
                    let rest = a.checked_rem(b).unwrap_or(0);
                    Value::Int(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
                }
                (_, _, Some((a, b))) => Value::Float(modulo(a, b)),
                _ => return Err(unsupported("%")),
            },
            Operator::Power => match (ints, floats) {
                (Some((a, b)), _) if b >= 0 => {
                    let power = u32::try_from(b).ok().and_then(|b| a.checked_pow(b));
                    Value::Int(power.ok_or_else(too_large)?)
                }
                (_, Some((0.0, b))) if b < 0.0 => {
                    fail!("0.0 cannot be raised to a negative power")
                }
                (_, Some((a, b))) => Value::Float(a.powf(b)),
                _ => return Err(unsupported("** or pow()")),
            },
        })
    }

    pub fn compare(&mut self, comparison: Comparison, left: &Value, right: &Value) -> Result<bool> {
        if left.weight().min(right.weight()) > 64 {
            let smaller = if left.weight() < right.weight() { left } else { right };
            self.look_through(smaller)?;
        }
        let order = |sign| left.compare(right, sign);
        Ok(match comparison {
            Comparison::Equal => left.equals(right),
            Comparison::NotEqual => !left.equals(right),
            Comparison::Less => order("<")? == Some(Ordering::Less),
            Comparison::LessOrEqual => order("<=")?.is_some_and(Ordering::is_le),
            Comparison::Greater => order(">")? == Some(Ordering::Greater),
            Comparison::GreaterOrEqual => order(">=")?.is_some_and(Ordering::is_ge),
            Comparison::In => self.contains(right, left)?,
            Comparison::NotIn => !self.contains(right, left)?,
        })
    }

    pub fn contains(&mut self, container: &Value, value: &Value) -> Result<bool> {
        Ok(match container {
            Value::Undefined(_) => false,
            Value::Str(text) | Value::Markup(text) => {
                self.work(text.len())?;
                match value.as_str() {
                    Some(part) => text.contains(part),
                    None => {
                        fail!("'in <string>' requires string as left operand, not {}", value.kind())
                    }
                }
            }
            Value::Dict(dict) | Value::View(View::Keys, dict) => dict.get_value(value)?.is_some(),
            Value::List(items) | Value::Tuple(items) => {
                // Texts are compared with those of their length only.
                self.work(items.items.len())?;
                self.look_through(value)?;
                items.items.iter().any(|item| item.equals(value))
            }
            Value::View(..) | Value::Range(_) | Value::Object(_) => {
                self.iterate(container)?.iter().any(|item| item.equals(value))
            }
            other => fail!("argument of type '{}' is not iterable", other.kind()),
        })
    }

    /// `value.name`: a method of the value, else its item of this name.
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

    /// `value[key]`: an item of the value, else its method of this name.
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

    /// What Python's `getattr` finds.
    fn python_attribute(&mut self, value: &Value, name: &Name) -> Result<Option<Value>> {
        // Numbers have few of their own.
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
            Value::Dict(_) => &methods::DICT_CHANGES[..],
            Value::List(_) => &methods::LIST_CHANGES[..],
            _ => &[],
        };
        if changes.contains(&&**name) || name.starts_with("__") {
            let kind = value.kind();
            let unsafe_attribute = Undefined::Unsafe(kind, name.clone());
            return Ok(Some(Value::Undefined(Arc::new(unsafe_attribute))));
        }
        let known = match value {
            Value::Str(_) | Value::Markup(_) => strings::METHODS.contains(&&**name),
            _ => methods::names(value).contains(&&**name),
        };
        Ok(known.then(|| Value::Method(Arc::new((value.clone(), name.clone())))))
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

/// Python's `%`, which has the sign of the divisor.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}
