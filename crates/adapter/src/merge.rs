//! Merging updates into the weights, and unmerging them.

use crate::{
    base::Base,
    error::AdapterError,
    init::linalg::to_vec,
    layer::{AdaptedLayer, LayerAdapter, Merged, are_tied},
    layers::LayersMut,
    parameters,
    selection::Selection,
};
use burn::{
    module::Param,
    tensor::{DType, FloatDType, Tensor},
};
use burn_lora_io::progress::Work;
use burn_lora_quant::QuantConfig;
use std::fmt;

/// Storage of a packed weight after an update is merged into it.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// use burn::tensor::FloatDType;
/// use burn_lora_quant::QuantConfig;
///
/// model.quantize_base(&QuantConfig::nf4())?;
/// model.add_adapter("default", &lora)?;
/// let packed = model.merge(PackedMerge::Requantize)?;
/// model.unmerge();
/// let small = model.merge(PackedMerge::RequantizeAs(QuantConfig::nf4().block_size(32)))?;
/// model.unmerge();
/// let dense = model.merge(PackedMerge::Dense(FloatDType::F32))?;
/// assert!(packed.mean > dense.mean && small.mean > dense.mean && dense.mean == 0.0);
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PackedMerge {
    /// A dense weight of this dtype.
    Dense(FloatDType),
    /// A packed weight, with its previous settings. The [`MergeReport`] gives its error.
    Requantize,
    /// A packed weight with other settings.
    RequantizeAs(QuantConfig),
}

/// Error of the stored weights against the exact sums: rounding and quantization; and how much of the
/// update is left.
///
/// Of an update `D`, of which `D'` is in the stored weight, `1 - |D' - D|² / |D|²` is kept, with the
/// Frobenius norm, and never less than 0. A packed weight sits in the middle of its codes: an update
/// that is small against their distance is rounded away. A merge that keeps less than 90 % warns.
///
/// ```
/// # use burn::{module::Module, nn::LinearConfig, tensor::{Device, Tensor}};
/// # use burn_lora_adapter::{AdaptableExt, AdaptedLinear, Init, LoraConfig, PackedMerge, adaptable};
/// # use burn_lora_quant::QuantConfig;
/// # #[derive(Module, Debug)]
/// # struct Model { linear: AdaptedLinear }
/// # adaptable!(Model { linear });
/// # let device = Device::default();
/// # let linear: AdaptedLinear = LinearConfig::new(64, 64).init(&device).into();
/// let mut model = Model { linear: linear.quantize(&QuantConfig::nf4())? };
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
/// model.add_adapter("default", &lora)?;
///
/// let report = model.merge(PackedMerge::Requantize)?;
/// assert!(report.mean > 0.0 && report.max >= report.mean && report.kept < 1.0);
/// model.unmerge(); // exact: the old codes were kept
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    /// Errors of the layers that changed.
    pub layers: Vec<LayerError>,
    /// Mean absolute error over all weights of these layers.
    pub mean: f64,
    /// Largest absolute error.
    pub max: f64,
    /// Fraction of the update that is kept, over all weights of these layers.
    pub kept: f64,
}

/// Merge error of one layer.
///
/// ```
/// # use burn_lora_adapter::{*, doc};
/// # let mut model = doc::model();
/// let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
///
/// model.add_adapter("default", &lora)?;
/// let report = model.merge(PackedMerge::Requantize)?;
/// assert_eq!((report.layers[0].path.as_str(), report.layers[0].max), ("linear", 0.0));
/// # Ok::<_, AdapterError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LayerError {
    /// Path of the layer.
    pub path: String,
    /// Mean absolute error.
    pub mean: f64,
    /// Largest absolute error.
    pub max: f64,
    /// Fraction of the update that is kept.
    pub kept: f64,
}

impl Default for MergeReport {
    /// No layer: nothing is lost.
    fn default() -> Self {
        Self { layers: vec![], mean: 0.0, max: 0.0, kept: 1.0 }
    }
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, mean, max, kept } = self;
        write!(f, "{} layers, error: mean {mean:.3e}, max {max:.3e}", layers.len())?;
        if let Some(worst) = layers.iter().max_by(|a, b| a.max.total_cmp(&b.max)) {
            write!(f, " in {}", worst.path)?;
        }
        write!(f, "; {:.1} % of the update kept", 100.0 * kept)
    }
}

