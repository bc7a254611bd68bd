//! Filters: what follows `|`.

mod items;
mod numbers;
mod order;
mod text;

use super::{Result, arguments::Arguments, fail, machine::Machine, value::Value};
use items::collection;
use numbers::numeric;
use std::sync::Arc;
use text::{textual, tojson};

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
