//! EVA: principal directions of a layer's inputs, and ranks redistributed to where they explain most.

use super::{
    linalg::{svd_accurate, to_mat},
    random::generator,
};
use crate::{config::LoraConfig, error::AdapterError, targets::LayerPlan};
use burn::tensor::Tensor;
use faer::Mat;
use std::collections::BTreeMap;

/// Principal components of the inputs of one layer, updated batch by batch over any number of batches
/// (as scikit-learn's `IncrementalPCA`).
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_lora_adapter::InputStats;
///
/// let mut stats = InputStats::new(1);
/// let device = Device::default();
/// stats.update(Tensor::<2>::from_floats([[1.0, 1.0], [-1.0, -1.0], [2.0, 2.1]], &device))?;
/// assert!(stats.explained_variance_ratio()[0] > 0.99); // they lie on a line
/// # Ok::<_, burn_lora_adapter::AdapterError>(())
/// ```
#[derive(Clone, Debug)]
pub struct InputStats {
    count: usize,
    seen: usize,
    mean: Vec<f64>,
    /// Sum of the squared differences from the mean, per input feature.
    deviation: Vec<f64>,
    /// Components, `[count, in]`, each times its singular value.
    scaled: Mat<f32>,
    singular: Vec<f32>,
}

impl InputStats {
    /// Creates statistics with `components` directions: the rank times the `rho` of
    /// [`Init::Eva`](crate::Init::Eva) covers all that can be used.
    pub fn new(components: usize) -> Self {
        Self {
            count: components,
            seen: 0,
            mean: vec![],
            deviation: vec![],
            scaled: Mat::new(),
            singular: vec![],
        }
    }

    /// Updates the statistics with a batch of inputs.
    ///
    /// # Shapes
    /// - inputs: `[rows, in]`
    ///
    /// # Errors
    /// [`AdapterError::Layer`] if a value is not finite or the width differs from that of earlier batches;
    /// [`AdapterError::Device`] if the inputs cannot be read.
    pub fn update(&mut self, inputs: Tensor<2>) -> Result<(), AdapterError> {
        let batch = to_mat(inputs, "the inputs of a layer")?;
        let (rows, width) = (batch.nrows(), batch.ncols());
        if rows == 0 {
            return Ok(());
        }
        if self.seen == 0 {
            (self.mean, self.deviation) = (vec![0.0; width], vec![0.0; width]);
            self.scaled = Mat::zeros(0, width);
        } else if self.mean.len() != width {
            let reason = format!("inputs of width {width} after such of {}", self.mean.len());
            return Err(AdapterError::Layer { layer: "InputStats".into(), reason });
        }
        let total = self.seen + rows;
        let batch_mean: Vec<f64> = (0..width)
            .map(|j| (0..rows).map(|i| f64::from(batch[(i, j)])).sum::<f64>() / rows as f64)
            .collect();
        // The old directions, the centred batch, and the step between the means.
        let step = (self.seen as f64 * rows as f64 / total as f64).sqrt();
        let kept = self.scaled.nrows();
        let extra = usize::from(self.seen > 0);
        let stacked = Mat::from_fn(kept + rows + extra, width, |i, j| {
            if i < kept {
                self.scaled[(i, j)]
            } else if i < kept + rows {
                (f64::from(batch[(i - kept, j)]) - batch_mean[j]) as f32
            } else {
                (step * (self.mean[j] - batch_mean[j])) as f32
            }
        });
        for j in 0..width {
            let around = |i| (f64::from(batch[(i, j)]) - batch_mean[j]).powi(2);
            let shift = self.mean[j] - batch_mean[j];
            self.deviation[j] += (0..rows).map(around).sum::<f64>() + (step * shift).powi(2);
            self.mean[j] += (batch_mean[j] - self.mean[j]) * rows as f64 / total as f64;
        }
        let mut rng = generator(0, "InputStats");
        let svd = svd_accurate(stacked.as_ref(), self.count, &mut rng, "the inputs of a layer")?;
        self.scaled = svd.right(|s| s);
        self.singular = svd.s;
        self.seen = total;
        Ok(())
    }

    /// Fraction of the inputs' variance explained by each direction, in descending order.
    pub fn explained_variance_ratio(&self) -> Vec<f64> {
        let total: f64 = self.deviation.iter().sum();
        let part = |s: &f32| if total > 0.0 { f64::from(*s).powi(2) / total } else { 0.0 };
        self.singular.iter().map(part).collect()
    }

    /// First directions, `[rank, in]`, each of length 1.
    pub(crate) fn components(&self, rank: usize) -> Mat<f32> {
        Mat::from_fn(rank, self.scaled.ncols(), |i, j| {
            let s = self.singular[i];
            if s > 0.0 { self.scaled[(i, j)] / s } else { 0.0 }
        })
    }

    pub(crate) fn width(&self) -> usize {
        self.mean.len()
    }
}

/// Redistributes the ranks of all layers, with the same total, to the directions that explain most. A
/// layer that gets none loses its adapter; alphas follow the ranks, so that scalings stay the same.
pub(crate) fn redistribute(
    paths: &[&str],
    plans: &mut [Option<LayerPlan>],
    inputs: &BTreeMap<String, InputStats>,
    config: &LoraConfig,
    rho: f64,
) -> Result<(), AdapterError> {
    let mut budget = 0;
    let mut candidates = vec![];
    for (i, (path, plan)) in paths.iter().zip(plans.iter()).enumerate() {
        let Some(LayerPlan::Update { rank, .. }) = plan else { continue };
        let error = |reason: String| AdapterError::Layer { layer: (*path).to_owned(), reason };
        let stats = inputs.get(*path);
        let stats = stats.ok_or_else(|| error("it has no input statistics for EVA".into()))?;
        let ratios = stats.explained_variance_ratio();
        if ratios.len() < *rank {
            let found = ratios.len();
            return Err(error(format!("statistics of {found} directions for rank {rank}")));
        }
        budget += rank;
        let most = (*rank as f64 * rho).round() as usize;
        candidates.extend(ratios.iter().take(most).map(|&ratio| (ratio, i)));
    }
    // A stable sort: of equal ratios the first layer's come first.
    candidates.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let mut counts = vec![0; plans.len()];
    candidates.iter().take(budget).for_each(|&(_, i)| counts[i] += 1);
    for (plan, count) in plans.iter_mut().zip(counts) {
        let Some(LayerPlan::Update { rank, alpha }) = plan else { continue };
        let scaling = config.scaling(*rank, *alpha);
        if count == 0 {
            *plan = None;
        } else {
            *alpha *= scaling / config.scaling(count, *alpha);
            *rank = count;
        }
    }
    Ok(())
}
