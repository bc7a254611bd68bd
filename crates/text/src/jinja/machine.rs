//! State and limits of a rendering.

use super::{
    ast::{For, Macro, Name},
    error::{Error, Result, fail},
    value::{Dict, Value},
    write::string,
};
use std::sync::Arc;

/// Maximal depth of evaluation: of macros that call each other, and of what is nested in them. Each
/// level takes stack.
const DEPTH: usize = 400;

/// Limits of a rendering.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Number of steps: expressions and statements executed.
    pub steps: u64,
    /// Bytes of the output, and of each value.
    pub length: usize,
    /// Bytes of all values created, including those dropped meanwhile.
    pub memory: usize,
}

impl Limits {
    /// Limits for an input of this size in bytes: no real template comes near them.
    pub fn of(bytes: usize) -> Self {
        Self {
            steps: 3_000_000 + 200 * bytes as u64,
            length: bytes.saturating_mul(16).saturating_add(64 << 20),
            memory: bytes.saturating_mul(1024).saturating_add(512 << 20),
        }
    }
}

/// A mutable object, or one with a part of the template.
#[derive(Debug)]
pub enum Object<'t> {
    Namespace(Vec<(Name, Value)>),
    Iterator(Result<Vec<Value>>),
    Cycler(Vec<Value>, usize),
    Joiner(Value, bool),
    /// A macro, and the scope in which it was defined.
    Macro(&'t Macro, usize),
    /// A group of `groupby`.
    Group(Value, Value),
}

impl Object<'_> {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Iterator(_) => "generator",
            Self::Cycler(..) => "Cycler",
            Self::Joiner(..) => "Joiner",
            Self::Macro(..) => "Macro",
            Self::Group(..) => "_GroupTuple",
        }
    }
}

/// A running loop.
#[derive(Debug)]
pub struct LoopState<'t> {
    pub items: Vec<Value>,
    pub at: usize,
    pub depth: usize,
    pub changed: Option<Vec<Value>>,
    /// The statement, and the scope around it, if the loop is recursive.
    pub recursive: Option<(&'t For, usize)>,
}

pub struct Scope {
    pub names: Vec<(Name, Value)>,
    pub parent: Option<usize>,
}

/// The state of a rendering.
pub struct Machine<'t> {
    /// Scopes by index; the first has the variables given to the template.
    pub scopes: Vec<Scope>,
    pub scope: usize,
    /// Number of scopes that are kept, because macros were defined in them.
    pub kept: usize,
    objects: Vec<Object<'t>>,
    pub loops: Vec<LoopState<'t>>,
    pub out: String,
    pub marks: [char; 2],
    limits: Limits,
    depth: usize,
    pub loop_name: Name,
}

impl<'t> Machine<'t> {
    pub fn new(variables: Vec<(&str, Value)>, marks: [char; 2], limits: Limits) -> Self {
        let given = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
        Self {
            scopes: vec![
                Scope { names: given, parent: None },
                Scope { names: vec![], parent: Some(0) },
            ],
            scope: 1,
            kept: 2,
            objects: vec![],
            loops: vec![],
            out: String::new(),
            marks,
            limits,
            depth: 0,
            loop_name: "loop".into(),
        }
    }

    /// Counts bytes that are created or processed.
    pub fn work(&mut self, bytes: usize) -> Result<()> {
        self.limits.memory = self.limits.memory.checked_sub(bytes).ok_or_else(|| {
            Error::new("the template takes more memory than any conversation of this length needs")
        })?;
        Ok(())
    }

    /// Counts the text that an operation processes.
    pub fn look(&mut self, value: &Value) -> Result<()> {
        match value.as_str() {
            Some(text) => self.work(text.len() / 4),
            None => Ok(()),
        }
    }

    /// Counts all contents of a value that an operation processes.
    pub fn look_through(&mut self, value: &Value) -> Result<()> {
        self.work(value.weight() / 4)
    }

    /// Checks the length of a text against its limit.
    pub fn check(&self, length: usize) -> Result<()> {
        if length > self.limits.length {
            fail!("the template makes a text of more than {} bytes", self.limits.length);
        }
        Ok(())
    }

    /// Checks and counts the length of a text before it is created.
    pub fn charge(&mut self, length: usize) -> Result<()> {
        self.check(length).and_then(|()| self.work(length))
    }

    /// Maximal length of a text.
    pub fn length_limit(&self) -> usize {
        self.limits.length.min(self.limits.memory)
    }

