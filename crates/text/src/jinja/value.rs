//! Values of Python.

use super::error::{Result, fail};
use crate::value::ChatValue;
use indexmap::{Equivalent, IndexMap};
use std::{
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Maximal nesting of lists and dictionaries. Each level takes stack when a value is written,
/// compared or dropped.
const DEPTH: u32 = 200;

/// Maximal weight of a value with all its contents, counted at each occurrence: nested lists soon
/// exceed any memory when they are written.
const WEIGHT: usize = 1 << 30;

/// A Python value.
#[derive(Clone, Debug)]
pub enum Value {
    /// Jinja's undefined value.
    Undefined(Arc<Undefined>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    /// Text from `safe` or `escape`: text joined to it is escaped for HTML.
    Markup(Arc<str>),
    List(Arc<Sequence>),
    Tuple(Arc<Sequence>),
    Dict(Arc<Dict>),
    /// A view from `keys`, `values` or `items`.
    View(View, Arc<Dict>),
    /// Start, stop and step.
    Range(Arc<[i128; 3]>),
    /// A method of a value, not yet called.
    Method(Arc<(Value, Arc<str>)>),
    /// A function of the environment.
    Function(&'static str),
    /// A mutable object, by its index in the machine.
    Object(usize),
    /// The loop of a `for`, by its index.
    Loop(usize),
}

/// An undefined value, by its cause.
#[derive(Debug)]
pub enum Undefined {
    Name(Arc<str>),
    Attribute(&'static str, Arc<str>),
    /// A method that would change its value, which the sandbox refuses.
    Unsafe(&'static str, Arc<str>),
    Other(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Keys,
    Values,
    Items,
}

/// Items with their nesting depth and weight.
#[derive(Debug)]
pub struct Sequence {
    pub items: Vec<Value>,
    depth: u32,
    weight: usize,
}

/// A dictionary.
#[derive(Debug, Default)]
pub struct Dict {
    entries: IndexMap<Key, Value>,
    depth: u32,
    weight: usize,
}

/// A hashable value.
#[derive(Clone, Debug)]
pub struct Key(Value);

impl Undefined {
    /// Reason of the error when it is used.
    pub fn reason(&self) -> String {
        match self {
            Self::Name(name) => format!("'{name}' is undefined"),
            Self::Attribute(kind, name) => {
                format!("undefined: '{kind} object' has no attribute '{name}'")
            }
            Self::Unsafe(kind, name) => format!(
                "the sandbox of chat templates refuses {name} of '{kind} object': access to attribute \
                 '{name}' of '{kind}' object is unsafe"
            ),
            Self::Other(reason) => format!("undefined: {reason}"),
        }
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(value as i128)
    }
}

impl Value {
    pub fn undefined(reason: &'static str) -> Self {
        Self::Undefined(Arc::new(Undefined::Other(reason)))
    }

    pub fn list(items: Vec<Value>) -> Result<Self> {
        Sequence::new(items).map(|items| Self::List(Arc::new(items)))
    }

    pub fn tuple(items: Vec<Value>) -> Result<Self> {
        Sequence::new(items).map(|items| Self::Tuple(Arc::new(items)))
    }

    /// Converts a value of a conversation.
    pub fn given(value: &ChatValue) -> Result<Self> {
        Ok(match value {
            ChatValue::Null => Self::None,
            ChatValue::Bool(value) => Self::Bool(*value),
            ChatValue::Int(value) => Self::Int(*value),
            ChatValue::Float(value) => Self::Float(*value),
            ChatValue::Text(text) => Self::from(text.as_str()),
            ChatValue::List(items) => {
                Self::list(items.iter().map(Self::given).collect::<Result<_>>()?)?
            }
            ChatValue::Map(fields) => {
                let mut dict = Dict::default();
                for (name, value) in fields {
                    dict.set(Self::from(name.as_str()), Self::given(value)?)?;
                }
                Self::Dict(Arc::new(dict))
            }
        })
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    pub fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Returns the integer, if it is one; booleans are.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(value) => Some(*value),
            Self::Bool(value) => Some((*value).into()),
            _ => None,
        }
    }

    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            _ => self.as_int().map(|value| value as f64),
        }
    }

    /// Python's name of the value's type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Method(_) => "builtin_function_or_method",
            Self::Function(_) => "function",
            Self::Object(_) => "generator, macro or namespace",
            Self::Loop(_) => "LoopContext",
        }
    }

    /// Nesting depth: 0 without items.
    fn depth(&self) -> u32 {
        match self {
            Self::List(items) | Self::Tuple(items) => items.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Method(method) => method.0.depth(),
            _ => 0,
        }
    }

    /// Approximate size in bytes when written.
    pub fn weight(&self) -> usize {
        16 + match self {
            Self::Str(text) | Self::Markup(text) => text.len(),
            Self::List(items) | Self::Tuple(items) => items.weight,
            Self::Dict(dict) | Self::View(_, dict) => dict.weight,
            _ => 0,
        }
    }

    /// Returns the items of a list or a tuple.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(&items.items),
            _ => None,
        }
    }

    /// Python's `==`.
    pub fn equals(&self, other: &Self) -> bool {
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return a == b;
        }
        if let (Some(a), Some(b)) = (self.as_float(), other.as_float()) {
            return a == b;
        }
        if let (Some(a), Some(b)) = (self.as_str(), other.as_str()) {
            return a == b;
        }
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                let same = |(a, b): (&Self, &Self)| a.equals(b);
                a.items.len() == b.items.len() && a.items.iter().zip(&b.items).all(same)
            }
            (Self::Dict(a), Self::Dict(b)) => a.equals(b),
            (Self::View(View::Values, a), Self::View(View::Values, b)) => Arc::ptr_eq(a, b),
            (Self::View(a, x), Self::View(b, y)) => {
                a == b && if *a == View::Items { x.equals(y) } else { x.has_keys(y) }
            }
            (Self::Range(a), Self::Range(b)) => range(a).eq(range(b)),
            (Self::Method(a), Self::Method(b)) => Arc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            (Self::Object(a), Self::Object(b)) | (Self::Loop(a), Self::Loop(b)) => a == b,
            _ => false,
        }
    }

    /// Python's order, if the values have one.
    pub fn compare(&self, other: &Self, operator: &str) -> Result<Option<Ordering>> {
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.as_float(), other.as_float()) {
            return Ok(a.partial_cmp(&b));
        }
        match (self, other) {
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => Ok(Some(a.cmp(b))),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b) {
                        return a.compare(b, operator);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            (Self::Undefined(what), _) | (_, Self::Undefined(what)) => fail!("{}", what.reason()),
            _ => fail!(
                "'{operator}' not supported between instances of '{}' and '{}'",
                self.kind(),
                other.kind(),
            ),
        }
    }
}

