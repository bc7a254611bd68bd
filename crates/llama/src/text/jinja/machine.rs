//! Runs templates, within limits.

use super::{
    Error, Result,
    arguments::Arguments,
    ast::{self, Call, Expression, For, Kind, Macro, Name, Statement, Target},
    fail, filters, methods, strings, tests,
    value::{Dict, Undefined, Value},
    write::string,
};
use std::sync::Arc;

/// How deep evaluation may go: macros that call each other, and what is nested in them. Each level
/// takes stack.
const DEPTH: usize = 400;

/// What a rendering may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps: expressions and statements that are run.
    pub steps: u64,
    /// Bytes of the text, and of each value.
    pub length: usize,
    /// Bytes of all values that are made, also of those that are dropped meanwhile.
    pub memory: usize,
}

impl Limits {
    /// Those for what is rendered of so many bytes: no template of a model comes near.
    pub fn of(bytes: usize) -> Self {
        Self {
            steps: 3_000_000 + 200 * bytes as u64,
            length: bytes.saturating_mul(16).saturating_add(64 << 20),
            memory: bytes.saturating_mul(1024).saturating_add(512 << 20),
        }
    }
}

pub fn render(
    body: &[Statement],
    variables: Vec<(&str, Value)>,
    marks: [char; 2],
    limits: Limits,
) -> Result<String> {
    let given = variables.into_iter().map(|(name, value)| (name.into(), value)).collect();
    let mut machine = Machine {
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
    };
    match machine.run(body)? {
        Flow::Next => Ok(machine.out),
        Flow::Break | Flow::Continue => fail!("`break` or `continue` outside of a loop"),
    }
}

/// An object that changes, or that has a part of the template.
#[derive(Debug)]
pub enum Object<'t> {
    Namespace(Vec<(Name, Value)>),
    Iterator(Result<Vec<Value>>),
    Cycler(Vec<Value>, usize),
    Joiner(Value, bool),
    /// A macro, and the scope that it was made in.
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

/// A loop that is gone through.
#[derive(Debug)]
pub struct LoopState<'t> {
    pub items: Vec<Value>,
    pub at: usize,
    depth: usize,
    changed: Option<Vec<Value>>,
    /// The statement, and the scope around it, if the loop may call itself.
    recursive: Option<(&'t For, usize)>,
}

struct Scope {
    names: Vec<(Name, Value)>,
    parent: Option<usize>,
}

#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

/// The state of a rendering.
pub struct Machine<'t> {
    /// Scopes by number; the first has the variables that were given.
    scopes: Vec<Scope>,
    scope: usize,
    /// How many of the scopes are kept, as macros were made in them.
    kept: usize,
    objects: Vec<Object<'t>>,
    loops: Vec<LoopState<'t>>,
    out: String,
    marks: [char; 2],
    limits: Limits,
    depth: usize,
    loop_name: Name,
}

impl<'t> Machine<'t> {
    /// Counts bytes that are made, or gone through.
    pub fn work(&mut self, bytes: usize) -> Result<()> {
        self.limits.memory = self.limits.memory.checked_sub(bytes).ok_or_else(|| {
            Error::new("the template takes more memory than any conversation of this length needs")
        })?;
        Ok(())
    }

    /// Counts the text that an operation goes through.
    pub fn look(&mut self, value: &Value) -> Result<()> {
        match value.as_str() {
            Some(text) => self.work(text.len() / 4),
            None => Ok(()),
        }
    }

    /// Counts all that is in a value, which an operation goes through.
    pub fn look_through(&mut self, value: &Value) -> Result<()> {
        self.work(value.weight() / 4)
    }

    /// Checks the length of a text.
    pub fn check(&self, length: usize) -> Result<()> {
        if length > self.limits.length {
            fail!("the template makes a text of more than {} bytes", self.limits.length);
        }
        Ok(())
    }

    /// Checks and counts the length of a text before it is made.
    pub fn charge(&mut self, length: usize) -> Result<()> {
        self.check(length).and_then(|()| self.work(length))
    }

