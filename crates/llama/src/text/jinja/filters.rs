//! Filters: what follows `|`.

use super::{
    Error, Result,
    arguments::{Arguments, count, given, int, text},
    fail, format,
    lexer::is_space,
    machine::{Machine, Object},
    operators::{escape, escaped},
    strings, tests,
    value::{Dict, Value},
    write::{Json, repr},
};
use std::{cmp::Ordering, sync::Arc};

/// Names of filters.
const FILTERS: [&str; 49] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
];

/// Those of Jinja2 that are not here: for HTML, or by chance.
const OTHERS: [&str; 5] = ["random", "striptags", "urlize", "wordwrap", "xmlattr"];

pub fn exists(name: &str) -> bool {
    FILTERS.contains(&name)
}

/// Text as Jinja's `soft_str` makes it.
fn soft(machine: &mut Machine, value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) | Value::Markup(text) => {
            machine.work(text.len())?;
            Ok(text.clone())
        }
        other => {
            let text = machine.text_of(other)?;
            Ok(text.into())
        }
    }
}

pub fn filter(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value> {
    match name {
        "default" | "d" => {
            let [default, boolean] = arguments.bind(name, ["default_value", "boolean"], 0)?;
            let boolean = boolean.is_some_and(|boolean| machine.truth(&boolean));
            let missing = value.is_undefined() || (boolean && !machine.truth(&value));
            Ok(if missing { default.unwrap_or_else(|| "".into()) } else { value })
        }
        "abs" | "filesizeformat" | "float" | "int" | "round" => {
            numeric(machine, name, value, arguments)
        }
        "tojson" => tojson(machine, &value, arguments),
        "attr" | "batch" | "count" | "dictsort" | "first" | "groupby" | "items" | "join"
        | "last" | "length" | "list" | "map" | "max" | "min" | "reject" | "rejectattr"
        | "reverse" | "select" | "selectattr" | "slice" | "sort" | "sum" | "unique" => {
            collection(machine, name, value, arguments)
        }
        _ if exists(name) => textual(machine, name, value, arguments),
        _ if OTHERS.contains(&name) => fail!("filter {name} is unknown here"),
        _ => fail!("filter {name} is unknown"),
    }
}

fn textual(machine: &mut Machine, name: &str, value: Value, arguments: Arguments) -> Result<Value> {
    let marked = matches!(value, Value::Markup(_));
    let result: String = match name {
        "string" => {
            arguments.none(name)?;
            return Ok(match &value {
                Value::Str(_) | Value::Markup(_) => value,
                other => Value::Str(soft(machine, other)?),
            });
        }
        "safe" => {
            arguments.none(name)?;
            return Ok(Value::Markup(soft(machine, &value)?));
        }
        "escape" | "e" => {
            arguments.none(name)?;
            soft(machine, &value)?;
            return Ok(Value::Markup(escaped(&value)?.into()));
        }
        "forceescape" => {
            arguments.none(name)?;
            return Ok(Value::Markup(escape(&soft(machine, &value)?).into()));
        }
        "upper" => arguments.none(name).and_then(|()| soft(machine, &value))?.to_uppercase(),
        "lower" => arguments.none(name).and_then(|()| soft(machine, &value))?.to_lowercase(),
        "capitalize" => {
            arguments.none(name)?;
            strings::capitalize(&soft(machine, &value)?)
        }
        "title" => {
            arguments.none(name)?;
            // As Jinja, not as Python: words begin after spaces, hyphens and brackets.
            let mut begins = true;
            let mut out = String::new();
            for char in soft(machine, &value)?.chars() {
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
            strings::strip(&soft(machine, &value)?, true, true, chars.as_deref()).to_owned()
        }
        "replace" => {
            let [old, new, limit] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let own = soft(machine, &value)?;
            let old = soft(machine, &old.unwrap_or(Value::None))?;
            let new = soft(machine, &new.unwrap_or(Value::None))?;
            let limit = given(limit).map(|limit| int(name, &limit)).transpose()?;
            return strings::replace(machine, &own, &old, &new, limit).map(Value::from);
        }
        "indent" => indent(machine, &value, arguments)?,
        "center" => {
            let [width] = arguments.bind(name, ["width"], 0)?;
            let width = width.unwrap_or(Value::Int(80));
            let own = Value::Str(soft(machine, &value)?);
            let width = Arguments { positional: vec![width], named: vec![] };
            return strings::method(machine, &own, "center", width);
        }
        "format" => {
            let template = soft(machine, &value)?;
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
                        Value::Dict(dict) => Value::View(super::value::View::Items, dict.clone()),
                        other => other.clone(),
                    };
                    let mut parts = vec![];
                    for pair in machine.iterate(&value)? {
                        let pair = machine.iterate(&pair)?;
                        let [key, value] = pair.as_slice() else { fail!("urlencode: no pairs") };
                        let (key, value) = (soft(machine, key)?, soft(machine, value)?);
                        let pair = format!("{}={}", quote(&key, ""), quote(&value, ""));
                        parts.push(pair.replace("%20", "+"));
                    }
                    parts.join("&")
                }
                other => quote(&soft(machine, other)?, "/"),
            }
        }
        "wordcount" => {
            arguments.none(name)?;
            let own = soft(machine, &value)?;
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
    // A line more, so that a newline at the end is kept.
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

fn tojson(machine: &mut Machine, value: &Value, arguments: Arguments) -> Result<Value> {
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

fn numeric(machine: &mut Machine, name: &str, value: Value, arguments: Arguments) -> Result<Value> {
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
                    // The text of a float is rounded to the nearest, to even where there are two.
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

/// The value of an attribute with dots, as `map` and its like find it.
fn get(machine: &mut Machine, value: &Value, path: &Value) -> Result<Value> {
    let Some(path) = path.as_str() else { return machine.item(value, path) };
    let mut value = value.clone();
    for part in path.split('.') {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let key = match part.parse() {
            Ok(number) if digits => Value::Int(number),
            _ => part.into(),
        };
        value = machine.item(&value, &key)?;
    }
    Ok(value)
}

/// Text in small letters, for what does not tell cases apart.
fn folded(value: Value) -> Value {
    match value.as_str() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// Sorts values by keys, of which Python must be able to compare any two.
fn sort(mut items: Vec<(Vec<Value>, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut failed: Option<Error> = None;
    items.sort_by(|(a, _), (b, _)| {
        for (a, b) in a.iter().zip(b) {
            match a.compare(b, "<") {
                Ok(Some(Ordering::Equal) | None) => (),
                Ok(Some(order)) => return if reverse { order.reverse() } else { order },
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        Ordering::Equal
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(items.into_iter().map(|(_, value)| value).collect()),
    }
}

fn collection(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value> {
    Ok(match name {
        "length" | "count" => {
            arguments.none(name)?;
            machine.length(&value)?.into()
        }
        "list" => {
            arguments.none(name)?;
            let items = machine.iterate(&value)?;
            machine.list(items)?
        }
        "first" => {
            arguments.none(name)?;
            let none = || Value::undefined("No first item, sequence was empty.");
            machine.iterate(&value)?.into_iter().next().unwrap_or_else(none)
        }
        "last" => {
            arguments.none(name)?;
            let generator = matches!(value, Value::Object(_));
            if generator {
                fail!("'generator' object is not reversible");
            }
            let none = || Value::undefined("No last item, sequence was empty.");
            machine.iterate(&value)?.pop().unwrap_or_else(none)
        }
        "reverse" => {
            arguments.none(name)?;
            if let Value::Str(text) = &value {
                return Ok(text.chars().rev().collect::<String>().into());
            }
            if let Value::Undefined(_) = value {
                return machine.iterator(Ok(vec![]));
            }
            let mut items = machine.iterate(&value)?;
            items.reverse();
            machine.iterator(Ok(items))?
        }
        "attr" => {
            let [attribute] = arguments.bind(name, ["name"], 1)?;
            let attribute = text(name, &attribute.unwrap_or(Value::None))?;
            match &value {
                // Not its items.
                Value::Dict(_) => {
                    let empty = Value::Dict(Arc::new(Dict::default()));
                    match machine.attribute(&empty, &attribute)? {
                        Value::Method(_) => machine.attribute(&value, &attribute)?,
                        missing => missing,
                    }
                }
                value => machine.attribute(value, &attribute)?,
            }
        }
        "join" => {
            let [separator, attribute] = arguments.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.map_or(Ok("".into()), |text| soft(machine, &text))?;
            let mut out = String::new();
            for (number, item) in machine.iterate(&value)?.into_iter().enumerate() {
                let item = match &attribute {
                    Some(attribute) => get(machine, &item, attribute)?,
                    None => item,
                };
                if number > 0 {
                    out += &separator;
                }
                out += &soft(machine, &item)?;
                machine.check(out.len())?;
            }
            machine.work(out.len())?;
            out.into()
        }
        "sort" | "min" | "max" | "groupby" => ordered(machine, name, value, arguments)?,
        "dictsort" => {
            let parameters = ["case_sensitive", "by", "reverse"];
            let [case, by, reverse] = arguments.bind(name, parameters, 0)?;
            let case = case.is_some_and(|case| machine.truth(&case));
            let reverse = reverse.is_some_and(|reverse| machine.truth(&reverse));
            let by = by.map_or(Ok("key".into()), |by| text(name, &by))?;
            let Value::Dict(dict) = &value else {
                fail!("dictsort: '{}' object has no attribute 'items'", value.kind())
            };
            let mut pairs = vec![];
            for (key, value) in dict.iter() {
                let by = match &*by {
                    "key" => key,
                    "value" => value,
                    _ => fail!("You can only sort by either \"key\" or \"value\""),
                };
                let by = if case { by.clone() } else { folded(by.clone()) };
                pairs.push((vec![by], machine.tuple(vec![key.clone(), value.clone()])?));
            }
            let pairs = sort(pairs, reverse)?;
            machine.list(pairs)?
        }
        "sum" => {
            let [attribute, start] = arguments.bind(name, ["attribute", "start"], 0)?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in machine.iterate(&value)? {
                let item = match &given(attribute.clone()) {
                    Some(attribute) => get(machine, &item, attribute)?,
                    None => item,
                };
                if sum.as_str().is_some() {
                    fail!("sum() can't sum strings");
                }
                sum = machine.binary(super::ast::Operator::Add, &sum, &item)?;
            }
            sum
        }
        // What goes over items one by one fails where these are asked for.
        _ => {
            let items = generated(machine, name, value, arguments);
            machine.iterator(items)?
        }
    })
}

/// The items that a generator of Jinja2 gives.
fn generated(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Vec<Value>> {
    Ok(match name {
        // What is empty, or nothing at all, has no items.
        "map" | "select" | "reject" | "selectattr" | "rejectattr" if !machine.truth(&value) => {
            vec![]
        }
        "items" => {
            arguments.none(name)?;
            match &value {
                Value::Undefined(_) => vec![],
                Value::Dict(dict) => {
                    let view = Value::View(super::value::View::Items, dict.clone());
                    machine.iterate(&view)?
                }
                _ => fail!("Can only get item pairs from a mapping."),
            }
        }
        "map" => {
            let items = machine.iterate(&value)?;
            let mut results = vec![];
            let by = arguments.named.iter().any(|(name, _)| &**name == "attribute");
            if arguments.positional.is_empty() && by {
                let [attribute, default] = arguments.bind(name, ["attribute", "default"], 0)?;
                let attribute = attribute.unwrap_or(Value::None);
                for item in items {
                    let found = get(machine, &item, &attribute)?;
                    results.push(match (&default, found) {
                        (Some(default), found) if found.is_undefined() => default.clone(),
                        (_, found) => found,
                    });
                }
            } else {
                let (inner, arguments) = first_of(name, arguments)?;
                for item in items {
                    results.push(filter(machine, &inner, item, arguments.clone())?);
                }
            }
            results
        }
        "select" | "reject" | "selectattr" | "rejectattr" => {
            let items = machine.iterate(&value)?;
            let (mut attribute, mut arguments) = (None, arguments);
            if name.ends_with("attr") {
                if arguments.positional.is_empty() {
                    fail!("Missing parameter for attribute name");
                }
                attribute = Some(arguments.positional.remove(0));
            }
            let call = match arguments.positional.is_empty() {
                true => None,
                false => Some(first_of(name, arguments)?),
            };
            let mut kept = vec![];
            for item in items {
                let tested = match &attribute {
                    Some(attribute) => get(machine, &item, attribute)?,
                    None => item.clone(),
                };
                let holds = match &call {
                    Some((test, arguments)) => {
                        tests::test(machine, test, &tested, arguments.clone())?
                    }
                    None => machine.truth(&tested),
                };
                if holds == name.starts_with("select") {
                    kept.push(item);
                }
            }
            kept
        }
        "unique" => unique(machine, value, arguments)?,
        "batch" => {
            let [size, fill] = arguments.bind(name, ["linecount", "fill_with"], 1)?;
            let size = count(name, &size.unwrap_or(Value::None))?.max(1);
            let mut batches = vec![];
            for batch in machine.iterate(&value)?.chunks(size) {
                let mut batch = batch.to_vec();
                if let Some(fill) = given(fill.clone()) {
                    machine.work(size.saturating_mul(size_of::<Value>()))?;
                    batch.resize(size, fill);
                }
                batches.push(machine.list(batch)?);
            }
            batches
        }
        // `slice`.
        _ => {
            let [slices, fill] = arguments.bind(name, ["slices", "fill_with"], 1)?;
            let slices = count(name, &slices.unwrap_or(Value::None))?;
            let items = machine.iterate(&value)?;
            if slices == 0 {
                fail!("integer division or modulo by zero");
            }
            machine.work(slices.saturating_mul(size_of::<Value>()))?;
            let (size, more) = (items.len() / slices, items.len() % slices);
            let (mut parts, mut at) = (vec![], 0);
            for number in 0..slices {
                let end = at + size + usize::from(number < more);
                let mut part = items[at..end].to_vec();
                if let Some(fill) = given(fill.clone()).filter(|_| number >= more) {
                    part.push(fill);
                }
                parts.push(machine.list(part)?);
                at = end;
            }
            parts
        }
    })
}

/// The name of the filter or test that another one applies, and its arguments.
fn first_of(name: &str, mut arguments: Arguments) -> Result<(Arc<str>, Arguments)> {
    if arguments.positional.is_empty() {
        fail!("{name} requires a filter argument");
    }
    let first = arguments.positional.remove(0);
    Ok((text(name, &first)?, arguments))
}

fn ordered(machine: &mut Machine, name: &str, value: Value, arguments: Arguments) -> Result<Value> {
    let set =
        |machine: &Machine, flag: Option<Value>| flag.is_some_and(|flag| machine.truth(&flag));
    let (reverse, case, attribute, default) = match name {
        "sort" => {
            let parameters = ["reverse", "case_sensitive", "attribute"];
            let [reverse, case, attribute] = arguments.bind(name, parameters, 0)?;
            (set(machine, reverse), set(machine, case), attribute, None)
        }
        "groupby" => {
            let parameters = ["attribute", "default", "case_sensitive"];
            let [attribute, default, case] = arguments.bind(name, parameters, 1)?;
            (false, set(machine, case), attribute, default)
        }
        _ => {
            let [case, attribute] = arguments.bind(name, ["case_sensitive", "attribute"], 0)?;
            (name == "max", set(machine, case), attribute, None)
        }
    };
    let attribute = given(attribute);
    let mut keyed = vec![];
    for item in machine.iterate(&value)? {
        // `sort` may have several attributes.
        let paths: Vec<Value> = match attribute.as_ref() {
            Some(Value::Str(paths)) if name == "sort" => {
                paths.split(',').map(Value::from).collect()
            }
            Some(other) => vec![other.clone()],
            None => vec![],
        };
        let mut keys = vec![];
        for path in &paths {
            let found = get(machine, &item, path)?;
            keys.push(match &default {
                Some(default) if found.is_undefined() => default.clone(),
                _ => found,
            });
        }
        if paths.is_empty() {
            keys.push(item.clone());
        }
        if !case {
            keys = keys.into_iter().map(folded).collect();
        }
        keyed.push((keys, item));
    }
    // Each is compared with so many others.
    let rounds = keyed.len().checked_ilog2().unwrap_or(0) as usize + 1;
    let weight: usize = keyed.iter().flat_map(|(keys, _)| keys).map(Value::weight).sum();
    machine.work(weight.saturating_mul(rounds))?;
    match name {
        "sort" => {
            let items = sort(keyed, reverse)?;
            machine.list(items)
        }
        "min" | "max" => {
            let none = || Value::undefined("No aggregated item, sequence was empty.");
            Ok(sort(keyed, reverse)?.into_iter().next().unwrap_or_else(none))
        }
        _ => {
            let keyed = keyed.into_iter().map(|(keys, item)| {
                let pair = Value::tuple(vec![keys[0].clone(), item])?;
                Ok((keys, pair))
            });
            let pairs = sort(keyed.collect::<Result<_>>()?, false)?;
            let mut groups: Vec<(Value, Vec<Value>)> = vec![];
            for pair in pairs {
                let [key, item] = pair.items().unwrap_or_default() else { continue };
                match groups.last_mut() {
                    Some((last, items)) if last.equals(key) => items.push(item.clone()),
                    _ => groups.push((key.clone(), vec![item.clone()])),
                }
            }
            let mut results = vec![];
            for (key, items) in groups {
                // Where cases are not told apart, the group has the name of its first item.
                let name = match &attribute {
                    Some(attribute) if !case => match get(machine, &items[0], attribute)? {
                        found if found.is_undefined() => default.clone().unwrap_or(found),
                        found => found,
                    },
                    _ => key,
                };
                let items = machine.list(items)?;
                machine.work(size_of::<Object>())?;
                results.push(machine.new_object(Object::Group(name, items)));
            }
            machine.list(results)
        }
    }
}

fn unique(machine: &mut Machine, value: Value, arguments: Arguments) -> Result<Vec<Value>> {
    let [case, attribute] = arguments.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let case = case.is_some_and(|case| machine.truth(&case));
    let attribute = given(attribute);
    let (mut seen, mut kept) = (Dict::default(), vec![]);
    for item in machine.iterate(&value)? {
        let key = match &attribute {
            Some(attribute) => get(machine, &item, attribute)?,
            None => item.clone(),
        };
        machine.look_through(&key)?;
        let key = if case { key } else { folded(key) };
        if seen.get_value(&key)?.is_none() {
            seen.set(key, Value::None)?;
            kept.push(item);
        }
    }
    Ok(kept)
}
