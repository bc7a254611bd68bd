//! Sums of squares on CubeCL's runtimes: cube `i` of every launch adds to partial sum `i`, so that
//! the order is always the same.

use super::{PARTIALS, SumOfSquaresOps};
#[cfg(feature = "cuda")]
use crate::optimizer::batch::cuda::{Buffers, ManyKernel, checked};
use crate::{
    cube::{UNITS, buffer, empty, own, vector_size},
    optimizer::Batch,
};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::prelude::*;

/// Minimal number of vectors per unit before another cube takes part.
const STEPS: usize = 4;

#[cube(launch_unchecked)]
fn squares_kernel<N: Size>(
    x: &[Vector<f32, N>],
    partials: &mut [f32],
    count: usize,
    stride: usize,
) {
    let mut sum = 0.0f32;
    let mut at = ABSOLUTE_POS;
    while at < count {
        let values = x[at];
        #[unroll]
        for i in 0..N::value().comptime() {
            let value = values.extract(i);
            sum += value * value;
        }
        at += stride;
    }
    let total = cube_sum(sum);
    if UNIT_POS == 0 {
        partials[CUBE_POS] += total;
    }
}

#[cube(launch_unchecked)]
fn total_kernel(partials: &[f32], out: &mut [f32]) {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..comptime![PARTIALS / UNITS as usize] {
        sum += partials[i * UNITS as usize + UNIT_POS as usize];
    }
    let total = cube_sum(sum);
    if UNIT_POS == 0 {
        out[0] = total;
    }
}

/// Sum over the units of a cube, returned to the first.
#[cube]
fn cube_sum(value: f32) -> f32 {
    let mut shared = Shared::<[f32]>::new_slice(UNITS as usize);
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    #[unroll]
    for level in 0..comptime![UNITS.trailing_zeros()] {
        let distance = comptime![UNITS as usize >> (level + 1)];
        sync_cube();
        if unit < distance {
            shared[unit] += shared[unit + distance];
        }
    }
    shared[0]
}

impl SumOfSquaresOps for CubeBackend {
    fn add_squares(
        x: FloatTensor<Self>,
        partials: FloatTensor<Self>,
        #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only CUDA collects"))]
        batch: Batch,
    ) -> FloatTensor<Self> {
        let (x, partials) = (into_contiguous(x), own(partials));
        let (client, len) = (x.client.clone(), x.shape().num_elements());
        #[cfg(feature = "cuda")]
        if crate::cuda::has_tensor_cores(&client) {
            let read = vec![checked(&client, &x, DType::F32, len)];
            let sums = checked(&client, &partials, DType::F32, PARTIALS);
            if let Some(vectors) = batch.add(Buffers { len, read, written: vec![] }) {
                let kernel = ManyKernel { name: "squares", chunk: 8192, blocks: PARTIALS };
                // SAFETY: the buffers are as long as the vectors, as checked; no block is past the last
                // partial sum.
                unsafe { kernel.launch(&client, &vectors, vec![], vec![sums], None) };
            }
            return partials;
        }
        let vector = vector_size(&client, DType::F32, len);
        let count = len / vector;
        let cubes = count.div_ceil(STEPS * UNITS as usize).min(PARTIALS);
        // SAFETY: the buffers are as long as said; reads stay below `count`, and no cube is past the last
        // partial sum.
        unsafe {
            squares_kernel::launch_unchecked(
                &client,
                CubeCount::new_1d(cubes as u32),
                CubeDim::new_1d(UNITS),
                vector,
                buffer(&client, &x, DType::F32, len, vector),
                buffer(&client, &partials, DType::F32, PARTIALS, 1),
                count,
                cubes * UNITS as usize,
            );
        }
        partials
    }

    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self> {
        let partials = into_contiguous(partials);
        let client = partials.client.clone();
        let out = empty(&partials, Shape::new([1]), DType::F32);
        // SAFETY: one cube reads all partial sums and writes one value.
        unsafe {
            total_kernel::launch_unchecked(
                &client,
                CubeCount::new_single(),
                CubeDim::new_1d(UNITS),
                buffer(&client, &partials, DType::F32, PARTIALS, 1),
                buffer(&client, &out, DType::F32, 1, 1),
            );
        }
        out
    }
}
