//! Python's operators.

use super::{
    ast::{Comparison, Operator},
    error::{Error, Result, fail},
    format,
    machine::Machine,
    value::{Value, View},
    write::string,
};
use std::cmp::Ordering;

/// Escapes the special characters of HTML.
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

/// Returns the text of a value that is joined to marked-up text.
pub fn escaped(value: &Value) -> Result<String> {
    match value {
        Value::Markup(text) => Ok(text.to_string()),
        other => Ok(escape(&string(other)?)),
    }
}

impl Machine<'_> {
    pub fn binary(&mut self, operator: Operator, left: &Value, right: &Value) -> Result<Value> {
        if let Value::Undefined(what) = left {
            fail!("{}", what.reason());
        }
        // In formatting, an undefined value is an empty text.
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
                // Texts are compared only with those of the same length.
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
}

/// Python's `%`, which has the sign of the divisor.
fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}
