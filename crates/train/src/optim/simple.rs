//! Burn's optimizers whose state is tensors of the parameter's length.

use super::optimizer::{Optimizer, State, Update, all_taken, take};
use crate::{TrainError, params::own};
use burn::{
    optim::{Optimizer as BurnOptimizer, RecordState, StateSink, StateSource},
    tensor::{DType, Device, Tensor},
};
use burn_lora_kernels::{optimizer::check, persistent};
use std::{collections::BTreeMap, path::Path};

/// One of Burn's optimizers, created without weight decay, which is applied here before the step.
pub(super) struct Simple<O: BurnOptimizer> {
    optimizer: O,
    /// Number of tensors of a parameter's state.
    tensors: usize,
    states: BTreeMap<String, O::State<1>>,
}

impl<O: BurnOptimizer> Simple<O> {
    pub fn new(optimizer: O, tensors: usize) -> Self {
        Self { optimizer, tensors, states: BTreeMap::new() }
    }
}

impl<O: BurnOptimizer> Optimizer for Simple<O> {
    fn begin(&mut self) {}

    fn update(&mut self, updates: Vec<Update<'_>>, factor: &Tensor<1>) -> Vec<Tensor<1>> {
        let one = |Update { path, param, grad, rate, decay }: Update<'_>| {
            let len = param.dims()[0];
            check(&[(&param, len), (&grad, len), (factor, 1)]); // or they would be repeated
            let state = self.states.remove(path);
            let param = param * (1.0 - rate * decay);
            let (new, state) = self.optimizer.step(rate, param, grad * factor.clone(), state);
            self.states.extend(state.map(|state| (path.to_owned(), state)));
            persistent(new)
        };
        updates.into_iter().map(one).collect()
    }

    fn state(&self) -> State {
        let mut found = State::new();
        for (path, state) in &self.states {
            let mut sink = StateSink::default();
            state.state_flatten(path, &mut sink);
            debug_assert!(sink.scalars.is_empty(), "a checkpoint has tensors only");
            found.extend(sink.tensors.into_iter().map(|(name, data)| (name, own(data))));
        }
        found
    }

    fn load(
        &mut self,
        _step: usize,
        mut state: State,
        lengths: &BTreeMap<String, usize>,
        file: &Path,
        device: &Device,
    ) -> Result<(), TrainError> {
        for (path, &len) in lengths {
            let prefix = format!("{path}.");
            let names: Vec<_> =
                state.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
            let missing = || TrainError::format(file, format!("it has no state of `{path}`"));
            if names.len() != self.tensors {
                return Err(missing());
            }
            let mut source = StateSource::default();
            for name in names {
                let data = take(&mut state, &name, len, DType::F32, file)?;
                source.insert_tensor(name, data);
            }
            let found = O::State::<1>::state_unflatten(path, &mut source, device);
            self.states.insert(path.clone(), found.ok_or_else(missing)?);
        }
        all_taken(&state, file)
    }
}
