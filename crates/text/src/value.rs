//! Values of conversations: JSON that keeps its order.

use indexmap::IndexMap;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use std::fmt;

/// A JSON object, which keeps the order of its keys.
pub type ChatMap = IndexMap<String, ChatValue>;

/// A JSON value. Objects keep the order of their keys, in which chat templates write them.
///
/// ```
/// use burn_lora_text::ChatValue;
///
/// let json = r#"{"unit":"celsius","city":"Zürich","days":[1,2.0,null]}"#;
/// let value: ChatValue = serde_json::from_str(json)?;
/// assert_eq!(value.to_string(), json);
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ChatValue {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction.
    Int(i128),
    /// Another number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<ChatValue>),
    /// An object.
    Map(ChatMap),
}

impl ChatValue {
    /// Converts a value to JSON.
    ///
    /// ```
    /// # use burn_lora_text::ChatValue;
    /// assert_eq!(ChatValue::new("Hi")?, ChatValue::Text("Hi".into()));
    /// # Ok::<_, serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// A value that JSON cannot represent, such as one with lists as keys, or with more than 127
    /// levels of nesting.
    pub fn new(value: impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(&serde_json::to_vec(&value)?)
    }

    /// Returns the text, if it is one.
    ///
    /// ```
    /// # use burn_lora_text::ChatValue;
    /// assert_eq!(ChatValue::from("Hi").as_str(), Some("Hi"));
    /// ```
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns `true` if it is `null`.
    ///
    /// ```
    /// # use burn_lora_text::ChatValue;
    /// assert!(ChatValue::Null.is_null());
    /// ```
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Returns a field of an object, by its name.
    ///
    /// ```
    /// # use burn_lora_text::ChatValue;
    /// let part: ChatValue = serde_json::from_str(r#"{"type": "text", "text": "Hi"}"#)?;
    /// assert_eq!(part.get("text"), Some(&ChatValue::from("Hi")));
    /// # Ok::<_, serde_json::Error>(())
    /// ```
    pub fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => fields.get(name),
            _ => None,
        }
    }

    /// Returns the name of the value's kind, for messages: `"text"`, `"a list"`.
    ///
    /// ```
    /// # use burn_lora_text::ChatValue;
    /// assert_eq!(ChatValue::Null.kind(), "null");
    /// ```
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "an object",
        }
    }
}

/// Writes the value as JSON.
impl fmt::Display for ChatValue {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

macro_rules! from {
    ($($kind:ty => $variant:ident),*) => {
        $(impl From<$kind> for ChatValue {
            fn from(value: $kind) -> Self {
                Self::$variant(value.into())
            }
        })*
    };
}

from!(bool => Bool, i32 => Int, i64 => Int, u64 => Int, f32 => Float, f64 => Float, &str => Text,
      &String => Text, String => Text, Vec<ChatValue> => List, ChatMap => Map);

impl Serialize for ChatValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => value.serialize(serializer),
            Self::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => value.serialize(serializer),
                (_, Ok(value)) => value.serialize(serializer),
                _ => value.serialize(serializer),
            },
            Self::Float(value) => value.serialize(serializer),
            Self::Text(text) => text.serialize(serializer),
            Self::List(items) => items.serialize(serializer),
            Self::Map(fields) => serializer.collect_map(fields),
        }
    }
}

impl<'de> Deserialize<'de> for ChatValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Values)
    }
}

struct Values;

impl<'de> Visitor<'de> for Values {
    type Value = ChatValue;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<ChatValue, E> {
        Ok(ChatValue::Null)
    }

    fn visit_none<E>(self) -> Result<ChatValue, E> {
        Ok(ChatValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<ChatValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<ChatValue, E> {
        Ok(ChatValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<ChatValue, E> {
        Ok(ChatValue::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<ChatValue, E> {
        Ok(ChatValue::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<ChatValue, E> {
        Ok(ChatValue::Int(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<ChatValue, E> {
        Ok(ChatValue::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<ChatValue, E> {
        Ok(ChatValue::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<ChatValue, E> {
        Ok(ChatValue::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<ChatValue, A::Error> {
        let mut list = vec![];
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(ChatValue::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ChatValue, A::Error> {
        map(entries).map(ChatValue::Map)
    }
}

/// Reads an object. As in Python, a repeated key keeps its first place and gets its last value.
pub(crate) fn map<'de, A: MapAccess<'de>>(mut entries: A) -> Result<ChatMap, A::Error> {
    let mut fields = ChatMap::new();
    while let Some((name, value)) = entries.next_entry()? {
        fields.insert(name, value);
    }
    Ok(fields)
}
