//! Updates of experts in PEFT's files, where those of all experts of a layer are one parameter's: PEFT's
//! `target_parameters`.
//!
//! Of a linear map of `E` experts, `[out, in]` each, a file has A `[E · r, in]` and B `[out, r · E]`. Rows
//! of A are sorted by expert (`e · r + j`), columns of B by rank (`j · E + e`).

use super::{
    file::{HostTensor, HostTensors},
    key,
};
use crate::{
    error::AdapterError,
    frozen::{LayerKind, parameter},
};
use std::path::Path;

/// Keys of A and B of a linear layer.
const KEYS: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

/// Updated parameter of a mixture of experts.
struct Stack<'a> {
    /// Path of the parameter.
    parameter: String,
    /// Paths of the layers, by expert.
    layers: Vec<&'a str>,
}

/// Stacks of the updated layers, in the order of the model.
fn stacks<'a>(updated: impl Iterator<Item = (&'a str, LayerKind)>) -> Vec<Stack<'a>> {
    let mut stacks: Vec<Stack<'a>> = vec![];
    for (path, _) in updated.filter(|(_, kind)| *kind == LayerKind::Expert) {
        let parameter = parameter(path);
        match stacks.iter_mut().find(|stack| stack.parameter == parameter) {
            Some(stack) => stack.layers.push(path),
            None => stacks.push(Stack { parameter, layers: vec![path] }),
        }
    }
    stacks
}

/// Keys of A and B of a stack. PEFT wraps the module of the experts once for each parameter, the last one
/// outside.
fn stacked_keys(stacks: &[Stack<'_>], at: usize) -> [String; 2] {
    let module = |stack: &Stack<'_>| {
        stack.parameter.rsplit_once('.').map_or(String::new(), |(module, _)| module.to_owned())
    };
    let outer = stacks[at + 1..].iter().filter(|other| module(other) == module(&stacks[at]));
    let inside = "base_layer.".repeat(outer.count());
    KEYS.map(|name| key(&module(&stacks[at]), &format!("{inside}{name}")))
}

/// Replaces the tensors of experts by stacked ones.
pub(super) fn stack<'a>(
    tensors: &mut HostTensors,
    updated: impl Iterator<Item = (&'a str, LayerKind)>,
) {
    let stacks = stacks(updated);
    for (at, stack) in stacks.iter().enumerate() {
        let mut take = |name: &str| -> Vec<HostTensor> {
            let keys = stack.layers.iter().map(|path| key(path, name));
            keys.map(|key| tensors.remove(&key).expect("it was gathered")).collect()
        };
        let [a, b] = KEYS.map(&mut take);
        let (count, [rank, width]) = (a.len(), [a[0].shape[0], a[0].shape[1]]);
        let out = b[0].shape[0];
        let rows = a.into_iter().flat_map(|a| a.values).collect();
        let mut columns = Vec::with_capacity(out * rank * count);
        for row in 0..out {
            for j in 0..rank {
                columns.extend(b.iter().map(|b| b.values[row * rank + j]));
            }
        }
        let [key_a, key_b] = stacked_keys(&stacks, at);
        tensors.insert(key_a, HostTensor { shape: vec![count * rank, width], values: rows });
        tensors.insert(key_b, HostTensor { shape: vec![out, rank * count], values: columns });
    }
}

/// Replaces stacked tensors by those of each expert. `updated` has the rank and the shape `[out, in]` of
/// each layer, too. What is missing stays missing.
///
/// # Errors
/// [`AdapterError::Shape`] if a stacked tensor is not of its experts' shapes.
pub(super) fn unstack<'a>(
    tensors: &mut HostTensors,
    updated: impl Iterator<Item = (&'a str, LayerKind, usize, [usize; 2])> + Clone,
    file: &Path,
) -> Result<(), AdapterError> {
    let stacks = stacks(updated.clone().map(|(path, kind, ..)| (path, kind)));
    for (at, stack) in stacks.iter().enumerate() {
        let count = stack.layers.len();
        let find = |(path, ..): &(&str, LayerKind, usize, [usize; 2])| *path == stack.layers[0];
        let (_, _, rank, [out, width]) = updated.clone().find(find).expect("it is in a stack");
        let [key_a, key_b] = stacked_keys(&stacks, at);
        let mut take = |name: &str, expected: [usize; 2]| match tensors.remove(name) {
            Some(found) if found.shape != expected => Err(AdapterError::Shape {
                path: file.to_owned(),
                tensor: name.to_owned(),
                found: found.shape,
                expected: expected.to_vec(),
            }),
            found => Ok(found),
        };
        let a = take(&key_a, [count * rank, width])?;
        let b = take(&key_b, [out, rank * count])?;
        for (expert, path) in stack.layers.iter().enumerate() {
            let [name_a, name_b] = KEYS.map(|name| key(path, name));
            if let Some(a) = &a {
                let rows = expert * rank * width..(expert + 1) * rank * width;
                let (shape, values) = (vec![rank, width], a.values[rows].to_vec());
                tensors.insert(name_a, HostTensor { shape, values });
            }
            if let Some(b) = &b {
                let columns = b.values.iter().skip(expert).step_by(count).copied();
                let (shape, values) = (vec![out, rank], columns.collect());
                tensors.insert(name_b, HostTensor { shape, values });
            }
        }
    }
    Ok(())
}
