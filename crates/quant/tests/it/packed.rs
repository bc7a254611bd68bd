//! Packed weights on every device: `PackedWeight` and `PackedLinear` against the codec, against
//! bitsandbytes' goldens and against dense products.

use crate::common::{Golden, devices, floats, relative_error, ulps};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor, TensorData};
use burn_lora_quant::{Format, PackedLinear, PackedWeight, QuantConfig, codec::Packed};

fn configs() -> Vec<QuantConfig> {
    vec![
        QuantConfig::nf4(),
        QuantConfig::nf4().double_quant(true),
        QuantConfig::fp4().block_size(128).double_quant(true),
        QuantConfig::mxfp4(),
        QuantConfig::nvfp4(),
    ]
}

fn tensor(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// A weight that is the same on every device.
fn weight(shape: [usize; 2], seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..shape[0] * shape[1]).map(|_| (0..6).map(|_| uniform()).sum::<f32>() - 3.0).collect()
}

/// How far `value` is from the nearest point at which two codes are equally near, over the gap
/// between the two.
fn from_tie(format: Format, value: f32) -> f32 {
    let value = if format.is_signed_magnitude() { value.abs() } else { value };
    format.decision_points().iter().map(|p| (p - value).abs()).fold(f32::INFINITY, f32::min)
}

#[test]
fn quantizes_as_the_codec() {
    for device in devices() {
        let (mut elements, mut ties, mut scales) = (0, 0, 0);
        for (config, shape) in configs()
            .into_iter()
            .flat_map(|config| [[48, 320], [24, 100], [7, 37]].map(|shape| (config, shape)))
        {
            let values = weight(shape, 1);
            let expected = Packed::quantize(&values, shape, &config).unwrap();
            let found = PackedWeight::quantize(tensor(values.clone(), shape, &device), &config);
            let found = found.unwrap().to_packed().unwrap();
            let name = format!("{config:?} {shape:?} {device:?}");
            for (a, b) in found.tables.iter().zip(&expected.tables) {
                // the mean of the scales, and what is left of them after it, to a few bits
                assert!(ulps(f32::from_bits(*a), f32::from_bits(*b)) <= 8, "{name}: {a:x} {b:x}");
            }
            scales += found.scales.iter().zip(&expected.scales).filter(|(a, b)| a != b).count();
            let block_scale = expected.view();
            for (i, value) in values.iter().enumerate() {
                let code = |packed: &Packed| packed.codes[i / 8] >> (((i % 8) ^ 1) * 4) & 15;
                if code(&found) != code(&expected) {
                    let scale = block_scale.scale(i / expected.layout.block_size);
                    let tie = from_tie(config.format(), value / scale);
                    assert!(tie < 1e-5, "{name}, element {i}: {tie}");
                    ties += 1;
                }
                elements += 1;
            }
        }
        println!(
            "{device:?}: {ties} of {elements} codes differ, all at ties; {scales} words of scales"
        );
        assert!(scales <= 2, "{device:?}: {scales} words of scales differ");
    }
}

#[test]
fn dequantizes_bitsandbytes_goldens() {
    for device in devices() {
        for golden in Golden::all() {
            let config = golden.config.double_quant(true);
            let weight = tensor(golden.f32("weight"), golden.shape, &device);
            let single = PackedWeight::quantize(weight.clone(), &golden.config).unwrap();
            for (found, expected) in
                floats(single.dequantize(FloatDType::F32)).iter().zip(golden.f32("dequantized"))
            {
                assert!(
                    ulps(*found, expected) <= 1,
                    "{} {device:?}: {found} {expected}",
                    golden.name
                );
            }
            let double = PackedWeight::quantize(weight, &config).unwrap();
            let found = floats(double.dequantize(FloatDType::F32));
            let error = relative_error(&found, &golden.f32("dq.dequantized"));
            // two blocks of bitsandbytes' CPU path have the neighbouring 8-bit scale
            assert!(error < 2e-3, "{} {device:?}: {error}", golden.name);
        }
    }
}

