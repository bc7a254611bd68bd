//! Functions of the environment, and methods of lists, dictionaries and numbers.

use super::{
    arguments::{Arguments, int, text},
    error::{Result, fail},
    machine::{Machine, Object, set_field},
    value::{Dict, Value, View},
};
use chrono::Local;
use std::{fmt::Write, sync::Arc};

/// Maximal length of a range in Jinja's sandbox.
const RANGE: usize = 100_000;

pub fn function(machine: &mut Machine, name: &'static str, arguments: Arguments) -> Result<Value> {
    Ok(match name {
        "range" => {
            let [first, second, step] = arguments.bind(name, ["start", "stop", "step"], 1)?;
            let number = |value: &Option<Value>, default| match value {
                Some(value) => int(name, value),
                None => Ok(default),
            };
            let step = number(&step, 1)?;
            let (start, stop) = match &second {
                None => (0, number(&first, 0)?),
                Some(_) => (number(&first, 0)?, number(&second, 0)?),
            };
            if step == 0 {
                fail!("range() arg 3 must not be zero");
            }
            let span =
                if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
            let length = span.max(0) as u128;
            if length.div_ceil(step.unsigned_abs()) > RANGE as u128 {
                fail!("Range too big. The sandbox blocks ranges larger than {RANGE}.");
            }
            Value::Range(Arc::new([start, stop, step]))
        }
        "dict" => {
            let mut dict = Dict::default();
            let [from] =
                Arguments { named: vec![], ..arguments.clone() }.bind(name, ["from"], 0)?;
            fill(machine, from, |key, value| dict.set(key, value))?;
            for (name, value) in arguments.named {
                dict.set(Value::Str(name), value)?;
            }
            Value::Dict(Arc::new(dict))
        }
        "namespace" => {
            let mut fields = vec![];
            let [from] =
                Arguments { named: vec![], ..arguments.clone() }.bind(name, ["from"], 0)?;
            fill(machine, from, |key, value| {
                set_field(&mut fields, &text("namespace", &key)?, value);
                Ok(())
            })?;
            for (name, value) in arguments.named {
                set_field(&mut fields, &name, value);
            }
            if fields.iter().any(|(name, _)| name.starts_with('_')) {
                fail!("a namespace has no attributes that begin with an underscore");
            }
            machine.work(size_of::<Object>())?;
            machine.new_object(Object::Namespace(fields))
        }
        "cycler" => {
            if arguments.positional.is_empty() {
                fail!("at least one item has to be provided");
            }
            machine.work(size_of::<Object>())?;
            machine.new_object(Object::Cycler(arguments.positional, 0))
        }
        "joiner" => {
            let [separator] = arguments.bind(name, ["sep"], 0)?;
            machine.work(size_of::<Object>())?;
            machine.new_object(Object::Joiner(separator.unwrap_or_else(|| ", ".into()), false))
        }
        "raise_exception" => {
            let [message] = arguments.bind(name, ["message"], 1)?;
            let message = machine.text_of(&message.unwrap_or(Value::None))?;
            fail!("refused by the template: {message}")
        }
        _ => {
            let [format] = arguments.bind(name, ["format"], 1)?;
            strftime_now(&text(name, &format.unwrap_or(Value::None))?)?.into()
        }
    })
}

/// Passes the entries of a dictionary, or of a list of pairs, to `set`.
fn fill(
    machine: &mut Machine,
    from: Option<Value>,
    mut set: impl FnMut(Value, Value) -> Result<()>,
) -> Result<()> {
    match from {
        None => Ok(()),
        Some(Value::Dict(dict)) => {
            machine.work(dict.len() * 3 * size_of::<Value>())?;
            dict.iter().try_for_each(|(key, value)| set(key.clone(), value.clone()))
        }
        Some(pairs) => {
            for pair in machine.iterate(&pairs)? {
                let pair = machine.iterate(&pair)?;
                let [key, value] = pair.as_slice() else {
                    fail!(
                        "dictionary update sequence element has length {}; 2 is required",
                        pair.len()
                    )
                };
                set(key.clone(), value.clone())?;
            }
            Ok(())
        }
    }
}

/// Formats the local time with `strftime`.
fn strftime_now(format: &str) -> Result<String> {
    let mut text = String::new();
    match write!(text, "{}", Local::now().format(format)) {
        Ok(()) => Ok(text),
        Err(_) => fail!("strftime_now: `{format}` is no format of a time"),
    }
}

/// Calls a method of a value other than text.
pub fn method(
    machine: &mut Machine,
    object: &Value,
    name: &str,
    arguments: Arguments,
) -> Result<Value> {
    if matches!(name, "count" | "index") {
        machine.look_through(object)?;
    }
    Ok(match (object, name) {
        (Value::Dict(dict), "get") => {
            let [key, default] = arguments.bind(name, ["key", "default"], 1)?;
            let found = dict.get_value(&key.unwrap_or(Value::None))?;
            found.cloned().or(default).unwrap_or(Value::None)
        }
        (Value::Dict(dict), "keys" | "values" | "items") => {
            arguments.none(name)?;
            let view = match name {
                "keys" => View::Keys,
                "values" => View::Values,
                _ => View::Items,
            };
            Value::View(view, dict.clone())
        }
        (Value::Dict(dict), "copy") => {
            arguments.none(name)?;
            machine.work(dict.len() * 3 * size_of::<Value>())?;
            Value::Dict(Arc::new(dict.copy()))
        }
        (Value::Dict(_) | Value::Function(_), "fromkeys") => {
            let [keys, value] = arguments.bind(name, ["iterable", "value"], 1)?;
            let mut dict = Dict::default();
            for key in machine.iterate(&keys.unwrap_or(Value::None))? {
                dict.set(key, value.clone().unwrap_or(Value::None))?;
            }
            Value::Dict(Arc::new(dict))
        }
        (Value::List(items), "copy") => {
            arguments.none(name)?;
            machine.list(items.items.clone())?
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(_), "count") => {
            let [wanted] = arguments.bind(name, ["value"], 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            let items = machine.iterate(object)?;
            items.iter().filter(|item| item.equals(&wanted)).count().into()
        }
        (Value::List(_) | Value::Tuple(_) | Value::Range(_), "index") => {
            let [wanted] = arguments.bind(name, ["value"], 1)?;
            let wanted = wanted.unwrap_or(Value::None);
            match machine.iterate(object)?.iter().position(|item| item.equals(&wanted)) {
                Some(at) => at.into(),
                None => fail!("the value is not in the list"),
            }
        }
        (Value::Float(value), "is_integer") => {
            arguments.none(name)?;
            (value.fract() == 0.0).into()
        }
        (Value::Int(_) | Value::Bool(_), "is_integer") => {
            arguments.none(name).map(|()| true.into())?
        }
        (Value::Int(value), "bit_length") => {
            arguments.none(name)?;
            Value::Int((i128::BITS - value.unsigned_abs().leading_zeros()).into())
        }
        (Value::Object(number), "next" | "reset") => {
            arguments.none(name)?;
            let Object::Cycler(items, at) = machine.object(*number)? else {
                fail!("{} has no method named {name}", object.kind())
            };
            if name == "reset" {
                *at = 0;
                return Ok(Value::None);
            }
            let item = items[*at].clone();
            *at = (*at + 1) % items.len();
            item
        }
        _ => fail!("{} has no method named {name} here", object.kind()),
    })
}
