//! Matching of layers to settings: PEFT's rules, with an error where PEFT is silent.

use crate::{
    error::AdapterError,
    frozen::{LayerKind, parameter},
    patterns::{Names, Pattern, indices, is_suffix},
    target::{TargetConfig, Targets},
};
use burn_lora_io::escaped;
use std::{collections::BTreeSet, fmt};

/// Compiled patterns of a [`TargetConfig`] that select layers.
pub(crate) struct Matcher<'a> {
    config: &'a TargetConfig,
    targets: Names<'a>,
    exclude: Names<'a>,
    save: Vec<(&'a str, Pattern<'a>)>,
    layer_index: Vec<Pattern<'a>>,
    ranks: Vec<(Pattern<'a>, usize)>,
    alphas: Vec<(Pattern<'a>, f64)>,
}

/// Path of a layer and of each module that contains it.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(at, _)| &path[..at]).chain([path])
}

/// Planned adapter of one layer: see [`Method::plan`](crate::Method::plan).
#[derive(Clone, Debug, PartialEq)]
pub enum LayerPlan {
    /// The update of the method.
    Update {
        /// Rank of the update, 0 if the method has none.
        rank: usize,
        /// Alpha of the update, 0 if the method has none.
        alpha: f64,
    },
    /// A copy of the whole layer, trained (`modules_to_save`).
    Save,
}

/// Report of the layers that each target matched.
///
/// ```
/// # use burn::tensor::Device;
/// # use burn::nn::LinearConfig;
/// use burn_lora_adapter::{AdaptedLinear, Adaptable, AdaptableExt, LoraConfig, adaptable};
///
/// # #[derive(burn::module::Module, Debug)]
/// struct Mlp {
///     up: AdaptedLinear,
///     down: AdaptedLinear,
/// }
/// adaptable!(Mlp { up, down });
///
/// # let device = Device::default();
/// let mut mlp = Mlp {
///     up: LinearConfig::new(8, 32).init(&device).into(),
///     down: LinearConfig::new(32, 8).init(&device).into(),
/// };
/// let report = mlp.add_adapter("default", &LoraConfig::new(4, 8).targets(["up"]))?;
/// assert_eq!(report.to_string(), "up: 1 layer");
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatchReport {
    /// Each target (including `modules_to_save`) with the number of layers that it matched.
    pub targets: Vec<(String, usize)>,
    /// Paths of the layers with an update of the method.
    pub adapted: Vec<String>,
    /// Paths of the layers of which a whole copy is trained.
    pub saved: Vec<String>,
}

impl fmt::Display for MatchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (target, count)) in self.targets.iter().enumerate() {
            let (comma, plural) =
                (if i == 0 { "" } else { ", " }, if *count == 1 { "" } else { "s" });
            write!(f, "{comma}{target}: {count} layer{plural}")?;
        }
        Ok(())
    }
}

/// Layer of a model, as needed for matching.
pub(crate) struct Candidate<'a> {
    pub path: &'a str,
    pub kind: LayerKind,
    pub is_head: bool,
}

