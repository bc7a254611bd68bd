//! Attention to a cache: tiles of keys in parallel, joined by their log-sum-exps.
#![allow(clippy::manual_is_multiple_of, reason = "CubeCL has no such function")]

use crate::{
    attention::AttentionSpec,
    cube::{PLANE, UNITS, buffer, elem, empty, has_planes, vector_size},
};
use burn::{
    backend::TensorMetadata,
    tensor::{DType, Shape},
};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, client::Client, prelude::*};

/// Keys of a tile, and units of a cube: each computes the scores of one key.
const TILE: usize = 128;

/// Most queries of a cube.
const QUERIES: usize = 16;

/// Most values that a unit loads before it uses the first.
const TOGETHER: usize = 32;

/// Cubes that keep a large GPU busy.
const CUBES: usize = 512;

/// Sizes of an attention to a cache.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    batch: usize,
    rows: usize,
    heads: usize,
    kv_heads: usize,
    new: usize,
    capacity: usize,
    /// Groups of queries of a row and a key-value head.
    blocks: usize,
    splits: usize,
    window: usize,
    scale: f32,
}

/// Attention of a block of queries to every `splits`-th tile of a text's keys: the highest score, the sum of the weights
/// relative to it, and that of the values. The queries of a text and a key-value head are numbered: those of a token
/// follow each other.
///
/// Cubes: `[splits, key-value heads · blocks, texts]`.
#[cube(launch_unchecked)]
fn tiles_kernel<F: Float, N: Size, M: Size>(
    q: &[F],
    keys: &[Vector<F, N>],
    values: &[Vector<F, M>],
    texts: &[i32],
    sums: &mut [f32],
    maxima: &mut [f32],
    totals: &mut [f32],
    sizes: &Sizes,
    #[comptime] queries: usize,
    #[comptime] width: usize,
    #[comptime] single: bool,
    #[define(F)] _dtype: ElemType,
) {
    let (vector, part) = (N::value().comptime(), M::value().comptime());
    let (steps, share) = (comptime![width / vector], comptime![width / part]);
    let lanes = comptime![TILE / share];
    let unit = UNIT_POS as usize;
    let group = sizes.heads / sizes.kv_heads;
    let all = group * sizes.new;
    let (split, text) = (CUBE_POS_X as usize, CUBE_POS_Z as usize);
    let (head, block) = (CUBE_POS_Y as usize / sizes.blocks, CUBE_POS_Y as usize % sizes.blocks);
    let row = max(texts[text], 0) as usize;
    let exists = texts[text] >= 0 && row < sizes.rows;
    let length = min(max(texts[sizes.batch + text], 0) as usize, sizes.capacity);
    let length = select(exists, length, 0usize);
    let start = (min(row, sizes.rows - 1) * sizes.kv_heads + head) * sizes.capacity;

    // Queries in float32, scaled, those of an element side by side; those past the last are copies of it.
    let mut shared = Shared::<[f32]>::new_slice(comptime![queries * width]);
    let mut at = unit;
    while at < comptime![queries * width] {
        let of = if comptime![single] {
            let first = (text * sizes.heads + head * group + block * queries) * width;
            min(first + at, (text * sizes.heads + (head + 1) * group) * width - 1)
        } else {
            let number = min(block * queries + at / width, all - 1);
            let (token, member) = (number / group, number % group);
            let of = (text * sizes.heads + head * group + member) * sizes.new + token;
            of * width + at % width
        };
        shared[at % width * queries + at / width] = f32::cast_from(q[of]) * sizes.scale;
        at += TILE;
    }
    let mut weights = Shared::<[f32]>::new_slice(comptime![queries * TILE]);
    let mut scratch = Shared::<[f32]>::new_slice(comptime![TILE * queries]);
    let mut most = Array::<f32>::new(queries);
    let mut total = Array::<f32>::new(queries);
    let mut sum = Array::<f32>::new(comptime![queries * part]);
    #[unroll]
    for j in 0..queries {
        most[j] = f32::MIN;
        total[j] = 0.0f32;
        #[unroll]
        for i in 0..part {
            sum[comptime![j * part + i]] = 0.0f32;
        }
    }
    let (element, lane) = (unit % share, unit / share);
    // Values that a unit loads before it uses the first.
    let together = comptime![TILE.div_ceil(lanes).min(TOGETHER)];

    // The first key that the block's first query sees: later ones see none before it.
    let first_end = length + min(block * queries, all - 1) / group + 1;
    let first_end = first_end - min(first_end, sizes.new);
    let mut tile = (first_end - min(first_end, sizes.window)) / TILE + split;
    while tile * TILE < length {
        let key = tile * TILE + unit;
        let from = (start + min(key, sizes.capacity - 1)) * steps;
        let count = min(length - tile * TILE, TILE);
        // All loads are under way before the first is used.
        let mut of_key = Array::<Vector<F, N>>::new(steps);
        #[unroll]
        for step in 0..steps {
            of_key[step] = keys[from + step];
        }
        let mut read = Array::<Vector<F, M>>::new(together);
        #[unroll]
        for n in 0..together {
            let number = min(min(lane, lanes - 1) + n * lanes, count - 1);
            read[n] = values[(start + tile * TILE + number) * share + element];
        }
        sync_cube();
        let mut scores = Array::<f32>::new(queries);
        #[unroll]
        for j in 0..queries {
            scores[j] = 0.0f32;
        }
        #[unroll]
        for step in 0..steps {
            #[unroll]
            for i in 0..vector {
                let value = f32::cast_from(of_key[step].extract(i));
                #[unroll]
                for j in 0..queries {
                    scores[j] += shared[comptime![(step * vector + i) * queries + j]] * value;
                }
            }
        }
        let mut highest = Array::<f32>::new(queries);
        #[unroll]
        for j in 0..queries {
            let token = min(block * queries + j, all - 1) / group;
            let end = length + token + 1;
            let end = end - min(end, sizes.new);
            let seen = key < min(end, length) && key + sizes.window >= end;
            scores[j] = select(seen, scores[j], f32::MIN);
            highest[j] = scores[j];
        }
        over_cube(&mut highest, &mut scratch, queries, false);
        #[unroll]
        for j in 0..queries {
            let highest = max(most[j], highest[j]);
            let old = (most[j] - highest).exp();
            let weight = select(scores[j] == f32::MIN, 0.0f32, (scores[j] - highest).exp());
            total[j] = total[j] * old + weight;
            #[unroll]
            for i in 0..part {
                sum[comptime![j * part + i]] *= old;
            }
            most[j] = highest;
            weights[unit * queries + j] = weight;
        }
        sync_cube();
        if lane < lanes {
            let mut first = lane;
            while first < count {
                #[unroll]
                for n in 0..together {
                    let number = first + n * lanes;
                    let inside = number < count;
                    let number = min(number, count - 1);
                    #[unroll]
                    for i in 0..part {
                        let value = f32::cast_from(read[n].extract(i));
                        let value = select(inside, value, 0.0f32);
                        #[unroll]
                        for j in 0..queries {
                            sum[comptime![j * part + i]] += weights[number * queries + j] * value;
                        }
                    }
                }
                first += comptime![together * lanes];
                if comptime![together * lanes < TILE] {
                    #[unroll]
                    for n in 0..together {
                        let number = min(first + n * lanes, count - 1);
                        read[n] = values[(start + tile * TILE + number) * share + element];
                    }
                }
            }
        }
        tile += sizes.splits;
    }
    over_cube(&mut total, &mut scratch, queries, true);
    // Over the lanes that share an element.
    #[unroll]
    for i in 0..part {
        sync_cube();
        #[unroll]
        for j in 0..queries {
            scratch[comptime![j * TILE] + unit] = sum[comptime![j * part + i]];
        }
        sync_cube();
        #[unroll]
        for j in 0..queries {
            let number = block * queries + j;
            let of = if comptime![single] {
                text * sizes.heads + head * group + number
            } else {
                let (token, member) = (number / group, number % group);
                (text * sizes.heads + head * group + member) * sizes.new + token
            };
            let to = of * sizes.splits + split;
            if number < all && unit < share {
                let mut whole = 0.0f32;
                #[unroll]
                for other in 0..lanes {
                    whole += scratch[comptime![j * TILE + other * share] + unit];
                }
                sums[to * width + unit * part + i] = whole;
            }
            if comptime![i == 0] && number < all && unit == 0 {
                maxima[to] = most[j];
                totals[to] = total[j];
            }
        }
    }
}

