//! Messages of a conversation, as stored in data sets.

use super::read::columns;
use burn_lora_text::{ChatValue as Value, Message};
use std::collections::BTreeMap;

/// Map from roles of data sets to those of templates.
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

/// Parses a message, and whether it is trained on, if it says so.
pub(crate) fn message(item: Value, roles: &Roles) -> Result<(Message, Option<bool>), String> {
    let mut fields = columns(item)?;
    // A field that is `null` counts as missing, as in transformers.
    fields.retain(|_, value| !value.is_null());
    let mut train = None;
    for name in TRAIN {
        if let Some(value) = fields.shift_remove(name) {
            train = Some(flag(name, &value)?);
        }
    }
    for (name, alias) in [("role", "from"), ("content", "value")] {
        if !fields.contains_key(name)
            && let Some(at) = fields.get_index_of(alias)
        {
            // Keeps its place among the others.
            let value = fields.shift_remove(alias).unwrap_or_default();
            fields.shift_insert(at, name.into(), value);
        }
    }
    let role = match fields.get("role") {
        Some(Value::Text(role)) => role,
        Some(other) => return Err(format!("its role is {}, but must be text", other.kind())),
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
    if let Some(content) = fields.get("content") {
        readable(content)?;
    }
    Ok((Message::try_from(Value::Map(fields))?, train))
}

/// Rejects content that a text model cannot be trained on: a template would write a placeholder for
/// an image.
fn readable(content: &Value) -> Result<(), String> {
    const MEDIA: [&str; 4] = ["image", "audio", "video", "file"];
    let parts = match content {
        Value::Text(_) | Value::Map(_) => return Ok(()),
        Value::List(parts) => parts,
        _ => return Err("`content` is neither text nor a list of parts with a type".into()),
    };
    for kind in parts.iter().filter_map(|part| part.get("type")?.as_str()) {
        if MEDIA.iter().any(|media| kind.contains(media)) {
            return Err(format!("`content` has a part of type `{kind}`: only text is read"));
        }
    }
    Ok(())
}

fn flag(name: &str, value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(train) => Ok(*train),
        Value::Int(1) => Ok(true),
        Value::Int(0) => Ok(false),
        Value::Float(weight) if *weight == 1.0 => Ok(true),
        Value::Float(weight) if *weight == 0.0 => Ok(false),
        other => Err(format!("`{name}` is {other}, but must be true, false, 1 or 0")),
    }
}
