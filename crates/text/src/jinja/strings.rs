//! Methods of Python's strings.

use super::{
    access::bounds,
    arguments::{Arguments, count, given, int, text},
    error::{Result, fail},
    format,
    lexer::is_space,
    machine::Machine,
    value::Value,
};

pub fn method(
    machine: &mut Machine,
    object: &Value,
    name: &str,
    arguments: Arguments,
) -> Result<Value> {
    let own = object.as_str().unwrap_or_default();
    machine.work(own.len())?;
    let result = call(machine, own, name, arguments)?;
    // The methods of `Markup` return `Markup`.
    Ok(match (object, result) {
        (Value::Markup(_), Value::Str(text)) => Value::Markup(text),
        (_, result) => result,
    })
}

fn call(machine: &mut Machine, own: &str, name: &str, arguments: Arguments) -> Result<Value> {
    let all = |test: fn(char) -> bool| !own.is_empty() && own.chars().all(test);
    // `true` if all cased letters have this case, and there is one.
    let cased = |other: fn(&char) -> bool, own_case: fn(&char) -> bool| {
        !own.chars().any(|char| other(&char)) && own.chars().any(|char| own_case(&char))
    };
    let upper: fn(&char) -> bool = |char| char.is_uppercase();
    let lower: fn(&char) -> bool = |char| char.is_lowercase();
    Ok(match name {
        "upper" => arguments.none(name).map(|()| own.to_uppercase().into())?,
        "lower" | "casefold" => arguments.none(name).map(|()| own.to_lowercase().into())?,
        "capitalize" => arguments.none(name).map(|()| capitalize(own).into())?,
        "title" => arguments.none(name).map(|()| title(own).into())?,
        "swapcase" => {
            arguments.none(name)?;
            let swap = |char: char| -> String {
                if char.is_uppercase() {
                    char.to_lowercase().collect()
                } else {
                    char.to_uppercase().collect()
                }
            };
            own.chars().map(swap).collect::<String>().into()
        }
        "isspace" => arguments.none(name).map(|()| all(is_space).into())?,
        "isalpha" => arguments.none(name).map(|()| all(char::is_alphabetic).into())?,
        "isalnum" => arguments.none(name).map(|()| all(char::is_alphanumeric).into())?,
        "isdigit" | "isdecimal" | "isnumeric" => {
            arguments.none(name).map(|()| all(char::is_numeric).into())?
        }
        "isascii" => arguments.none(name).map(|()| own.is_ascii().into())?,
        "isprintable" => {
            arguments.none(name)?;
            let shown = super::write::repr(&own.into())?;
            (!own.contains(['\n', '\r', '\t']) && !shown.replace("\\\\", "").contains('\\')).into()
        }
        "islower" => arguments.none(name).map(|()| cased(upper, lower).into())?,
        "isupper" => arguments.none(name).map(|()| cased(lower, upper).into())?,
        "istitle" => {
            arguments.none(name)?;
            (title(own) == own && own.chars().any(|char| upper(&char))).into()
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = arguments.bind(name, ["chars"], 0)?;
            let chars = given(chars).map(|chars| text(name, &chars)).transpose()?;
            strip(own, name != "rstrip", name != "lstrip", chars.as_deref()).into()
        }
        "removeprefix" => {
            let [part] = parts(name, arguments)?;
            own.strip_prefix(&*part).unwrap_or(own).into()
        }
        "removesuffix" => {
            let [part] = parts(name, arguments)?;
            own.strip_suffix(&*part).unwrap_or(own).into()
        }
        "startswith" | "endswith" => {
            let [part, start, end] = arguments.bind(name, ["prefix", "start", "end"], 1)?;
            let part = part.unwrap_or(Value::None);
            let own = section(own, name, start, end)?;
            let has = |part: &Value| {
                let part = text(name, part)?;
                Ok(match (&own, name) {
                    (None, _) => false,
                    (Some((_, own)), "startswith") => own.starts_with(&*part),
                    (Some((_, own)), _) => own.ends_with(&*part),
                })
            };
            match &part {
                Value::Tuple(parts) => {
                    let mut found = false;
                    for part in &parts.items {
                        found |= has(part)?;
                    }
                    found.into()
                }
                Value::Str(_) | Value::Markup(_) => has(&part)?.into(),
                other => {
                    fail!("{name} first arg must be str or a tuple of str, not {}", other.kind())
                }
            }
        }
        "find" | "rfind" | "index" | "rindex" => {
            let [part, start, end] = arguments.bind(name, ["sub", "start", "end"], 1)?;
            let part = text(name, &part.unwrap_or(Value::None))?;
            let found = section(own, name, start, end)?.and_then(|(start, own)| {
                let found =
                    if name.starts_with('r') { own.rfind(&*part) } else { own.find(&*part) };
                found.map(|at| start + own[..at].chars().count())
            });
            match found {
                Some(at) => at.into(),
                None if name.ends_with("find") => Value::Int(-1),
                None => fail!("{name}: substring not found"),
            }
        }
        "count" => {
            let [part, start, end] = arguments.bind(name, ["sub", "start", "end"], 1)?;
            let part = text(name, &part.unwrap_or(Value::None))?;
            let own = section(own, name, start, end)?;
            own.map_or(0, |(_, own)| own.matches(&*part).count()).into()
        }
        "replace" => {
            let [old, new, limit] = arguments.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let (old, new) = (text(name, &old)?, text(name, &new)?);
            let limit = limit.map(|limit| int(name, &limit)).transpose()?;
            replace(machine, own, &old, &new, limit)?.into()
        }
        "split" | "rsplit" => {
            let [separator, limit] = arguments.bind(name, ["sep", "maxsplit"], 0)?;
            let separator = given(separator).map(|part| text(name, &part)).transpose()?;
            let limit = limit.map_or(Ok(-1), |limit| int(name, &limit))?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            split(machine, own, separator.as_deref(), limit, name == "rsplit")?
        }
        "splitlines" => {
            let [keep] = arguments.bind(name, ["keepends"], 0)?;
            let keep = keep.is_some_and(|keep| machine.truth(&keep));
            machine.work(own.len().saturating_mul(2))?;
            let lines = lines(own, keep).into_iter().map(Value::from).collect();
            machine.list(lines)?
        }
        "partition" | "rpartition" => {
            let [part] = parts(name, arguments)?;
            if part.is_empty() {
                fail!("{name}: empty separator");
            }
            let found =
                if name == "partition" { own.split_once(&*part) } else { own.rsplit_once(&*part) };
            let three = match found {
                Some((before, after)) => [before, &part, after],
                None if name == "partition" => [own, "", ""],
                None => ["", "", own],
            };
            machine.tuple(three.map(Value::from).into())?
        }
        "join" => {
            let [items] = arguments.bind(name, ["iterable"], 1)?;
            let items = machine.iterate(&items.unwrap_or(Value::None))?;
            let mut out = String::new();
            for (number, item) in items.iter().enumerate() {
                let Some(item) = item.as_str() else {
                    fail!("sequence item {number}: expected str instance, {} found", item.kind())
                };
                if number > 0 {
                    out += own;
                }
                out += item;
                machine.check(out.len())?;
            }
            machine.work(out.len())?;
            out.into()
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = arguments.bind(name, ["width", "fillchar"], 1)?;
            let width = count(name, &width.unwrap_or(Value::None))?;
            let fill = fill.map(|fill| text(name, &fill)).transpose()?;
            let fill = fill.as_deref().unwrap_or(" ");
            let missing = width.saturating_sub(own.chars().count());
            let left = match name {
                "ljust" => 0,
                "rjust" => missing,
                // As Python splits an odd number.
                _ => missing / 2 + (missing & width & 1),
            };
            machine.pad(own, fill, left, missing - left)?.into()
        }
        "zfill" => {
            let [width] = arguments.bind(name, ["width"], 1)?;
            let width = count(name, &width.unwrap_or(Value::None))?;
            let missing = width.saturating_sub(own.chars().count());
            let sign = usize::from(own.starts_with(['-', '+']));
            format!("{}{}", &own[..sign], machine.pad(&own[sign..], "0", missing, 0)?).into()
        }
        "expandtabs" => {
            let [size] = arguments.bind(name, ["tabsize"], 0)?;
            let size = size.map_or(Ok(8), |size| count(name, &size))?;
            machine.charge(own.matches('\t').count().saturating_mul(size))?;
            let (mut out, mut column) = (String::new(), 0);
            for char in own.chars() {
                match char {
                    '\t' if size > 0 => {
                        let spaces = size - column % size;
                        out.extend(std::iter::repeat_n(' ', spaces));
                        column += spaces;
                    }
                    '\t' => (),
                    '\n' | '\r' => {
                        out.push(char);
                        column = 0;
                    }
                    _ => {
                        out.push(char);
                        column += 1;
                    }
                }
            }
            out.into()
        }
        "format" => format::braces(machine, own, arguments)?.into(),
        _ => fail!("str has no method named {name} here"),
    })
}

