//! Adam with 8-bit moments on CubeCL's runtimes: one word of codes (4 values) per unit, 4 blocks
//! per cube.
#![allow(clippy::manual_is_multiple_of, reason = "CubeCL has no such function")]

use super::AdamWCodedOps;
#[cfg(feature = "cuda")]
use crate::optimizer::batch::cuda::{Buffers, ManyKernel, checked};
use crate::{
    cube::{UNITS, buffer, own, vector_size},
    dynamic::{BLOCK, CODES},
    optimizer::{
        Batch,
        step::{Step, advance},
    },
    persist::persistent_like,
};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::DType,
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Units per block.
const LANES: usize = BLOCK / CODES;

/// Number of entries of a map.
const ENTRIES: usize = 256;

#[cube(launch_unchecked)]
fn kernel<N: Size>(
    params: &[Vector<f32, N>],
    new_params: &mut [Vector<f32, N>],
    grads: &[Vector<f32, N>],
    factor: &[f32],
    codes: &mut [u32],
    absmax: &mut [f32],
    maps: &[f32],
    len: usize,
    step: Step,
) {
    let vector = N::value().comptime();
    let (words, blocks) = (len.div_ceil(CODES), len.div_ceil(BLOCK));
    let (word, block) = (ABSOLUTE_POS, ABSOLUTE_POS / LANES);
    let unit = UNIT_POS as usize;

    let mut shared_maps = Shared::<[f32]>::new_slice(comptime![2 * ENTRIES]);
    shared_maps[unit] = maps[unit];
    shared_maps[unit + ENTRIES] = maps[unit + ENTRIES];
    sync_cube();

    // Values past the end are zero, and are not written.
    let mut ms = Array::<f32>::new(CODES);
    let mut vs = Array::<f32>::new(CODES);
    let mut m_most = 0.0f32;
    let mut v_most = 0.0f32;
    if word < words {
        let (m_word, v_word) = (codes[word], codes[words + word]);
        let (m_scale, v_scale) = (absmax[block], absmax[blocks + block]);
        #[unroll]
        for part in 0..comptime![CODES / vector] {
            let at = word * comptime![CODES / vector] + part;
            if at * vector < len {
                let (old, grad) = (params[at], grads[at]);
                let mut new = Vector::<f32, N>::empty();
                #[unroll]
                for i in 0..vector {
                    let value = comptime![part * vector + i];
                    let m = decode(m_word, &shared_maps, value, 0usize) * m_scale;
                    let v = decode(v_word, &shared_maps, value, ENTRIES) * v_scale;
                    let grad = grad.extract(i) * factor[0];
                    let (param, m, v) = advance(&step, old.extract(i), grad, m, v);
                    new.insert(i, param);
                    ms[value] = m;
                    vs[value] = v;
                    m_most = max(m_most, m.abs());
                    v_most = max(v_most, v);
                }
                new_params[at] = new;
            } else {
                #[unroll]
                for i in 0..vector {
                    ms[comptime![part * vector + i]] = 0.0f32;
                    vs[comptime![part * vector + i]] = 0.0f32;
                }
            }
        }
    }

    let (m_most, v_most) = block_max(m_most, v_most);
    if word < words {
        codes[word] = encode(&ms, m_most, &shared_maps, 0usize);
        codes[words + word] = encode(&vs, v_most, &shared_maps, ENTRIES);
        if unit % LANES == 0 {
            absmax[block] = m_most;
            absmax[blocks + block] = v_most;
        }
    }
}

/// Returns the map entry of a word's code `i`; the map starts at `first`.
#[cube]
fn decode(word: u32, maps: &Shared<[f32]>, #[comptime] i: usize, #[comptime] first: usize) -> f32 {
    maps[first + ((word >> comptime![8 * i as u32]) & 255) as usize]
}

/// Returns the word of the codes of 4 values.
#[cube]
fn encode(values: &Array<f32>, absmax: f32, maps: &Shared<[f32]>, #[comptime] first: usize) -> u32 {
    let scale = max(absmax, f32::new(f32::MIN_POSITIVE));
    let mut word = 0u32;
    #[unroll]
    for i in 0..CODES {
        word |= nearest(maps, values[i] / scale, first) << comptime![8 * i as u32];
    }
    word
}

