//! Adapter methods, one file each, and the list of those that files may have.

mod dora;
pub(crate) mod lora;
pub(crate) mod lora_fields;
pub(crate) mod lora_method;
pub(crate) mod settings;
pub(crate) mod whole;

use crate::{config::LoraConfig, method::Method};
use serde_json::{Map, Value};
use settings::{Settings, shown};
use std::sync::Arc;

/// Settings of a file.
type Fields = Map<String, Value>;

/// Reads the settings of a method from a file.
type Read = fn(Fields) -> Result<Arc<dyn Method>, String>;

/// The methods, by PEFT's names.
const METHODS: [(&str, Read); 1] = [("LORA", |fields| boxed(LoraConfig::of_a_file(fields)))];

fn boxed<M: Method>(method: Result<M, String>) -> Result<Arc<dyn Method>, String> {
    method.map(|method| Arc::new(method) as Arc<dyn Method>)
}

/// Reads the settings of an adapter of any method.
pub(crate) fn read(Settings(fields): Settings) -> Result<Arc<dyn Method>, String> {
    let kind = fields.get("peft_type").unwrap_or(&Value::Null);
    let known =
        METHODS.iter().find(|(name, _)| kind == name || (kind.is_null() && *name == "LORA"));
    let Some((_, read)) = known else {
        let names = METHODS.map(|(name, _)| name).join(", ");
        return Err(format!("peft_type is {}: supported are {names}", shown(kind)));
    };
    read(fields)
}
