//! Calls, their arguments, and the attributes of loops and objects.

use super::super::{
    arguments::Arguments,
    ast::{self, Macro},
    error::{Result, fail},
    machine::{Machine, Object},
    methods, strings,
    value::{Dict, Value},
};
use std::sync::Arc;

impl<'t> Machine<'t> {
    pub(super) fn arguments(&mut self, arguments: &'t ast::Arguments) -> Result<Arguments> {
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
}