/// Iterates over the numbers of a range.
pub fn range(bounds: &[i128; 3]) -> impl Iterator<Item = i128> + use<> {
    let [start, stop, step] = *bounds;
    let going = move |at: &i128| if step > 0 { *at < stop } else { *at > stop };
    std::iter::successors(Some(start), move |at| at.checked_add(step)).take_while(going)
}

fn nested(depth: u32) -> Result<u32> {
    if depth >= DEPTH {
        fail!("a value is nested deeper than {DEPTH} levels");
    }
    Ok(depth + 1)
}

fn weighed(weight: usize) -> Result<usize> {
    if weight > WEIGHT {
        fail!("a value has more than {WEIGHT} bytes");
    }
    Ok(weight)
}

impl Sequence {
    fn new(items: Vec<Value>) -> Result<Self> {
        let depth = nested(items.iter().map(Value::depth).max().unwrap_or(0))?;
        let weight = weighed(items.iter().map(Value::weight).sum())?;
        Ok(Self { items, depth, weight })
    }
}

impl Dict {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn set(&mut self, key: Value, value: Value) -> Result<()> {
        self.depth = self.depth.max(nested(key.depth().max(value.depth()))?);
        self.weight = weighed(self.weight + key.weight() + value.weight())?;
        self.entries.insert(Key::new(key)?, value);
        Ok(())
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }

    pub fn get_value(&self, key: &Value) -> Result<Option<&Value>> {
        match key.as_str() {
            Some(key) => Ok(self.get(key)),
            None => Ok(self.entries.get(&Key::new(key.clone())?)),
        }
    }

    pub fn keys(&self) -> impl Iterator<Item = &Value> {
        self.entries.keys().map(|key| &key.0)
    }

    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.entries.values()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (&key.0, value))
    }

    pub fn copy(&self) -> Self {
        Self { entries: self.entries.clone(), depth: self.depth, weight: self.weight }
    }

    fn equals(&self, other: &Self) -> bool {
        let same = |(key, value): (&Key, &Value)| {
            other.entries.get(key).is_some_and(|other| value.equals(other))
        };
        self.len() == other.len() && self.entries.iter().all(same)
    }

    fn has_keys(&self, other: &Self) -> bool {
        self.len() == other.len() && self.entries.keys().all(|key| other.entries.contains_key(key))
    }
}

impl Key {
    fn new(value: Value) -> Result<Self> {
        fn hashable(value: &Value) -> bool {
            match value {
                Value::List(_) | Value::Dict(_) | Value::View(..) => false,
                Value::Tuple(items) => items.items.iter().all(hashable),
                _ => true,
            }
        }
        if !hashable(&value) {
            fail!("unhashable type: '{}'", value.kind());
        }
        Ok(Self(value))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.equals(&other.0)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

fn hash<H: Hasher>(value: &Value, state: &mut H) {
    match value {
        Value::Str(text) | Value::Markup(text) => text.hash(state),
        // Equal numbers have the same hash.
        Value::Float(value) if value.fract() == 0.0 => Some(*value as i128).hash(state),
        Value::Float(value) => value.to_bits().hash(state),
        Value::Tuple(items) => items.items.iter().for_each(|item| hash(item, state)),
        _ => value.as_int().hash(state),
    }
}

impl Equivalent<Key> for str {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_str() == Some(self)
    }
}