#[test]
fn dequantizes_to_every_dtype() {
    for device in devices() {
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            if !device.supports_dtype(DType::from(dtype)) {
                continue;
            }
            let packed = Packed::quantize(&weight([24, 100], 2), [24, 100], &QuantConfig::nf4());
            let expected = packed.clone().unwrap().dequantize();
            let found = PackedWeight::from_packed(packed.unwrap(), &device).dequantize(dtype);
            assert_eq!(found.dims(), [24, 100]);
            assert_eq!(found.dtype(), DType::from(dtype));
            let rounded: Vec<f32> = expected
                .into_iter()
                .map(|value| match dtype {
                    FloatDType::F16 => half::f16::from_f32(value).to_f32(),
                    FloatDType::BF16 => half::bf16::from_f32(value).to_f32(),
                    _ => value,
                })
                .collect();
            assert!(floats(found) == rounded, "{dtype:?} {device:?}");
        }
    }
}

/// Forward and dX through the packed op and through the dense dequantized weight.
fn compare(weight: &PackedWeight, rows: &[usize], dtype: FloatDType, limit: f64, device: &Device) {
    let device = device.clone().autodiff();
    let [out, width] = weight.shape();
    let dense = weight.dequantize(FloatDType::F32);
    for &rows in rows {
        let x = tensor(self::weight([rows, width], 3), [rows, width], &device).cast(dtype);
        let dy = tensor(self::weight([rows, out], 4), [rows, out], &device).cast(dtype);
        let x = x.require_grad();
        let y = weight.matmul(x.clone());
        assert_eq!((y.dims(), y.dtype()), ([rows, out], dtype.into()));
        let dx = x.grad(&(y.clone() * dy.clone()).sum().backward()).unwrap();
        // in float32, so that what is compared is the op's error alone
        let (x, dy) = (x.inner().cast(FloatDType::F32), dy.inner().cast(FloatDType::F32));
        let expected = reference(&floats(x), &floats(dense.clone().transpose()), rows, width, out);
        let error = relative_error(&floats(y.inner()), &expected);
        let name = format!("{rows} rows of {:?}, {dtype:?} {device:?}", weight.layout());
        assert!(error < limit, "forward {name}: {error}");
        let expected = reference(&floats(dy), &floats(dense.clone()), rows, out, width);
        let error = relative_error(&floats(dx), &expected);
        assert!(error < limit, "dX {name}: {error}");
    }
}

/// A product in float64.
fn reference(a: &[f32], b: &[f32], rows: usize, inner: usize, columns: usize) -> Vec<f32> {
    let element = |i: usize, j: usize| {
        (0..inner).map(|k| f64::from(a[i * inner + k]) * f64::from(b[k * columns + j])).sum::<f64>()
    };
    (0..rows * columns).map(|at| element(at / columns, at % columns) as f32).collect()
}

#[test]
fn product_and_gradient_in_f32() {
    for device in devices() {
        for config in configs() {
            let weight =
                PackedWeight::quantize(tensor(weight([48, 320], 1), [48, 320], &device), &config);
            compare(&weight.unwrap(), &[1, 20], FloatDType::F32, 1e-5, &device);
        }
        // rows that are not whole words, vectors or blocks
        for shape in [[40, 72], [5, 37], [100, 96], [1, 8]] {
            let weight = tensor(weight(shape, 1), shape, &device);
            let weight = PackedWeight::quantize(weight, &QuantConfig::nf4()).unwrap();
            compare(&weight, &[1, 3, 8, 9], FloatDType::F32, 1e-5, &device);
        }
    }
}

#[test]
fn product_and_gradient_in_half_precision() {
    for device in devices() {
        for dtype in [FloatDType::F16, FloatDType::BF16] {
            if device.supports_dtype(DType::from(dtype)) {
                let dense = tensor(weight([96, 128], 1), [96, 128], &device);
                let config = QuantConfig::nf4().double_quant(true);
                let weight = PackedWeight::quantize(dense, &config).unwrap();
                compare(&weight, &[2, 33], dtype, 1e-2, &device);
            }
        }
    }
}

