//! Attention, in blocks and fused, against the formula in float64.

use crate::common::*;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_lora_kernels::{AttentionSpec, attention, attention_is_fused, attention_with_sinks};

struct Case {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    length: usize,
    keys: usize,
    width: usize,
    window: Option<usize>,
    /// Ranges of keys: for each row of the batch (or one for all) and each query those it may see.
    spans: Vec<Vec<[i32; 2]>>,
}

impl Case {
    fn rows(&self) -> usize {
        self.spans[0].len() / self.length
    }

    fn sees(&self, b: usize, i: usize, j: usize) -> bool {
        let at = b % self.rows() * self.length + i;
        let within = |[start, end]: [i32; 2]| (start..end).contains(&(j as i32));
        let own = i + self.keys - self.length;
        let near = self.window.is_none_or(|window| own - j.min(own) < window);
        j <= own && near && self.spans.iter().any(|range| within(range[at]))
    }

    /// Output and the gradients of q, k, v and the sinks, if there are some, for the gradient `g` of
    /// the output.
    fn expected(
        &self,
        [q, k, v, g]: [&[f32]; 4],
        sinks: Option<&[f32]>,
    ) -> ([Vec<f32>; 4], Vec<f32>) {
        let &Self { batch, heads, kv_heads, length, keys, width, .. } = self;
        let scale = (width as f64).sqrt().recip();
        let mut out = vec![0.0f64; q.len()];
        let mut grads = [vec![0.0f64; q.len()], vec![0.0f64; k.len()], vec![0.0f64; v.len()]];
        let mut of_sinks = vec![0.0f64; heads];
        for b in 0..batch {
            for h in 0..heads {
                let kv = b * kv_heads + h / (heads / kv_heads);
                for i in 0..length {
                    let at = ((b * heads + h) * length + i) * width;
                    let key = |j: usize| (kv * keys + j) * width;
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum()
                    };
                    let seen: Vec<usize> = (0..keys).filter(|&j| self.sees(b, i, j)).collect();
                    let qi = &q[at..at + width];
                    let score = |j: usize| dot(qi, &k[key(j)..key(j) + width]) * scale;
                    let scores: Vec<f64> = seen.iter().map(|&j| score(j)).collect();
                    let sink = sinks.map(|sinks| sinks[h] as f64);
                    let max = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                    let all = scores.iter().copied().chain(sink);
                    let sum: f64 = all.map(|s| (s - max).exp()).sum();
                    let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
                    let gi = &g[at..at + width];
                    let dp: Vec<f64> =
                        seen.iter().map(|&j| dot(gi, &v[key(j)..key(j) + width])).collect();
                    let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                    of_sinks[h] -= sink.map_or(0.0, |sink| (sink - max).exp() / sum * delta);
                    for (n, &j) in seen.iter().enumerate() {
                        let ds = p[n] * (dp[n] - delta) * scale;
                        for d in 0..width {
                            out[at + d] += p[n] * v[key(j) + d] as f64;
                            grads[0][at + d] += ds * k[key(j) + d] as f64;
                            grads[1][key(j) + d] += ds * q[at + d] as f64;
                            grads[2][key(j) + d] += p[n] * g[at + d] as f64;
                        }
                    }
                }
            }
        }
        let f32 = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect::<Vec<_>>();
        let [q, k, v] = grads;
        ([f32(out), f32(q), f32(k), f32(v)], f32(of_sinks))
    }

    fn check(&self) {
        self.check_in(FloatDType::F32, [1e-5, 2e-5], false);
        // Of a size that most of the weight is theirs, or hardly any, or all.
        let sinks: Vec<f32> = (0..self.heads).map(|head| [1.5, -3.0, 40.0][head % 3]).collect();
        self.check_with(Some(&sinks), FloatDType::F32, [1e-5, 2e-5], false);
    }

    /// In a dtype, with the largest differences of the output and of gradients, and whether heads lie
    /// behind the sequence in memory, as a linear layer gives them.
    fn check_in(&self, dtype: FloatDType, most: [f32; 2], behind: bool) {
        self.check_with(None, dtype, most, behind);
    }

    fn check_with(&self, sinks: Option<&[f32]>, dtype: FloatDType, most: [f32; 2], behind: bool) {
        let device = device();
        let q_shape = [self.batch, self.heads, self.length, self.width];
        let k_shape = [self.batch, self.kv_heads, self.keys, self.width];
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let random = |count, seed| rounded(random(count, seed), dtype);
        let (q, g) = (random(count(q_shape), 1), random(count(q_shape), 4));
        let (k, v) = (random(count(k_shape), 2), random(count(k_shape), 3));
        let (expected, of_sinks) = self.expected([&q, &k, &v, &g], sinks);
        let ends =
            |range: &Vec<[i32; 2]>| [0, 1].map(|end| range.iter().map(|span| span[end]).collect());
        let spans: Vec<Vec<i32>> = self.spans.iter().flat_map(ends).collect();
        let spans = int(spans.concat(), [spans.len(), self.rows(), self.length], &device);
        let tracked = |values, shape| float(values, shape, &device).autodiff().require_grad();
        let [q, k, v] = [tracked(q, q_shape), tracked(k, k_shape), tracked(v, k_shape)];
        let spec = AttentionSpec { scale: (self.width as f32).sqrt().recip(), window: self.window };
        let [qt, kt, vt] = [&q, &k, &v].map(|tensor| {
            let tensor = tensor.clone().cast(dtype);
            if behind { heads_behind(tensor) } else { tensor }
        });
        let sinks = sinks
            .map(|sinks| float(sinks.to_vec(), [self.heads], &device).autodiff().require_grad());
        let out = match sinks.clone() {
            None => attention(qt, kt, vt, spans, spec),
            Some(sinks) => attention_with_sinks(qt, kt, vt, sinks.cast(dtype), spans, spec),
        };
        let out = out.cast(FloatDType::F32);
        let found = difference(&vec(out.clone()), &expected[0]);
        assert!(found < most[0], "the output differs by {found}");
        let grads = (out * float(g, q_shape, &device)).sum().backward();
        let grad = |tensor: Tensor<4>| vec(tensor.grad(&grads).unwrap());
        for (name, tensor, expected) in
            [("q", q, &expected[1]), ("k", k, &expected[2]), ("v", v, &expected[3])]
        {
            // Not relative: a query that sees one key alone has the gradient 0.
            let found = difference(&grad(tensor), expected);
            assert!(found < most[1], "the gradient of {name} differs by {found}");
        }
        if let Some(sinks) = sinks {
            let found = difference(&vec(sinks.grad(&grads).unwrap()), &of_sinks);
            // A sum over all rows.
            let rows = (self.batch * self.length) as f32;
            let most = most[1] * rows.sqrt();
            assert!(found < most, "the gradient of the sinks differs by {found}");
        }
    }
}