/// Merges the selected updates into the weights.
pub(crate) fn merge(
    mut layers: LayersMut<'_>,
    packed: PackedMerge,
) -> Result<MergeReport, AdapterError> {
    let error = |reason: &str| AdapterError::State { what: "merge".into(), reason: reason.into() };
    let selection = layers.first().map(|(_, layer)| layer.adapters().selection().clone());
    let Some(Selection::Adapters(names)) = selection else {
        return Err(error("adapters are selected by rows: select those to merge"));
    };
    if names.is_empty() {
        return Err(error("no adapter is selected"));
    }
    if let PackedMerge::RequantizeAs(config) = packed {
        config.validate()?;
    }
    for (path, layer) in &layers {
        for adapter in layer.adapters().active(&names) {
            for field in adapter.trained_fields() {
                let values = parameters::read(&adapter.update, field, path)?.unwrap_or_default();
                if values.iter().any(|value| !value.is_finite()) {
                    let reason =
                        format!("adapter `{}` has values that are not finite", adapter.name());
                    return Err(AdapterError::Layer { layer: path.clone(), reason });
                }
            }
        }
    }
    let mut report = MergeReport::default();
    let (mut sum, mut weights) = (0.0, 0);
    let [mut lost, mut update] = [0.0; 2];
    let leaders = leaders(&layers, &names);
    let work = Work::items("merging layers", layers.len());
    for i in 0..layers.len() {
        work.advance(1);
        if let Some(leader) = leaders[i] {
            share(&mut layers, leader, i);
            continue;
        }
        let (path, layer) = &mut layers[i];
        let [mean, max, squares, of] = match merge_layer(&mut **layer, &names, packed, path)? {
            None => continue,
            Some(errors) => errors,
        };
        let count: usize = layer.shape().iter().product();
        sum += mean * count as f64;
        weights += count;
        lost += squares;
        update += of;
        report.max = report.max.max(max);
        report.layers.push(LayerError { path: path.clone(), mean, max, kept: kept(squares, of) });
    }
    report.mean = sum / weights.max(1) as f64;
    report.kept = kept(lost, update);
    report.warn();
    Ok(report)
}

/// Fraction of an update that is kept, by the squared norms of what is lost and of the update.
fn kept(lost: f64, update: f64) -> f64 {
    if lost == 0.0 { 1.0 } else { (1.0 - lost / update).max(0.0) }
}

impl MergeReport {
    /// Fraction of the update below which a merge warns.
    const ENOUGH: f64 = 0.9;

    fn warn(&self) {
        let worst = self.layers.iter().min_by(|a, b| a.kept.total_cmp(&b.kept));
        let Some(worst) = worst.filter(|_| self.kept < Self::ENOUGH) else { return };
        burn_lora_io::warn!(
            "the merged weights keep {:.0} % of the update ({:.0} % in {}): the rest is rounded away by the \
             format that they are stored in. Merge into a dense weight (`PackedMerge::Dense`) of more bits, or \
             keep the adapter beside its base",
            100.0 * self.kept,
            100.0 * worst.kept,
            worst.path
        );
    }
}

/// For each layer whose updates are all those of a layer that it shares its weight with: that layer, if
/// it comes before.
fn leaders(layers: &LayersMut<'_>, names: &[String]) -> Vec<Option<usize>> {
    let follows = |layer: &dyn AdaptedLayer| {
        let mut updates = names.iter().filter_map(|name| layer.adapters().get(name)).peekable();
        updates.peek().is_some() && updates.all(LayerAdapter::follows)
    };
    let leader = |i: usize| {
        let tied = |j: &usize| are_tied(&*layers[*j].1, &*layers[i].1);
        (0..i).find(tied).filter(|_| follows(&*layers[i].1))
    };
    (0..layers.len()).map(leader).collect()
}

/// Gives a layer the weight of another one again, which was merged or unmerged.
fn share(layers: &mut LayersMut<'_>, from: usize, to: usize) {
    let leader = &layers[from].1;
    let (weight, merged) = (leader.weight_param().cloned(), leader.adapters().merged.clone());
    let layer = &mut layers[to].1;
    layer.adapters_mut().merged = merged;
    if let (Some(own), Some(weight)) = (layer.weight_param_mut(), weight) {
        *own = weight;
    }
    layer.refresh();
}