fn parts<const N: usize>(name: &str, arguments: Arguments) -> Result<[std::sync::Arc<str>; N]> {
    let values = arguments.bind(name, ["text"; N], N)?;
    let mut texts = [const { None }; N];
    for (slot, value) in texts.iter_mut().zip(values) {
        *slot = Some(text(name, &value.unwrap_or(Value::None))?);
    }
    Ok(texts.map(Option::unwrap_or_default))
}

/// The part of a text between two positions, and the index of its first character; `None` if that
/// is beyond the text.
fn section<'a>(
    own: &'a str,
    name: &str,
    start: Option<Value>,
    end: Option<Value>,
) -> Result<Option<(usize, &'a str)>> {
    let position = |value| given(value).map(|value| int(name, &value)).transpose();
    let (start, end) = (position(start)?, position(end)?);
    if start.is_none() && end.is_none() {
        return Ok(Some((0, own)));
    }
    let length = own.chars().count();
    if start.is_some_and(|start| start > length as i128) {
        return Ok(None);
    }
    let (start, end) = bounds(start, end, length);
    let byte = |at: usize| own.char_indices().nth(at).map_or(own.len(), |(byte, _)| byte);
    Ok((start <= end).then(|| (start, &own[byte(start)..byte(end)])))
}

pub fn strip<'a>(own: &'a str, left: bool, right: bool, chars: Option<&str>) -> &'a str {
    let stripped = |char: char| chars.map_or_else(|| is_space(char), |chars| chars.contains(char));
    let own = if left { own.trim_start_matches(stripped) } else { own };
    if right { own.trim_end_matches(stripped) } else { own }
}

