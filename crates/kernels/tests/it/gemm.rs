//! `Gemm` on every device against products in float64: orientations, batches, factors, sums and
//! every gradient.

use crate::common::{copied, devices, floats, panics, relative_error, tensor, values, views};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use burn_lora_kernels::Gemm;

/// A matrix in float64.
#[derive(Clone)]
struct Matrix(Vec<f64>, usize, usize);

impl Matrix {
    fn transpose(&self) -> Self {
        let Self(values, rows, cols) = self;
        let at = |i: usize| values[i % rows * cols + i / rows];
        Self((0..values.len()).map(at).collect(), *cols, *rows)
    }

    fn t_if(&self, transpose: bool) -> Self {
        if transpose { self.transpose() } else { self.clone() }
    }

    fn dot(&self, other: &Self, factor: f64) -> Self {
        let (m, k, n) = (self.1, self.2, other.2);
        assert_eq!(k, other.1);
        let sum = |i: usize, j: usize| {
            (0..k).map(|l| self.0[i * k + l] * other.0[l * n + j]).sum::<f64>()
        };
        Self((0..m * n).map(|at| factor * sum(at / n, at % n)).collect(), m, n)
    }
}

struct Case {
    batch: usize,
    dims: [usize; 3],
    trans: [bool; 2],
    add: bool,
    alpha: f32,
}

fn check(case: &Case, dtype: FloatDType, limit: f64, device: &Device) {
    let &Case { batch, dims: [m, k, n], trans: [tl, tr], add, alpha } = case;
    let name =
        format!("{batch} x [{m}, {k}] x [{k}, {n}], {tl} {tr} {add} {alpha}, {dtype:?} {device:?}");
    let device = device.clone().autodiff();
    let mut gemm = Gemm::new().alpha(alpha);
    gemm = if tl { gemm.trans_lhs() } else { gemm };
    gemm = if tr { gemm.trans_rhs() } else { gemm };
    let swap = |dims: [usize; 2], trans: bool| if trans { [dims[1], dims[0]] } else { dims };
    let ([lr, lc], [rr, rc]) = (swap([m, k], tl), swap([k, n], tr));

    let tensor = |rows: usize, cols: usize, seed: usize| {
        let data = values(batch * rows * cols, seed);
        let tensor =
            Tensor::<3>::from_data(TensorData::new(data.clone(), [batch, rows, cols]), &device);
        let data = data
            .chunks(rows * cols)
            .map(|data| Matrix(data.iter().map(|v| f64::from(*v)).collect(), rows, cols));
        (tensor.cast(dtype).require_grad(), data.collect::<Vec<_>>())
    };
    let ((l, l64), (r, r64)) = (tensor(lr, lc, 1), tensor(rr, rc, 2));
    let ((c, c64), (g, g64)) = (tensor(m, n, 3), tensor(m, n, 4));

    let y = if add {
        gemm.run_add(l.clone(), r.clone(), c.clone() * 1.0)
    } else {
        gemm.run(l.clone(), r.clone())
    };
    assert_eq!((y.dims(), y.dtype()), ([batch, m, n], dtype.into()), "{name}");
    let grads = (y.clone() * g.detach()).sum().backward();

    let expect = |what: &str, found: Tensor<3>, matrices: Vec<Matrix>| {
        let expected: Vec<f32> =
            matrices.iter().flat_map(|m| m.0.iter().map(|v| *v as f32)).collect();
        let error = relative_error(&floats(found), &expected);
        assert!(error < limit, "{what} of {name}: {error}");
    };
    let each = |f: &dyn Fn(usize) -> Matrix| (0..batch).map(f).collect::<Vec<_>>();
    let alpha = f64::from(alpha);
    expect(
        "the product",
        y.inner(),
        each(&|b| {
            let mut y = l64[b].t_if(tl).dot(&r64[b].t_if(tr), alpha);
            if add {
                y.0.iter_mut().zip(&c64[b].0).for_each(|(y, c)| *y += c);
            }
            y
        }),
    );
    expect(
        "d lhs",
        l.grad(&grads).unwrap(),
        each(&|b| g64[b].dot(&r64[b].t_if(!tr), alpha).t_if(tl)),
    );
    expect(
        "d rhs",
        r.grad(&grads).unwrap(),
        each(&|b| l64[b].t_if(!tl).dot(&g64[b], alpha).t_if(tr)),
    );
    if add {
        expect("d out", c.grad(&grads).unwrap(), g64);
    }
}

const ORIENTATIONS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

#[test]
fn orientations_batches_and_sums() {
    for device in devices() {
        for trans in ORIENTATIONS {
            for (batch, dims, add) in [
                (1, [33, 20, 17], false),
                (3, [16, 8, 24], true),
                (1, [1, 40, 9], true),
                (2, [64, 1, 5], false),
                (1, [21, 64, 2], true),
                (1, [21, 2, 64], true),
            ] {
                check(
                    &Case { batch, dims, trans, add, alpha: 0.5 },
                    FloatDType::F32,
                    1e-5,
                    &device,
                );
            }
        }
    }
}

