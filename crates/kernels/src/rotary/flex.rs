//! Rotary position embedding on the CPU: on all cores, in float32 for every dtype.

use super::RotaryOps;
use crate::flex::{from_f32, rows_of, to_f32};
use burn::{
    backend::{
        Flex, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::Shape,
};
use rayon::prelude::*;

impl RotaryOps for Flex {
    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (shape, dtype) = (x.shape(), x.dtype());
        let out_shape = Shape::new([shape[0], shape[2], shape[1], shape[3]]);
        let (outer, inner, width) = (shape[1], shape[2], shape[3]);
        let rotated = table.shape()[1];
        let (x, table, positions) = (to_f32(x), to_f32(table), positions.to_contiguous());
        let (x, table): (&[f32], &[f32]) = (x.storage(), table.storage());
        let (rows, known) = (positions.layout().shape()[0], table.len() / rotated.max(1));
        let positions: &[i32] = positions.storage();
        if let Some(position) = positions.iter().find(|position| **position as usize >= known) {
            panic!("rotate: position {position}, a table of {known}");
        }
        let length = if inverse { inner } else { outer };
        let half = rotated / 2;
        let mut out = vec![0.0f32; x.len()];
        out.par_chunks_mut(width.max(1)).enumerate().with_min_len(rows_of(width)).for_each(
            |(row, out)| {
                // `out` is [batch, inner, outer, width].
                let (batch, i, o) = (row / (inner * outer), row / outer % inner, row % outer);
                let x = &x[((batch * outer + o) * inner + i) * width..][..width];
                let position = if inverse { i } else { o };
                let angles = positions[batch % rows * length + position] as usize * rotated;
                let (cos, sin) = table[angles..angles + rotated].split_at(half);
                for j in 0..half {
                    let (a, b) = (x[j], x[half + j]);
                    let sin = if inverse { -sin[j] } else { sin[j] };
                    out[j] = a * cos[j] - b * sin;
                    out[half + j] = b * cos[j] + a * sin;
                }
                out[rotated..].copy_from_slice(&x[rotated..]);
            },
        );
        from_f32(out, out_shape, dtype)
    }
}
