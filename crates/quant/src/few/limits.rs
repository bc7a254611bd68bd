//! For which products there are kernels of few rows.

use crate::{layout::Layout, ops::in_fp8, scale::ScaleRule};
use burn::tensor::DType;
use burn_lora_kernels::cuda::has_tensor_cores;
use cubecl::client::Client;

/// Most rows, with dense weights and with those in 4 bits.
pub(super) const FEW: usize = 8;
pub(super) const MANY: usize = 64;

/// Outputs and ranks of a tile, and inputs of which all kernels take multiples: as in the sources.
pub(super) const TILE: usize = 16;
const STEP: usize = 256;

/// Returns `true` if there are products of rows in this dtype.
pub(crate) fn takes(client: &Client, dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16) && has_tensor_cores(client)
}

/// Returns `true` if there are products of so many rows with weights of this layout.
pub(crate) fn fits(layout: &Layout, rows: usize) -> bool {
    let scales = matches!(layout.scales, ScaleRule::Absmax | ScaleRule::DoubleQuant);
    let few = (1..=MANY).contains(&rows) && !in_fp8(rows, layout);
    few && scales && layout.block_size == 64 && divides(layout.shape)
}

/// Returns `true` if there are products of so many rows with dense weights of this shape.
pub(crate) fn fits_dense(shape: [usize; 2], rows: usize) -> bool {
    (1..=FEW).contains(&rows) && divides(shape)
}

fn divides([outputs, inputs]: [usize; 2]) -> bool {
    outputs > 0 && inputs > 0 && outputs.is_multiple_of(TILE) && inputs.is_multiple_of(STEP)
}
