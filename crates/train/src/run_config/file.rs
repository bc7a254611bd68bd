//! Run files: TOML, in layers.

use super::RunConfig;
use crate::error::TrainError;
use serde::Serialize;
use serde_json::Value as Json;
use std::{fs, path::Path};
use toml::{Table, Value};

/// Settings that are one of several alternatives: a layer replaces them whole. Of other tables it
/// replaces the entries that it has.
const CHOICES: [&str; 6] = ["evaluate", "optimizer", "recompute", "save", "schedule", "warmup"];

impl RunConfig {
    /// Reads a run file. What it does not name has its [default](Self::default).
    ///
    /// # Errors
    /// As [`with_file`](Self::with_file).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TrainError> {
        Self::default().with_file(path)
    }

    /// Returns these settings with those of a file.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the file cannot be read; [`TrainError::Format`] with the line if it is
    /// not TOML, a name is unknown (with the nearest one) or a value has another type.
    pub fn with_file(&self, path: impl AsRef<Path>) -> Result<Self, TrainError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|error| TrainError::io(path, error))?;
        let wrong = |error: toml::de::Error| {
            TrainError::format(path, with_nearest(error.to_string().trim_end()))
        };
        // Parsed from the text, since errors of the table have no lines.
        toml::from_str::<Self>(&text).map_err(wrong)?;
        self.overlaid(text.parse().map_err(wrong)?)
            .map_err(|reason| TrainError::format(path, reason))
    }

    /// Returns these settings with one more, as in `train.learning_rate=1e-4`: TOML, or else text.
    ///
    /// ```
    /// use burn_lora_train::{RunConfig, Warmup};
    ///
    /// let run = RunConfig::default()
    ///     .with_setting("model.path=models/Qwen3-4B")?
    ///     .with_setting("train.warmup={ steps = 20 }")?;
    /// assert_eq!(run.train.warmup, Warmup::Steps(20));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Settings`] for an unknown name (with the nearest one) or a value of another
    /// type.
    pub fn with_setting(&self, setting: &str) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::settings(setting, reason);
        let Some((name, value)) = setting.split_once('=') else {
            return Err(wrong("it has to be NAME=VALUE, as in train.epochs=2".into()));
        };
        let text = Value::from(value.trim());
        let table = [format!("{name} = {value}"), format!("{name} = {text}")]
            .iter()
            .find_map(|line| line.parse::<Table>().ok())
            .ok_or_else(|| wrong(format!("`{name}` is not the name of a setting")))?;
        self.overlaid(table).map_err(wrong)
    }

    /// Returns these settings with a value for a name, as in a file.
    ///
    /// ```
    /// use burn_lora_train::RunConfig;
    ///
    /// let run = RunConfig::default().with("adapter.r", 32)?.with("model.format", "int8")?;
    /// assert_eq!(run.adapter.rank(), 32);
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// As [`with_setting`](Self::with_setting).
    pub fn with(&self, name: &str, value: impl Serialize) -> Result<Self, TrainError> {
        let wrong = |reason: String| TrainError::settings(name, reason);
        let value = Value::try_from(value).map_err(|error| wrong(error.to_string()))?;
        let value = name
            .rsplit('.')
            .fold(value, |value, name| Value::Table(Table::from_iter([(name.to_owned(), value)])));
        let Value::Table(table) = value else { unreachable!("a name has a part at least") };
        self.overlaid(table).map_err(wrong)
    }

    pub(crate) fn overlaid(&self, settings: Table) -> Result<Self, String> {
        let mut table = Table::try_from(self).map_err(|error| error.to_string())?;
        // Another objective has other settings.
        let name = |of: &Table| of.get("objective")?.get("name").cloned();
        if name(&settings).is_some_and(|new| name(&table) != Some(new)) {
            table.remove("objective");
        }
        overlay(&mut table, settings);
        table
            .try_into()
            .map_err(|error| with_nearest(&error.to_string().trim_end().replace('\n', " ")))
    }

    /// Returns all settings as a file. Those without a value are in comments.
    ///
    /// ```
    /// use burn_lora_train::RunConfig;
    ///
    /// let text = RunConfig::default().to_toml()?;
    /// assert!(text.contains("[adapter]") && text.contains("r = 16"));
    /// # Ok::<_, burn_lora_train::TrainError>(())
    /// ```
    ///
    /// # Errors
    /// [`TrainError::Settings`] for a value that TOML does not have.
    pub fn to_toml(&self) -> Result<String, TrainError> {
        let wrong = |reason: String| TrainError::settings("the run as a file", reason);
        let text = toml::to_string(self).map_err(|error| wrong(error.to_string()))?;
        let json = serde_json::to_value(self).map_err(|error| wrong(error.to_string()))?;
        let mut out = String::new();
        for line in text.lines() {
            out += line;
            out.push('\n');
            let header = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
            let Some(name) = header else { continue };
            let section = json.pointer(&format!("/{}", name.replace('.', "/")));
            let fields = section.and_then(Json::as_object).into_iter().flatten();
            let unset = fields.filter(|(_, value)| value.is_null()).map(|(name, _)| name.as_str());
            let unset: Vec<_> = unset.collect();
            if !unset.is_empty() {
                out += &format!("# Not set: {}\n", unset.join(", "));
            }
        }
        Ok(out)
    }
}

/// Lays the settings `above` over those `below`.
fn overlay(below: &mut Table, above: Table) {
    for (name, value) in above {
        match (below.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above))
                if !CHOICES.contains(&name.as_str()) =>
            {
                overlay(below, above);
            }
            (_, value) => _ = below.insert(name, value),
        }
    }
}

/// Adds the nearest name to serde's message about one that is unknown: ``unknown field `a`, expected
/// one of `b`, `c` ``.
pub(crate) fn with_nearest(message: &str) -> String {
    let found = ["unknown field `", "unknown variant `"].iter().find_map(|start| {
        let at = message.find(start)? + start.len();
        let (name, expected) = message[at..].split_once("`, expected ")?;
        let score = |known: &&str| strsim::jaro_winkler(name, known);
        let known = expected.split('`').skip(1).step_by(2);
        let nearest = known.max_by(|a, b| score(a).total_cmp(&score(b)))?;
        (score(&nearest) > 0.8).then(|| (at + name.len() + 1, nearest))
    });
    match found {
        Some((at, nearest)) => {
            format!("{} (nearest: `{nearest}`){}", &message[..at], &message[at..])
        }
        None => message.into(),
    }
}