/// Replaces values by their sums, or maxima, over the units of a cube.
#[cube]
fn over_cube(
    values: &mut Array<f32>,
    scratch: &mut Shared<[f32]>,
    #[comptime] count: usize,
    #[comptime] sum: bool,
) {
    let planes = comptime![TILE / PLANE as usize];
    #[unroll]
    for j in 0..count {
        let value = if sum { plane_sum(values[j]) } else { plane_max(values[j]) };
        if UNIT_POS % PLANE == 0 {
            scratch[comptime![j * planes] + UNIT_POS as usize / comptime![PLANE as usize]] = value;
        }
    }
    sync_cube();
    #[unroll]
    for j in 0..count {
        let mut value = scratch[comptime![j * planes]];
        #[unroll]
        for other in 1..planes {
            let next = scratch[comptime![j * planes + other]];
            value = if sum { value + next } else { max(value, next) };
        }
        values[j] = value;
    }
    sync_cube();
}

/// Joins the tiles of each query.
#[cube(launch_unchecked)]
fn join_kernel<F: Float>(
    sums: &[f32],
    maxima: &[f32],
    totals: &[f32],
    out: &mut [F],
    lse: &mut [f32],
    count: usize,
    width: usize,
    splits: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < count {
        let (of, element) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
        let mut most = maxima[of * splits];
        for split in 1..splits {
            most = max(most, maxima[of * splits + split]);
        }
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for split in 0..splits {
            let at = of * splits + split;
            let weight = (maxima[at] - most).exp();
            total += totals[at] * weight;
            sum += sums[at * width + element] * weight;
        }
        let seen = total > 0.0f32;
        out[ABSOLUTE_POS] = F::cast_from(select(seen, sum / max(total, 1e-30f32), 0.0f32));
        if element == 0 {
            lse[of] = select(seen, most + max(total, 1e-30f32).ln(), 0.0f32);
        }
    }
}

