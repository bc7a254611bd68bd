//! The operations between linear layers, against their formulas in float64.

use crate::common::*;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_lora_llama::ops::{cross_entropy, pull_back, rms_norm, rotate, swiglu};

fn tensor<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    float(values.to_vec(), shape, &device())
}

fn tracked<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<D> {
    tensor(values, shape).autodiff().require_grad()
}

#[test]
fn rms_norm_and_its_gradients() {
    // Widths for one plane a row and for a whole cube, and one that no vector divides.
    for (rows, width) in [(5, 16), (3, 7), (3, 4096), (300, 64)] {
        let (x, w) = (random(rows * width, 1), random(width, 2));
        let g = random(rows * width, 3);
        let eps = 1e-5;
        let (mut y, mut dx, mut dw) = (vec![], vec![], vec![0.0f64; width]);
        for (x, g) in x.chunks(width).zip(g.chunks(width)) {
            let f64 = |v: &[f32]| v.iter().map(|v| *v as f64).collect::<Vec<_>>();
            let (x, g, w) = (f64(x), f64(g), f64(&w));
            let mean = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let r = (mean + eps).sqrt().recip();
            y.extend(x.iter().zip(&w).map(|(x, w)| (x * r * w) as f32));
            let along: f64 = (0..width).map(|i| g[i] * w[i] * x[i]).sum::<f64>() / width as f64;
            dx.extend((0..width).map(|i| (r * g[i] * w[i] - r.powi(3) * x[i] * along) as f32));
            (0..width).for_each(|i| dw[i] += g[i] * x[i] * r);
        }
        let (tx, tw) = (tracked(&x, [rows, width]), tracked(&w, [width]));
        let out = rms_norm(tx.clone(), tw.clone(), eps);
        assert!(difference(&vec(out.clone()), &y) < 1e-5);
        let grads = (out * tensor(&g, [rows, width])).sum().backward();
        assert!(relative(&vec(tx.grad(&grads).unwrap()), &dx) < 1e-5, "{rows} x {width}");
        let dw: Vec<f32> = dw.into_iter().map(|v| v as f32).collect();
        assert!(relative(&vec(tw.grad(&grads).unwrap()), &dw) < 1e-5, "{rows} x {width}");
    }
}

#[test]
fn swiglu_and_its_gradients() {
    // Rows, so that what the runtime pads is padded; the factors are held, so that they are not changed.
    for shape in [[2, 12], [1, 7], [3, 1000]] {
        let count = shape[0] * shape[1];
        let (a, b, g) = (random(count, 1), random(count, 2), random(count, 3));
        let sigmoid = |a: f32| 1.0 / (1.0 + (-a as f64).exp());
        let each = |f: &dyn Fn(f64, f64, f64, f64) -> f64| -> Vec<f32> {
            (0..count)
                .map(|i| f(a[i] as f64, b[i] as f64, g[i] as f64, sigmoid(a[i])) as f32)
                .collect()
        };
        let (ta, tb) = (tracked(&a, shape), tracked(&b, shape));
        let out = swiglu(ta.clone(), tb.clone());
        assert!(difference(&vec(out.clone()), &each(&|a, b, _, s| a * s * b)) < 1e-5);
        let grads = (out * tensor(&g, shape)).sum().backward();
        let da = each(&|a, b, g, s| g * b * s * (1.0 + a * (1.0 - s)));
        let db = each(&|a, _, g, s| g * a * s);
        assert!(relative(&vec(ta.grad(&grads).unwrap()), &da) < 1e-5);
        assert!(relative(&vec(tb.grad(&grads).unwrap()), &db) < 1e-5);
        assert_eq!([vec(ta), vec(tb)], [a, b]);
    }
}

#[test]
fn swiglu_of_large_values_is_finite() {
    let out = swiglu(tensor(&[-200.0, 200.0], [2]), tensor(&[1.0, 1.0], [2]));
    assert!(difference(&vec(out), &[0.0, 200.0]) < 1e-4);
}

