//! Tests, which follow `is`.

use super::{
    arguments::Arguments,
    ast::{Comparison, Operator},
    error::{Result, fail},
    machine::{Machine, Object},
    names::{FILTERS, TESTS},
    value::Value,
};

pub fn test(
    machine: &mut Machine,
    name: &str,
    value: &Value,
    arguments: Arguments,
) -> Result<bool> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::NotEqual),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessOrEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = arguments.bind(name, ["other"], 1)?;
        return machine.compare(comparison, value, &other.unwrap_or(Value::None));
    }
    if name == "sameas" || name == "divisibleby" {
        let [other] = arguments.bind(name, ["other"], 1)?;
        let other = other.unwrap_or(Value::None);
        if name == "sameas" {
            return Ok(same(value, &other));
        }
        let rest = machine.binary(Operator::Modulo, value, &other)?;
        return Ok(rest.equals(&Value::Int(0)));
    }
    arguments.none(name)?;
    let cased = |own: fn(&char) -> bool, other: fn(&char) -> bool| {
        let text = machine_text(value);
        text.chars().any(|char| own(&char)) && !text.chars().any(|char| other(&char))
    };
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => value.as_str().is_some(),
        "escaped" => matches!(value, Value::Markup(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => match value {
            Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) => true,
            // It has a length, and items, even if accessing them fails.
            Value::Dict(_) | Value::Range(_) | Value::Undefined(_) => true,
            _ => false,
        },
        "iterable" => match value {
            Value::Str(_) | Value::Markup(_) | Value::List(_) | Value::Tuple(_) => true,
            Value::Dict(_) | Value::Range(_) | Value::View(..) | Value::Undefined(_) => true,
            Value::Loop(_) => true,
            Value::Object(number) => {
                matches!(machine.object(*number)?, Object::Iterator(_) | Object::Group(..))
            }
            _ => false,
        },
        "callable" => match value {
            // Undefined values have the method, which fails when called.
            Value::Method(_) | Value::Function(_) | Value::Loop(_) | Value::Undefined(_) => true,
            Value::Object(number) => {
                matches!(machine.object(*number)?, Object::Macro(..) | Object::Joiner(..))
            }
            _ => false,
        },
        "even" | "odd" => {
            let rest = machine.binary(Operator::Modulo, value, &Value::Int(2))?;
            rest.equals(&Value::Int((name == "odd").into()))
        }
        "lower" => cased(|char| char.is_lowercase(), |char| char.is_uppercase()),
        "upper" => cased(|char| char.is_uppercase(), |char| char.is_lowercase()),
        "filter" => value.as_str().is_some_and(|name| FILTERS.contains(&name)),
        "test" => value.as_str().is_some_and(|name| TESTS.contains(&name)),
        _ => fail!("test {name} is unknown"),
    })
}

fn machine_text(value: &Value) -> String {
    super::write::string(value).unwrap_or_default()
}

/// Python's `is`.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            std::sync::Arc::ptr_eq(a, b)
        }
        (Value::Dict(a), Value::Dict(b)) => std::sync::Arc::ptr_eq(a, b),
        (Value::Bool(_), Value::Bool(_)) | (Value::Int(_), Value::Int(_)) => a.equals(b),
        (Value::Bool(_) | Value::Int(_) | Value::Float(_), _) => {
            matches!((a, b), (Value::Float(_), Value::Float(_))) && a.equals(b)
        }
        (_, Value::Bool(_) | Value::Int(_) | Value::Float(_)) => false,
        _ => a.equals(b),
    }
}
