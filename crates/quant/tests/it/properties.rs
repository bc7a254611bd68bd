//! Properties of the codec on any input, and the errors that formats are known to have.

use burn_lora_quant::{Format, QuantConfig, codec::Packed};
use proptest::prelude::*;

fn configs() -> impl Strategy<Value = QuantConfig> {
    let blocks = (0..2usize, 5..13u32, any::<bool>()).prop_map(|(format, log, double)| {
        QuantConfig::new(Format::ALL[format]).block_size(1 << log).double_quant(double)
    });
    prop_oneof![4 => blocks, 1 => Just(QuantConfig::mxfp4()), 1 => Just(QuantConfig::nvfp4())]
}

/// Usual numbers, and every kind of unusual one.
fn any_float() -> impl Strategy<Value = f32> + Clone {
    const ODD: [f32; 9] =
        [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-40, -1e-45, f32::MAX, f32::MIN, 1e-38];
    (0..20usize, -10f32..10.0, any::<u32>()).prop_map(|(kind, usual, bits)| match kind {
        0..9 => ODD[kind],
        9 => f32::from_bits(bits),
        _ => usual,
    })
}

fn weights(
    element: impl Strategy<Value = f32> + Clone,
) -> impl Strategy<Value = (Vec<f32>, [usize; 2])> {
    (1..9usize, 1..400usize).prop_flat_map(move |(rows, columns)| {
        (prop::collection::vec(element.clone(), rows * columns), Just([rows, columns]))
    })
}

/// Half of the widest gap between neighbouring values, over the largest value.
fn half_gap(format: Format) -> f32 {
    let mut values = format.codebook();
    values.sort_by(f32::total_cmp);
    values.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f32::max) / 2.0
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_goes_through((weight, shape) in weights(any_float()), config in configs()) {
        let packed = Packed::quantize(&weight, shape, &config).unwrap();
        prop_assert_eq!(packed.dequantize().len(), weight.len());
        let block = packed.layout.block_size;
        for (block, values) in packed.dequantize().chunks(block).zip(weight.chunks(block)) {
            // what is no number does not turn into one silently
            if values.iter().any(|v| v.is_nan()) && !packed.layout.scales.is_coded() {
                prop_assert!(block.iter().all(|v| v.is_nan()));
            }
        }
    }

    #[test]
    fn errors_stay_within_the_format((weight, shape) in weights(-10f32..10.0), config in configs()) {
        let packed = Packed::quantize(&weight, shape, &config).unwrap();
        let view = packed.view();
        let size = packed.layout.block_size;
        let format = config.format();
        let values = packed.dequantize();
        for (block, (found, expected)) in values.chunks(size).zip(weight.chunks(size)).enumerate() {
            let absmax = expected.iter().fold(0f32, |max, v| max.max(v.abs()));
            let scale = view.scale(block);
            // The nearest code at a scale that is itself rounded, or that ends below the absmax.
            let rounded = (absmax / format.max() - scale).abs() * format.max();
            let bound = half_gap(format) * absmax.max(scale) + rounded + 1e-5 * absmax + 1e-30;
            for (f, e) in found.iter().zip(expected) {
                prop_assert!((f - e).abs() <= bound, "{e} became {f}; bound {bound}, block {block}");
            }
        }
    }

    /// What a block decodes to does not depend on its neighbours, nor on where decoding starts.
    #[test]
    fn decoding_parts((weight, shape) in weights(-10f32..10.0), config in configs(), cut in 0.0..1.0) {
        let packed = Packed::quantize(&weight, shape, &config).unwrap();
        let all = packed.dequantize();
        let start = (cut * weight.len() as f64) as usize;
        let mut part = vec![0.0; weight.len() - start];
        packed.view().decode(start, &mut part);
        prop_assert_eq!(&part[..], &all[start..]);
    }
}

/// Mean absolute and mean relative error on N(0, 1), 1024 x 1024, as bitsandbytes has them.
#[test]
fn errors_of_the_table() {
    let weight = normal(1024 * 1024);
    for (block, nf4, fp4) in [
        (32, (0.0677, 0.190), (0.0889, 0.242)),
        (64, (0.0728, 0.203), (0.0965, 0.260)),
        (128, (0.0768, 0.215), (0.1030, 0.276)),
        (256, (0.0803, 0.226), (0.1087, 0.290)),
        (1024, (0.0866, 0.245), (0.1193, 0.315)),
        (4096, (0.0925, 0.262), (0.1295, 0.337)),
    ] {
        for (config, expected) in [(QuantConfig::nf4(), nf4), (QuantConfig::fp4(), fp4)] {
            let config = config.block_size(block);
            let values = Packed::quantize(&weight, [1024, 1024], &config).unwrap().dequantize();
            let pairs = || {
                values
                    .iter()
                    .zip(&weight)
                    .map(|(v, w)| (f64::from((v - w).abs()), f64::from(w.abs())))
            };
            let absolute = pairs().map(|(error, _)| error).sum::<f64>() / weight.len() as f64;
            let relative =
                pairs().map(|(error, w)| error / (w + 1e-8)).sum::<f64>() / weight.len() as f64;
            println!(
                "{} {block}: {absolute:.4} {relative:.4}, expected {expected:?}",
                config.format().name()
            );
            assert!((absolute / expected.0 - 1.0).abs() < 0.02, "{config:?}: {absolute}");
            assert!((relative / expected.1 - 1.0).abs() < 0.02, "{config:?}: {relative}");
        }
    }
}

/// Numbers from N(0, 1), by Box and Muller's method.
fn normal(len: usize) -> Vec<f32> {
    let mut state = 42u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (0..len)
        .map(|_| {
            let (u, v) = (uniform(), uniform());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect()
}
