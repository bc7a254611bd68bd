//! Another size of the vocabulary: rows of an embedding and its head, new or cut off.

use crate::{
    error::AdapterError,
    layer::{AdaptedLayer, are_tied},
    layers::{Adaptable, LayersMut},
    targets::MatchReport,
};
use burn::{
    module::Param,
    tensor::{FloatDType, Tensor},
};
use burn_lora_kernels::persist;

/// Rows that are summed up at a time: a whole embedding in float32 would be a second one in memory.
const PIECE: usize = 1 << 13;

/// Resizes the weights of some layers, each with a row per token. Tied layers stay
/// tied.
pub(crate) fn resize(
    mut layers: LayersMut<'_>,
    paths: &[&str],
    rows: usize,
) -> Result<(), AdapterError> {
    let error = |reason: String| AdapterError::State { what: "resize".into(), reason };
    if rows == 0 {
        return Err(error("a vocabulary has one token at least".into()));
    }
    let mut chosen = vec![];
    for path in paths {
        let at = layers.iter().position(|(known, _)| known == path);
        let at = at.ok_or_else(|| error(format!("the model has no layer `{path}`")))?;
        let (_, layer) = &layers[at];
        if layer.file_shape()[0] != rows
            && let Some(adapter) = layer.adapters().updates.first()
        {
            let reason = format!(
                "`{path}` has the adapter `{}`: resize before an adapter is attached",
                adapter.name()
            );
            return Err(error(reason));
        }
        chosen.push(at);
    }
    let tied = |at: usize, i: &usize| are_tied(&*layers[*i].1, &*layers[at].1);
    let leaders: Vec<_> = chosen
        .iter()
        .enumerate()
        .map(|(n, at)| chosen[..n].iter().copied().find(|i| tied(*at, i)))
        .collect();
    for (at, leader) in chosen.into_iter().zip(leaders) {
        let shared = leader.and_then(|leader| layers[leader].1.weight_param().cloned());
        resize_layer(&mut *layers[at].1, rows, shared)?;
    }
    Ok(())
}

/// Loads an adapter, and resizes the vocabulary if it is of another one; on an error it is as before.
pub(crate) fn load<M: Adaptable + ?Sized>(
    model: &mut M,
    load: impl Fn(&mut M) -> Result<MatchReport, AdapterError>,
) -> Result<MatchReport, AdapterError> {
    let mut before = None;
    // The settings of an adapter say how many tokens it needs at least, its tensors how many there were.
    loop {
        let error = match load(model) {
            Ok(report) => return Ok(report),
            Err(error) => error,
        };
        if let AdapterError::Vocabulary { found, expected, .. } = error
            && before.is_none_or(|_| found > expected)
        {
            match model.resize_for_adapter(found) {
                Ok(true) => {
                    if found < expected {
                        burn_lora_io::warn!(
                            "the adapter was trained with a vocabulary of {found} tokens: the model's \
                             {expected} are cut off to these"
                        );
                    }
                    before.get_or_insert(expected);
                    continue;
                }
                Ok(false) => {}
                Err(AdapterError::State { what, reason }) => {
                    let reason = format!("{reason} ({error})");
                    return Err(AdapterError::State { what, reason });
                }
                Err(other) => return Err(other),
            }
        }
        if let Some(before) = before {
            model.resize_for_adapter(before)?;
        }
        return Err(error);
    }
}

fn resize_layer(
    layer: &mut dyn AdaptedLayer,
    rows: usize,
    shared: Option<Param<Tensor<2>>>,
) -> Result<(), AdapterError> {
    let before = layer.file_shape()[0];
    if before == rows {
        return Ok(());
    }
    let frozen = |weight| persist(Param::from_tensor(weight).set_require_grad(false));
    if let Some(param) = layer.weight_param_mut() {
        *param = shared.unwrap_or_else(|| frozen(resized(param.val().inner(), rows)));
    } else if let Some(base) = layer.base_mut() {
        let weight = resized(base.weight.dequantize(FloatDType::F32), rows);
        base.weight = persist(base.weight.store(weight)?);
    }
    if let Some(bias) = layer.bias_mut() {
        let column = resized(bias.val().inner().unsqueeze_dim(1), rows);
        *bias = persist(Param::from_tensor(column.squeeze_dim::<1>(1)).set_require_grad(false));
    }
    let resized = &mut layer.adapters_mut().resized;
    let first = resized.unwrap_or(before);
    *resized = (first != rows).then_some(first);
    Ok(())
}

/// The first rows of a weight `[rows, width]`, and the mean of all for those beyond.
fn resized(weight: Tensor<2>, rows: usize) -> Tensor<2> {
    let [before, width] = weight.dims();
    if rows <= before {
        // A copy, so that the rest is freed.
        return weight.narrow(0, 0, rows) * 1.0;
    }
    let pieces = (0..before).step_by(PIECE).map(|from| {
        let piece = weight.clone().narrow(0, from, PIECE.min(before - from));
        piece.cast(FloatDType::F32).sum_dim(0)
    });
    let sum = pieces.reduce(|sum, piece| sum + piece).expect("a vocabulary has a token");
    let mean = (sum / before as f64).cast(weight.dtype());
    Tensor::cat(vec![weight, mean.expand([rows - before, width])], 0)
}
