//! The packed product with a low-rank update against its parts, on every device.

use crate::common::{devices, floats, relative_error};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use burn_lora_quant::{Gemm, PackedWeight, QuantConfig, joins_update};

/// Out, in and rank of an update that is a sum.
const SMALL: [usize; 3] = [48, 64, 4];

/// Output and gradients of both forms, with the leading dimensions given: the relative errors.
fn errors(
    [out, width, rank]: [usize; 3],
    leading: [usize; 2],
    dtype: FloatDType,
    device: &Device,
) -> Vec<(&'static str, f64)> {
    let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), device);
    let config = QuantConfig::nf4().double_quant(true);
    let weight = PackedWeight::quantize(random([out, width]), &config).unwrap();
    let rows = leading[0] * leading[1];
    let parts = [random([rows, width]), random([rank, width]), random([out, rank])];
    let grad = random([rows, out]);
    let run = |dtype: FloatDType, fused: bool| {
        let [x, a, b] = parts.clone().map(|part| part.cast(dtype).autodiff().require_grad());
        let shape = [leading[0], leading[1], width];
        let y = if fused {
            weight.matmul_low_rank(x.clone().reshape(shape), a.clone(), b.clone(), 2.5)
        } else {
            let x = x.clone().reshape(shape);
            // Not Burn's matmul, which rounds float32 to TF32 on CUDA.
            let product = |x, w: &Tensor<2>| Gemm::new().trans_rhs().run(x, w.clone().unsqueeze());
            weight.matmul(x.clone()) + product(product(x, &a), &b) * 2.5
        };
        let y = y.reshape([rows, out]);
        let grads = (y.clone() * grad.clone().cast(dtype)).sum().backward();
        let [x, a, b] = [x, a, b].map(|part| floats(part.grad(&grads).unwrap()));
        [floats(y.inner()), x, a, b]
    };
    let (found, expected) = (run(dtype, true), run(FloatDType::F32, false));
    let names = ["y", "x", "A", "B"].into_iter();
    names.zip(found.iter().zip(&expected)).map(|(n, (f, e))| (n, relative_error(f, e))).collect()
}

#[test]
fn is_the_sum_of_its_parts() {
    for device in devices() {
        // Rows computed from codes, and rows for which the weight is decoded.
        for leading in [[1, 1], [2, 3], [3, 11]] {
            for (what, error) in errors(SMALL, leading, FloatDType::F32, &device) {
                assert!(error < 2e-6, "{device:?} {leading:?} {what}: {error:e}");
            }
        }
    }
}

/// On a GPU the update is a part of the product where that is much wider than its input: forward, or for
/// the gradient of the input.
#[test]
fn a_part_of_the_product() {
    let shapes =
        [[160, 64, 8], [64, 160, 8], [136, 64, 24], [65, 16, 8], [16, 40, 8], [160, 64, 4]];
    for device in devices() {
        for shape @ [out, width, rank] in shapes {
            for leading in [[2, 150], [1, 256], [1, 255]] {
                let rows = leading[0] * leading[1];
                let found = joins_update(rows, rank, width.min(out), width.max(out));
                assert_eq!(found, rows > 255 && rank != 4, "{shape:?} {leading:?}");
                for (what, error) in errors(shape, leading, FloatDType::F32, &device) {
                    assert!(error < 3e-6, "{device:?} {shape:?} {leading:?} {what}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn half_precision() {
    for device in devices() {
        for (dtype, limit) in [(FloatDType::F16, 3e-3), (FloatDType::BF16, 2e-2)] {
            if !device.supports_dtype(burn::tensor::DType::from(dtype)) {
                continue;
            }
            for (shape, leading) in [(SMALL, [2, 8]), ([160, 64, 8], [2, 150])] {
                for (what, error) in errors(shape, leading, dtype, &device) {
                    assert!(error < limit && error > 0.0, "{device:?} {dtype:?} {what}: {error:e}");
                }
            }
        }
    }
}

/// Only what asks for a gradient gets one; a frozen input is no obstacle.
#[test]
fn frozen_parts_stay_frozen() {
    for device in devices() {
        let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let weight = PackedWeight::quantize(random([48, 64]), &QuantConfig::nf4()).unwrap();
        let (x, a) = (random([12, 64]), random([4, 64]));
        let b = random([48, 4]).autodiff().require_grad();
        let y = weight.matmul_low_rank(x.clone(), a.clone(), b.clone(), 1.5);
        let grads = y.sum().backward();
        let found = floats(b.grad(&grads).unwrap());
        let h = Gemm::new().trans_rhs().alpha(1.5).run(x, a);
        let expected = floats(h.sum_dim(0).expand([48, 4]));
        assert!(relative_error(&found, &expected) < 1e-5);
    }
}

#[test]
fn an_empty_batch_is_empty() {
    for device in devices() {
        let zeros = |shape| Tensor::<2>::zeros(shape, &device);
        let weight = PackedWeight::quantize(zeros([48, 64]), &QuantConfig::nf4()).unwrap();
        let y = weight.matmul_low_rank(zeros([0, 64]), zeros([4, 64]), zeros([48, 4]), 1.0);
        assert_eq!(y.dims(), [0, 48]);
    }
}