/// The same tensor, whose heads lie behind the sequence in memory.
fn heads_behind(tensor: Tensor<4>) -> Tensor<4> {
    let [batch, heads, length, width] = tensor.dims();
    let flat = tensor.swap_dims(1, 2).reshape([batch, length, heads * width]);
    flat.reshape([batch, length, heads, width]).swap_dims(1, 2)
}

/// What is left of values in a dtype.
fn rounded(values: Vec<f32>, dtype: FloatDType) -> Vec<f32> {
    let round = |value: f32| match dtype {
        FloatDType::BF16 => half::bf16::from_f32(value).to_f32(),
        FloatDType::F16 => half::f16::from_f32(value).to_f32(),
        _ => value,
    };
    values.into_iter().map(round).collect()
}

fn whole(length: usize, keys: usize) -> Vec<Vec<[i32; 2]>> {
    vec![vec![[0, keys as i32]; length]]
}

#[test]
fn causal() {
    let (length, keys) = (9, 9);
    for (heads, kv_heads) in [(2, 2), (4, 2), (4, 1)] {
        let spans = whole(length, keys);
        Case { batch: 2, heads, kv_heads, length, keys, width: 8, window: None, spans }.check();
    }
}

#[test]
fn heads_behind_the_sequence() {
    for kv_heads in [1, 2] {
        let spans = whole(9, 9);
        let (batch, length, keys) = (2, 9, 9);
        Case { batch, heads: 4, kv_heads, length, keys, width: 8, window: None, spans }.check_in(
            FloatDType::F32,
            [1e-5, 2e-5],
            true,
        );
    }
}

#[test]
fn several_blocks_of_queries() {
    // More than two blocks of 256, and a last one that is not full.
    let (length, keys) = (520, 520);
    let spans = whole(length, keys);
    Case { batch: 1, heads: 2, kv_heads: 1, length, keys, width: 16, window: None, spans }.check();
}

#[test]
fn keys_before_the_queries() {
    for (length, keys) in [(1, 12), (3, 12), (300, 333)] {
        let spans = whole(length, keys);
        Case { batch: 2, heads: 4, kv_heads: 2, length, keys, width: 8, window: None, spans }
            .check();
    }
}

