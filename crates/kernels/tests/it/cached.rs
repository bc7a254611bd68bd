//! Keys and values of generation, against the formula in float64.

use crate::common::*;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_lora_kernels::{AttentionSpec, cached_attention, overwrite, records, store_cached};

struct Case {
    heads: usize,
    kv_heads: usize,
    new: usize,
    capacity: usize,
    width: usize,
    window: Option<usize>,
    /// Tokens of each row, the new ones included.
    lengths: Vec<usize>,
}

impl Case {
    fn expected(&self, [q, k, v]: [&[f32]; 3]) -> (Vec<f32>, Vec<f32>) {
        let &Self { heads, kv_heads, new, capacity, width, .. } = self;
        let (mut out, mut lse) = (vec![0.0f32; q.len()], vec![]);
        for at in 0..self.lengths.len() * heads * new {
            let (i, h, row) = (at % new, at / new % heads, at / new / heads);
            let length = self.lengths[row].min(capacity);
            let end = (length + i + 1).saturating_sub(new).min(length);
            let first = self.window.map_or(0, |window| end.saturating_sub(window));
            let key = |j: usize| {
                let start = ((row * kv_heads + h / (heads / kv_heads)) * capacity + j) * width;
                start..start + width
            };
            let q = &q[at * width..(at + 1) * width];
            let score = |j: usize| -> f64 {
                q.iter().zip(&k[key(j)]).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>() * 0.3
            };
            let sum: f64 = (first..end).map(|j| score(j).exp()).sum();
            lse.push(if sum > 0.0 { sum.ln() as f32 } else { 0.0 });
            for j in first..end {
                let weight = score(j).exp() / sum;
                for (out, value) in out[at * width..].iter_mut().zip(&v[key(j)]) {
                    *out += (weight * *value as f64) as f32;
                }
            }
        }
        (out, lse)
    }

    fn check(&self, dtype: FloatDType, allowed: f32) {
        let device = device();
        let &Self { heads, kv_heads, new, capacity, width, window, .. } = self;
        let rows = self.lengths.len();
        let [q, kv] = [heads * new, kv_heads * capacity].map(|count| rows * count * width);
        // Numbers that the dtype has.
        let [q, k, v] = [(q, 1), (kv, 2), (kv, 3)].map(|(count, seed)| {
            vec(float(random(count, seed), [count], &device).cast(dtype).cast(FloatDType::F32))
        });
        let tensor =
            |values: &[f32], shape| float::<4>(values.to_vec(), shape, &device).cast(dtype);
        let cache = [rows, kv_heads, capacity, width];
        // The texts are in the rows from the last to the first.
        let (k, v) = (turned(&k, rows), turned(&v, rows));
        let texts = (0..rows as i32).rev();
        let texts = texts.chain(self.lengths.iter().map(|length| *length as i32)).collect();
        let (out, lse) = cached_attention(
            tensor(&q, [rows, heads, new, width]),
            tensor(&k, cache),
            tensor(&v, cache),
            int(texts, [2, rows], &device),
            AttentionSpec { scale: 0.3, window },
        );
        assert_eq!(out.dtype(), DType::from(dtype));
        let (k, v) = (turned(&k, rows), turned(&v, rows));
        let (expected, sums) = self.expected([&q, &k, &v]);
        let off = difference(&vec(out.cast(FloatDType::F32)), &expected);
        assert!(off < allowed, "{heads} over {kv_heads}, {new} of {width}, {window:?}: {off}");
        assert!(difference(&vec(lse), &sums) < allowed.max(1e-4));
    }
}

/// Rows from the last to the first.
fn turned(values: &[f32], rows: usize) -> Vec<f32> {
    values.chunks(values.len() / rows).rev().flatten().copied().collect()
}

#[test]
fn a_row_that_is_not_there_has_no_keys() {
    let device = device();
    let cache = Tensor::<4>::ones([2, 1, 4, 8], &device);
    let texts = int(vec![-1, 2, 1, 3, 3, 3], [2, 3], &device);
    let spec = AttentionSpec { scale: 1.0, window: None };
    let q = Tensor::ones([3, 1, 1, 8], &device);
    let (out, lse) = cached_attention(q, cache.clone(), cache, texts, spec);
    assert_eq!(vec(out)[..16], [0.0; 16]);
    assert_eq!(vec(lse)[..2], [0.0; 2]);
}

