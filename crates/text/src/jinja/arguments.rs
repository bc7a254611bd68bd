//! Arguments of functions, filters and methods.

use super::{
    error::{Result, fail},
    value::Value,
};
use std::sync::Arc;

/// Arguments of a call.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Arguments {
    /// Binds the arguments to parameters, of which the first `required` must be given.
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

    /// Checks that there are no arguments.
    pub fn none(self, of: &str) -> Result<()> {
        self.bind(of, [], 0).map(|[]| ())
    }
}

/// Returns the text of a value, or an error.
pub fn text(of: &str, value: &Value) -> Result<Arc<str>> {
    match value {
        Value::Str(text) | Value::Markup(text) => Ok(text.clone()),
        Value::Undefined(what) => fail!("{of}: {}", what.reason()),
        other => fail!("{of}: expected text, not '{}'", other.kind()),
    }
}

/// Returns the integer of a value, or an error.
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

/// Returns a number of items; 0 if it is negative.
pub fn count(of: &str, value: &Value) -> Result<usize> {
    Ok(usize::try_from(int(of, value)?.max(0)).unwrap_or(usize::MAX))
}

/// Returns the argument if it is given and not `None`.
pub fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
