//! A cache on CubeCL's runtimes.

mod attention;

pub(super) use attention::supports;

use super::CachedOps;
use crate::{
    attention::AttentionSpec,
    cube::{UNITS, buffer, check, elem, vector_size},
};
use burn::{
    backend::{
        TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::DType,
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// Distances between the elements of new keys or values, as vectors.
#[derive(CubeType, CubeLaunch)]
struct Strides {
    batch: usize,
    head: usize,
    token: usize,
}

/// Copies a vector of a key and of a value each.
#[cube(launch_unchecked)]
fn store_kernel<F: Float, N: Size>(
    k: &[Vector<F, N>],
    v: &[Vector<F, N>],
    places: &[i32],
    keys: &mut [Vector<F, N>],
    values: &mut [Vector<F, N>],
    of_k: &Strides,
    of_v: &Strides,
    count: usize,
    new: usize,
    heads: usize,
    width: usize,
    rows: usize,
    capacity: usize,
    tokens: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < count {
        let (at, rest) = (ABSOLUTE_POS % width, ABSOLUTE_POS / width);
        let (token, rest) = (rest % new, rest / new);
        let (head, item) = (rest % heads, rest / heads);
        let place = item * new + token;
        let (row, place) = (places[place], places[tokens + place]);
        if row >= 0 && (row as usize) < rows && place >= 0 && (place as usize) < capacity {
            let to = ((row as usize * heads + head) * capacity + place as usize) * width + at;
            keys[to] = k[item * of_k.batch + head * of_k.head + token * of_k.token + at];
            values[to] = v[item * of_v.batch + head * of_v.head + token * of_v.token + at];
        }
    }
}

#[cube(launch_unchecked)]
fn overwrite_kernel<N: Numeric>(
    from: &[N],
    to: &mut [N],
    len: usize,
    #[define(N)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < len {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

impl CachedOps for CubeBackend {
    fn store_cached(
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        places: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // Nothing is copied of a cache that lies in memory row after row.
        let [keys, values] = [keys, values].map(into_contiguous);
        let (client, dtype) = (keys.client.clone(), keys.dtype);
        let ([rows, heads, capacity, width], [batch, _, new, _]) =
            (keys.shape().dims(), k.shape().dims());
        let [k, v] = [k, v].map(|x| if x.meta.strides()[3] == 1 { x } else { into_contiguous(x) });
        let places = into_contiguous(places);
        let strides = |x: &CubeTensor| [0, 1, 2].map(|at| x.meta.strides()[at]);
        let vector = vector_size(&client, dtype, width);
        let aligned = [&k, &v].iter().all(|x| strides(x).iter().all(|s| s.is_multiple_of(vector)));
        let vector = if aligned { vector } else { 1 };
        let count = batch * heads * new * width / vector;
        if count == 0 {
            return (keys, values);
        }
        let launched = |x: &CubeTensor| {
            let [batch, head, token] = strides(x).map(|stride| stride / vector);
            StridesLaunch::new(batch, head, token)
        };
        let strided = |x: &CubeTensor| {
            check(&client, x, dtype);
            let last: usize =
                x.meta.shape().iter().zip(x.meta.strides().iter()).map(|(n, s)| (n - 1) * s).sum();
            // SAFETY: the buffer reaches to the last element, as checked.
            unsafe { BufferArg::from_raw_parts(x.handle.clone(), (last + 1) / vector) }
        };
        let len = rows * heads * capacity * width;
        let cube_dim = CubeDim::new_1d(UNITS);
        // SAFETY: the buffers are as long as checked; each unit below `count` stays inside, the others do nothing.
        unsafe {
            store_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, count, cube_dim),
                cube_dim,
                vector,
                strided(&k),
                strided(&v),
                buffer(&client, &places, DType::I32, 2 * batch * new, 1),
                buffer(&client, &keys, dtype, len, vector),
                buffer(&client, &values, dtype, len, vector),
                launched(&k),
                launched(&v),
                count,
                new,
                heads,
                width / vector,
                rows,
                capacity,
                batch * new,
                elem(dtype),
            );
        }
        (keys, values)
    }

    fn overwrite(to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self> {
        write_over(to, from)
    }

    fn overwrite_float(to: FloatTensor<Self>, from: FloatTensor<Self>) -> FloatTensor<Self> {
        write_over(to, from)
    }

    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::launch(q, keys, values, texts, spec)
    }
}

/// Writes a tensor over another in its memory, unless its rows are padded.
fn write_over(to: CubeTensor, from: CubeTensor) -> CubeTensor {
    let (client, from) = (to.client.clone(), into_contiguous(from));
    if !to.is_contiguous() {
        return from;
    }
    let (dtype, len) = (to.dtype, to.meta.shape().num_elements());
    let cube_dim = CubeDim::new_1d(UNITS);
    // SAFETY: both buffers have as many elements, and units past the end do nothing.
    unsafe {
        overwrite_kernel::launch_unchecked(
            &client,
            calculate_cube_count_elemwise(&client, len, cube_dim),
            cube_dim,
            buffer(&client, &from, dtype, len, 1),
            buffer(&client, &to, dtype, len, 1),
            len,
            elem(dtype),
        );
    }
    to
}