/// Merges updates into one layer; returns the mean and the largest error, and the squared norms of the
/// error and of the update. `None` without an update.
fn merge_layer(
    layer: &mut dyn AdaptedLayer,
    names: &[String],
    packed: PackedMerge,
    path: &str,
) -> Result<Option<[f64; 4]>, AdapterError> {
    let dtype = sum_dtype(layer, packed);
    let weight = layer.weight().cast(dtype);
    let mut exact = weight.clone();
    let mut merged = vec![];
    for adapter in layer.adapters().active(names) {
        let factor = adapter.update.factor(layer).map(Tensor::inner);
        let mut delta = adapter.update.delta(dtype);
        if let Some(factor) = &factor {
            let factor = factor.clone().cast(dtype).unsqueeze_dim::<2>(1);
            exact = exact + weight.clone() * (factor.clone() - 1.0);
            delta = delta.map(|delta| delta * factor);
        }
        if let Some(delta) = delta {
            exact = exact + delta;
        }
        let factor = factor.map(|factor| Param::from_tensor(factor).set_require_grad(false));
        merged.push(Merged { factor, name: adapter.name().to_owned() });
    }
    if merged.is_empty() {
        return Ok(None);
    }
    let quantized = layer.is_quantized();
    match layer.base_mut() {
        Some(base) if quantized => {
            let rounded = || exact.clone().cast(FloatDType::F32);
            let with = match packed {
                PackedMerge::Dense(dtype) => base.with_dense(exact.clone(), dtype),
                PackedMerge::Requantize => base.with_weight(rounded())?,
                PackedMerge::RequantizeAs(config) => base.with_stored(rounded(), &config)?,
            };
            let before = std::mem::replace(base, with);
            layer.adapters_mut().unmerged = Some(before.weight);
            layer.adapters_mut().merged = merged;
        }
        _ => {
            // Before the weight changes: what updates keep of it stays that of the original one.
            layer.adapters_mut().merged = merged;
            layer.set_weight(exact.clone());
        }
    }
    let update = (exact.clone() - weight).cast(FloatDType::F32);
    let error = (layer.weight() - exact.cast(FloatDType::F32)).abs();
    let squares = |values: Tensor<2>| (values.clone() * values).sum();
    let found = [error.clone().mean(), error.clone().max(), squares(error), squares(update)];
    let read = |value: Tensor<1>| to_vec(value, path).map(|value| f64::from(value[0]));
    let [mean, max, lost, of] = found.map(read);
    Ok(Some([mean?, max?, lost?, of?]))
}

/// Dtype of the sum, chosen so that it is rounded once, when it is stored: float32, or, for weights
/// that are stored in float32, float64 where the device supports it.
fn sum_dtype(layer: &dyn AdaptedLayer, packed: PackedMerge) -> FloatDType {
    let stored = match (layer.weight_param(), packed) {
        (Some(weight), _) => FloatDType::from(weight.val().dtype()),
        (None, PackedMerge::Dense(dtype)) => dtype,
        (None, _) => FloatDType::BF16,
    };
    let wide = stored == FloatDType::F32 && layer.device().supports_dtype(DType::F64);
    if wide { FloatDType::F64 } else { FloatDType::F32 }
}

/// Removes merged updates from the weights.
pub(crate) fn unmerge(mut layers: LayersMut<'_>) {
    let names = layers.iter().flat_map(|(_, layer)| &layer.adapters().merged);
    let names: Vec<_> = names.map(|merged| merged.name.clone()).collect();
    let leaders = leaders(&layers, &names);
    for i in 0..layers.len() {
        if let Some(leader) = leaders[i] {
            share(&mut layers, leader, i);
            continue;
        }
        let layer = &mut layers[i].1;
        let merged = std::mem::take(&mut layer.adapters_mut().merged);
        let unmerged = layer.adapters_mut().unmerged.take();
        if let Some(weight) = unmerged
            && let Some(base) = layer.base_mut()
        {
            base.weight = weight;
            continue;
        }
        if merged.is_empty() {
            continue;
        }
        // The merged weight is `W + Σ (f - 1)·W + Σ f·delta`, where f is 1 without a factor.
        let mut sum = layer.weight();
        let mut scale: Option<Tensor<2>> = None;
        for Merged { factor, name } in merged {
            let adapter = layer.adapters().get(&name).expect("a merged adapter cannot be deleted");
            let mut delta = adapter.update.delta(FloatDType::F32);
            if let Some(factor) = factor.map(|factor| factor.val().inner().unsqueeze_dim::<2>(1)) {
                let more = factor.clone() - 1.0;
                scale = Some(scale.map_or(factor.clone(), |scale| scale + more));
                delta = delta.map(|delta| delta * factor);
            }
            if let Some(delta) = delta {
                sum = sum - delta;
            }
        }
        layer.set_weight(match scale {
            None => sum,
            Some(scale) => sum / scale,
        });
    }
}

/// Removes all adapters. Selected copies replace their bases.
pub(crate) fn unload(layers: LayersMut<'_>) {
    for (_, layer) in layers {
        let adapters = std::mem::take(layer.adapters_mut());
        let Selection::Adapters(names) = adapters.selection() else { continue };
        let Some(whole) = adapters.replacement(names) else { continue };
        let weight = whole.weight.val().inner();
        if let Some(base) = layer.base_mut() {
            let dense = base.weight.dense();
            let dtype = dense.map_or(FloatDType::F32, |dense| dense.val().dtype().into());
            let bias = whole.bias.map(|bias| bias.val().inner());
            *base = Base::dense(weight.cast(dtype), bias);
        } else {
            let weight = layer.file_layout(weight);
            layer.set_weight(weight);
        }
    }
}