pub fn replace(
    machine: &mut Machine,
    own: &str,
    old: &str,
    new: &str,
    limit: Option<i128>,
) -> Result<String> {
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let found = own.matches(old).count().min(limit);
    machine.charge(found.saturating_mul(new.len()).saturating_add(own.len()))?;
    Ok(own.replacen(old, new, limit))
}

fn split(
    machine: &mut Machine,
    own: &str,
    separator: Option<&str>,
    limit: usize,
    right: bool,
) -> Result<Value> {
    let found = match separator {
        Some(separator) => own.matches(separator).count(),
        None => own.matches(is_space).count(),
    };
    machine.work(found.min(limit).saturating_mul(2 * size_of::<Value>()))?;
    let parts: Vec<&str> = match separator {
        Some("") => fail!("split: empty separator"),
        Some(separator) => {
            let count = limit.saturating_add(1);
            if right {
                let mut parts: Vec<_> = own.rsplitn(count, separator).collect();
                parts.reverse();
                parts
            } else {
                own.splitn(count, separator).collect()
            }
        }
        None => {
            let (mut parts, mut rest) = (vec![], own);
            loop {
                rest = if right {
                    rest.trim_end_matches(is_space)
                } else {
                    rest.trim_start_matches(is_space)
                };
                if rest.is_empty() {
                    break;
                }
                let found = if right { rest.rfind(is_space) } else { rest.find(is_space) };
                let Some(at) = found.filter(|_| parts.len() < limit) else {
                    // The other end loses its whitespace only if the text was split there.
                    let whole = parts.len() >= limit;
                    parts.push(if whole { rest } else { rest.trim_matches(is_space) });
                    break;
                };
                let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                if right {
                    parts.push(&rest[after..]);
                    rest = &rest[..at];
                } else {
                    parts.push(&rest[..at]);
                    rest = &rest[after..];
                }
            }
            if right {
                parts.reverse();
            }
            parts
        }
    };
    machine.list(parts.into_iter().map(Value::from).collect())
}

/// Splits a text into lines, as Python does.
pub fn lines(own: &str, keep: bool) -> Vec<&str> {
    let newline = |char: char| {
        matches!(
            char,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (vec![], own);
    while !rest.is_empty() {
        let Some(at) = rest.find(newline) else {
            lines.push(rest);
            break;
        };
        let length = if rest[at..].starts_with("\r\n") {
            2
        } else {
            rest[at..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(if keep { &rest[..at + length] } else { &rest[..at] });
        rest = &rest[at + length..];
    }
    lines
}

pub fn capitalize(own: &str) -> String {
    let mut chars = own.chars();
    let Some(first) = chars.next() else { return String::new() };
    titled(first) + &chars.as_str().to_lowercase()
}

/// Title case of a character at the start of a word: if it becomes several, only the first is upper
/// case.
fn titled(char: char) -> String {
    let upper: String = char.to_uppercase().collect();
    let mut chars = upper.chars();
    chars.next().map(String::from).unwrap_or_default() + &chars.as_str().to_lowercase()
}

fn title(own: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for char in own.chars() {
        if inside {
            out.extend(char.to_lowercase());
        } else {
            out += &titled(char);
        }
        inside = char.is_uppercase() || char.is_lowercase();
    }
    out
}