#[test]
fn half_precision() {
    for device in devices() {
        // half a unit in the last place, as if every product rounded that badly
        for (dtype, limit) in [(FloatDType::BF16, 4e-3), (FloatDType::F16, 5e-4)] {
            if device.supports_dtype(DType::from(dtype)) {
                for trans in ORIENTATIONS {
                    for (batch, dims, add) in [(1, [129, 257, 63], false), (2, [32, 64, 48], true)]
                    {
                        check(&Case { batch, dims, trans, add, alpha: 0.5 }, dtype, limit, &device);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_two_vectors() {
    for device in devices() {
        for trans in ORIENTATIONS {
            let case = Case { batch: 1, dims: [1, 700, 1], trans, add: false, alpha: 1.0 };
            check(&case, FloatDType::F32, 1e-6, &device);
        }
    }
}

/// Dimensions at which GPUs go over to larger tiles, with rests in each of them, and without for sums.
#[test]
fn tiles_and_their_rests() {
    for device in devices() {
        if !device.supports_dtype(DType::F16) {
            continue;
        }
        for (batch, dims, trans, add) in [
            (1, [300, 136, 320], [false, false], true),
            (2, [48, 96, 144], [true, false], false),
            (1, [200, 130, 16], [false, true], false),
            (1, [16, 200, 192], [true, false], true),
            (1, [150, 8, 96], [true, true], false),
            (3, [128, 96, 64], [true, false], true),
            (1, [192, 72, 32], [false, true], true),
            (64, [130, 72, 256], [false, true], false),
            (64, [128, 64, 256], [false, true], true),
            (1, [1100, 72, 2048], [false, true], false),
            (1, [1024, 96, 2048], [false, false], true),
        ] {
            let case = Case { batch, dims, trans, add, alpha: 1.0 };
            check(&case, FloatDType::F16, 1e-3, &device);
        }
    }
}

#[test]
fn one_matrix_for_all_leading_dimensions() {
    for device in devices() {
        let x = Tensor::<3>::from_data(TensorData::new(values(2 * 5 * 8, 1), [2, 5, 8]), &device);
        let w = Tensor::<3>::from_data(TensorData::new(values(3 * 8, 2), [1, 3, 8]), &device);
        let y = Gemm::new().trans_rhs().run(x.clone(), w.clone());
        assert_eq!(y.dims(), [2, 5, 3]);
        let flat = Gemm::new().trans_rhs().run(x.reshape([10, 8]), w.reshape([3, 8]));
        assert_eq!(floats(y), floats(flat), "{device:?}");
    }
}

/// Its gradient is the sum over them, as if it had been repeated.
#[test]
fn gradients_of_one_matrix_for_all() {
    for device in devices() {
        let device = device.autodiff();
        for [tl, tr] in ORIENTATIONS {
            let mut gemm = Gemm::new();
            gemm = if tl { gemm.trans_lhs() } else { gemm };
            gemm = if tr { gemm.trans_rhs() } else { gemm };
            let tensor = |dims: [usize; 4], seed| {
                let data = TensorData::new(values(dims.iter().product(), seed), dims);
                Tensor::<4>::from_data(data, &device).require_grad()
            };
            let l = tensor(if tl { [2, 3, 8, 5] } else { [2, 3, 5, 8] }, 1);
            let r = tensor(if tr { [1, 1, 4, 8] } else { [1, 1, 8, 4] }, 2);
            let g = tensor([2, 3, 5, 4], 3).detach();
            let y = gemm.run(l.clone(), r.clone());
            let grads = (y.clone() * g.clone()).sum().backward();
            let found = [y, l.grad(&grads).unwrap(), r.grad(&grads).unwrap()];

            let [_, _, rows, columns] = r.dims();
            let y = gemm.run(l.clone(), r.clone().expand([2, 3, rows, columns]));
            let grads = (y.clone() * g).sum().backward();
            let expected = [y, l.grad(&grads).unwrap(), r.grad(&grads).unwrap()];
            for (found, expected) in found.into_iter().zip(expected) {
                assert_eq!(found.dims(), expected.dims());
                let error = relative_error(&floats(found.inner()), &floats(expected.inner()));
                assert!(error < 1e-5, "{tl} {tr} {device:?}: {error}");
            }
        }
    }
}

#[test]
fn slices_and_transposed_factors() {
    for device in devices() {
        let a = Tensor::<2>::from_data(TensorData::new(values(24 * 32, 1), [24, 32]), &device);
        let b = Tensor::<2>::from_data(TensorData::new(values(40 * 32, 2), [40, 32]), &device);
        let (left, right) = (a.clone().slice([3..19, 8..24]), b.clone().slice([1..33, 8..24]));
        let y = floats(Gemm::new().trans_rhs().run(left.clone(), right.clone()));
        let z = floats(Gemm::new().run(left.clone(), right.clone().transpose()));
        let expected = floats(Gemm::new().trans_rhs().run(copied(&left), copied(&right)));
        assert!(relative_error(&y, &expected) < 1e-6 && relative_error(&z, &expected) < 1e-6);
    }
}

/// What is added to is written over only if nothing else holds it.
#[test]
fn a_sum_leaves_a_shared_tensor_alone() {
    for device in devices() {
        let tensor =
            |seed| Tensor::<2>::from_data(TensorData::new(values(64, seed), [8, 8]), &device);
        let (a, b, c) = (tensor(1), tensor(2), tensor(3));
        let y = Gemm::new().run_add(a.clone(), b.clone(), c.clone());
        assert_eq!(floats(c.clone()), values(64, 3), "{device:?}");
        let alone = Gemm::new().run_add(a, b, c);
        assert_eq!(floats(y), floats(alone), "{device:?}");
    }
}

#[test]
fn views_count_as_their_copies() {
    for device in devices() {
        let a = tensor([4, 64], 2, &device);
        for (name, x) in views([20, 64], &device) {
            let run = |x: Tensor<2>| {
                let sums = x.clone().sum_dim(0).expand([64, 64]);
                [
                    Gemm::new().trans_rhs().run(x.clone(), a.clone()),
                    Gemm::new().trans_lhs().run(x.clone(), x),
                    Gemm::new().run_add(a.clone().transpose(), a.clone(), sums),
                ]
                .map(floats)
            };
            for (found, expected) in run(x.clone()).iter().zip(&run(copied(&x))) {
                assert!(relative_error(found, expected) < 1e-6, "{name}, {device:?}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for device in devices() {
        let x = |shape: [usize; 2]| tensor(shape, 1, &device);
        if device.supports_dtype(DType::F16) {
            let half = x([4, 64]).cast(FloatDType::F16);
            panics("dtypes", || Gemm::new().trans_rhs().run(x([3, 64]), half));
        }
        let sum = |out| Gemm::new().run_add(x([3, 8]), x([8, 4]), x(out));
        panics("what is added to", || sum([3, 5]));
        panics("what is added to", || sum([1, 4]));
        let expected = "the inner dimensions of [2, 3] and [2, 3]";
        panics(expected, || Gemm::new().run(x([2, 3]), x([2, 3])));
        panics("inner dimensions", || Gemm::new().trans_lhs().run(x([3, 8]), x([8, 4])));
        let batch = |shape: [usize; 3]| tensor(shape, 1, &device);
        panics("leading dimensions", || Gemm::new().run(batch([2, 3, 8]), batch([3, 8, 4])));
        panics("leading dimensions", || Gemm::new().run(batch([1, 3, 8]), batch([2, 8, 4])));
        panics("are no matrices", || {
            Gemm::new().run(Tensor::<1>::zeros([3], &device), Tensor::zeros([3], &device))
        });
    }
}

/// The operation of a backend is public, too.
#[cfg(not(feature = "fusion"))]
#[test]
fn backends_refuse_what_does_not_fit() {
    use burn::backend::Dispatch;
    use burn_lora_kernels::GemmOps;
    for device in devices() {
        let x = |shape| tensor::<2>(shape, 1, &device).into_dispatch();
        panics("", || Dispatch::gemm(x([3, 60]), x([61, 4]), Gemm::new()));
    }
}

/// Sums of nothing are zeros, and nothing stays nothing: with gradients.
#[test]
fn what_is_empty() {
    for device in devices() {
        let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device).autodiff().require_grad();
        for [m, k, n] in [[0, 4, 3], [2, 0, 3], [2, 4, 0], [0, 0, 0]] {
            let (l, r, out) = (ones([m, k]), ones([k, n]), ones([m, n]));
            let y = Gemm::new().run(l.clone(), r.clone());
            assert_eq!(floats(y.clone().inner()), vec![0.0; m * n], "{m} {k} {n} {device:?}");
            let sum = Gemm::new().run_add(l.clone(), r.clone(), out);
            assert_eq!(floats(sum.clone().inner()), vec![1.0; m * n], "{m} {k} {n} {device:?}");
            let grads = (y + sum).sum().backward();
            let expected = vec![0.0; m * k];
            assert!(n > 0 || floats(l.grad(&grads).unwrap()) == expected, "{device:?}");
        }
        // One matrix for all, of no columns.
        let l = Tensor::<3>::ones([2, 3, 8], &device).autodiff().require_grad();
        let r = Tensor::<3>::ones([1, 8, 0], &device).autodiff().require_grad();
        let y = Gemm::new().run(l.clone(), r.clone());
        let grads = y.sum().backward();
        assert_eq!(floats(l.grad(&grads).unwrap()), [0.0; 48], "{device:?}");
        assert_eq!(r.grad(&grads).unwrap().dims(), [1, 8, 0]);
    }
}
