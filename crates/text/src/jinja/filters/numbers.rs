//! Filters of numbers.

use super::super::{
    arguments::{Arguments, int, text},
    error::{Result, fail},
    lexer::is_space,
    machine::Machine,
    value::Value,
};

pub fn numeric(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value> {
    Ok(match name {
        "abs" => {
            arguments.none(name)?;
            match (&value, value.as_int()) {
                (_, Some(value)) => Value::Int(value.saturating_abs()),
                (Value::Float(value), _) => Value::Float(value.abs()),
                _ => fail!("bad operand type for abs(): '{}'", value.kind()),
            }
        }
        "int" => {
            let [default, base] = arguments.bind(name, ["default", "base"], 0)?;
            let default = default.unwrap_or(Value::Int(0));
            let base = base.map_or(Ok(10), |base| int(name, &base))?;
            let float = match &value {
                Value::Undefined(what) => fail!("{}", what.reason()),
                Value::Str(text) | Value::Markup(text) => {
                    machine.work(text.len())?;
                    if let Some(value) = parse_int(text, base) {
                        return Ok(Value::Int(value));
                    }
                    parse_float(text)
                }
                other => {
                    if let Some(value) = other.as_int() {
                        return Ok(Value::Int(value));
                    }
                    other.as_float()
                }
            };
            match float.filter(|float| float.is_finite()) {
                Some(float) => Value::Int(float as i128),
                None => default,
            }
        }
        "float" => {
            let [default] = arguments.bind(name, ["default"], 0)?;
            let float = match &value {
                Value::Undefined(what) => fail!("{}", what.reason()),
                Value::Str(text) | Value::Markup(text) => parse_float(text),
                other => other.as_float(),
            };
            float.map_or(default.unwrap_or(Value::Float(0.0)), Value::Float)
        }
        "round" => {
            let [precision, method] = arguments.bind(name, ["precision", "method"], 0)?;
            let precision = precision.map_or(Ok(0), |precision| int(name, &precision))?;
            let method = method.map_or(Ok("common".into()), |method| text(name, &method))?;
            let Some(float) = value.as_float() else {
                fail!("type {} doesn't define __round__ method", value.kind())
            };
            let places = precision.clamp(-400, 400) as i32;
            let factor = 10f64.powi(places);
            match &*method {
                "common" => match (value.as_int(), usize::try_from(places)) {
                    (Some(value), Ok(_)) => Value::Int(value),
                    (Some(value), Err(_)) => {
                        let unit = 10i128.checked_pow(places.unsigned_abs());
                        Value::Int(unit.map_or(0, |unit| round_int(value, unit)))
                    }
                    // Formatting a float rounds to the nearest, half to even.
                    (None, Ok(places)) => {
                        Value::Float(format!("{float:.places$}").parse().unwrap_or(float))
                    }
                    (None, Err(_)) => Value::Float((float * factor).round_ties_even() / factor),
                },
                "ceil" => Value::Float((float * factor).ceil() / factor),
                "floor" => Value::Float((float * factor).floor() / factor),
                _ => fail!("method must be common, ceil or floor"),
            }
        }
        _ => {
            let [binary] = arguments.bind(name, ["binary"], 0)?;
            let binary = binary.is_some_and(|binary| machine.truth(&binary));
            let float = match &value {
                Value::Str(text) => parse_float(text),
                other => other.as_float(),
            };
            let Some(bytes) = float else { fail!("filesizeformat: no number") };
            let base = if binary { 1024.0 } else { 1000.0 };
            if bytes == 1.0 {
                return Ok("1 Byte".into());
            }
            if bytes < base {
                return Ok(format!("{} Bytes", bytes as i128).into());
            }
            let mut unit = base;
            let mut shown = String::new();
            for prefix in ["k", "M", "G", "T", "P", "E", "Z", "Y"] {
                unit *= base;
                let prefix = if binary { prefix.to_uppercase() + "i" } else { prefix.into() };
                shown = format!("{:.1} {prefix}B", base * bytes / unit);
                if bytes < unit {
                    break;
                }
            }
            shown.into()
        }
    })
}

fn round_int(value: i128, unit: i128) -> i128 {
    let (low, rest) = (value.div_euclid(unit), value.rem_euclid(unit));
    let up = rest * 2 > unit || (rest * 2 == unit && low % 2 != 0);
    (low + i128::from(up)).saturating_mul(unit)
}

/// Python's `int(text, base)`.
fn parse_int(text: &str, base: i128) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = |letters: &str| {
        let rest = digits.strip_prefix('0')?;
        rest.strip_prefix(|char| letters.contains(char))
    };
    let digits = match base {
        16 => prefixed("xX").unwrap_or(digits),
        8 => prefixed("oO").unwrap_or(digits),
        2 => prefixed("bB").unwrap_or(digits),
        _ => digits,
    };
    if digits.starts_with(['_', '+', '-']) || digits.ends_with('_') || digits.contains("__") {
        return None;
    }
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    let value = i128::from_str_radix(&digits.replace('_', ""), base).ok()?;
    Some(if negative { -value } else { value })
}

/// Python's `float(text)`.
fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let bad = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    if bad { None } else { text.replace('_', "").parse().ok() }
}