fn cases() -> Vec<Case> {
    let case = |[heads, kv_heads, new, capacity, width]: [usize; 5], window, lengths: &[usize]| {
        Case { heads, kv_heads, new, capacity, width, window, lengths: lengths.to_vec() }
    };
    vec![
        case([4, 1, 1, 300, 64], None, &[1, 128, 129, 300, 0]),
        case([3, 3, 1, 7, 16], None, &[7, 3]),
        case([8, 2, 1, 500, 128], Some(100), &[480, 90]),
        case([4, 2, 3, 40, 32], None, &[3, 40, 2]),
        case([6, 1, 5, 260, 24], Some(4), &[260, 5]),
        case([2, 1, 1, 140, 256], None, &[140]),
        // What is beyond the capacity is not there.
        case([2, 1, 1, 8, 8], None, &[20]),
    ]
}

#[test]
fn attention_to_a_cache_agrees_with_the_formula() {
    for case in cases() {
        case.check(FloatDType::F32, 1e-5);
    }
}

#[test]
fn and_in_16_bits() {
    let Some(dtype) = [FloatDType::BF16, FloatDType::F16]
        .into_iter()
        .find(|dtype| device().supports_dtype(DType::from(*dtype)))
    else {
        return;
    };
    for case in cases() {
        case.check(dtype, 2e-2);
    }
}

#[test]
fn keys_and_values_are_stored_at_their_places() {
    let device = device();
    let (rows, heads, capacity, width) = (3, 2, 5, 4);
    let empty = || Tensor::<4>::zeros([rows, heads, capacity, width], &device);
    // Two rows of three tokens: heads before the sequence, as a view, and contiguous.
    let new = random(2 * 3 * heads * width, 5);
    let k = float::<4>(new.clone(), [2, 3, heads, width], &device).swap_dims(1, 2);
    let v = k.clone() * -1.0;
    // The third is nowhere, the fourth beyond the capacity.
    let places = vec![2, 0, 1, 1, 0, 2, 4, 0, -1, 5, 3, 0];
    let places = int(places, [2, 2, 3], &device);
    let (keys, values) = store_cached(empty(), empty(), k, v, places.clone());
    let mut expected = vec![0.0; rows * heads * capacity * width];
    for (token, (row, place)) in [(0, (2, 4)), (1, (0, 0)), (4, (0, 3)), (5, (2, 0))] {
        for head in 0..heads {
            let (from, to) =
                ((token * heads + head) * width, ((row * heads + head) * capacity + place) * width);
            expected[to..to + width].copy_from_slice(&new[from..from + width]);
        }
    }
    assert_eq!(vec(keys.clone()), expected);
    assert_eq!(vec(values), expected.iter().map(|value| -value).collect::<Vec<_>>());

    // What is there stays.
    let more = Tensor::<4>::ones([1, heads, 1, width], &device);
    let place = int(vec![1, 2], [2, 1, 1], &device);
    let (keys, _) = store_cached(keys, empty(), more.clone(), more, place);
    for head in 0..heads {
        let to = ((heads + head) * capacity + 2) * width;
        expected[to..to + width].fill(1.0);
    }
    assert_eq!(vec(keys), expected);
}

#[test]
fn integers_are_overwritten() {
    let device = device();
    let from = int::<2>(vec![1, 2, 3, 4, 5, 6], [2, 3], &device).swap_dims(0, 1);
    let to = int::<1>(vec![0; 6], [6], &device).reshape([3, 2]);
    let found = overwrite(to.clone(), from.clone());
    assert_eq!(vec(found.float()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    if records(&device) {
        // In the same memory.
        assert_eq!(vec(to.float()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
    // Rows that a GPU pads.
    let found = overwrite(int::<2>(vec![0; 6], [3, 2], &device), from);
    assert_eq!(vec(found.float()), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
}
