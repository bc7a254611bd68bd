//! Which layers of a model the settings mean: PEFT's rules, and an error where PEFT is silent.

use crate::{
    config::{LoraConfig, Targets},
    error::AdapterError,
    layer::LayerKind,
};
use fancy_regex::Regex;
use std::fmt;

/// The settings of a [`LoraConfig`] that choose layers, compiled.
pub(crate) struct Matcher<'a> {
    config: &'a LoraConfig,
    targets: Names<'a>,
    exclude: Option<Names<'a>>,
    save: Vec<(&'a str, Regex)>,
    layer_index: Vec<Regex>,
    ranks: Vec<(&'a str, Regex, usize)>,
    alphas: Vec<(&'a str, Regex, f64)>,
}

enum Names<'a> {
    List(&'a [String]),
    Regex(Regex),
    AllLinear,
}

impl<'a> Names<'a> {
    fn new(targets: &'a Targets, field: &'static str) -> Result<Self, AdapterError> {
        Ok(match targets {
            Targets::Names(names) => Self::List(names),
            Targets::Regex(pattern) => {
                Self::Regex(compile(&format!("^(?:{pattern})$"), pattern, field)?)
            }
            Targets::AllLinear => Self::AllLinear,
        })
    }

    /// The indices of the names that match.
    fn find(&self, path: &str) -> Vec<usize> {
        match self {
            Self::List(names) => indices(names, |name| is_suffix(path, name)),
            Self::Regex(pattern) => matches(pattern, path).then_some(0).into_iter().collect(),
            Self::AllLinear => vec![0],
        }
    }

    /// Whether the whole path is a name.
    fn is_whole(&self, path: &str) -> bool {
        matches!(self, Self::List(names) if names.iter().any(|name| name == path))
    }
}

/// Whether `path` is `name`, or ends with it after a dot.
fn is_suffix(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|head| head.is_empty() || head.ends_with('.'))
}

/// The path and those of the modules that it lies in.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('.').map(|(at, _)| &path[..at]).chain([path])
}

fn compile(regex: &str, shown: &str, field: &'static str) -> Result<Regex, AdapterError> {
    Regex::new(regex).map_err(|error| AdapterError::Config {
        field,
        found: format!("`{shown}`"),
        reason: format!("no regular expression: {error}"),
    })
}

/// A pattern that backtracks without end matches nothing.
fn matches(regex: &Regex, path: &str) -> bool {
    regex.is_match(path).unwrap_or(false)
}

/// What an adapter will be for one layer: see [`LoraConfig::plan`].
#[derive(Clone, Debug, PartialEq)]
pub enum LayerPlan {
    /// A low-rank update.
    Lora {
        /// Its rank.
        rank: usize,
        /// Its alpha.
        alpha: f64,
    },
    /// A trained copy.
    Save,
}

impl LoraConfig {
    /// What an adapter with these settings will be for each of some layers, by their paths and kinds;
    /// there need be no model yet. `head` is the path of the output head.
    ///
    /// ```
    /// use burn_lora_adapter::{LayerKind, LayerPlan, LoraConfig};
    ///
    /// let lora = LoraConfig::new(4, 8).all_linear();
    /// let layers = [("mlp.up", LayerKind::Linear), ("lm_head", LayerKind::Linear)];
    /// let plans = lora.plan(&layers, "lm_head")?;
    /// assert_eq!(plans, [Some(LayerPlan::Lora { rank: 4, alpha: 8.0 }), None]);
    /// # Ok::<_, burn_lora_adapter::AdapterError>(())
    /// ```
    ///
    /// # Errors
    /// Settings that cannot be used, or that match nothing.
    pub fn plan(
        &self,
        layers: &[(&str, LayerKind)],
        head: &str,
    ) -> Result<Vec<Option<LayerPlan>>, AdapterError> {
        self.validate()?;
        let candidates: Vec<_> = layers
            .iter()
            .map(|&(path, kind)| Candidate { path, kind, is_head: path == head })
            .collect();
        Ok(Matcher::new(self)?.resolve(&candidates, true)?.0)
    }
}

/// How many layers each target matched.
///
/// ```
/// # use burn::tensor::Device;
/// # use burn::nn::LinearConfig;
/// use burn_lora_adapter::{AdaptedLinear, Adaptable, LoraConfig, adaptable};
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
    /// Each target (of `modules_to_save` too) and how many layers it matched.
    pub targets: Vec<(String, usize)>,
    /// The paths of the layers that have a low-rank update.
    pub adapted: Vec<String>,
    /// The paths of the layers that are copied and trained whole.
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

