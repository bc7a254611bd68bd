//! The operations between linear layers, against their formulas in float64.

use crate::common::*;
use burn::tensor::{DType, FloatDType, Tensor};
use burn_lora_kernels::{
    Activation, NormSpec, argmax_rows, cross_entropy, gated, pull_back, pull_back_with, rms_norm,
    rotate,
};

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

const ACTIVATIONS: [Activation; 3] =
    [Activation::Silu, Activation::GeluTanh, Activation::QuickGelu];

/// The activation of a gate, and its derivative.
fn activation_in_f64(activation: Activation, x: f64) -> [f64; 2] {
    match activation {
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            [x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))]
        }
        Activation::QuickGelu => {
            let sigmoid = 1.0 / (1.0 + (-1.702 * x).exp());
            [x * sigmoid, sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))]
        }
        Activation::GeluTanh => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (scale * (x + 0.044715 * x.powi(3))).tanh();
            let inner = scale * (1.0 + 3.0 * 0.044715 * x * x);
            [0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner]
        }
    }
}

#[test]
fn gated_activations_and_their_gradients() {
    // Rows, so that what the runtime pads is padded; the factors are held, so that they are not changed.
    for activation in ACTIVATIONS {
        for shape in [[2, 12], [1, 7], [3, 1000]] {
            let count = shape[0] * shape[1];
            let (a, b, g) = (random(count, 1), random(count, 2), random(count, 3));
            let each = |f: &dyn Fn(f64, f64, [f64; 2]) -> f64| -> Vec<f32> {
                let at = |i: usize| activation_in_f64(activation, a[i] as f64);
                (0..count).map(|i| f(b[i] as f64, g[i] as f64, at(i)) as f32).collect()
            };
            let (ta, tb) = (tracked(&a, shape), tracked(&b, shape));
            let out = gated(ta.clone(), tb.clone(), activation);
            assert!(difference(&vec(out.clone()), &each(&|b, _, [value, _]| value * b)) < 1e-5);
            let grads = (out * tensor(&g, shape)).sum().backward();
            let da = each(&|b, g, [_, slope]| g * b * slope);
            let db = each(&|_, g, [value, _]| g * value);
            assert!(relative(&vec(ta.grad(&grads).unwrap()), &da) < 1e-5);
            assert!(relative(&vec(tb.grad(&grads).unwrap()), &db) < 1e-5);
            assert_eq!([vec(ta), vec(tb)], [a, b]);
        }
    }
}

#[test]
fn gated_activations_of_large_values_are_finite() {
    for activation in ACTIVATIONS {
        let gate = tracked(&[-200.0, 200.0], [2]);
        let out = gated(gate.clone(), tensor(&[1.0, 1.0], [2]), activation);
        assert!(difference(&vec(out.clone()), &[0.0, 200.0]) < 1e-4);
        let slope = vec(gate.grad(&out.sum().backward()).unwrap());
        assert!(difference(&slope, &[0.0, 1.0]) < 1e-4);
    }
}

#[test]
fn an_offset_is_added_to_the_weight_of_a_norm() {
    let (x, w, g) = (random(3 * 8, 1), random(8, 2), random(3 * 8, 3));
    let run = |w: &[f32], offset| {
        let (tx, tw) = (tracked(&x, [3, 8]), tracked(w, [8]));
        let out = rms_norm(tx.clone(), tw.clone(), NormSpec { eps: 1e-5, offset });
        let grads = (out.clone() * tensor(&g, [3, 8])).sum().backward();
        [vec(out), vec(tx.grad(&grads).unwrap()), vec(tw.grad(&grads).unwrap())]
    };
    let shifted: Vec<f32> = w.iter().map(|w| w + 1.0).collect();
    for (found, expected) in run(&w, 1.0).iter().zip(&run(&shifted, 0.0)) {
        assert!(relative(found, expected) < 1e-6);
    }
}

