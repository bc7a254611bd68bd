//! The runs of a sweep.

use super::axis::Axis;
use crate::{error::TrainError, run_config::RunConfig};
use std::path::Path;
use toml::Value;
use twox_hash::XxHash64;

/// A run of a sweep: one value of each axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Name, and that of its folder: `r=8,learning_rate=2e-4`.
    pub name: String,
    /// Settings that vary, with their values as they are shown.
    pub settings: Vec<(String, String)>,
    /// The whole run. Its output is a folder in that of the sweep.
    pub run: RunConfig,
}

/// Number of trials above which a sweep is a mistake.
const MOST: usize = 1_000;
/// Length of the names of folders, in bytes.
const LENGTH: usize = 100;

/// All combinations of the values, those of the last axis next to each other.
pub(super) fn combinations(
    base: &RunConfig,
    axes: &[Axis],
    folder: &Path,
) -> Result<Vec<Trial>, TrainError> {
    let count = axes.iter().try_fold(1usize, |count, axis| count.checked_mul(axis.len()));
    let Some(count) = count.filter(|count| *count <= MOST) else {
        let reason = format!("these are more than {MOST} trials: name fewer values");
        return Err(TrainError::settings("the sweep", reason));
    };
    (0..count).map(|number| trial(base, axes, folder, number)).collect()
}

fn trial(
    base: &RunConfig,
    axes: &[Axis],
    folder: &Path,
    number: usize,
) -> Result<Trial, TrainError> {
    let (mut run, mut settings, mut rest) = (base.clone(), vec![], number);
    // The last axis is the fastest.
    let mut at: Vec<_> = axes
        .iter()
        .rev()
        .map(|axis| {
            let at = rest % axis.len();
            rest /= axis.len();
            at
        })
        .collect();
    at.reverse();
    for (axis, at) in axes.iter().zip(at) {
        for (name, value) in axis.names.iter().zip(&axis.points[at]) {
            run = run.with(name, value)?;
            settings.push((short(name, axes), shown(value)));
        }
    }
    let name = folder_name(&label(&settings));
    run.train.output = Some(folder.join(&name));
    Ok(Trial { name, settings, run: run.completed() })
}

/// `r=8,learning_rate=2e-4`.
pub(super) fn label(settings: &[(String, String)]) -> String {
    let parts: Vec<_> = settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    parts.join(",")
}

/// Name of a setting without its section, if no other one is called so.
pub(super) fn short(name: &str, axes: &[Axis]) -> String {
    // `train.optimizer.name` is the optimizer.
    fn last(name: &str) -> &str {
        let name = name.strip_suffix(".name").unwrap_or(name);
        name.rsplit('.').next().unwrap_or(name)
    }
    let mut names = axes.iter().flat_map(|axis| &axis.names);
    let is_other = |other: &String| other != name && last(other) == last(name);
    if names.any(is_other) { name.to_owned() } else { last(name).to_owned() }
}

/// A value as it is shown: `2e-4`, `q_proj+v_proj`.
fn shown(value: &Value) -> String {
    let list = |values: Vec<String>| values.join("+");
    match value {
        Value::String(text) => text.clone(),
        Value::Float(number) => {
            let (plain, short) = (format!("{number}"), format!("{number:e}"));
            if short.len() < plain.len() { short } else { plain }
        }
        Value::Array(values) => list(values.iter().map(shown).collect()),
        Value::Table(fields) => {
            list(fields.iter().map(|(name, value)| format!("{name}={}", shown(value))).collect())
        }
        other => other.to_string(),
    }
}

/// Name of a folder on any system. What cannot be in one is replaced, and a hash keeps apart what would be the same.
fn folder_name(label: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-+=,".contains(c) { c } else { '-' };
    let mut name: String = label.chars().map(safe).collect();
    if name != label || name.len() > LENGTH {
        name.truncate(LENGTH);
        name += &format!("-{:08x}", XxHash64::oneshot(0, label.as_bytes()) as u32);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(axes: &[&str]) -> Vec<String> {
        let axes: Vec<Axis> = axes.iter().map(|axis| axis.parse().unwrap()).collect();
        let trials = combinations(&RunConfig::default(), &axes, Path::new("out")).unwrap();
        trials.into_iter().map(|trial| trial.name).collect()
    }

    #[test]
    fn names_are_short_stable_and_fit_for_folders() {
        let found = names(&["adapter.r=8,16", "train.learning_rate=0.0001,0.003"]);
        assert_eq!(found[0], "r=8,learning_rate=1e-4");
        assert_eq!(found[3], "r=16,learning_rate=3e-3");
        let found = names(&["adapter.target_modules=['q_proj','v_proj'],all-linear"]);
        assert_eq!(found, ["target_modules=q_proj+v_proj", "target_modules=all-linear"]);
        // The same last part.
        assert_eq!(names(&["train.seed=1", "adapter.seed=2"]), ["train.seed=1,adapter.seed=2"]);
        assert_eq!(names(&["train.optimizer.name=lion"]), ["optimizer=lion"]);
        // What no folder can be called.
        let found = names(&["model.path=../a/b,..-a-b"]);
        assert!(found[0].starts_with("path=..-a-b-") && found[1] == "path=..-a-b", "{found:?}");
        let long = format!("adapter.target_modules=[{}]", ["'a_projection'"; 20].join(","));
        assert!(names(&[&long])[0].len() < 120);
    }

    #[test]
    fn too_many_trials_are_an_error() {
        let values: Vec<_> = (1..200).map(|value| value.to_string()).collect();
        let axis: Axis = format!("adapter.r={}", values.join(",")).parse().unwrap();
        let axes = vec![axis; 12];
        let error = combinations(&RunConfig::default(), &axes, Path::new("out")).unwrap_err();
        assert!(error.to_string().contains("1000 trials"), "{error}");
    }
}
