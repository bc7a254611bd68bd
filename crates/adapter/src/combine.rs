//! Combining adapters into one: PEFT's `add_weighted_adapter`.

use crate::{
    config::LoraConfig,
    error::AdapterError,
    init::{
        Init,
        linalg::{svd_accurate, to_mat, to_tensor},
        random::generator,
    },
    layer::{AdaptedLayer, Brought, LayerAdapter},
    layers::LayersMut,
    method::{Method, Site},
    methods::lora::LoraAdapter,
    target::Targets,
    targets::minimal,
    update::BoxedUpdate,
};
use faer::{Mat, MatRef};
use rand::RngExt;
use std::{any::Any, collections::BTreeMap, sync::Arc};

/// Method of combining adapters. Each has a weight `w`; `s` is its scaling.
///
/// ```
/// use burn_lora_adapter::{AdaptableExt, Combine, Init, LoraConfig};
/// # use burn_lora_adapter::doc;
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
/// model.add_adapter("style", &lora)?;
/// model.add_adapter("facts", &lora.clone().seed(1))?;
///
/// model.combine_adapters("both", &[("style", 0.7), ("facts", 0.3)], &Combine::cat())?;
/// assert_eq!(model.adapter_names(), ["both", "facts", "style"]);
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Combine {
    scheme: Scheme,
    rank: Option<usize>,
    frequency: bool,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scheme {
    Linear,
    Cat,
    Svd,
    Ties(f64),
    DareLinear(f64),
    DareTies(f64),
    MagnitudePrune(f64),
}

impl Scheme {
    fn density(self) -> Option<f64> {
        match self {
            Self::Linear | Self::Cat | Self::Svd => None,
            Self::Ties(density)
            | Self::DareLinear(density)
            | Self::DareTies(density)
            | Self::MagnitudePrune(density) => Some(density),
        }
    }
}

impl Combine {
    const fn new(scheme: Scheme) -> Self {
        Self { scheme, rank: None, frequency: false, seed: 0 }
    }

    /// Sums the factors: `A = Σ ±sqrt(|w·s|)·A`, and B likewise. Fast, but only roughly the sum of the
    /// updates. For adapters of equal rank.
    pub const fn linear() -> Self {
        Self::new(Scheme::Linear)
    }

    /// Concatenates A and B: exactly the sum of the updates, at the sum of the ranks.
    pub const fn cat() -> Self {
        Self::new(Scheme::Cat)
    }

    /// Takes the largest singular values of the sum of the updates, at the largest rank of the adapters
    /// unless [`rank`](Self::rank) sets another.
    pub const fn svd() -> Self {
        Self::new(Scheme::Svd)
    }

    /// TIES (arXiv:2306.01708): keeps the largest fraction `density` of the values of each matrix, and of
    /// these only the ones with the majority sign.
    pub const fn ties(density: f64) -> Self {
        Self::new(Scheme::Ties(density))
    }

    /// DARE (arXiv:2311.03099): keeps a random fraction `density` of the values of each matrix, rescaled
    /// by `1 / density`, and sums them.
    pub const fn dare_linear(density: f64) -> Self {
        Self::new(Scheme::DareLinear(density))
    }

    /// DARE's choice of values with TIES' election of signs.
    pub const fn dare_ties(density: f64) -> Self {
        Self::new(Scheme::DareTies(density))
    }

    /// Keeps the largest fraction `density` of the values of each matrix, and sums them.
    pub const fn magnitude_prune(density: f64) -> Self {
        Self::new(Scheme::MagnitudePrune(density))
    }

    /// Sets the rank, and applies the method to the updates `s·B·A`, not to A and B: the result is the
    /// SVD truncated to this rank, as in PEFT's `ties_svd`, `dare_linear_svd` and so on.
    pub const fn rank(mut self, rank: usize) -> Self {
        self.rank = Some(rank);
        self
    }

    /// Elects the majority sign by the number of values instead of their sum.
    pub const fn majority_by_frequency(mut self) -> Self {
        self.frequency = true;
        self
    }

    /// Sets the seed of DARE's choice.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    fn validate(&self, names: &[(&str, f64)]) -> Result<(), AdapterError> {
        let error = |reason: String| Err(AdapterError::State { what: "combine".into(), reason });
        if names.is_empty() {
            return error("no adapters are named".into());
        }
        if let Some((name, weight)) = names.iter().find(|(_, weight)| !weight.is_finite()) {
            return error(format!("the weight of `{name}` is {weight}"));
        }
        match self.scheme.density() {
            Some(density) if !(density > 0.0 && density <= 1.0) => {
                return error(format!("density {density}: it has to be in (0, 1]"));
            }
            _ => {}
        }
        match (self.scheme, self.rank) {
            (_, Some(0)) => error("rank 0".into()),
            (Scheme::Cat | Scheme::Linear, Some(_)) => error("a rank goes with svd".into()),
            _ => Ok(()),
        }
    }

    /// Sums matrices, each with a factor, by the method.
    fn sum(&self, matrices: &[Mat<f32>], factors: &[f32], path: &str) -> Mat<f32> {
        let (rows, columns) = (matrices[0].nrows(), matrices[0].ncols());
        let kept: Vec<Mat<f32>> = match self.scheme {
            Scheme::Ties(density) | Scheme::MagnitudePrune(density) => {
                matrices.iter().map(|matrix| prune_small(matrix.as_ref(), density)).collect()
            }
            Scheme::DareLinear(density) | Scheme::DareTies(density) if density < 1.0 => {
                let mut rng = generator(self.seed, path);
                let mut keep = |value: f32| {
                    if rng.random::<f64>() < density { value / density as f32 } else { 0.0 }
                };
                let pruned =
                    matrices.iter().map(|m| Mat::from_fn(rows, columns, |i, j| keep(m[(i, j)])));
                pruned.collect()
            }
            _ => matrices.to_vec(),
        };
        let elect = matches!(self.scheme, Scheme::Ties(_) | Scheme::DareTies(_));
        Mat::from_fn(rows, columns, |i, j| {
            let values = || kept.iter().zip(factors).map(|(m, factor)| (m[(i, j)], factor));
            if !elect {
                return values().map(|(value, factor)| value * factor).sum();
            }
            let sign = |value: f32| if value == 0.0 { 0.0 } else { value.signum() };
            let total: f32 = values().map(|(v, _)| if self.frequency { sign(v) } else { v }).sum();
            let majority = if total >= 0.0 { 1.0 } else { -1.0 };
            let agreeing = || values().filter(|(value, _)| sign(*value) == majority);
            let sum: f32 = agreeing().map(|(value, factor)| value * factor).sum();
            sum / agreeing().count().max(1) as f32
        })
    }
}

