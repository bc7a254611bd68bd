//! Patterns that select layers: names, and regular expressions.

use crate::{
    error::AdapterError,
    target::{TargetConfig, Targets},
};
use burn_lora_io::escaped;
use fancy_regex::{Regex, RegexBuilder};

/// Regular expression of the settings.
pub(crate) struct Pattern<'a> {
    pub regex: Regex,
    /// The pattern as the user wrote it, for messages.
    pub shown: &'a str,
    pub field: &'static str,
    config: &'static str,
}

impl<'a> Pattern<'a> {
    /// Compiles `regex`, which was built from `shown`.
    pub fn new(
        config: &TargetConfig,
        regex: &str,
        shown: &'a str,
        field: &'static str,
    ) -> Result<Self, AdapterError> {
        let config = config.config;
        // Files are untrusted, and a pattern can backtrack without end.
        const STEPS: usize = 100_000;
        match RegexBuilder::new(regex).backtrack_limit(STEPS).build() {
            Ok(regex) => Ok(Self { regex, shown, field, config }),
            Err(error) => Err(AdapterError::Config {
                config,
                field,
                found: format!("`{}`", escaped(shown)),
                reason: format!("no regular expression: {error}"),
            }),
        }
    }

    pub fn matches(&self, path: &str) -> Result<bool, AdapterError> {
        self.regex.is_match(path).map_err(|error| self.failed(path, &error))
    }

    pub fn failed(&self, path: &str, error: &fancy_regex::Error) -> AdapterError {
        AdapterError::Config {
            config: self.config,
            field: self.field,
            found: format!("`{}`", escaped(self.shown)),
            reason: format!("it cannot be compared with `{path}`, make it simpler: {error}"),
        }
    }
}

pub(crate) enum Names<'a> {
    List(&'a [String]),
    Regex(Pattern<'a>),
    AllLinear,
}

impl<'a> Names<'a> {
    pub fn new(
        config: &TargetConfig,
        targets: &'a Targets,
        field: &'static str,
    ) -> Result<Self, AdapterError> {
        Ok(match targets {
            Targets::Names(names) => Self::List(names),
            Targets::Regex(pattern) => {
                Self::Regex(Pattern::new(config, &format!("^(?:{pattern})$"), pattern, field)?)
            }
            Targets::AllLinear => Self::AllLinear,
        })
    }

    /// Indices of the names that match.
    pub fn find(&self, path: &str) -> Result<Vec<usize>, AdapterError> {
        match self {
            Self::List(names) => indices(names, |name| Ok(is_suffix(path, name))),
            Self::Regex(pattern) => Ok(Vec::from_iter(pattern.matches(path)?.then_some(0))),
            Self::AllLinear => Ok(vec![0]),
        }
    }

    /// Returns `true` if the full path is a name.
    pub fn is_whole(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == path))
    }
}

/// Returns `true` if `path` is `name`, or ends with it after a dot.
pub(crate) fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// Indices of the items that match.
pub(crate) fn indices<T>(
    items: &[T],
    matches: impl Fn(&T) -> Result<bool, AdapterError>,
) -> Result<Vec<usize>, AdapterError> {
    let mut found = vec![];
    for (i, item) in items.iter().enumerate() {
        if matches(item)? {
            found.push(i);
        }
    }
    Ok(found)
}
