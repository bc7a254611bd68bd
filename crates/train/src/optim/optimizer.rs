//! Interface of running optimizers, and their shared functions.

use crate::TrainError;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::{collections::BTreeMap, path::Path};

/// A running optimizer: its settings and its state.
pub trait Optimizer: Send {
    /// Begins a step: each parameter is updated once in it.
    fn begin(&mut self);

    /// Returns the new values of parameters, in their order. `factor`, `[1]`, is that of all gradients: one
    /// over the number of target tokens, times the clipping.
    ///
    /// # Panics
    /// If the vectors of a parameter do not have the same length, are not in float32 or are not on the
    /// device of `factor`.
    fn update(&mut self, updates: Vec<Update<'_>>, factor: &Tensor<1>) -> Vec<Tensor<1>>;

    /// Returns the state to save with a checkpoint, without the number of steps.
    fn state(&self) -> State;

    /// Resumes, bit for bit, from the state in `file` after `step` steps, for parameters of these
    /// paths and lengths.
    ///
    /// # Errors
    /// [`TrainError::Format`] if the state of a parameter is missing or has another length or
    /// dtype, or if there is state of anything else.
    fn load(
        &mut self,
        step: usize,
        state: State,
        lengths: &BTreeMap<String, usize>,
        file: &Path,
        device: &Device,
    ) -> Result<(), TrainError>;
}

/// Tensors of an optimizer by name, for a checkpoint.
pub type State = BTreeMap<String, TensorData>;

/// Input of one update of a parameter. Vectors are in float32 and without a graph.
pub struct Update<'a> {
    /// Path in the model.
    pub path: &'a str,
    /// Value.
    pub param: Tensor<1>,
    /// Gradient.
    pub grad: Tensor<1>,
    /// Learning rate.
    pub rate: f64,
    /// Weight decay.
    pub decay: f64,
}

/// Takes a vector out of a checkpoint's state.
pub(super) fn take(
    state: &mut State,
    name: &str,
    len: usize,
    dtype: DType,
    file: &Path,
) -> Result<TensorData, TrainError> {
    let Some(data) = state.remove(name) else {
        return Err(TrainError::format(file, format!("it has no `{name}`")));
    };
    let found = (data.num_elements(), data.dtype());
    if found != (len, dtype) {
        let (elements, kind) = found;
        let reason =
            format!("`{name}` has {elements} elements in {kind:?}, not {len} in {dtype:?}");
        return Err(TrainError::format(file, reason));
    }
    Ok(data)
}

/// Checks that nothing is left of a state: it would belong to a parameter that this run does not
/// train.
pub(super) fn all_taken(state: &State, file: &Path) -> Result<(), TrainError> {
    match state.keys().next() {
        Some(name) => Err(TrainError::format(file, format!("`{name}` is of no trained parameter"))),
        None => Ok(()),
    }
}