#[test]
fn rotation_and_its_gradient() {
    let [batch, length, heads, width] = [2, 5, 3, 8];
    let count = batch * length * heads * width;
    let (x, g) = (random(count, 1), random(count, 2));
    let angles: Vec<f32> = (0..9 * width / 2).map(|i| i as f32 * 0.37).collect();
    let table: Vec<f32> = angles
        .chunks(width / 2)
        .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
        .collect();
    for rows in [1, batch] {
        let positions: Vec<i32> = (0..rows * length).map(|i| (i * 7 % 9) as i32).collect();
        let (mut y, mut dx) = (vec![0.0; count], vec![0.0; count]);
        for b in 0..batch {
            for s in 0..length {
                let position = positions[b % rows * length + s] as usize;
                for h in 0..heads {
                    let from = ((b * length + s) * heads + h) * width;
                    let to = ((b * heads + h) * length + s) * width;
                    for i in 0..width / 2 {
                        let j = i + width / 2;
                        let (sin, cos) = angles[position * width / 2 + i].sin_cos();
                        y[to + i] = x[from + i] * cos - x[from + j] * sin;
                        y[to + j] = x[from + j] * cos + x[from + i] * sin;
                        dx[from + i] = g[to + i] * cos + g[to + j] * sin;
                        dx[from + j] = g[to + j] * cos - g[to + i] * sin;
                    }
                }
            }
        }
        let tx = tracked(&x, [batch, length, heads, width]);
        let positions = int(positions, [rows, length], &device());
        let out = rotate(tx.clone(), positions, tensor(&table, [9, width]));
        assert!(difference(&vec(out.clone()), &y) < 1e-5);
        let grads = (out * tensor(&g, [batch, heads, length, width])).sum().backward();
        assert!(difference(&vec(tx.grad(&grads).unwrap()), &dx) < 1e-5);
    }
}

#[test]
fn reduced_precision_is_computed_in_float32() {
    let device = device();
    for dtype in [DType::F16, DType::BF16] {
        if !device.supports_dtype(dtype) {
            continue;
        }
        let (x, w) = (random(2 * 512, 1), random(512, 2));
        let cast = |values: &[f32]| tensor(values, [values.len()]).cast(FloatDType::from(dtype));
        let (x, w) = (cast(&x).reshape([2, 512]), cast(&w));
        let exact = rms_norm(x.clone().cast(DType::F32), w.clone().cast(DType::F32), 1e-5);
        let out = rms_norm(x, w, 1e-5);
        assert_eq!(out.dtype(), dtype);
        let rounding = if dtype == DType::F16 { 1e-3 } else { 8e-3 };
        assert!(relative(&vec(out), &vec(exact)) < rounding);
    }
}

#[test]
fn cross_entropy_and_its_gradient() {
    // Vocabularies for one plane a row and for a whole cube, and one that no vector divides.
    for (rows, width, smoothing) in [(5, 96, 0.0), (3, 7, 0.1), (2, 4096, 0.1), (70, 64, 0.0)] {
        let x: Vec<f32> = random(rows * width, 5).iter().map(|x| x * 8.0).collect();
        let targets: Vec<i32> = (0..rows).map(|row| (row * 31 % width) as i32).collect();
        let (mut loss, mut hits, mut grad) = (vec![], vec![], vec![]);
        for (x, target) in x.chunks(width).zip(&targets) {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let (target, most) = (*target as usize, x.iter().copied().fold(f64::MIN, f64::max));
            let total: f64 = x.iter().map(|x| (x - most).exp()).sum();
            let log = |x: f64| x - most - total.ln();
            let mean = x.iter().map(|x| log(*x)).sum::<f64>() / width as f64;
            loss.push(-((1.0 - smoothing) * log(x[target]) + smoothing * mean) as f32);
            hits.push(f32::from(u8::from(x[target] == most)));
            grad.extend(x.iter().enumerate().map(|(at, x)| {
                let hit = if at == target { 1.0 - smoothing } else { 0.0 };
                (log(*x).exp() - smoothing / width as f64 - hit) as f32
            }));
        }
        let targets = int(targets, [rows], &device());
        let found = cross_entropy(tensor(&x, [rows, width]), targets, smoothing as f32);
        assert!(difference(&vec(found.loss), &loss) < 1e-4, "{rows} x {width}");
        assert_eq!(vec(found.hits), hits, "{rows} x {width}");
        assert!(relative(&vec(found.grad), &grad) < 1e-5, "{rows} x {width}");
    }
}

#[test]
fn a_backward_pass_starts_from_a_given_gradient() {
    let (x, w, g) = (random(12, 1), random(12, 2), random(12, 3));
    let (tx, tw) = (tracked(&x, [3, 4]), tracked(&w, [3, 4]));
    let y = tx.clone() * tw.clone();
    let grads = pull_back(y, tensor(&g, [3, 4])).backward();
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).collect::<Vec<_>>();
    assert!(difference(&vec(tx.grad(&grads).unwrap()), &product(&g, &w)) < 1e-6);
    assert!(difference(&vec(tw.grad(&grads).unwrap()), &product(&g, &x)) < 1e-6);
}
