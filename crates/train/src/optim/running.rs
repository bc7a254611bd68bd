//! An optimizer at work, and what those here share.

use crate::TrainError;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::{collections::BTreeMap, path::Path};

/// An optimizer at work: its settings and its state.
pub trait Running: Send {
    /// Begins a step: each parameter is updated once in it.
    fn begin(&mut self);

    /// The parameter's new value. It takes the place of the old one in memory, where nothing else
    /// holds that.
    ///
    /// # Panics
    /// If the vectors are not of one length, in float32 and on one device.
    fn update(&mut self, update: Update<'_>) -> Tensor<1>;

    /// All that a checkpoint needs, beside the number of steps.
    fn state(&self) -> State;

    /// Goes on, bit for bit, from the state that `file` had after `step` steps, for parameters of
    /// these paths and lengths.
    ///
    /// # Errors
    /// If the state of a parameter is missing, or has another length or dtype, or if there is state of
    /// something else.
    fn load(
        &mut self,
        step: usize,
        state: State,
        lengths: &BTreeMap<String, usize>,
        file: &Path,
        device: &Device,
    ) -> Result<(), TrainError>;
}

/// The tensors of an optimizer by name, for a checkpoint.
pub type State = BTreeMap<String, TensorData>;

/// What one update of a parameter is about. Vectors are in float32 and without a graph.
pub struct Update<'a> {
    /// Its path in the model.
    pub path: &'a str,
    /// Its value.
    pub param: Tensor<1>,
    /// Its gradient.
    pub grad: Tensor<1>,
    /// What the gradient is multiplied by, `[1]`: one over the target tokens, and the clipping.
    pub factor: Tensor<1>,
    /// The learning rate.
    pub rate: f64,
    /// The weight decay.
    pub decay: f64,
}

/// A vector of a checkpoint.
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

/// Nothing may be left of a state: it would be of a parameter that this run does not train.
pub(super) fn all_taken(state: &State, file: &Path) -> Result<(), TrainError> {
    match state.keys().next() {
        Some(name) => Err(TrainError::format(file, format!("`{name}` is of no trained parameter"))),
        None => Ok(()),
    }
}