    pub fn step(&mut self) -> Result<()> {
        self.limits.steps = self.limits.steps.checked_sub(1).ok_or_else(|| {
            Error::new("the template takes more steps than any conversation of this length needs")
        })?;
        Ok(())
    }

    pub fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            fail!("the template's macros or loops call each other deeper than any need to");
        }
        let result = run(self);
        self.depth -= 1;
        result
    }

    pub fn write(&mut self, text: &str) -> Result<()> {
        self.check(self.out.len() + text.len())?;
        self.work(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// Captures the text that a body writes.
    pub fn captured(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<String> {
        let outer = std::mem::take(&mut self.out);
        let result = run(self);
        let text = std::mem::replace(&mut self.out, outer);
        result.map(|()| text)
    }

    pub fn new_object(&mut self, object: Object<'t>) -> Value {
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    pub fn object(&mut self, number: usize) -> Result<&mut Object<'t>> {
        self.objects.get_mut(number).ok_or_else(|| Error::new("an object that is no more"))
    }

    pub fn loop_state(&self, number: usize) -> Result<&LoopState<'t>> {
        self.loops.get(number).ok_or_else(|| Error::new("a loop that has ended"))
    }

    /// Runs a function in a new scope within another.
    pub fn scoped<T>(
        &mut self,
        parent: usize,
        run: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let outer = self.scope;
        self.scopes.push(Scope { names: vec![], parent: Some(parent) });
        self.scope = self.scopes.len() - 1;
        let own = self.scope;
        let result = run(self);
        self.scope = outer;
        self.scopes.truncate(own.max(self.kept));
        result
    }

    pub fn set(&mut self, name: &Name, value: Value) {
        set_field(&mut self.scopes[self.scope].names, name, value);
    }

    /// Creates a list, which counts as memory.
    pub fn list(&mut self, items: Vec<Value>) -> Result<Value> {
        self.work(items.len().saturating_mul(size_of::<Value>()))?;
        Value::list(items)
    }

    pub fn tuple(&mut self, items: Vec<Value>) -> Result<Value> {
        self.work(items.len().saturating_mul(size_of::<Value>()))?;
        Value::tuple(items)
    }

    /// Creates a generator, which is consumed once; its error is deferred until then.
    pub fn iterator(&mut self, items: Result<Vec<Value>>) -> Result<Value> {
        let count = items.as_ref().map_or(0, Vec::len);
        self.work(size_of::<Object>() + count.saturating_mul(size_of::<Value>()))?;
        Ok(self.new_object(Object::Iterator(items)))
    }

    /// Pads a text with `left` and `right` fillings.
    pub fn pad(&mut self, text: &str, fill: &str, left: usize, right: usize) -> Result<String> {
        let length = left.saturating_add(right).saturating_mul(fill.len());
        self.charge(length.saturating_add(text.len()))?;
        Ok(fill.repeat(left) + text + &fill.repeat(right))
    }

    /// Python's `str`, for output.
    pub fn text_of(&mut self, value: &Value) -> Result<String> {
        if let Value::Object(number) = value {
            let number = *number;
            return match self.object(number)? {
                Object::Namespace(fields) => {
                    // A namespace within itself has no text.
                    if fields.iter().any(|(_, value)| matches!(value, Value::Object(_))) {
                        fail!("a namespace that has another is written as text");
                    }
                    let mut dict = Dict::default();
                    for (name, value) in fields.iter() {
                        dict.set(Value::Str(name.clone()), value.clone())?;
                    }
                    Ok(format!("<Namespace {}>", string(&Value::Dict(Arc::new(dict)))?))
                }
                Object::Macro(own, _) => Ok(format!("<Macro '{}'>", own.name)),
                Object::Group(name, items) => {
                    let pair = Value::tuple(vec![name.clone(), items.clone()])?;
                    string(&pair)
                }
                other => {
                    let kind = other.kind();
                    fail!("a {kind} is written as text: use `| list` for its items")
                }
            };
        }
        if value.as_str().is_none() {
            self.charge(value.weight())?;
        }
        string(value)
    }

    /// Converts a value to text as Jinja's `soft_str`.
    pub fn soft(&mut self, value: &Value) -> Result<Arc<str>> {
        match value {
            Value::Str(text) | Value::Markup(text) => {
                self.work(text.len())?;
                Ok(text.clone())
            }
            other => {
                let text = self.text_of(other)?;
                Ok(text.into())
            }
        }
    }
}

/// Sets a name in a scope, or a field of a namespace.
pub fn set_field(fields: &mut Vec<(Name, Value)>, name: &Name, value: Value) {
    match fields.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => fields.push((name.clone(), value)),
    }
}
