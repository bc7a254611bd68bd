//! Checkpoint as the tensors of a model: under the model's names, and each expert's by itself.

use super::{
    source::{FINAL_NORM, Source},
    stacked::{split, transpose},
};
use crate::{config::LlamaConfig, error::LlamaError, spec::FeedForwardSpec};
use burn::tensor::{DType, TensorData};
use std::{collections::BTreeMap, path::Path};

/// Source under the names that a family gives to its tensors. Those that it passes over are not there;
/// where it stacks experts, each expert has tensors of its own: `experts.3.gate_up_proj.weight`,
/// `[out, in]`, of `experts.gate_up_proj`, `[experts, in, out]`, and so on.
pub(super) struct View<'a> {
    source: &'a dyn Source,
    places: BTreeMap<String, Place>,
}

/// Place of a tensor.
struct Place {
    /// Name in the source.
    stored: String,
    /// The part of a stacked tensor, if it is one.
    part: Option<Part>,
}

/// Expert's part of a stacked tensor.
struct Part {
    expert: usize,
    /// Number of experts.
    count: usize,
    shape: Vec<usize>,
    /// `true` if it is stored transposed.
    transposed: bool,
}

impl<'a> View<'a> {
    /// Finds the tensors of a model in a source.
    ///
    /// # Errors
    /// - [`LlamaError::Format`] if two tensors get one name.
    /// - [`LlamaError::Shape`] if a stacked tensor is of another number of experts, or no stack.
    pub fn new(
        source: &'a dyn Source,
        config: &LlamaConfig,
        root: &Path,
    ) -> Result<Self, LlamaError> {
        let mut places = BTreeMap::<String, Place>::new();
        let mut place = |name: String, place: Place| match places.get(&name) {
            Some(other) => {
                let (one, other) = (&place.stored, &other.stored);
                let reason = format!("`{one}` and `{other}` are the same tensor");
                Err(LlamaError::format(root, reason))
            }
            None => {
                places.insert(name, place);
                Ok(())
            }
        };
        let experts = stacked_experts(config);
        for stored in source.names() {
            let Some(name) = config.family.tensor_name(stored) else { continue };
            let (Some(count), Some((path, parameter, kind))) = (experts, split(&name)) else {
                place(name.into_owned(), Place { stored: stored.into(), part: None })?;
                continue;
            };
            let transposed = kind == "weight";
            let shape = part_shape(source, stored, count, transposed)?;
            for expert in 0..count {
                let part = Some(Part { expert, count, shape: shape.clone(), transposed });
                let name = format!("{path}.{expert}.{parameter}.{kind}");
                place(name, Place { stored: stored.into(), part })?;
            }
        }
        Ok(Self { source, places })
    }

    /// Name in the source; an unknown one as it is, for messages.
    fn stored<'b>(&'b self, name: &'b str) -> &'b str {
        self.places.get(name).map_or(name, |place| &place.stored)
    }

    fn part(&self, name: &str) -> Option<&Part> {
        self.places.get(name)?.part.as_ref()
    }
}

/// Number of experts, if the family's checkpoints have all of them in one tensor.
fn stacked_experts(config: &LlamaConfig) -> Option<usize> {
    let experts = |spec: &FeedForwardSpec| match spec {
        FeedForwardSpec::Experts(experts) => Some(experts.num_experts),
        FeedForwardSpec::Gated(_) => None,
    };
    let stacked = config.family.stacked_experts();
    config.layers.iter().find_map(|layer| experts(&layer.feed_forward)).filter(|_| stacked)
}

/// Shape of an expert's part of a stacked tensor.
///
/// # Errors
/// [`LlamaError::Shape`] if it is of another number of experts, or no stack of matrices.
fn part_shape(
    source: &dyn Source,
    stored: &str,
    count: usize,
    transposed: bool,
) -> Result<Vec<usize>, LlamaError> {
    let found = source.shape(stored).unwrap_or_default().to_vec();
    let rank = if transposed { 3 } else { found.len() };
    if found.first() != Some(&count) || found.len() != rank {
        let mut expected = found.clone();
        expected.resize(rank.max(1), 1);
        expected[0] = count;
        let (path, tensor) = (source.path(stored).into(), stored.into());
        return Err(LlamaError::Shape { path, tensor, found, expected });
    }
    let mut shape = found[1..].to_vec();
    if transposed {
        shape.reverse();
    }
    Ok(shape)
}

impl Source for View<'_> {
    fn names(&self) -> Vec<&str> {
        self.places.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        let Place { stored, part } = self.places.get(name)?;
        match part {
            Some(part) => Some(&part.shape),
            None => self.source.shape(stored),
        }
    }

    fn path(&self, name: &str) -> &Path {
        self.source.path(self.stored(name))
    }

    fn bytes(&self, name: &str) -> usize {
        self.source.bytes(self.stored(name)) / self.part(name).map_or(1, |part| part.count)
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        let stored = self.stored(name);
        let Some(part) = self.part(name) else { return self.source.read(stored) };
        let data = self.source.read_part(stored, part.expert)?;
        Ok(if part.transposed { transpose(&data) } else { data })
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        self.source.dtypes(self.stored(name))
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        self.source.stored_dtype(self.stored(name))
    }

    fn dtype(&self) -> DType {
        match self.stored(FINAL_NORM) {
            FINAL_NORM => self.source.dtype(),
            stored => self.source.read(stored).map_or(DType::F32, |data| data.dtype()),
        }
    }
}
