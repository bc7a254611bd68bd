//! Weights of all experts in one tensor (gpt-oss): names there and back, and the transposition.

use burn::tensor::TensorData;

/// Names of stacked tensors after that of the parameter, and those of an expert's after its path.
const KINDS: [(&str, &str); 3] = [("_bias", "bias"), ("_blocks", "blocks"), ("_scales", "scales")];

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
pub(super) fn split(name: &str) -> Option<(&str, &str, &'static str)> {
    let (path, parameter) = name.rsplit_once('.').filter(|(path, _)| path.ends_with(".experts"))?;
    let kind =
        KINDS.iter().find_map(|(suffix, kind)| Some((parameter.strip_suffix(suffix)?, *kind)));
    let (parameter, kind) = kind.unwrap_or((parameter, "weight"));
    Some((path, parameter, kind))
}

/// Transposes a matrix, in tiles, so that what is read and what is written stays in the cache.
pub(super) fn transpose(data: &TensorData) -> TensorData {
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
