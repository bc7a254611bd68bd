//! Filters, which follow `|`.

mod items;
mod numbers;
mod order;
mod text;

use super::{
    arguments::Arguments,
    error::{Result, fail},
    machine::Machine,
    names::FILTERS,
    value::Value,
};
use items::collection;
use numbers::numeric;
use text::{textual, tojson};

/// Filters of Jinja2 that are not supported: for HTML, or random.
const OTHERS: [&str; 5] = ["random", "striptags", "urlize", "wordwrap", "xmlattr"];

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
            collection(machine, name, value, arguments, filter)
        }
        _ if FILTERS.contains(&name) => textual(machine, name, value, arguments),
        _ if OTHERS.contains(&name) => fail!("filter {name} is unknown here"),
        _ => fail!("filter {name} is unknown"),
    }
}