/// A model's layer, as far as matching goes.
pub(crate) struct Candidate<'a> {
    pub path: &'a str,
    pub kind: LayerKind,
    pub is_head: bool,
}

impl<'a> Matcher<'a> {
    /// Compiles the patterns.
    pub fn new(config: &'a LoraConfig) -> Result<Self, AdapterError> {
        fn patterns<'a, T: Copy>(
            map: &'a std::collections::BTreeMap<String, T>,
            field: &'static str,
        ) -> Result<Vec<(&'a str, Regex, T)>, AdapterError> {
            let compiled = map.iter().map(|(key, &value)| {
                Ok((key.as_str(), compile(&format!(r"^(?:.*\.)?(?:{key})$"), key, field)?, value))
            });
            compiled.collect()
        }
        let save = config.modules_to_save.iter();
        let layer_index = if config.layers_pattern.is_empty() {
            vec![compile(r"^.*?\.[^.]*\.(\d+)\.", "", "layers_to_transform")?]
        } else {
            let patterns = config.layers_pattern.iter().map(|pattern| {
                compile(&format!(r"^(?:|.*?\.){pattern}\.(\d+)\."), pattern, "layers_pattern")
            });
            patterns.collect::<Result<_, _>>()?
        };
        let none = &[];
        Ok(Self {
            config,
            targets: match &config.targets {
                Some(targets) => Names::new(targets, "target_modules")?,
                None => Names::List(none),
            },
            exclude: match &config.exclude {
                Some(exclude) => Some(Names::new(exclude, "exclude_modules")?),
                None => None,
            },
            save: save
                .map(|name| {
                    let pattern = format!(r"^(?:|.*\.){name}(?:$|\..*)");
                    Ok((name.as_str(), compile(&pattern, name, "modules_to_save")?))
                })
                .collect::<Result<_, AdapterError>>()?,
            layer_index,
            ranks: patterns(&config.rank_pattern, "rank_pattern")?,
            alphas: patterns(&config.alpha_pattern, "alpha_pattern")?,
        })
    }

    /// The index of the layer that a path lies in.
    fn layer_of(&self, path: &str) -> Option<usize> {
        let found =
            self.layer_index.iter().find_map(|regex| regex.captures(path).ok().flatten())?;
        found.get(1)?.as_str().parse().ok()
    }

    /// What the adapter will be for each layer, in the order given.
    ///
    /// `strict` makes names that match nothing an error, otherwise they are logged.
    pub fn resolve(
        &self,
        layers: &[Candidate<'_>],
        strict: bool,
    ) -> Result<(Vec<Option<LayerPlan>>, MatchReport), AdapterError> {
        let mut used = Used::new(self.labels().len(), self.save.len());
        let plans: Vec<_> = layers.iter().map(|layer| self.plan(layer, &mut used)).collect();
        self.check(layers, &used, strict)?;
        let of = |wanted: fn(&LayerPlan) -> bool| {
            let chosen =
                layers.iter().zip(&plans).filter(|(_, plan)| plan.as_ref().is_some_and(wanted));
            chosen.map(|(layer, _)| layer.path.to_owned()).collect()
        };
        let saved = self.config.modules_to_save.iter().cloned().zip(used.saves);
        let report = MatchReport {
            targets: self.labels().into_iter().zip(used.targets).chain(saved).collect(),
            adapted: of(|plan| matches!(plan, LayerPlan::Lora { .. })),
            saved: of(|plan| *plan == LayerPlan::Save),
        };
        Ok((plans, report))
    }

    /// What the adapter will be for one layer; what matched is noted.
    fn plan(&self, layer: &Candidate<'_>, used: &mut Used) -> Option<LayerPlan> {
        let path = layer.path;
        let saves_it = |(name, regex): &(&str, Regex)| {
            matches(regex, path) || prefixes(path).any(|prefix| prefix.ends_with(name))
        };
        let saves = indices(&self.save, saves_it);
        if !saves.is_empty() {
            saves.into_iter().for_each(|i| used.saves[i] += 1);
            return Some(LayerPlan::Save);
        }
        if self.exclude.as_ref().is_some_and(|names| !names.find(path).is_empty()) {
            used.exclude = true;
            return None;
        }
        let adaptable = match (&self.targets, layer.kind) {
            (Names::AllLinear, kind) => kind == LayerKind::Linear && !layer.is_head,
            (_, kind) => kind != LayerKind::Vector,
        };
        let found = if adaptable { self.targets.find(path) } else { vec![] };
        if found.is_empty() {
            return None;
        }
        // A whole path is meant in whatever layer it lies.
        if let Some(wanted) = &self.config.layers
            && !self.targets.is_whole(path)
        {
            let layer = self.layer_of(path).filter(|layer| wanted.contains(layer))?;
            used.layers.push(layer);
        }
        found.into_iter().for_each(|i| used.targets[i] += 1);
        let ranks = indices(&self.ranks, |(_, regex, _)| matches(regex, path));
        let alphas = indices(&self.alphas, |(_, regex, _)| matches(regex, path));
        let plan = LayerPlan::Lora {
            rank: ranks.first().map_or(self.config.rank, |&i| self.ranks[i].2),
            alpha: alphas.first().map_or(self.config.alpha, |&i| self.alphas[i].2),
        };
        used.ranks.extend(ranks);
        used.alphas.extend(alphas);
        Some(plan)
    }

    /// The targets as a user wrote them.
    fn labels(&self) -> Vec<String> {
        match &self.config.targets {
            Some(Targets::Names(names)) => names.clone(),
            Some(Targets::Regex(pattern)) => vec![pattern.clone()],
            Some(Targets::AllLinear) => vec!["all-linear".into()],
            None => vec![],
        }
    }

    /// Everything named has to match something.
    fn check(
        &self,
        layers: &[Candidate<'_>],
        used: &Used,
        strict: bool,
    ) -> Result<(), AdapterError> {
        let mut missed = vec![];
        let mut miss = |field, name: &str, what, near| {
            missed.push(AdapterError::NoMatch { field, name: name.to_owned(), what, near });
        };
        for layer in self.config.layers.iter().flatten().filter(|l| !used.layers.contains(l)) {
            let mut there: Vec<_> = layers.iter().filter_map(|l| self.layer_of(l.path)).collect();
            there.sort_unstable();
            there.dedup();
            let near = match (there.first(), there.last()) {
                (Some(first), Some(last)) => format!("its layers are {first} to {last}"),
                _ => "its paths have no layer numbers".into(),
            };
            miss("layers_to_transform", &layer.to_string(), "adapted layer", near);
        }
        for (name, _) in self.labels().iter().zip(&used.targets).filter(|(_, count)| **count == 0) {
            let there = layers.iter().any(|layer| is_suffix(layer.path, name));
            let near = match there {
                true => "those that it names are excluded, or in modules_to_save".to_owned(),
                false => near(name, layers),
            };
            miss("target_modules", name, "layer", near);
        }
        for (name, _) in
            self.config.modules_to_save.iter().zip(&used.saves).filter(|(_, count)| **count == 0)
        {
            miss("modules_to_save", name, "layer", near(name, layers));
        }
        for (i, (key, ..)) in self.ranks.iter().enumerate() {
            if !used.ranks.contains(&i) {
                miss("rank_pattern", key, "adapted layer", near(key, layers));
            }
        }
        for (i, (key, ..)) in self.alphas.iter().enumerate() {
            if !used.alphas.contains(&i) {
                miss("alpha_pattern", key, "adapted layer", near(key, layers));
            }
        }
        if let (Some(exclude), false) = (&self.config.exclude, used.exclude) {
            burn_lora_io::warn!("exclude_modules matches no layer: {exclude:?}");
        }
        if !strict {
            // Files of others name layers that their model had; their tensors say what counts.
            missed.drain(..).for_each(|error| burn_lora_io::warn!("{error}"));
        }
        missed.into_iter().next().map_or(Ok(()), Err)
    }
}

/// What matched something.
struct Used {
    /// How many layers each target matched.
    targets: Vec<usize>,
    /// How many layers each of `modules_to_save` matched.
    saves: Vec<usize>,
    exclude: bool,
    layers: Vec<usize>,
    /// The indices of the patterns that matched.
    ranks: Vec<usize>,
    alphas: Vec<usize>,
}

impl Used {
    fn new(targets: usize, saves: usize) -> Self {
        let (targets, saves) = (vec![0; targets], vec![0; saves]);
        Self { targets, saves, exclude: false, layers: vec![], ranks: vec![], alphas: vec![] }
    }
}

/// The indices of the items that match.
fn indices<T>(items: &[T], matches: impl Fn(&T) -> bool) -> Vec<usize> {
    let matching = items.iter().enumerate().filter(|(_, item)| matches(item));
    matching.map(|(i, _)| i).collect()
}

/// The model's names that are nearest to one that matched nothing.
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

/// The shortest names that match `wanted` and none of `others`.
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
