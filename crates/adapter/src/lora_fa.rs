//! LoRA-FA's factor of B's gradient.

use crate::{
    error::AdapterError, frozen::LayerKind, init::linalg, layers::Layers,
    methods::lora::LoraAdapter,
};
use burn::{module::ParamId, tensor::TensorData};
use faer::{Mat, Side};
use std::collections::HashMap;

/// Added to the diagonal of `A · Aᵀ`, as in PEFT.
const DELTA: f64 = 1e-8;

/// Computes the factors of the LoRA layers of an adapter, by B's id.
pub(crate) fn factors(
    layers: &Layers<'_>,
    name: &str,
) -> Result<HashMap<ParamId, TensorData>, AdapterError> {
    let state = |reason: String| AdapterError::State {
        what: format!("LoRA-FA with the adapter `{name}`"),
        reason,
    };
    let mut found = HashMap::new();
    for (path, layer) in layers {
        let Some(adapter) = layer.adapters().get(name).filter(|adapter| !adapter.follows()) else {
            continue;
        };
        let Some(lora) = adapter.update().downcast_ref::<LoraAdapter>() else { continue };
        if lora.magnitude.is_some() {
            let reason = format!("`{path}` has DoRA, whose gradient it does not correct");
            return Err(state(format!("{reason}: turn `use_dora` off, or take another optimizer")));
        }
        if layer.kind() == LayerKind::Embedding {
            let reason = format!("`{path}` is an embedding, of which A is trained");
            return Err(state(format!("{reason}: leave it out of `target_modules`")));
        }
        if lora.lora_a.is_require_grad() {
            return Err(state(format!("A of `{path}` is trained: `freeze_a` freezes it")));
        }
        let a = linalg::to_mat(lora.lora_a.val(), path)?;
        found.insert(lora.lora_b.id, factor(a, lora.scaling(), path)?);
    }
    if found.is_empty() {
        let reason = "no layer of it has LoRA: take another optimizer for this method";
        return Err(state(reason.to_owned()));
    }
    Ok(found)
}

/// Computes `(A · Aᵀ + δI)⁺ / s²`.
fn factor(a: Mat<f32>, scaling: f64, path: &str) -> Result<TensorData, AdapterError> {
    let failed = |reason: String| AdapterError::Layer { layer: path.to_owned(), reason };
    if scaling == 0.0 {
        return Err(failed("LoRA-FA divides by the square of the scaling, which is 0".to_owned()));
    }
    let a = Mat::from_fn(a.nrows(), a.ncols(), |i, j| f64::from(a[(i, j)]));
    let rank = a.nrows();
    let product = &a * a.transpose();
    let eigen = product
        .self_adjoint_eigen(Side::Lower)
        .map_err(|error| failed(format!("the eigenvalues of A · Aᵀ: {error:?}")))?;
    let (vectors, values) = (eigen.U(), eigen.S().column_vector());
    let values: Vec<f64> = (0..rank).map(|i| values[i] + DELTA).collect();
    // Smaller ones count as 0: the tolerance of PyTorch's `pinv` in float32.
    let least = values.iter().fold(0.0, |most: f64, value| most.max(value.abs()))
        * rank as f64
        * f64::from(f32::EPSILON);
    let inverse = |value: f64| if value.abs() > least { value.recip() } else { 0.0 };
    let scaled = Mat::from_fn(rank, rank, |i, j| vectors[(i, j)] * inverse(values[j]));
    let product = scaled * vectors.transpose();
    let square = scaling * scaling;
    let factor = (0..rank * rank).map(|at| (product[(at / rank, at % rank)] / square) as f32);
    Ok(TensorData::new(factor.collect::<Vec<f32>>(), [rank, rank]))
}
