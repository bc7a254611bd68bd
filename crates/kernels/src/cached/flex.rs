//! A cache on the CPU: rows and heads on all cores, in float32 for every dtype.

use super::CachedOps;
use crate::{
    attention::AttentionSpec,
    flex::{dot, from_f32, to_f32},
};
use burn::{
    backend::{
        Flex, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Element, Shape, bf16, f16},
};
use burn_flex::FlexTensor;
use bytemuck::Pod;
use rayon::prelude::*;

impl CachedOps for Flex {
    fn store_cached(
        mut keys: FloatTensor<Self>,
        mut values: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        places: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let places = places.to_contiguous();
        for (cache, new) in [(&mut keys, k), (&mut values, v)] {
            let new = new.to_contiguous();
            match cache.dtype() {
                DType::F32 => store::<f32>(cache, &new, places.storage()),
                DType::BF16 => store::<bf16>(cache, &new, places.storage()),
                DType::F16 => store::<f16>(cache, &new, places.storage()),
                dtype => panic!("a cache of {dtype:?}"),
            }
        }
        (keys, values)
    }

    fn overwrite(_to: IntTensor<Self>, from: IntTensor<Self>) -> IntTensor<Self> {
        from
    }

    fn overwrite_float(_to: FloatTensor<Self>, from: FloatTensor<Self>) -> FloatTensor<Self> {
        from
    }

    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        texts: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (q.shape(), q.dtype());
        let [batch, heads, new, width] = shape.dims();
        let [rows, kv_heads, capacity, _] = keys.shape().dims();
        let [q, keys, values] = [q, keys, values].map(to_f32);
        let texts = texts.to_contiguous();
        let (q, keys, values): (&[f32], &[f32], &[f32]) =
            (q.storage(), keys.storage(), values.storage());
        let texts: &[i32] = texts.storage();
        let mut out = vec![0.0f32; q.len()];
        let mut lse = vec![0.0f32; q.len() / width];
        let queries = out.par_chunks_mut(width).zip(&mut lse).zip(q.par_chunks(width)).enumerate();
        queries.for_each(|(at, ((out, lse), q))| {
            let (query, head, text) = (at % new, at / new % heads, at / new / heads);
            let row = usize::try_from(texts[text]).ok().filter(|row| *row < rows);
            let Some(row) = row else { return };
            let length = (texts[batch + text].max(0) as usize).min(capacity);
            let end = (length + query + 1).saturating_sub(new).min(length);
            let first = spec.window.map_or(0, |window| end.saturating_sub(window));
            let start = (row * kv_heads + head / (heads / kv_heads)) * capacity * width;
            let of = |key: usize| start + key * width..start + (key + 1) * width;
            let mut scores: Vec<f32> =
                (first..end).map(|key| dot(q, &keys[of(key)]) * spec.scale).collect();
            if scores.is_empty() {
                return;
            }
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in &mut scores {
                *score = (*score - max).exp();
                sum += *score;
            }
            for (key, score) in (first..end).zip(scores) {
                let weight = score / sum;
                for (out, value) in out.iter_mut().zip(&values[of(key)]) {
                    *out += weight * value;
                }
            }
            *lse = max + sum.ln();
        });
        let rows = Shape::from(shape[..3].to_vec());
        (from_f32(out, shape, dtype), from_f32(lse, rows, DType::F32))
    }
}

/// Writes `[batch, kv_heads, new, head_dim]` into `[rows, kv_heads, capacity, head_dim]`.
fn store<E: Element + Pod>(cache: &mut FlexTensor, new: &FlexTensor, places: &[i32]) {
    let ([rows, heads, capacity, width], [batch, _, count, _]) =
        (cache.shape().dims(), new.shape().dims());
    let (to, from) = (cache.storage_mut::<E>(), new.storage::<E>());
    for (token, from) in from.chunks_exact(width).enumerate() {
        let (at, head, item) = (token % count, token / count % heads, token / count / heads);
        let place = |which: usize| usize::try_from(places[(which * batch + item) * count + at]);
        let (Ok(row), Ok(place)) = (place(0), place(1)) else { continue };
        if row < rows && place < capacity {
            let start = ((row * heads + head) * capacity + place) * width;
            to[start..start + width].copy_from_slice(from);
        }
    }
}
