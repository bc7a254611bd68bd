//! Messages of a conversation, as data sets have them.

use super::read::{columns, kind};
use burn_lora_llama::Message;
use serde_json::Value;
use std::collections::BTreeMap;

/// What data sets call the roles, and what templates call them.
pub(crate) type Roles = BTreeMap<String, String>;

const ROLES: [(&str, &str); 14] = [
    ("system", "system"),
    ("developer", "developer"),
    ("user", "user"),
    ("human", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("tool", "tool"),
    ("observation", "tool"),
    ("function", "function"),
    ("ipython", "ipython"),
    ("environment", "environment"),
];

/// Fields that say whether a message is trained on.
const TRAIN: [&str; 3] = ["train", "training", "weight"];

pub(crate) fn roles() -> Roles {
    ROLES.iter().map(|(name, role)| (name.to_string(), role.to_string())).collect()
}

/// A message, and whether it is trained on if it says so.
pub(crate) fn message(item: Value, roles: &Roles) -> Result<(Message, Option<bool>), String> {
    let mut fields = columns(item)?;
    // Tables give a field that one message has to all of them.
    fields.retain(|_, value| !value.is_null());
    let mut train = None;
    for name in TRAIN {
        if let Some(value) = fields.remove(name) {
            train = Some(flag(name, &value)?);
        }
    }
    for (name, alias) in [("role", "from"), ("content", "value")] {
        if !fields.contains_key(name)
            && let Some(value) = fields.remove(alias)
        {
            fields.insert(name.into(), value);
        }
    }
    let role = match fields.get("role") {
        Some(Value::String(role)) => role,
        Some(other) => return Err(format!("its role is {}, but must be text", kind(other))),
        None => return Err("it has no `role` (or `from`)".into()),
    };
    let Some(role) = roles.get(role) else {
        return Err(format!(
            "unknown role `{role}` (known: {}): map it to one of these by `role`",
            roles.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        ));
    };
    fields.insert("role".into(), Value::from(role.as_str()));
    if !fields.contains_key("content") && !fields.contains_key("tool_calls") {
        return Err("it has no `content` (or `value`)".into());
    }
    let message = serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string());
    Ok((message?, train))
}

fn flag(name: &str, value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(train) => Ok(*train),
        Value::Number(weight) if weight.as_f64() == Some(1.0) => Ok(true),
        Value::Number(weight) if weight.as_f64() == Some(0.0) => Ok(false),
        other => Err(format!("`{name}` is {other}, but must be true, false, 1 or 0")),
    }
}
