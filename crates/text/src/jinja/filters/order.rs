//! Filters that compare items with each other.

use super::super::{
    arguments::{Arguments, given},
    error::{Error, Result},
    machine::{Machine, Object},
    value::{Dict, Value},
};
use std::cmp::Ordering;

/// Returns the value of a dotted attribute path, as `map` and similar filters find it.
pub fn get(machine: &mut Machine, value: &Value, path: &Value) -> Result<Value> {
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

/// Lower-cases text, for comparisons that ignore case.
pub fn folded(value: Value) -> Value {
    match value.as_str() {
        Some(text) => text.to_lowercase().into(),
        None => value,
    }
}

/// Sorts values by keys; Python must be able to compare any two of them.
pub fn sort(mut items: Vec<(Vec<Value>, Value)>, reverse: bool) -> Result<Vec<Value>> {
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

pub fn ordered(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
) -> Result<Value> {
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
    // Approximate number of comparisons per key.
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
                // If case is ignored, the group is named by its first item.
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

pub fn unique(machine: &mut Machine, value: Value, arguments: Arguments) -> Result<Vec<Value>> {
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