#[test]
fn windows() {
    for (length, window) in [(20, 1), (20, 5), (600, 100)] {
        let spans = whole(length, length);
        let window = Some(window);
        Case { batch: 1, heads: 2, kv_heads: 2, length, keys: length, width: 8, window, spans }
            .check();
    }
}

#[test]
fn packed_segments_and_padding() {
    // Row 0: segments of 4 and 7, then padding that sees nothing. Row 1: padding first.
    let mut spans = vec![];
    for i in 0..12 {
        spans.push(match i {
            0..4 => [0, 4],
            4..11 => [4, 11],
            _ => [0, 0],
        });
    }
    for i in 0..12 {
        spans.push(if i < 5 { [0, 0] } else { [5, 12] });
    }
    let (length, keys) = (12, 12);
    Case {
        batch: 2,
        heads: 4,
        kv_heads: 2,
        length,
        keys,
        width: 8,
        window: None,
        spans: vec![spans],
    }
    .check();
}

/// Spans that begin or end anywhere: what is no key is not seen.
fn anywhere(length: usize) -> Vec<[i32; 2]> {
    let (min, max) = (i32::MIN, i32::MAX);
    let spans =
        [[0, max], [min, max], [-7, 4], [9, 3], [1_000_000, 2_000_000], [max, max], [max, min]];
    (0..length).map(|at| spans[at % spans.len()]).collect()
}

#[test]
fn spans_may_be_any_numbers() {
    // Blocks of one vector, of several, and with keys before and a window.
    for (length, keys, window) in
        [(12, 12, None), (7, 13, None), (300, 300, Some(70)), (5, 70, Some(3))]
    {
        let spans = vec![anywhere(length)];
        Case { batch: 2, heads: 4, kv_heads: 2, length, keys, width: 8, window, spans }.check();
    }
}