impl<'a> Matcher<'a> {
    /// Validates the settings and compiles their patterns.
    pub fn new(config: &'a TargetConfig) -> Result<Self, AdapterError> {
        config.validate()?;
        fn patterns<'a, T: Copy>(
            config: &TargetConfig,
            map: &'a std::collections::BTreeMap<String, T>,
            field: &'static str,
        ) -> Result<Vec<(Pattern<'a>, T)>, AdapterError> {
            let compiled = map.iter().map(|(key, &value)| {
                let regex = format!(r"^(?:.*\.)?(?:{key})$");
                Ok((Pattern::new(config, &regex, key, field)?, value))
            });
            compiled.collect()
        }
        let save = config.modules_to_save.iter();
        let layer_index = if config.layers_pattern.is_empty() {
            vec![Pattern::new(config, r"^.*?\.[^.]*\.(\d+)\.", "", "layers_to_transform")?]
        } else {
            let patterns = config.layers_pattern.iter().map(|pattern| {
                let regex = format!(r"^(?:|.*?\.){pattern}\.(\d+)\.");
                Pattern::new(config, &regex, pattern, "layers_pattern")
            });
            patterns.collect::<Result<_, _>>()?
        };
        let names = |targets: &'a Option<Targets>, field| match targets {
            Some(targets) => Names::new(config, targets, field),
            None => Ok(Names::List(&[])),
        };
        Ok(Self {
            config,
            targets: names(&config.targets, "target_modules")?,
            exclude: names(&config.exclude, "exclude_modules")?,
            save: save
                .map(|name| {
                    let pattern = format!(r"^(?:|.*\.){name}(?:$|\..*)");
                    Ok((name.as_str(), Pattern::new(config, &pattern, name, "modules_to_save")?))
                })
                .collect::<Result<_, AdapterError>>()?,
            layer_index,
            ranks: patterns(config, &config.rank_pattern, "rank_pattern")?,
            alphas: patterns(config, &config.alpha_pattern, "alpha_pattern")?,
        })
    }

    /// Index of the decoder layer that contains a path.
    fn layer_of(&self, path: &str) -> Result<Option<usize>, AdapterError> {
        for pattern in &self.layer_index {
            let found = pattern.regex.captures(path);
            if let Some(found) = found.map_err(|error| pattern.failed(path, &error))? {
                return Ok(found.get(1).and_then(|number| number.as_str().parse().ok()));
            }
        }
        Ok(None)
    }

    /// Plans the adapter of each layer, in the given order.
    ///
    /// With `strict`, a name that matches nothing is an error, otherwise a warning.
    pub fn resolve(
        &self,
        layers: &[Candidate<'_>],
        strict: bool,
    ) -> Result<Resolved, AdapterError> {
        let mut used = Used::new(self);
        let plans = layers.iter().map(|layer| self.plan(layer, &mut used));
        let plans = plans.collect::<Result<Vec<_>, _>>()?;
        let warnings = self.check(layers, &used, strict)?;
        let of = |wanted: fn(&LayerPlan) -> bool| {
            let chosen =
                layers.iter().zip(&plans).filter(|(_, plan)| plan.as_ref().is_some_and(wanted));
            chosen.map(|(layer, _)| layer.path.to_owned()).collect()
        };
        let saved = self.config.modules_to_save.iter().cloned().zip(used.saves);
        let report = MatchReport {
            targets: labels(&self.config.targets)
                .into_iter()
                .zip(used.targets)
                .chain(self.config.parameters.iter().cloned().zip(used.parameters))
                .chain(saved)
                .collect(),
            adapted: of(|plan| matches!(plan, LayerPlan::Update { .. })),
            saved: of(|plan| *plan == LayerPlan::Save),
        };
        Ok(Resolved { plans, report, warnings })
    }

    /// Plans the adapter of one layer, and records in `used` what matched.
    fn plan(
        &self,
        layer: &Candidate<'_>,
        used: &mut Used,
    ) -> Result<Option<LayerPlan>, AdapterError> {
        let path = layer.path;
        let excluded = self.exclude.find(path)?;
        excluded.iter().for_each(|&i| used.excluded[i] += 1);
        let saves = indices(&self.save, |(name, pattern)| {
            Ok(pattern.matches(path)? || prefixes(path).any(|prefix| prefix.ends_with(name)))
        })?;
        if !saves.is_empty() {
            saves.into_iter().for_each(|i| used.saves[i] += 1);
            return Ok(Some(LayerPlan::Save));
        }
        match layer.kind {
            LayerKind::Router => return Ok(None),
            LayerKind::Expert => return self.plan_expert(path, used),
            _ => {}
        }
        let beside = indices(&self.config.beside, |name| Ok(is_suffix(path, name)))?;
        let beside: Vec<_> =
            beside.into_iter().filter(|_| layer.kind != LayerKind::Vector).collect();
        beside.iter().for_each(|&i| used.beside[i] += 1);
        let adaptable = match (&self.targets, layer.kind) {
            (Names::AllLinear, kind) => kind == LayerKind::Linear && !layer.is_head,
            (_, kind) => kind != LayerKind::Vector,
        };
        let alone = (!beside.is_empty()).then_some(LayerPlan::Update { rank: 0, alpha: 0.0 });
        if !excluded.is_empty() || !adaptable {
            return Ok(alone);
        }
        let found = self.targets.find(path)?;
        if found.is_empty() {
            return Ok(alone);
        }
        // A full path is meant in any layer.
        if let Some(wanted) = &self.config.layers
            && !self.targets.is_whole(path)
        {
            let Some(layer) = self.layer_of(path)?.filter(|layer| wanted.contains(layer)) else {
                return Ok(alone);
            };
            used.layers.push(layer);
        }
        found.into_iter().for_each(|i| used.targets[i] += 1);
        self.update(path, used).map(Some)
    }

    /// Plans the adapter of a layer of an expert, by the parameter that it is a part of.
    fn plan_expert(&self, path: &str, used: &mut Used) -> Result<Option<LayerPlan>, AdapterError> {
        let path = parameter(path);
        let found = indices(&self.config.parameters, |name| Ok(is_suffix(&path, name)))?;
        if found.is_empty() {
            return Ok(None);
        }
        found.into_iter().for_each(|i| used.parameters[i] += 1);
        self.update(&path, used).map(Some)
    }

    /// Plans an update, with the rank and the alpha that patterns say.
    fn update(&self, path: &str, used: &mut Used) -> Result<LayerPlan, AdapterError> {
        let ranks = indices(&self.ranks, |(pattern, _)| pattern.matches(path))?;
        let alphas = indices(&self.alphas, |(pattern, _)| pattern.matches(path))?;
        let plan = LayerPlan::Update {
            rank: ranks.first().map_or(self.config.rank, |&i| self.ranks[i].1),
            alpha: alphas.first().map_or(self.config.alpha, |&i| self.alphas[i].1),
        };
        ranks.into_iter().for_each(|i| used.ranks[i] += 1);
        alphas.into_iter().for_each(|i| used.alphas[i] += 1);
        Ok(plan)
    }

    /// Checks that every name and pattern matched something, and returns the warnings.
    fn check(
        &self,
        layers: &[Candidate<'_>],
        used: &Used,
        strict: bool,
    ) -> Result<Vec<String>, AdapterError> {
        let mut missed = vec![];
        let mut miss = |field, name: &str, what, near| {
            missed.push(AdapterError::NoMatch { field, name: name.to_owned(), what, near });
        };
        for layer in self.config.layers.iter().flatten().filter(|l| !used.layers.contains(l)) {
            let mut there = vec![];
            for candidate in layers {
                there.extend(self.layer_of(candidate.path)?);
            }
            there.sort_unstable();
            let near = match (there.first(), there.last()) {
                (Some(first), Some(last)) => format!("its layers are {first} to {last}"),
                _ => "its paths have no layer numbers".into(),
            };
            miss("layers_to_transform", &layer.to_string(), "adapted layer", near);
        }
        // As in PEFT, a file may have names besides those that match: its tensors say what counts.
        let enough = !strict && used.targets.iter().any(|count| *count > 0);
        for name in unused(labels(&self.config.targets), &used.targets).filter(|_| !enough) {
            let there = layers.iter().any(|layer| is_suffix(layer.path, &name));
            let near = match there {
                true => "those that it names are excluded, or in modules_to_save".to_owned(),
                false => near(&name, layers),
            };
            miss("target_modules", &name, "layer", near);
        }
        for name in unused(self.config.modules_to_save.clone(), &used.saves) {
            miss("modules_to_save", &name, "layer", near(&name, layers));
        }
        for name in unused(self.config.parameters.clone(), &used.parameters) {
            let there = layers.iter().filter(|layer| layer.kind == LayerKind::Expert);
            let there: BTreeSet<_> = there.map(|layer| parameter(layer.path)).collect();
            let near = match there.first() {
                Some(first) => format!("its experts' parameters are such as `{first}`"),
                None => "the model has no experts".into(),
            };
            miss("target_parameters", &name, "parameter", near);
        }
        for name in unused(self.config.beside.clone(), &used.beside) {
            miss("trainable_token_indices", &name, "layer", near(&name, layers));
        }
        let ranks = self.ranks.iter().map(|(pattern, _)| pattern).zip(&used.ranks);
        let alphas = self.alphas.iter().map(|(pattern, _)| pattern).zip(&used.alphas);
        for (pattern, _) in ranks.chain(alphas).filter(|(_, count)| **count == 0) {
            let near = near(pattern.shown, layers);
            miss(pattern.field, pattern.shown, "adapted layer", near);
        }
        let excluded = unused(labels(&self.config.exclude), &used.excluded).map(|name| {
            let near = near(&name, layers);
            let name = escaped(&name);
            format!("exclude_modules: `{name}` matches no layer of this model; {near}")
        });
        let mut warnings: Vec<_> = excluded.collect();
        if !strict {
            warnings.extend(missed.drain(..).map(|error| error.to_string()));
        }
        missed.into_iter().next().map_or(Ok(warnings), Err)
    }
}

/// Result of [`Matcher::resolve`].
pub(crate) struct Resolved {
    /// Planned adapter of each layer.
    pub plans: Vec<Option<LayerPlan>>,
    pub report: MatchReport,
    /// Warnings about odd settings that are no errors.
    pub warnings: Vec<String>,
}

/// Names of targets as the user wrote them.
fn labels(targets: &Option<Targets>) -> Vec<String> {
    match targets {
        Some(Targets::Names(names)) => names.clone(),
        Some(Targets::Regex(pattern)) => vec![pattern.clone()],
        Some(Targets::AllLinear) => vec!["all-linear".into()],
        None => vec![],
    }
}

/// Names that matched nothing.
fn unused(names: Vec<String>, counts: &[usize]) -> impl Iterator<Item = String> {
    names.into_iter().zip(counts.to_vec()).filter(|(_, count)| *count == 0).map(|(name, _)| name)
}

/// Counts of what the settings matched.
struct Used {
    /// Number of layers that each target matched.
    targets: Vec<usize>,
    /// Number of layers that each of `exclude_modules` matched.
    excluded: Vec<usize>,
    /// Number of layers that each of `modules_to_save` matched.
    saves: Vec<usize>,
    /// Number of layers that each name beside the targets matched.
    beside: Vec<usize>,
    /// Number of layers that each of `target_parameters` matched.
    parameters: Vec<usize>,
    layers: Vec<usize>,
    /// Number of adapted layers that each pattern matched.
    ranks: Vec<usize>,
    alphas: Vec<usize>,
}

impl Used {
    fn new(matcher: &Matcher<'_>) -> Self {
        let config = matcher.config;
        Self {
            targets: vec![0; labels(&config.targets).len()],
            excluded: vec![0; labels(&config.exclude).len()],
            saves: vec![0; matcher.save.len()],
            beside: vec![0; config.beside.len()],
            parameters: vec![0; config.parameters.len()],
            layers: vec![],
            ranks: vec![0; matcher.ranks.len()],
            alphas: vec![0; matcher.alphas.len()],
        }
    }
}

/// Hint with the names of the model that are nearest to one that matched nothing.
fn near(name: &str, layers: &[Candidate<'_>]) -> String {
    let last = |path: &str| path.rsplit('.').next().unwrap_or(path).to_owned();
    let mut names: Vec<String> = layers.iter().map(|layer| last(layer.path)).collect();
    names.sort_unstable();
    names.dedup();
    let wanted = last(name);
    names.sort_by(|a, b| {
        let score = |name: &str| strsim::jaro_winkler(&wanted, name);
        score(b).total_cmp(&score(a))
    });
    names.truncate(8);
    match names.as_slice() {
        [] => "it offers no layers".into(),
        names => format!("nearest: {}", names.join(", ")),
    }
}

/// Shortest names that match all of `wanted` and none of `others`.
pub(crate) fn minimal(wanted: &[&str], others: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    for path in wanted {
        if names.iter().any(|name| is_suffix(path, name)) {
            continue;
        }
        let starts = path.rmatch_indices('.').map(|(at, _)| at + 1).chain([0]);
        let mut suffixes = starts.map(|at| &path[at..]);
        let fits = |name: &&str| !others.iter().any(|other| is_suffix(other, name));
        names.push(suffixes.find(fits).unwrap_or(path).to_owned());
    }
    names
}