/// Returns the code of the nearest entry; of two equally near ones the lower.
#[cube]
fn nearest(maps: &Shared<[f32]>, value: f32, #[comptime] first: usize) -> u32 {
    // The last entry below `value`, or the first entry.
    let mut below = 0usize;
    #[unroll]
    for level in 0..8 {
        let next = below + comptime![128usize >> level];
        below = select(maps[first + next] < value, next, below);
    }
    let above = min(below + 1, comptime![ENTRIES - 1]);
    let middle = (maps[first + below] + maps[first + above]) * 0.5f32;
    select(value > middle, above, below) as u32
}

/// Maxima of two values over the units of a block, returned to each of them.
#[cube]
fn block_max(a: f32, b: f32) -> (f32, f32) {
    let mut most_a = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut most_b = Shared::<[f32]>::new_slice(UNITS as usize);
    let unit = UNIT_POS as usize;
    most_a[unit] = a;
    most_b[unit] = b;
    #[unroll]
    for level in 0..comptime![LANES.trailing_zeros()] {
        let distance = comptime![LANES >> (level + 1)];
        sync_cube();
        if unit % LANES < distance {
            most_a[unit] = max(most_a[unit], most_a[unit + distance]);
            most_b[unit] = max(most_b[unit], most_b[unit + distance]);
        }
    }
    sync_cube();
    let first = unit - unit % LANES;
    (most_a[first], most_b[first])
}

impl AdamWCodedOps for CubeBackend {
    fn adamw_coded(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        maps: FloatTensor<Self>,
        step: Step,
        #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only CUDA collects"))]
        batch: Batch,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let [codes, absmax] = [codes, absmax].map(own);
        let [param, grad, maps] = [param, grad, maps].map(into_contiguous);
        let (client, len) = (param.client.clone(), param.shape().num_elements());
        let (words, blocks) = (2 * len.div_ceil(CODES), 2 * len.div_ceil(BLOCK));
        // Not in place: the model that is trained holds the old ones.
        let new = persistent_like(&param, param.shape(), DType::F32);
        #[cfg(feature = "cuda")]
        if crate::cuda::has_tensor_cores(&client) {
            let values =
                |tensor: &FloatTensor<Self>, len| checked(&client, tensor, DType::F32, len);
            let others = vec![values(&factor, 1), values(&maps, 2 * ENTRIES)];
            let read = [&param, &grad].map(|tensor| values(tensor, len)).to_vec();
            let codes_handle = checked(&client, &codes, DType::U32, words);
            let written = vec![values(&new, len), codes_handle, values(&absmax, blocks)];
            if let Some(vectors) = batch.add(Buffers { len, read, written }) {
                let kernel = ManyKernel { name: "adamw_coded", chunk: 1024, blocks: usize::MAX };
                // SAFETY: the buffers are as long as the vectors ask for, as checked.
                unsafe { kernel.launch(&client, &vectors, others, vec![], Some(step)) };
            }
            return (new, codes, absmax);
        }
        // Each unit has one word of codes.
        let vector = vector_size(&client, DType::F32, len).min(CODES);
        let cube_dim = CubeDim::new_1d(UNITS);
        // SAFETY: the buffers are as long as `len` asks for; units of words below `len / 4` stay inside, the
        // others touch none but the maps, of which each cube reads 256 twice.
        unsafe {
            kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, len.div_ceil(CODES), cube_dim),
                cube_dim,
                vector,
                buffer(&client, &param, DType::F32, len, vector),
                buffer(&client, &new, DType::F32, len, vector),
                buffer(&client, &grad, DType::F32, len, vector),
                buffer(&client, &factor, DType::F32, 1, 1),
                buffer(&client, &codes, DType::U32, words, 1),
                buffer(&client, &absmax, DType::F32, blocks, 1),
                buffer(&client, &maps, DType::F32, 2 * ENTRIES, 1),
                len,
                step.launch_arg(),
            );
        }
        (new, codes, absmax)
    }
}