/// Elements of a value that a unit sums up.
fn part_of(client: &Client, dtype: DType, width: usize) -> usize {
    let vector = vector_size(client, dtype, width);
    [4, 2, 1].into_iter().find(|part| vector.is_multiple_of(*part)).unwrap_or(1)
}

/// Most queries of a cube whose shared memory the device has.
fn most_queries(client: &Client, width: usize) -> usize {
    let room = client.properties().hardware.max_shared_memory_size / size_of::<f32>();
    (room / (width + 2 * TILE)).min(QUERIES)
}

/// Returns `true` if the device has planes and room for these kernels, whatever the dtype.
pub(in super::super) fn supports(client: &Client, width: usize) -> bool {
    has_planes(client)
        && most_queries(client, width) > 0
        && [DType::F32, DType::BF16]
            .iter()
            .all(|dtype| width / part_of(client, *dtype, width) <= TILE)
}

/// [`CachedOps::cached_attention`](super::super::CachedOps::cached_attention).
pub(super) fn launch(
    q: CubeTensor,
    keys: CubeTensor,
    values: CubeTensor,
    texts: CubeTensor,
    spec: AttentionSpec,
) -> (CubeTensor, CubeTensor) {
    let [q, keys, values, texts] = [q, keys, values, texts].map(into_contiguous);
    let (client, dtype) = (q.client.clone(), q.dtype);
    let [batch, heads, new, width] = q.shape().dims();
    let [rows, kv_heads, capacity, _] = keys.shape().dims();
    let (out, count) = (empty(&q, q.shape(), dtype), batch * heads * new);
    let lse = empty(&q, Shape::new([batch, heads, new]), DType::F32);
    if count == 0 || width == 0 {
        return (out, lse);
    }
    let vector = vector_size(&client, dtype, width);
    let part = part_of(&client, dtype, width);
    let queries = (heads / kv_heads * new).min(most_queries(&client, width));
    let blocks = (heads / kv_heads * new).div_ceil(queries);
    let splits = (CUBES / (kv_heads * blocks * batch)).clamp(1, capacity.div_ceil(TILE).max(1));
    let floats = |len| empty(&q, Shape::new([len]), DType::F32);
    let (sums, maxima, totals) =
        (floats(count * splits * width), floats(count * splits), floats(count * splits));
    let len = rows * kv_heads * capacity * width;
    let float = |tensor: &CubeTensor, len| buffer(&client, tensor, DType::F32, len, 1);
    let cubes = [splits, kv_heads * blocks, batch].map(|n| u32::try_from(n).expect("few cubes"));
    let cube_dim = CubeDim::new_1d(UNITS);
    let units = count * width;
    // SAFETY: the buffers are as long as checked; cubes are as many as the kernel says, keys stay below the length of
    // a text and that below the capacity, and queries below their number.
    unsafe {
        tiles_kernel::launch_unchecked(
            &client,
            CubeCount::Static(cubes[0], cubes[1], cubes[2]),
            CubeDim::new_1d(TILE as u32),
            vector,
            part,
            buffer(&client, &q, dtype, count * width, 1),
            buffer(&client, &keys, dtype, len, vector),
            buffer(&client, &values, dtype, len, part),
            buffer(&client, &texts, DType::I32, 2 * batch, 1),
            float(&sums, count * splits * width),
            float(&maxima, count * splits),
            float(&totals, count * splits),
            SizesLaunch::new(
                batch,
                rows,
                heads,
                kv_heads,
                new,
                capacity,
                blocks,
                splits,
                spec.window.unwrap_or(capacity + new).min(capacity + new),
                spec.scale,
            ),
            queries,
            width,
            new == 1,
            elem(dtype),
        );
        join_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, units, cube_dim),
            cube_dim,
            float(&sums, count * splits * width),
            float(&maxima, count * splits),
            float(&totals, count * splits),
            buffer(&client, &out, dtype, units, 1),
            float(&lse, count),
            units,
            width,
            splits,
            elem(dtype),
        );
    }
    (out, lse)
}
