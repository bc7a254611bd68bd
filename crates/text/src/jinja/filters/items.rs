//! Filters of items.

use super::{
    super::{
        arguments::{Arguments, count, given, text},
        ast::Operator,
        error::{Result, fail},
        machine::Machine,
        tests,
        value::{Dict, Value, View},
    },
    order::{folded, get, ordered, sort, unique},
};
use std::sync::Arc;

/// A function that applies a filter by its name, which `map` does to each item.
type Filter = fn(&mut Machine, &str, Value, Arguments) -> Result<Value>;

pub fn collection(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
    filter: Filter,
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
                // Attributes only, not the items.
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
            let separator = separator.map_or(Ok("".into()), |text| machine.soft(&text))?;
            let mut out = String::new();
            for (number, item) in machine.iterate(&value)?.into_iter().enumerate() {
                let item = match &attribute {
                    Some(attribute) => get(machine, &item, attribute)?,
                    None => item,
                };
                if number > 0 {
                    out += &separator;
                }
                out += &machine.soft(&item)?;
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
                sum = machine.binary(Operator::Add, &sum, &item)?;
            }
            sum
        }
        // Lazy filters fail only where their items are requested.
        _ => {
            let items = generated(machine, name, value, arguments, filter);
            machine.iterator(items)?
        }
    })
}

/// Items of a generator of Jinja2.
fn generated(
    machine: &mut Machine,
    name: &str,
    value: Value,
    arguments: Arguments,
    filter: Filter,
) -> Result<Vec<Value>> {
    Ok(match name {
        // An empty or undefined value has no items.
        "map" | "select" | "reject" | "selectattr" | "rejectattr" if !machine.truth(&value) => {
            vec![]
        }
        "items" => {
            arguments.none(name)?;
            match &value {
                Value::Undefined(_) => vec![],
                Value::Dict(dict) => {
                    let view = Value::View(View::Items, dict.clone());
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

/// Name of the filter or test that another filter applies, and its arguments.
fn first_of(name: &str, mut arguments: Arguments) -> Result<(Arc<str>, Arguments)> {
    if arguments.positional.is_empty() {
        fail!("{name} requires a filter argument");
    }
    let first = arguments.positional.remove(0);
    Ok((text(name, &first)?, arguments))
}