/// Keys and values whose matrices begin at any element, or that are the same for all heads.
#[test]
fn views_count_as_their_copies() {
    let device = device();
    let [heads, length, width] = [2, 16, 64];
    let size = length * width;
    let apart = float(random(heads * (size + 1), 1), [1, heads * (size + 1)], &device);
    let same = float(random(size, 2), [1, 1, length, width], &device);
    let q = float(random(heads * size, 3), [1, heads, length, width], &device);
    for dtype in [FloatDType::F32, FloatDType::BF16] {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let apart = apart.clone().cast(dtype).unfold::<3, _>(1, size, size + 1);
        let apart = apart.reshape([1, heads, length, width]);
        let same = same.clone().cast(dtype).expand([1, heads, length, width]);
        for (k, v) in [(apart.clone(), apart.clone()), (apart, same.clone()), (same.clone(), same)]
        {
            let run = |k: Tensor<4>, v: Tensor<4>| {
                let [q, k, v] =
                    [q.clone().cast(dtype), k, v].map(|part| part.autodiff().require_grad());
                let spans = int([0, 1 << 20].repeat(length), [2, 1, length], &device);
                let spec = AttentionSpec { scale: 0.125, window: None };
                let out = attention(q.clone(), k.clone(), v.clone(), spans, spec);
                let grads = out.clone().sum().backward();
                let grads = [q, k, v].map(|part| vec(part.grad(&grads).unwrap()));
                [vec![vec(out)], grads.to_vec()].concat()
            };
            let copy =
                |view: &Tensor<4>| Tensor::from_data(view.to_data(), (&device, DType::from(dtype)));
            assert_eq!(run(k.clone(), v.clone()), run(copy(&k), copy(&v)), "{dtype:?}");
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let device = device();
    let zeros = |shape: [usize; 4]| Tensor::<4>::zeros(shape, &device);
    let run = |q, k, v, spans: [usize; 3], window| {
        let spans = int(vec![0; spans.iter().product()], spans, &device);
        attention(zeros(q), zeros(k), zeros(v), spans, AttentionSpec { scale: 1.0, window })
    };
    let (q, k) = ([2, 4, 3, 8], [2, 2, 5, 8]);
    for bad in [[1, 2, 5, 8], [2, 2, 5, 7]] {
        panics("attention: k for q", || run(q, bad, bad, [2, 2, 3], None));
    }
    panics("attention: k and v", || run(q, k, [2, 2, 6, 8], [2, 2, 3], None));
    panics("4 heads over 3", || run(q, [2, 3, 5, 8], [2, 3, 5, 8], [2, 2, 3], None));
    panics("4 heads over 0", || run(q, [2, 0, 5, 8], [2, 0, 5, 8], [2, 2, 3], None));
    panics("3 queries, 2 keys", || run(q, [2, 2, 2, 8], [2, 2, 2, 8], [2, 2, 3], None));
    for spans in [[1, 2, 3], [2, 3, 3], [2, 0, 3], [2, 2, 4]] {
        panics("attention: spans", || run(q, k, k, spans, None));
    }
    panics("a window over several ranges", || run(q, k, k, [4, 2, 3], Some(2)));
    panics("a sink for each head", || {
        let sinks = Tensor::zeros([2], &device);
        let spec = AttentionSpec { scale: 1.0, window: None };
        let spans = int(vec![0; 12], [2, 2, 3], &device);
        attention_with_sinks(zeros(q), zeros(k), zeros(k), sinks, spans, spec)
    });
    panics("a window of no keys", || run(q, k, k, [2, 2, 3], Some(0)));
    panics("heads of no width", || run([2, 4, 3, 0], [2, 2, 5, 0], [2, 2, 5, 0], [2, 2, 3], None));
}

/// Where attention is fused; the blocks that other devices take are tested above.
#[test]
#[cfg_attr(not(feature = "cuda"), ignore = "needs the feature `cuda`")]
fn fused() {
    if !attention_is_fused(&device(), DType::BF16, 128) {
        return;
    }
    let check =
        |[batch, heads, kv_heads]: [usize; 3], length, keys, window, spans: Vec<Vec<[i32; 2]>>| {
            for (dtype, error) in [(FloatDType::BF16, 3e-2), (FloatDType::F16, 4e-3)] {
                for width in [64, 128] {
                    for behind in [false, true] {
                        let spans = spans.clone();
                        let case =
                            Case { batch, heads, kv_heads, length, keys, width, window, spans };
                        case.check_in(dtype, [error, 2.0 * error], behind);
                        let sinks: Vec<f32> = (0..heads).map(|head| head as f32 - 1.0).collect();
                        case.check_with(Some(&sinks), dtype, [error, 2.0 * error], behind);
                    }
                }
            }
        };
    for length in [16, 64, 77, 200] {
        check([2, 4, 2], length, length, None, whole(length, length));
    }
    check([2, 4, 1], 70, 70, Some(usize::MAX), whole(70, 70));
    check([2, 2, 2], 70, 131, None, whole(70, 131));
    check([2, 2, 1], 70, 131, Some(20), vec![anywhere(70)]);
    check([1, 4, 1], 300, 300, Some(70), whole(300, 300));
    let packed = (0..200).map(|at| match at {
        0..40 => [0, 40],
        40..140 => [40, 140],
        140..143 => [140, 143],
        143..190 => [143, 190],
        _ => [0, 0],
    });
    let padded = (0..200).map(|at| if at < 90 { [0, 0] } else { [90, 200] });
    check([2, 4, 2], 200, 200, None, vec![packed.chain(padded).collect()]);
    check([2, 4, 2], 90, 90, None, shared(&[[40, 20, 25]; 2], 90));
    check([2, 4, 2], 300, 300, None, shared(&[[150, 70, 60], [64, 64, 128]], 300));
}

/// Rows of a prompt and two answers, of which neither sees the other: the first follows the prompt, and the second sees it as
/// another range. Then padding.
fn shared(lengths: &[[usize; 3]], length: usize) -> Vec<Vec<[i32; 2]>> {
    let mut all = vec![vec![]; 2];
    for [prompt, first, second] in lengths {
        let (one, two) = ((prompt + first) as i32, (prompt + first + second) as i32);
        for place in 0..length as i32 {
            let (own, further) = match place {
                place if place < one => ([0, one], [0, 0]),
                place if place < two => ([one, two], [0, *prompt as i32]),
                _ => ([0, 0], [0, 0]),
            };
            all[0].push(own);
            all[1].push(further);
        }
    }
    all
}

#[test]
fn answers_share_a_prompt() {
    let length = 24;
    let spans = shared(&[[9, 6, 7], [1, 3, 20], [20, 1, 1]], length);
    Case { batch: 3, heads: 4, kv_heads: 2, length, keys: length, width: 8, window: None, spans }
        .check();
    // More than one block of queries.
    let length = 300;
    let spans = shared(&[[120, 100, 70]], length);
    Case { batch: 2, heads: 2, kv_heads: 1, length, keys: length, width: 16, window: None, spans }
        .check();
}
