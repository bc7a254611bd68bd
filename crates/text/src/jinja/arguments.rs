//! Arguments of functions, filters and methods.

use super::{
    error::{Result, fail},
    value::Value,
};
use std::sync::Arc;

/// Values that something is called with.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// The values of parameters, of which the first `required` must be given.
    pub fn bind<const N: usize>(
        self,
        of: &str,
        parameters: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        let count = self.positional.len();
        if count > N {
            fail!("{of}: too many arguments: it takes {N}, {count} are given");
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            match parameters.iter().position(|parameter| **parameter == *name) {
                Some(at) if values[at].is_none() => values[at] = Some(value),
                Some(_) => fail!("{of}: argument {name} is given twice"),
                None => fail!("{of}: unknown keyword argument {name}"),
            }
        }
        match (0..required).find(|at| values[*at].is_none()) {
            Some(at) => fail!("{of}: missing argument {}", parameters[at]),
            None => Ok(values),
        }
    }

    /// That there are none.
    pub fn none(self, of: &str) -> Result<()> {
        self.bind(of, [], 0).map(|[]| ())
    }
}

/// Text, or an error.
pub fn text(of: &str, value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
        Value::Undefined(what) => fail!("{of}: {}", what.reason()),
        other => fail!("{of}: expected text, not '{}'", other.kind()),
    }
}

/// A number without a fraction, or an error.
pub fn int(of: &str, value: &Value) -> Result<i128> {
    match value.as_int() {
        Some(value) => Ok(value),
        None => match value {
            Value::Undefined(what) => fail!("{of}: {}", what.reason()),
            other => {
                fail!("{of}: '{}' object cannot be interpreted as an integer", other.kind())
            }
        },
    }
}

/// A number of items.
pub fn count(of: &str, value: &Value) -> Result<usize> {
    Ok(usize::try_from(int(of, value)?.max(0)).unwrap_or(usize::MAX))
}

/// Whether the argument is there and not `None`.
pub fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