#[test]
fn rotation_and_its_gradient() {
    let [batch, length, heads, width] = [2, 5, 3, 8];
    let count = batch * length * heads * width;
    let (x, g) = (random(count, 1), random(count, 2));
    // The whole head, or its first half.
    for (rows, turned) in [(1, width), (batch, width), (batch, width / 2)] {
        let angles: Vec<f32> = (0..9 * turned / 2).map(|i| i as f32 * 0.37).collect();
        let table: Vec<f32> = angles
            .chunks(turned / 2)
            .flat_map(|row| row.iter().map(|a| a.cos()).chain(row.iter().map(|a| a.sin())))
            .collect();
        let positions: Vec<i32> = (0..rows * length).map(|i| (i * 7 % 9) as i32).collect();
        let (mut y, mut dx) = (vec![0.0; count], vec![0.0; count]);
        for b in 0..batch {
            for s in 0..length {
                let position = positions[b % rows * length + s] as usize;
                for h in 0..heads {
                    let from = ((b * length + s) * heads + h) * width;
                    let to = ((b * heads + h) * length + s) * width;
                    y[to + turned..to + width].copy_from_slice(&x[from + turned..from + width]);
                    dx[from + turned..from + width].copy_from_slice(&g[to + turned..to + width]);
                    for i in 0..turned / 2 {
                        let j = i + turned / 2;
                        let (sin, cos) = angles[position * turned / 2 + i].sin_cos();
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
        let out = rotate(tx.clone(), positions, tensor(&table, [9, turned]));
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
        let (mut loss, mut correct, mut grad) = (vec![], vec![], vec![]);
        let (mut entropy, mut means) = (vec![], vec![]);
        for (x, target) in x.chunks(width).zip(&targets) {
            let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let (target, most) = (*target as usize, x.iter().copied().fold(f64::MIN, f64::max));
            let total: f64 = x.iter().map(|x| (x - most).exp()).sum();
            let log = |x: f64| x - most - total.ln();
            let mean = x.iter().map(|x| log(*x)).sum::<f64>() / width as f64;
            loss.push(-((1.0 - smoothing) * log(x[target]) + smoothing * mean) as f32);
            entropy.push(-x.iter().map(|x| log(*x).exp() * log(*x)).sum::<f64>() as f32);
            means.push((x.iter().sum::<f64>() / width as f64) as f32);
            correct.push(f32::from(u8::from(x[target] == most)));
            grad.extend(x.iter().enumerate().map(|(at, x)| {
                let hit = if at == target { 1.0 - smoothing } else { 0.0 };
                (log(*x).exp() - smoothing / width as f64 - hit) as f32
            }));
        }
        let targets = int(targets, [rows], &device());
        let found = cross_entropy(tensor(&x, [rows, width]), targets, smoothing as f32);
        assert!(difference(&vec(found.loss), &loss) < 1e-4, "{rows} x {width}");
        assert_eq!(vec(found.correct), correct, "{rows} x {width}");
        assert!(difference(&vec(found.entropy), &entropy) < 1e-4, "{rows} x {width}");
        assert!(difference(&vec(found.mean), &means) < 1e-5, "{rows} x {width}");
        assert!(relative(&vec(found.grad), &grad) < 1e-5, "{rows} x {width}");
    }
}

/// A CPU says which it is; a GPU, which would have to wait for that, gives no number.
#[test]
fn what_a_table_does_not_have_is_not_looked_up() {
    let on_host = std::env::var_os("BURN_LORA_GPU").is_none();
    let nan = |values: &[f32]| values.iter().filter(|value| value.is_nan()).count();
    for width in [7, 96] {
        let x = random(3 * width, 5);
        for unknown in [width as i32, -1, -100, i32::MAX, i32::MIN] {
            let run = |target| {
                let targets = int(vec![1, target, 2], [3], &device());
                let found = cross_entropy(tensor(&x, [3, width]), targets, 0.1);
                [found.loss, found.correct].map(vec).concat().into_iter().chain(vec(found.grad))
            };
            let text = format!("target {unknown} of row 1, a vocabulary of {width}");
            if on_host {
                panics(&text, || run(unknown).count());
                continue;
            }
            let (found, good): (Vec<f32>, Vec<f32>) = (run(unknown).collect(), run(3).collect());
            for (at, (found, good)) in found.into_iter().zip(good).enumerate() {
                let of_row = at == 1 || (6 + width..6 + 2 * width).contains(&at);
                assert!(if of_row { found.is_nan() } else { found == good || at == 4 }, "{at}");
            }
        }

        let (x, table) = (random(2 * 3 * 8, 1), random(5 * 8, 2));
        for unknown in [5, -1, i32::MAX, i32::MIN] {
            let run = |position| {
                let positions = int(vec![0, position, 4], [1, 3], &device());
                let x = tracked(&x, [2, 3, 1, 8]);
                let out = rotate(x.clone(), positions, tensor(&table, [5, 8]));
                let grads = out.clone().sum().backward();
                [vec(out), vec(x.grad(&grads).unwrap())]
            };
            if on_host {
                panics(&format!("position {unknown}, a table of 5"), || run(unknown));
            } else {
                assert_eq!(run(unknown).map(|values| nan(&values)), [16, 16], "{unknown}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device());
    panics("the widths of x", || rms_norm(zeros([2, 4]), tensor(&[1.0; 5], [5]), 1e-5));
    panics("the shapes of gate and up", || gated(zeros([2, 4]), zeros([1, 4]), Activation::Silu));
    let targets = |count: usize| int(vec![0; count], [count], &device());
    panics("a target for each row", || cross_entropy(zeros([2, 4]), targets(3), 0.0));
    panics("a vocabulary of nothing", || cross_entropy(zeros([2, 0]), targets(2), 0.0));
    let turn = |positions: [usize; 2], table: [usize; 2], width| {
        let x = Tensor::<4>::zeros([2, 3, 1, width], &device());
        let positions = int(vec![0; positions[0] * positions[1]], positions, &device());
        rotate(x, positions, zeros(table))
    };
    panics("positions of 3 rows", || turn([3, 3], [5, 8], 8));
    panics("positions of a sequence", || turn([1, 4], [5, 8], 8));
    panics("wider than a head", || turn([1, 3], [5, 10], 8));
    panics("no two halves", || turn([1, 3], [5, 7], 7));
}

#[test]
fn what_is_empty_stays_empty() {
    let zeros = |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device());
    for shape in [[0, 4], [3, 0], [0, 0]] {
        assert_eq!(
            rms_norm(zeros(shape), tensor(&vec![1.0; shape[1]], [shape[1]]), 1e-5).dims(),
            shape
        );
        assert_eq!(gated(zeros(shape), zeros(shape), Activation::Silu).dims(), shape);
    }
    let found = cross_entropy(zeros([0, 4]), int(vec![], [0], &device()), 0.0);
    assert_eq!((found.loss.dims(), found.grad.dims()), ([0], [0, 4]));
    let x = Tensor::<4>::zeros([0, 3, 1, 8], &device());
    let turned = rotate(x, int(vec![0; 3], [1, 3], &device()), zeros([5, 8]));
    assert_eq!(turned.dims(), [0, 1, 3, 8]);
}

/// What is laid out in memory in another way, or begins elsewhere in it, counts as its copy.
#[test]
fn views_count_as_their_copies() {
    let device = device();
    let of = |shape: [usize; 2], seed| float(random(shape[0] * shape[1], seed), shape, &device);
    let [rows, width] = [6, 64];
    for view in [
        of([width, rows], 1).transpose(),
        of([rows + 64, width], 2).slice([64..64 + rows, 0..width]),
        of([rows, width + 64], 3).slice([0..rows, 64..64 + width]),
        of([1, width], 4).expand([rows, width]),
        of([rows, 1], 5).expand([rows, width]),
    ] {
        let run = |x: Tensor<2>| {
            let targets = int((0..12).collect(), [12], &device).narrow(0, 4, 6);
            let positions = int((0..18).collect(), [3, 6], &device).narrow(0, 1, 1);
            let norm = rms_norm(x.clone(), x.clone().narrow(0, 1, 1).reshape([width]), 1e-5);
            let gated = gated(x.clone(), norm.clone(), Activation::Silu);
            let loss = cross_entropy(x.clone(), targets, 0.1);
            let heads = x.clone().reshape([1, rows, 2, width / 2]).autodiff().require_grad();
            let table = of([18, width / 2 + 32], 6).slice([0..18, 0..width / 2]);
            let turned = rotate(heads.clone(), positions, table);
            let grads = turned.clone().sum().backward();
            let turned = [vec(turned), vec(heads.grad(&grads).unwrap())].concat();
            [vec(norm), vec(gated), vec(loss.loss), vec(loss.grad), turned]
        };
        assert_eq!(run(view.clone()), run(Tensor::from_data(view.to_data(), &device)));
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

#[test]
fn a_backward_pass_starts_from_several_gradients() {
    let (x, g, h) = (random(12, 1), random(12, 2), random(12, 3));
    let (tx, other) = (tracked(&x, [3, 4]), tracked(&x, [12]));
    let zero = pull_back(tx.clone() * 2.0, tensor(&g, [3, 4]));
    // One that nothing is trained in, the same once more, and another.
    let zero = pull_back_with(zero, tensor(&x, [12]), tensor(&h, [12]));
    let zero = pull_back_with(zero, tx.clone(), tensor(&h, [3, 4]));
    let zero = pull_back_with(zero, other.clone(), tensor(&g, [12]));
    assert_eq!(vec(zero.clone()), [0.0]);
    let grads = zero.backward();
    let sum: Vec<f32> = g.iter().zip(&h).map(|(g, h)| 2.0 * g + h).collect();
    assert!(difference(&vec(tx.grad(&grads).unwrap()), &sum) < 1e-6);
    assert_eq!(vec(other.grad(&grads).unwrap()), g);
}

#[test]
fn the_largest_of_a_row_is_the_first_of_them() {
    // Widths for one plane a row and for a whole cube, and ones that no vector divides; ties in other units and in the same.
    for (rows, width) in [(1, 1), (3, 7), (5, 96), (2, 4099), (3, 128_256)] {
        let mut x = random(rows * width, 7);
        for (row, x) in x.chunks_mut(width).enumerate() {
            for at in [width / 2, width / 2 + 1, width - 1, width / 3 + row] {
                x[at % width] = 9.0;
            }
            x[0] = if row % 2 == 1 { f32::NAN } else { f32::NEG_INFINITY };
        }
        let largest = |x: &[f32]| {
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            x.iter().position(|x| *x == most).unwrap_or(0) as i32
        };
        let expected: Vec<i32> = x.chunks(width).map(largest).collect();
        let dtypes = [FloatDType::F32, FloatDType::BF16, FloatDType::F16].into_iter();
        for dtype in dtypes.filter(|dtype| device().supports_dtype(DType::from(*dtype))) {
            let found = argmax_rows(tensor::<2>(&x, [rows, width]).cast(dtype)).into_data();
            found.assert_eq(&burn::tensor::TensorData::from(&expected[..]), true);
        }
    }
}