#[test]
fn leading_dimensions_bias_and_frozen_parts() {
    for device in devices() {
        let autodiff = device.clone().autodiff();
        let dense = tensor(weight([16, 64], 1), [16, 64], &device);
        let packed = PackedWeight::quantize(dense, &QuantConfig::nf4()).unwrap();
        let bias = Tensor::<1>::random([16], Distribution::Default, &device);
        let linear = PackedLinear::new(packed.clone(), Some(bias.clone()));
        let x = Tensor::<4>::random([2, 3, 5, 64], Distribution::Default, &autodiff).require_grad();
        let y = linear.forward(x.clone());
        assert_eq!(y.dims(), [2, 3, 5, 16]);
        let flat = packed.matmul(x.clone().inner().reshape([30, 64])) + bias.unsqueeze();
        let error = relative_error(&floats(y.clone().inner()), &floats(flat));
        assert!(error < 1e-5, "{device:?}: {error}");
        let grads = y.sum().backward();
        assert_eq!(x.grad(&grads).unwrap().dims(), [2, 3, 5, 64]);
        assert!(linear.bias.unwrap().val().grad(&grads).is_none());
    }
}

#[test]
fn an_empty_batch_is_empty() {
    for device in devices() {
        let dense = tensor(weight([16, 64], 1), [16, 64], &device);
        let packed = PackedWeight::quantize(dense, &QuantConfig::nf4()).unwrap();
        assert_eq!(packed.matmul(Tensor::<2>::zeros([0, 64], &device)).dims(), [0, 16]);
    }
}

/// Fusion records and each thread has a stream of its own: the same chain everywhere.
#[test]
fn chains_on_several_threads() {
    for device in devices() {
        let dense = tensor(weight([64, 64], 1), [64, 64], &device);
        let packed = PackedWeight::quantize(dense, &QuantConfig::nf4()).unwrap();
        let x = tensor(weight([12, 64], 5), [12, 64], &device);
        let run = |x: Tensor<2>| {
            let mut h = x;
            for _ in 0..8 {
                h = (packed.matmul(h.clone() * 0.5 + 0.25) * 0.1).tanh() + h * 0.5;
            }
            floats(h)
        };
        let expected = run(x.clone());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert_eq!(run(x.clone()), expected, "{device:?}"));
            }
        });
    }
}

#[test]
fn saves_loads_and_moves() {
    use burn::module::Module;
    let folder = std::env::temp_dir().join(format!("burn-lora-quant-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (i, device) in devices().into_iter().enumerate() {
        let make = |seed| {
            let dense = tensor(weight([24, 100], seed), [24, 100], &device);
            let config = QuantConfig::nf4().double_quant(true);
            PackedLinear::new(PackedWeight::quantize(dense, &config).unwrap(), None)
        };
        let linear = make(1);
        let path = folder.join(format!("{i}.bpk"));
        linear.clone().save_file(&path).unwrap();
        let loaded = make(2).load_file(&path);
        let words = |linear: &PackedLinear| linear.weight.to_packed().unwrap();
        assert_eq!(words(&loaded), words(&linear), "{device:?}");
        for other in devices() {
            let moved = linear.clone().to_device(&other);
            assert_eq!(words(&moved), words(&linear), "{device:?} to {other:?}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn bytes_are_those_of_four_bits() {
    for device in devices() {
        let dense = Tensor::<2>::ones([256, 512], &device);
        let config = QuantConfig::nf4().double_quant(true);
        let packed = PackedWeight::quantize(dense, &config).unwrap();
        let tables = 4 * (16 + 256 + 1 + 2048 / 256);
        assert_eq!(packed.bytes(), 256 * 512 / 2 + 2048 + tables);
        let words = packed.to_packed().unwrap();
        let found = words.codes.len() + words.scales.len() + words.tables.len();
        assert_eq!(found * 4, packed.bytes());
    }
}

#[test]
#[should_panic(expected = "x is [4, 63], the weight is [16, 64]")]
fn a_wrong_shape_panics() {
    let device = devices().remove(0);
    let dense = Tensor::<2>::ones([16, 64], &device);
    let packed = PackedWeight::quantize(dense, &QuantConfig::nf4()).unwrap();
    packed.matmul(Tensor::<2>::ones([4, 63], &device));
}