/// Keeps the largest fraction `density` of the values and sets the others to zero.
fn prune_small(matrix: MatRef<'_, f32>, density: f64) -> Mat<f32> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let keep = (density * (rows * columns) as f64) as usize;
    let mut order: Vec<usize> = (0..rows * columns).collect();
    let size = |at: &usize| matrix[(at / columns, at % columns)].abs();
    order.sort_by(|a, b| size(b).total_cmp(&size(a)));
    let mut pruned = Mat::zeros(rows, columns);
    for at in &order[..keep] {
        let at = (at / columns, at % columns);
        pruned[at] = matrix[at];
    }
    pruned
}

/// A and B of one adapter on the host.
struct Factors {
    a: Mat<f32>,
    b: Mat<f32>,
    weight: f64,
    scaling: f64,
}

/// Attaches the combination as a new adapter.
pub(crate) fn combine(
    layers: LayersMut<'_>,
    new: &str,
    names: &[(&str, f64)],
    how: &Combine,
) -> Result<(), AdapterError> {
    how.validate(names)?;
    let mut parts = vec![];
    for (path, layer) in &layers {
        parts.push(factors(&**layer, path, names)?);
    }
    let rank = rank(&parts, how)?;
    let mut updates = vec![];
    for ((path, _), parts) in layers.iter().zip(&parts) {
        updates.push(match parts.as_slice() {
            [] => None,
            parts => Some(update(parts, how, rank, path)?),
        });
    }
    let adapted = |wanted: bool| {
        let chosen = layers.iter().zip(&updates).filter(move |(_, u)| u.is_some() == wanted);
        chosen.map(|((path, _), _)| path.as_str()).collect::<Vec<_>>()
    };
    let targets = Targets::Names(minimal(&adapted(true), &adapted(false)));
    let first = layers.iter().find_map(|(_, layer)| layer.adapters().get(names[0].0));
    let template = first.and_then(|first| {
        let method: &dyn Any = &**first.method();
        method.downcast_ref::<LoraConfig>().cloned()
    });
    let config: Arc<dyn Method> = Arc::new(LoraConfig {
        rank,
        alpha: rank as f64,
        targets: Some(targets),
        rslora: false,
        init: Init::Kaiming,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        exclude: None,
        layers: None,
        layers_pattern: vec![],
        ..template.unwrap_or_default()
    });
    for ((path, layer), update) in layers.into_iter().zip(updates) {
        // Parts of the base that one of them replaced belong to the combination, too.
        let adapters = layer.adapters_mut();
        let parts = names.iter().flat_map(|(name, _)| adapters.brought(name));
        let brought: Vec<_> = parts.map(|part| Brought { adapter: new.to_owned(), part }).collect();
        adapters.brought.extend(brought);
        let Some([a, b]) = update else { continue };
        let [a, b] = [a, b].map(|matrix| to_tensor(matrix.as_ref(), &layer.device()));
        let site = Site {
            path: &path,
            kind: layer.kind(),
            shape: layer.shape(),
            rank,
            alpha: rank as f64,
            ..Site::default()
        };
        let update = BoxedUpdate::new(LoraAdapter::new(1.0, false, a, b));
        let mut adapter = LayerAdapter::new(new, config.clone(), &site, update);
        adapter.set_require_grad(false);
        layer.adapters_mut().updates.push(adapter);
    }
    Ok(())
}

