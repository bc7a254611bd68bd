//! Filters of text, and conversions of values to text.

use super::super::{
    arguments::{Arguments, count, given, int, text},
    error::{Result, fail},
    format,
    lexer::is_space,
    machine::Machine,
    operators::{escape, escaped},
    strings,
    value::{Dict, Value, View},
    write::{Json, repr},
};
use std::sync::Arc;

pub fn textual(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value> {
    let marked = matches!(value, Value::Markup(_));
    let result: String = match name {
        "string" => {
            arguments.none(name)?;
            return Ok(match &value {
                Value::Str(_) | Value::Markup(_) => value,
                other => Value::Str(machine.soft(other)?),
            });
        }
        "safe" => {
            arguments.none(name)?;
            return Ok(Value::Markup(machine.soft(&value)?));
        }
        "escape" | "e" => {
            arguments.none(name)?;
            machine.soft(&value)?;
            return Ok(Value::Markup(escaped(&value)?.into()));
        }
        "forceescape" => {
            arguments.none(name)?;
            return Ok(Value::Markup(escape(&machine.soft(&value)?).into()));
        }
        "upper" => arguments.none(name).and_then(|()| machine.soft(&value))?.to_uppercase(),
        "lower" => arguments.none(name).and_then(|()| machine.soft(&value))?.to_lowercase(),
        "capitalize" => {
            arguments.none(name)?;
            strings::capitalize(&machine.soft(&value)?)
        }
        "title" => {
            arguments.none(name)?;
            // As in Jinja, not as in Python: words begin after spaces, hyphens and brackets.
            let mut begins = true;
            let mut out = String::new();
            for char in machine.soft(&value)?.chars() {
                if begins {
                    out.extend(char.to_uppercase());
                } else {
                    out.extend(char.to_lowercase());
                }
                begins = is_space(char) || "-({[<".contains(char);
            }
            out
        }
        "trim" => {
            let [chars] = arguments.bind(name, ["chars"], 0)?;
            let chars = given(chars).map(|chars| text(name, &chars)).transpose()?;
            strings::strip(&machine.soft(&value)?, true, true, chars.as_deref()).to_owned()
        }
        "replace" => {
            let [old, new, limit] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let own = machine.soft(&value)?;
            let old = machine.soft(&old.unwrap_or(Value::None))?;
            let new = machine.soft(&new.unwrap_or(Value::None))?;
            let limit = given(limit).map(|limit| int(name, &limit)).transpose()?;
            return strings::replace(machine, &own, &old, &new, limit).map(Value::from);
        }
        "indent" => indent(machine, &value, arguments)?,
        "center" => {
            let [width] = arguments.bind(name, ["width"], 0)?;
            let width = width.unwrap_or(Value::Int(80));
            let own = Value::Str(machine.soft(&value)?);
            let width = Arguments { positional: vec![width], named: vec![] };
            return strings::method(machine, &own, "center", width);
        }
        "format" => {
            let template = machine.soft(&value)?;
            if !arguments.positional.is_empty() && !arguments.named.is_empty() {
                fail!("can't handle positional and keyword arguments at the same time");
            }
            let values = if arguments.named.is_empty() {
                machine.tuple(arguments.positional)?
            } else {
                let mut dict = Dict::default();
                for (name, value) in arguments.named {
                    dict.set(Value::Str(name), value)?;
                }
                Value::Dict(Arc::new(dict))
            };
            format::percent(machine, &template, &values)?
        }
        "truncate" => {
            let parameters = ["length", "killwords", "end", "leeway"];
            let [length, kill, end, leeway] = arguments.bind(name, parameters, 0)?;
            let length = length.map_or(Ok(255), |length| count(name, &length))?;
            let kill = kill.is_some_and(|kill| machine.truth(&kill));
            let end = end.map_or(Ok("...".into()), |end| text(name, &end))?;
            let leeway = given(leeway).map_or(Ok(5), |leeway| count(name, &leeway))?;
            let own: Vec<char> = text(name, &value)?.chars().collect();
            let Some(kept) = length.checked_sub(end.chars().count()) else {
                fail!("truncate: the length is less than that of the end")
            };
            if own.len() <= length.saturating_add(leeway) {
                return Ok(value);
            }
            let mut kept: String = own[..kept].iter().collect();
            if !kill && let Some(space) = kept.rfind(' ') {
                kept.truncate(space);
            }
            kept + &end
        }
        "urlencode" => {
            arguments.none(name)?;
            match &value {
                Value::Str(text) | Value::Markup(text) => quote(text, "/"),
                Value::Dict(_) | Value::List(_) | Value::Tuple(_) => {
                    let value = match &value {
                        Value::Dict(dict) => Value::View(View::Items, dict.clone()),
                        other => other.clone(),
                    };
                    let mut parts = vec![];
                    for pair in machine.iterate(&value)? {
                        let pair = machine.iterate(&pair)?;
                        let [key, value] = pair.as_slice() else { fail!("urlencode: no pairs") };
                        let (key, value) = (machine.soft(key)?, machine.soft(value)?);
                        let pair = format!("{}={}", quote(&key, ""), quote(&value, ""));
                        parts.push(pair.replace("%20", "+"));
                    }
                    parts.join("&")
                }
                other => quote(&machine.soft(other)?, "/"),
            }
        }
        "wordcount" => {
            arguments.none(name)?;
            let own = machine.soft(&value)?;
            let word = |char: char| !(char.is_alphanumeric() || char == '_');
            return Ok(own.split(word).filter(|word| !word.is_empty()).count().into());
        }
        _ => {
            arguments.none(name)?;
            machine.charge(value.weight())?;
            let shown = repr(&value)?;
            if shown.chars().count() > 79 {
                fail!("filter pprint is unknown here for what is longer than a line");
            }
            shown
        }
    };
    machine.charge(result.len())?;
    Ok(if marked { Value::Markup(result.into()) } else { result.into() })
}

fn quote(text: &str, safe: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let char = char::from(byte);
        if char.is_ascii_alphanumeric() || "_.-~".contains(char) || safe.contains(char) {
            out.push(char);
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

fn indent(machine: &mut Machine, value: &Value, arguments: Arguments) -> Result<String> {
    let [width, first, blank] = arguments.bind("indent", ["width", "first", "blank"], 0)?;
    let set = |flag: Option<Value>| flag.is_some_and(|flag| machine.truth(&flag));
    let (first, blank) = (set(first), set(blank));
    // With another line, so that a newline at the end is kept.
    let own = text("indent", value)?.to_string() + "\n";
    let lines = strings::lines(&own, false);
    let indent: Arc<str> = match &width {
        Some(Value::Str(text) | Value::Markup(text)) => text.clone(),
        width => {
            let width = width.as_ref().map_or(Ok(4), |width| count("indent", width))?;
            machine.check(width.saturating_mul(lines.len()))?;
            " ".repeat(width).into()
        }
    };
    machine.charge(indent.len().saturating_mul(lines.len()).saturating_add(own.len()))?;
    let mut out = String::new();
    for (number, line) in lines.iter().enumerate() {
        if number > 0 {
            out.push('\n');
        }
        if (number == 0 && first) || (number > 0 && (blank || !line.is_empty())) {
            out += &indent;
        }
        out += line;
    }
    Ok(out)
}

pub fn tojson(machine: &mut Machine, value: &Value, arguments: Arguments) -> Result<Value> {
    let parameters = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = arguments.bind("tojson", parameters, 0)?;
    let set = |flag: Option<Value>| flag.is_some_and(|flag| machine.truth(&flag));
    let (ascii, sort) = (set(ascii), set(sort));
    let indent = match given(indent) {
        None => None,
        Some(Value::Str(text) | Value::Markup(text)) => Some(text.to_string()),
        Some(width) => {
            let width = count("tojson", &width)?;
            machine.check(width)?;
            Some(" ".repeat(width))
        }
    };
    let separators = match given(separators) {
        None if indent.is_some() => [",".into(), ": ".into()],
        None => [", ".into(), ": ".into()],
        Some(separators) => {
            let parts = machine.iterate(&separators)?;
            let [item, key] = parts.as_slice() else {
                fail!("tojson: `separators` are two strings")
            };
            [text("tojson", item)?.to_string(), text("tojson", key)?.to_string()]
        }
    };
    machine.charge(value.weight())?;
    let limit = machine.length_limit();
    let json = Json { ascii, indent, separators, sort, limit }.write(value)?;
    machine.charge(json.len())?;
    Ok(json.into())
}
