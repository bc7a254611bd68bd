//! Checkpoint that has the weights of all experts in one tensor (gpt-oss), and each of them in a
//! model.

use super::source::Source;
use crate::{config::LlamaConfig, error::LlamaError, spec::FeedForwardSpec};
use burn::tensor::{DType, TensorData};
use std::{collections::BTreeMap, path::Path};

/// Names of stacked tensors after that of the parameter, and those of an expert's after its path.
const KINDS: [(&str, &str); 3] = [("_bias", "bias"), ("_blocks", "blocks"), ("_scales", "scales")];

/// Source in which each expert has tensors of its own: `experts.3.gate_up_proj.weight`, `[out, in]`,
/// of `experts.gate_up_proj`, `[experts, in, out]`, and so on.
pub(super) struct StackedExperts<'a> {
    source: &'a dyn Source,
    places: BTreeMap<String, Place>,
}

/// Place of a tensor.
struct Place {
    /// Name in the source.
    name: String,
    /// Shape, that of one expert if it is a part.
    shape: Vec<usize>,
    /// Number of an expert.
    expert: Option<usize>,
    /// `true` if it is stored transposed.
    transposed: bool,
}

/// Name of the tensor that has those of all experts, by the name of one of them.
///
/// ```text
/// model.layers.0.mlp.experts.3.gate_up_proj.bias -> model.layers.0.mlp.experts.gate_up_proj_bias
/// ```
pub(super) fn stacked_name(name: &str) -> Option<String> {
    let (experts, rest) = name.split_once(".experts.")?;
    let (_, rest) = rest.split_once('.')?;
    let (parameter, kind) = rest.rsplit_once('.')?;
    let suffix = KINDS.iter().find(|(_, own)| *own == kind).map_or("", |(suffix, _)| suffix);
    Some(format!("{experts}.experts.{parameter}{suffix}"))
}

/// Returns the path of the experts, the parameter and the kind of a stacked tensor.
fn split(name: &str) -> Option<(&str, &str, &'static str)> {
    let (path, parameter) = name.rsplit_once('.').filter(|(path, _)| path.ends_with(".experts"))?;
    let kind =
        KINDS.iter().find_map(|(suffix, kind)| Some((parameter.strip_suffix(suffix)?, *kind)));
    let (parameter, kind) = kind.unwrap_or((parameter, "weight"));
    Some((path, parameter, kind))
}

impl<'a> StackedExperts<'a> {
    /// Takes the experts of a source apart.
    ///
    /// # Errors
    /// [`LlamaError::Shape`] if a tensor is of another number of experts, or no stack.
    pub fn new(source: &'a dyn Source, config: &LlamaConfig) -> Result<Self, LlamaError> {
        let experts = config.layers.iter().find_map(|layer| match &layer.feed_forward {
            FeedForwardSpec::Experts(experts) => Some(experts.num_experts),
            FeedForwardSpec::Gated(_) => None,
        });
        let mut places = BTreeMap::new();
        for name in source.names() {
            let shape = source.shape(name).unwrap_or_default().to_vec();
            let (Some((path, parameter, kind)), Some(count)) = (split(name), experts) else {
                let place = Place { name: name.into(), shape, expert: None, transposed: false };
                places.insert(name.to_owned(), place);
                continue;
            };
            let transposed = kind == "weight";
            let rank = if transposed { 3 } else { shape.len() };
            if shape.first() != Some(&count) || shape.len() != rank {
                let mut expected = shape.clone();
                expected.resize(rank.max(1), 1);
                expected[0] = count;
                return Err(LlamaError::Shape {
                    path: source.path(name).into(),
                    tensor: name.into(),
                    found: shape,
                    expected,
                });
            }
            let mut shape = shape[1..].to_vec();
            if transposed {
                shape.reverse();
            }
            for expert in 0..count {
                let (name, shape, expert_name) =
                    (name.to_owned(), shape.clone(), format!("{path}.{expert}.{parameter}.{kind}"));
                places.insert(expert_name, Place { name, shape, expert: Some(expert), transposed });
            }
        }
        Ok(Self { source, places })
    }

    /// Name in the source; an unknown one as it is, for messages.
    fn stored<'b>(&'b self, name: &'b str) -> &'b str {
        self.places.get(name).map_or(name, |place| &place.name)
    }
}

impl Source for StackedExperts<'_> {
    fn names(&self) -> Vec<&str> {
        self.places.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.places.get(name)?.shape)
    }

    fn path(&self, name: &str) -> &Path {
        self.source.path(self.stored(name))
    }

    fn bytes(&self, name: &str) -> usize {
        let stored = self.stored(name);
        let parts = match self.places.get(name) {
            Some(Place { expert: Some(_), .. }) => {
                self.source.shape(stored).map_or(1, |shape| shape[0])
            }
            _ => 1,
        };
        self.source.bytes(stored) / parts
    }

    fn read(&self, name: &str) -> Result<TensorData, LlamaError> {
        match self.places.get(name) {
            Some(Place { name, expert: Some(expert), transposed, .. }) => {
                let data = self.source.read_part(name, *expert)?;
                Ok(if *transposed { transpose(&data) } else { data })
            }
            _ => self.source.read(self.stored(name)),
        }
    }

    fn dtypes(&self, name: &str) -> Vec<DType> {
        self.source.dtypes(self.stored(name))
    }

    fn stored_dtype(&self, name: &str) -> Option<&'static str> {
        self.source.stored_dtype(self.stored(name))
    }

    fn dtype(&self) -> DType {
        self.source.dtype()
    }
}

/// Transposes a matrix, in tiles, so that what is read and what is written stays in the cache.
fn transpose(data: &TensorData) -> TensorData {
    const TILE: usize = 32;
    let (rows, columns) = (data.shape()[0], data.shape()[1]);
    let (from, size) = (data.as_bytes(), data.dtype().size());
    let mut out = vec![0; from.len()];
    for (first_row, first_column) in (0..rows)
        .step_by(TILE)
        .flat_map(|row| (0..columns).step_by(TILE).map(move |column| (row, column)))
    {
        for row in first_row..rows.min(first_row + TILE) {
            for column in first_column..columns.min(first_column + TILE) {
                let (at, to) = ((row * columns + column) * size, (column * rows + row) * size);
                out[to..to + size].copy_from_slice(&from[at..at + size]);
            }
        }
    }
    TensorData::from_bytes_vec(out, vec![columns, rows], data.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_there_and_back() {
        for (stacked, one) in [
            ("m.experts.down_proj", "m.experts.2.down_proj.weight"),
            ("m.experts.down_proj_bias", "m.experts.2.down_proj.bias"),
            ("m.experts.down_proj_blocks", "m.experts.2.down_proj.blocks"),
        ] {
            assert_eq!(stacked_name(one).unwrap(), stacked);
            let (path, parameter, kind) = split(stacked).unwrap();
            assert_eq!(format!("{path}.2.{parameter}.{kind}"), one);
        }
        assert_eq!(stacked_name("m.router.weight"), None);
        assert!(split("m.router.weight").is_none());
    }

    #[test]
    fn transposed_twice_is_the_same() {
        let data = TensorData::new((0..70 * 45).map(|i| i as f32).collect(), [70, 45]);
        let found = transpose(&data);
        assert_eq!(found.shape()[..], [45, 70]);
        assert_eq!(found.as_slice::<f32>().unwrap()[1], 45.0);
        assert_eq!(transpose(&found), data);
    }
}
