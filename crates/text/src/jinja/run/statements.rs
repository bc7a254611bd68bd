//! Execution of statements.

use super::super::{
    ast::{Call, Expression, For, Kind, Macro, Statement, Target},
    error::{Result, fail},
    filters,
    machine::{Limits, LoopState, Machine, Object, Scope, set_field},
    value::Value,
};

#[derive(PartialEq, Eq)]
enum Flow {
    Next,
    Break,
    Continue,
}

pub fn render(
    body: &[Statement],
    variables: Vec<(&str, Value)>,
    marks: [char; 2],
    limits: Limits,
) -> Result<String> {
    let mut machine = Machine::new(variables, marks, limits);
    match machine.run(body)? {
        Flow::Next => Ok(machine.out),
        Flow::Break | Flow::Continue => fail!("`break` or `continue` outside of a loop"),
    }
}

impl<'t> Machine<'t> {
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

    /// Runs a body that no `break` or `continue` may leave.
    pub(super) fn run_whole(&mut self, body: &'t [Statement]) -> Result<()> {
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

    /// Returns the output of a body after filters.
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

    /// Runs a loop.
    pub(super) fn repeat(
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
}