    /// How long a text may be.
    pub fn length_limit(&self) -> usize {
        self.limits.length.min(self.limits.memory)
    }

    fn step(&mut self) -> Result<()> {
        self.limits.steps = self.limits.steps.checked_sub(1).ok_or_else(|| {
            Error::new("the template takes more steps than any conversation of this length needs")
        })?;
        Ok(())
    }

    fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.depth += 1;
        if self.depth > DEPTH {
            fail!("the template's macros or loops call each other deeper than any need to");
        }
        let result = run(self);
        self.depth -= 1;
        result
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.check(self.out.len() + text.len())?;
        self.work(text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// The text that a body writes.
    fn captured(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<String> {
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

    /// Runs something in a new scope within another.
    fn scoped<T>(&mut self, parent: usize, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = self.scope;
        self.scopes.push(Scope { names: vec![], parent: Some(parent) });
        self.scope = self.scopes.len() - 1;
        let own = self.scope;
        let result = run(self);
        self.scope = outer;
        self.scopes.truncate(own.max(self.kept));
        result
    }

    fn set(&mut self, name: &Name, value: Value) {
        set_field(&mut self.scopes[self.scope].names, name, value);
    }

    pub fn name(&self, name: &Name) -> Value {
        let mut scope = Some(self.scope);
        while let Some(number) = scope {
            let Scope { names, parent } = &self.scopes[number];
            if let Some((_, value)) = names.iter().find(|(known, _)| known == name) {
                return value.clone();
            }
            scope = *parent;
        }
        match methods::FUNCTIONS.iter().find(|function| ***function == **name) {
            Some(function) => Value::Function(function),
            None => Value::Undefined(Arc::new(Undefined::Name(name.clone()))),
        }
    }

    fn assign(&mut self, target: &Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.set(name, value),
            Target::Attribute(name, attribute) => {
                let found = self.name(name);
                if attribute.starts_with('_') {
                    fail!("a namespace has no attributes that begin with an underscore");
                }
                match found {
                    Value::Object(number) => match self.object(number)? {
                        Object::Namespace(fields) => set_field(fields, attribute, value),
                        _ => fail!("cannot assign attribute on non-namespace object"),
                    },
                    _ => fail!("cannot assign attribute on non-namespace object"),
                }
            }
            Target::Tuple(targets) => {
                let items = self.iterate(&value)?;
                if items.len() != targets.len() {
                    let (count, expected) = (items.len(), targets.len());
                    fail!("{count} values cannot be assigned to {expected} names");
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item)?;
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, body: &'t [Statement]) -> Result<Flow> {
        self.deeper(|machine| {
            for statement in body {
                let flow =
                    machine.statement(&statement.kind).map_err(|error| error.at(statement.line))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// A body that a loop is not left from.
    fn run_whole(&mut self, body: &'t [Statement]) -> Result<()> {
        match self.run(body)? {
            Flow::Next => Ok(()),
            _ => fail!("`break` or `continue` out of a block"),
        }
    }

    fn statement(&mut self, statement: &'t Kind) -> Result<Flow> {
        self.step()?;
        match statement {
            Kind::Text(text) => self.write(text)?,
            Kind::Print(expression) => {
                let value = self.evaluate(expression)?;
                match value.as_str() {
                    Some(text) => self.write(text)?,
                    None => {
                        let text = self.text_of(&value)?;
                        self.write(&text)?;
                    }
                }
            }
            Kind::If(branches, otherwise) => {
                for (test, body) in branches {
                    let value = self.evaluate(test)?;
                    if self.truth(&value) {
                        return self.run(body);
                    }
                }
                return self.run(otherwise);
            }
            Kind::For(statement) => {
                let over = self.evaluate(&statement.over)?;
                self.repeat(statement, &over, 1, self.scope)?;
            }
            Kind::Set(target, value) => {
                let value = self.evaluate(value)?;
                self.assign(target, value)?;
            }
            Kind::SetBlock(target, filters, body) => {
                let text = self.block(filters, body)?;
                self.assign(target, text)?;
            }
            Kind::Filter(filters, body) => {
                let text = self.block(filters, body)?;
                let text = self.text_of(&text)?;
                self.write(&text)?;
            }
            Kind::With(variables, body) => {
                return self.scoped(self.scope, |machine| {
                    for (target, value) in variables {
                        let value = machine.evaluate(value)?;
                        machine.assign(target, value)?;
                    }
                    machine.run(body)
                });
            }
            Kind::Scope(body) => return self.scoped(self.scope, |machine| machine.run(body)),
            Kind::Macro(own) => {
                let value = self.macro_value(own)?;
                self.set(&own.name, value);
            }
            Kind::CallBlock(call, body) => {
                let caller = self.macro_value(body)?;
                let Expression::Call(of, arguments) = call else { fail!("no call") };
                let of = self.evaluate(of)?;
                let mut arguments = self.arguments(arguments)?;
                arguments.named.push(("caller".into(), caller));
                let value = self.call(&of, arguments)?;
                let text = self.text_of(&value)?;
                self.write(&text)?;
            }
            Kind::Generation(body) => {
                let text = self.captured(|machine| {
                    machine.scoped(machine.scope, |machine| machine.run_whole(body))
                })?;
                let [open, close] = self.marks;
                self.write(open.encode_utf8(&mut [0; 4]))?;
                self.write(&text)?;
                self.write(close.encode_utf8(&mut [0; 4]))?;
            }
            Kind::Break => return Ok(Flow::Break),
            Kind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    /// Python's `str`, for what is written.
    pub fn text_of(&mut self, value: &Value) -> Result<String> {
        if let Value::Object(number) = value {
            let number = *number;
            return match self.object(number)? {
                Object::Namespace(fields) => {
                    // One within itself has no text.
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

    /// What a body writes, through filters.
    fn block(&mut self, filters: &'t [Call], body: &'t [Statement]) -> Result<Value> {
        let text = self
            .captured(|machine| machine.scoped(machine.scope, |machine| machine.run_whole(body)))?;
        let mut value = Value::from(text);
        for filter in filters {
            let arguments = self.arguments(&filter.arguments)?;
            value = filters::filter(self, &filter.name, value, arguments)?;
        }
        Ok(value)
    }

    fn macro_value(&mut self, own: &'t Macro) -> Result<Value> {
        self.work(size_of::<Object>() + size_of::<Scope>())?;
        self.kept = self.scopes.len();
        Ok(self.new_object(Object::Macro(own, self.scope)))
    }

    /// Goes through a loop.
    fn repeat(
        &mut self,
        statement: &'t For,
        over: &Value,
        depth: usize,
        scope: usize,
    ) -> Result<()> {
        let mut items = self.iterate(over)?;
        if let Some(condition) = &statement.condition {
            let mut chosen = vec![];
            for item in items {
                let keep = self.scoped(scope, |machine| {
                    machine.assign(&statement.target, item.clone())?;
                    let value = machine.evaluate(condition)?;
                    Ok(machine.truth(&value))
                })?;
                if keep {
                    chosen.push(item);
                }
            }
            items = chosen;
        }
        let count = items.len();
        let recursive = statement.recursive.then_some((statement, scope));
        self.loops.push(LoopState { items, at: 0, depth, changed: None, recursive });
        let number = self.loops.len() - 1;
        let result = self.rounds(statement, number, count, scope);
        self.loops.truncate(number);
        result?;
        if count == 0 {
            self.scoped(scope, |machine| machine.run_whole(&statement.otherwise))?;
        }
        Ok(())
    }

    fn rounds(
        &mut self,
        statement: &'t For,
        number: usize,
        count: usize,
        scope: usize,
    ) -> Result<()> {
        for at in 0..count {
            self.step()?;
            self.loops[number].at = at;
            let item = self.loops[number].items[at].clone();
            let flow = self.scoped(scope, |machine| {
                machine.set(&machine.loop_name.clone(), Value::Loop(number));
                machine.assign(&statement.target, item)?;
                machine.run(&statement.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    pub fn loop_attribute(&mut self, number: usize, name: &Name) -> Result<Option<Value>> {
        let state = self.loop_state(number)?;
        let (at, count) = (state.at, state.items.len());
        let neighbour = |at: Option<usize>, reason| {
            let item = at.and_then(|at| state.items.get(at));
            item.cloned().unwrap_or_else(|| Value::undefined(reason))
        };
        Ok(Some(match &**name {
            "index" => (at + 1).into(),
            "index0" => at.into(),
            "revindex" => (count - at).into(),
            "revindex0" => (count - at - 1).into(),
            "first" => (at == 0).into(),
            "last" => (at + 1 == count).into(),
            "length" => count.into(),
            "depth" => state.depth.into(),
            "depth0" => (state.depth - 1).into(),
            "previtem" => neighbour(at.checked_sub(1), "there is no previous item"),
            "nextitem" => neighbour(at.checked_add(1), "there is no next item"),
            "cycle" | "changed" => Value::Method(Arc::new((Value::Loop(number), name.clone()))),
            _ => return Ok(None),
        }))
    }

    pub fn object_attribute(
        &mut self,
        value: &Value,
        number: usize,
        name: &Name,
    ) -> Result<Option<Value>> {
        let method = || Value::Method(Arc::new((value.clone(), name.clone())));
        Ok(match (self.object(number)?, &**name) {
            (Object::Namespace(fields), _) => {
                fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
            }
            (Object::Cycler(items, at), "current") => items.get(*at).cloned(),
            (Object::Cycler(..), "next" | "reset") => Some(method()),
            (Object::Macro(own, _), "name") => Some(Value::Str(own.name.clone())),
            (Object::Group(key, _), "grouper") => Some(key.clone()),
            (Object::Group(_, items), "list") => Some(items.clone()),
            _ => None,
        })
    }

    fn arguments(&mut self, arguments: &'t ast::Arguments) -> Result<Arguments> {
        let mut given = Arguments::default();
        for argument in &arguments.positional {
            let value = self.evaluate(argument)?;
            self.look(&value)?;
            given.positional.push(value);
        }
        for (name, argument) in &arguments.named {
            given.named.push((name.clone(), self.evaluate(argument)?));
        }
        if let Some(list) = &arguments.list {
            let list = self.evaluate(list)?;
            given.positional.extend(self.iterate(&list)?);
        }
        if let Some(map) = &arguments.map {
            let map = self.evaluate(map)?;
            let Value::Dict(dict) = &map else {
                fail!("argument after ** must be a mapping, not {}", map.kind())
            };
            for (name, value) in dict.iter() {
                let Value::Str(name) = name else { fail!("keywords must be strings") };
                given.named.push((name.clone(), value.clone()));
            }
        }
        Ok(given)
    }

    /// Calls a value.
    pub fn call(&mut self, of: &Value, arguments: Arguments) -> Result<Value> {
        match of {
            Value::Undefined(what) => fail!("{}", what.reason()),
            Value::Function(name) => methods::function(self, name, arguments),
            Value::Method(method) => {
                let (object, name) = &**method;
                match object {
                    Value::Str(_) | Value::Markup(_) => {
                        strings::method(self, object, name, arguments)
                    }
                    Value::Loop(number) => self.loop_method(*number, name, arguments),
                    _ => methods::method(self, object, name, arguments),
                }
            }
            Value::Loop(number) => {
                let state = self.loop_state(*number)?;
                let depth = state.depth + 1;
                let Some((statement, scope)) = state.recursive else {
                    fail!("The loop must have the 'recursive' marker to be called recursively.")
                };
                let [over] = arguments.bind("loop", ["iterable"], 1)?;
                let over = over.unwrap_or(Value::None);
                let text = self.captured(|machine| {
                    machine.deeper(|machine| machine.repeat(statement, &over, depth, scope))
                })?;
                Ok(text.into())
            }
            Value::Object(number) => match self.object(*number)? {
                Object::Macro(own, scope) => {
                    let (own, scope) = (*own, *scope);
                    self.deeper(|machine| machine.call_macro(own, scope, arguments))
                }
                Object::Joiner(separator, used) => {
                    arguments.none("joiner")?;
                    let text = if *used { separator.clone() } else { "".into() };
                    *used = true;
                    Ok(text)
                }
                other => fail!("'{}' object is not callable", other.kind()),
            },
            other => fail!("'{}' object is not callable", other.kind()),
        }
    }

    fn loop_method(&mut self, number: usize, name: &str, arguments: Arguments) -> Result<Value> {
        self.loop_state(number)?;
        let state = &mut self.loops[number];
        let values = arguments.positional;
        if name == "cycle" {
            let count = values.len();
            let Some(at) = state.at.checked_rem(count) else { fail!("no items for cycling given") };
            return Ok(values[at].clone());
        }
        let same = |before: &Vec<Value>| {
            before.len() == values.len() && before.iter().zip(&values).all(|(a, b)| a.equals(b))
        };
        let changed = !state.changed.as_ref().is_some_and(same);
        state.changed = Some(values);
        Ok(changed.into())
    }

    fn call_macro(
        &mut self,
        own: &'t Macro,
        scope: usize,
        mut arguments: Arguments,
    ) -> Result<Value> {
        let name = &own.name;
        let count = own.parameters.len();
        let mut extra = vec![];
        if arguments.positional.len() > count {
            extra = arguments.positional.split_off(count);
            if !own.varargs {
                fail!("macro '{name}' takes not more than {count} argument(s)");
            }
        }
        let mut values: Vec<Option<Value>> = arguments.positional.into_iter().map(Some).collect();
        values.resize(count, None);
        let mut caller = None;
        let mut others = Dict::default();
        for (argument, value) in arguments.named {
            let place = own.parameters.iter().position(|(known, _)| *known == argument);
            match place {
                Some(at) if values[at].is_none() => values[at] = Some(value),
                Some(_) => fail!("macro '{name}' got two values for argument '{argument}'"),
                None if &*argument == "caller" && own.caller => caller = Some(value),
                None if &*argument == "caller" && !own.kwargs => fail!(
                    "macro '{name}' was invoked with two values for the special caller argument, or \
                     takes none"
                ),
                None if own.kwargs => others.set(Value::Str(argument), value)?,
                None => fail!("macro '{name}' takes no keyword argument '{argument}'"),
            }
        }
        let text = self.captured(|machine| {
            machine.scoped(scope, |machine| {
                for ((parameter, default), value) in own.parameters.iter().zip(values) {
                    let value = match (value, default) {
                        (Some(value), _) => value,
                        (None, Some(default)) => machine.evaluate(default)?,
                        (None, None) => Value::undefined("a parameter was not provided"),
                    };
                    machine.set(parameter, value);
                }
                if own.caller {
                    let none = || Value::undefined("No caller defined");
                    machine.set(&"caller".into(), caller.unwrap_or_else(none));
                }
                if own.varargs {
                    let extra = machine.tuple(extra)?;
                    machine.set(&"varargs".into(), extra);
                }
                if own.kwargs {
                    machine.set(&"kwargs".into(), Value::Dict(Arc::new(others)));
                }
                machine.run_whole(&own.body)
            })
        })?;
        Ok(text.into())
    }

    pub fn evaluate(&mut self, expression: &'t Expression) -> Result<Value> {
        self.step()?;
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => Ok(self.name(name)),
            _ => self.deeper(|machine| machine.compound(expression)),
        }
    }

    fn all(&mut self, expressions: &'t [Expression]) -> Result<Vec<Value>> {
        expressions.iter().map(|expression| self.evaluate(expression)).collect()
    }

    fn compound(&mut self, expression: &'t Expression) -> Result<Value> {
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => Ok(self.name(name)),
            Expression::List(items) => {
                let items = self.all(items)?;
                self.list(items)
            }
            Expression::Tuple(items) => {
                let items = self.all(items)?;
                self.tuple(items)
            }
            Expression::Dict(entries) => {
                self.work(entries.len().saturating_mul(3 * size_of::<Value>()))?;
                let mut dict = Dict::default();
                for (key, value) in entries {
                    dict.set(self.evaluate(key)?, self.evaluate(value)?)?;
                }
                Ok(Value::Dict(Arc::new(dict)))
            }
            Expression::Attribute(of, name) => {
                let of = self.evaluate(of)?;
                self.attribute(&of, name)
            }
            Expression::Item(of, key) => {
                let of = self.evaluate(of)?;
                let key = self.evaluate(key)?;
                self.look(&of)?;
                self.look_through(&key)?;
                self.item(&of, &key)
            }
            Expression::Slice(of, parts) => {
                let of = self.evaluate(of)?;
                let mut values = [const { None }; 3];
                for (value, part) in values.iter_mut().zip(&**parts) {
                    *value = part.as_ref().map(|part| self.evaluate(part)).transpose()?;
                }
                self.slice(&of, &values)
            }
            Expression::Call(of, arguments) => {
                let of = self.evaluate(of)?;
                let arguments = self.arguments(arguments)?;
                self.call(&of, arguments)
            }
            Expression::Filter(of, call) => {
                let of = self.evaluate(of)?;
                self.look(&of)?;
                let arguments = self.arguments(&call.arguments)?;
                filters::filter(self, &call.name, of, arguments)
            }
            Expression::Test(of, call) => {
                let of = self.evaluate(of)?;
                self.look(&of)?;
                let arguments = self.arguments(&call.arguments)?;
                tests::test(self, &call.name, &of, arguments).map(Value::Bool)
            }
            Expression::Not(of) => {
                let value = self.evaluate(of)?;
                Ok(Value::Bool(!self.truth(&value)))
            }
            Expression::Negative(of) | Expression::Positive(of) => {
                let negative = matches!(expression, Expression::Negative(_));
                let value = self.evaluate(of)?;
                match &value {
                    Value::Float(value) if negative => Ok(Value::Float(-value)),
                    Value::Float(_) => Ok(value),
                    Value::Undefined(what) => fail!("{}", what.reason()),
                    _ => match value.as_int() {
                        Some(value) => {
                            let value = if negative { value.checked_neg() } else { Some(value) };
                            match value {
                                Some(value) => Ok(Value::Int(value)),
                                None => fail!("a number of more than 127 bits"),
                            }
                        }
                        None => fail!("bad operand type for unary sign: '{}'", value.kind()),
                    },
                }
            }
            Expression::Binary(operator, sides) => {
                let left = self.evaluate(&sides[0])?;
                let right = self.evaluate(&sides[1])?;
                self.binary(*operator, &left, &right)
            }
            Expression::Compare(first, rest) => {
                let mut left = self.evaluate(first)?;
                for (comparison, right) in rest {
                    let right = self.evaluate(right)?;
                    if !self.compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expression::And(items) | Expression::Or(items) => {
                let wanted = matches!(expression, Expression::Or(_));
                let mut value = Value::None;
                for item in items {
                    value = self.evaluate(item)?;
                    if self.truth(&value) == wanted {
                        break;
                    }
                }
                Ok(value)
            }
            Expression::Concat(items) => {
                let values = self.all(items)?;
                let mut out = String::new();
                for value in &values {
                    match value.as_str() {
                        Some(text) => out += text,
                        None => out += &self.text_of(value)?,
                    }
                    self.check(out.len())?;
                }
                self.work(out.len())?;
                Ok(out.into())
            }
            Expression::If(parts) => {
                let (condition, value, otherwise) = &**parts;
                let condition = self.evaluate(condition)?;
                match otherwise {
                    _ if self.truth(&condition) => self.evaluate(value),
                    Some(otherwise) => self.evaluate(otherwise),
                    None => Ok(Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )),
                }
            }
        }
    }
}

/// Sets a name of a scope, or the field of a namespace.
pub fn set_field(fields: &mut Vec<(Name, Value)>, name: &Name, value: Value) {
    match fields.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = value,
        None => fields.push((name.clone(), value)),
    }
}