/// Factors of the adapters for one layer.
fn factors(
    layer: &dyn AdaptedLayer,
    path: &str,
    names: &[(&str, f64)],
) -> Result<Vec<Factors>, AdapterError> {
    let error = |reason: String| Err(AdapterError::Layer { layer: path.to_owned(), reason });
    let mut found = vec![];
    for &(name, weight) in names {
        if layer.adapters().saved(name).is_some() {
            return error(format!("adapter `{name}` trains it whole: that cannot be combined"));
        }
        let Some(adapter) = layer.adapters().get(name) else { continue };
        let Some(lora) = adapter.update.downcast_ref::<LoraAdapter>() else {
            let method = adapter.method().peft_type();
            return error(format!("adapter `{name}` is {method}: only LoRA can be combined"));
        };
        if lora.magnitude.is_some() {
            return error(format!("adapter `{name}` is DoRA: merge it instead"));
        }
        let mat = |param: &burn::module::Param<burn::tensor::Tensor<2>>| to_mat(param.val(), path);
        let (a, b) = (mat(&lora.lora_a)?, mat(&lora.lora_b)?);
        found.push(Factors { a, b, weight, scaling: lora.scaling() });
    }
    Ok(found)
}

/// Rank of the combination, the same for all layers.
fn rank(parts: &[Vec<Factors>], how: &Combine) -> Result<usize, AdapterError> {
    let ranks = || parts.iter().flatten().map(|part| part.a.nrows());
    let largest = ranks().max().unwrap_or(0);
    let error = |reason: String| Err(AdapterError::State { what: "combine".into(), reason });
    if largest == 0 {
        return error("the adapters have no low-rank updates".into());
    }
    match (how.scheme, how.rank) {
        (_, Some(rank)) => Ok(rank),
        (Scheme::Svd, None) => Ok(largest),
        (Scheme::Cat, None) => {
            let sums = parts.iter().map(|parts| parts.iter().map(|part| part.a.nrows()).sum());
            Ok(sums.max().unwrap_or(0))
        }
        _ if ranks().any(|rank| rank != largest) => {
            error("the ranks differ: use cat or svd, or say .rank(r)".into())
        }
        _ => Ok(largest),
    }
}

/// Computes A and B of the combination, whose scaling is 1.
fn update(
    parts: &[Factors],
    how: &Combine,
    rank: usize,
    path: &str,
) -> Result<[Mat<f32>; 2], AdapterError> {
    let a: Vec<_> = parts.iter().map(|part| part.a.clone()).collect();
    let b: Vec<_> = parts.iter().map(|part| part.b.clone()).collect();
    if how.scheme == Scheme::Cat {
        let scaled: Vec<_> =
            parts.iter().map(|p| &p.a * faer::Scale((p.weight * p.scaling) as f32)).collect();
        return Ok([stack(&scaled, rank), stack(&transposed(&b), rank).transpose().to_owned()]);
    }
    if how.scheme != Scheme::Svd && how.rank.is_none() {
        // Both sides get the square root of the weight, one of them its sign.
        let side = |part: &Factors| (part.weight * part.scaling).abs().sqrt();
        let sign = |part: &Factors| if part.weight * part.scaling < 0.0 { -1.0 } else { 1.0 };
        let of_a: Vec<_> = parts.iter().map(|part| (side(part) * sign(part)) as f32).collect();
        let of_b: Vec<_> = parts.iter().map(|part| side(part) as f32).collect();
        return Ok([
            how.sum(&a, &of_a, &format!("{path}.lora_A")),
            how.sum(&b, &of_b, &format!("{path}.lora_B")),
        ]);
    }
    let deltas: Vec<_> =
        parts.iter().map(|part| &part.b * &part.a * faer::Scale(part.scaling as f32)).collect();
    let weights: Vec<_> = parts.iter().map(|part| part.weight as f32).collect();
    let delta = how.sum(&deltas, &weights, path);
    let svd = svd_accurate(delta.as_ref(), rank, &mut generator(how.seed, path), path)?;
    let padded = |matrix: Mat<f32>| stack(&[matrix], rank);
    let b = svd.left(|s| s).transpose().to_owned();
    Ok([padded(svd.right(|_| 1.0)), padded(b).transpose().to_owned()])
}

fn transposed(matrices: &[Mat<f32>]) -> Vec<Mat<f32>> {
    matrices.iter().map(|matrix| matrix.transpose().to_owned()).collect()
}

/// Stacks matrices vertically, padded with zeros to `rows`.
pub(crate) fn stack(matrices: &[Mat<f32>], rows: usize) -> Mat<f32> {
    let mut stacked = Mat::zeros(rows, matrices[0].ncols());
    let mut at = 0;
    for matrix in matrices {
        stacked.subrows_mut(at, matrix.nrows()).copy_from(matrix);
        at += matrix.nrows();
    }
    stacked
}
