//! Evaluation of expressions.

use super::super::{
    ast::{Expression, Name},
    error::{Result, fail},
    filters,
    machine::{Machine, Scope},
    names, tests,
    value::{Dict, Undefined, Value},
};
use std::sync::Arc;

impl<'t> Machine<'t> {
    pub fn evaluate(&mut self, expression: &'t Expression) -> Result<Value> {
        self.step()?;
        match expression {
            Expression::Constant(value) => Ok(value.clone()),
            Expression::Name(name) => Ok(self.name(name)),
            _ => self.deeper(|machine| machine.compound(expression)),
        }
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
        match names::FUNCTIONS.iter().find(|function| ***function == **name) {
            Some(function) => Value::Function(function),
            None => Value::Undefined(Arc::new(Undefined::Name(name.clone()))),
        }
    }

    pub(super) fn all(&mut self, expressions: &'t [Expression]) -> Result<Vec<Value>> {
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
