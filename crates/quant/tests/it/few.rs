//! Products of few rows with several weights, against the formula in float64.

use crate::common::*;
use burn::tensor::{Device, FloatDType, Tensor};
use burn_lora_kernels::records;
use burn_lora_quant::{
    DenseWeight, FewWeight, Frozen, PackedWeight, QuantConfig, Update, matmul_few,
};

/// Reproducible numbers from -1 to 1, which 16 bits have.
fn random<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    tensor(shape, seed, device)
}

fn matrix(tensor: Tensor<2>) -> (Vec<f32>, usize) {
    let width = tensor.dims()[1];
    (floats(tensor), width)
}

/// `a · bᵀ` in float64.
fn product((a, width): &(Vec<f32>, usize), (b, _): &(Vec<f32>, usize)) -> Vec<f64> {
    let dot =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    a.chunks(*width).flat_map(|a| b.chunks(*width).map(move |b| dot(a, b))).collect()
}

/// Checks products with weights in a format, or in the dtype of the rows.
fn check(
    device: &Device,
    config: Option<&QuantConfig>,
    dtype: FloatDType,
    [rows, inputs]: [usize; 2],
    outs: &[usize],
    ranks: &[usize],
) {
    let x = random([rows, inputs], 1, device).cast(dtype);
    let mut weights = vec![];
    for (number, (out, rank)) in outs.iter().zip(ranks).enumerate() {
        let dense = random([*out, inputs], 2 + number, device);
        let weight = match config {
            Some(config) => Frozen::new(PackedWeight::quantize(dense, config).unwrap()),
            None => Frozen::new(DenseWeight::new(dense.cast(dtype))),
        };
        let update = (*rank > 0).then(|| Update {
            a: random([*rank, inputs], 20 + number, device).cast(dtype),
            b: random([*out, *rank], 30 + number, device).cast(dtype),
            scale: 0.25,
        });
        weights.push((weight, update));
    }
    // Of the even rows' first weight not all of h is kept.
    let kept = |number: usize, rank: usize| {
        let kept = (0..rows * rank).map(|at| f32::from(u8::from(at / 3 % 2 == 0))).collect();
        let masked = number == 0 && rows.is_multiple_of(2) && rank > 0;
        masked.then_some::<Vec<f32>>(kept)
    };
    let kept: Vec<_> = ranks.iter().enumerate().map(|(number, rank)| kept(number, *rank)).collect();
    let on_device = |kept: &Vec<f32>| {
        let flat = Tensor::<1>::from_floats(&kept[..], device);
        flat.reshape([rows, kept.len() / rows])
    };
    let all = weights.iter().zip(&kept).map(|((weight, update), kept)| FewWeight {
        weight,
        update: update.clone(),
        kept: kept.as_ref().map(on_device),
    });
    let all: Vec<_> = all.collect();
    let found = matmul_few(&x.clone().reshape([rows, 1, inputs]), &all);
    let Some(found) = found else { panic!("{rows} rows, {outs:?}: not one operation") };
    let values = matrix(x);
    for (((weight, update), found), kept) in weights.into_iter().zip(found).zip(kept) {
        let mut expected = product(&values, &matrix(weight.dequantize(FloatDType::F32)));
        if let Some(Update { a, b, scale }) = update {
            let rank = a.dims()[0];
            let mut h: Vec<_> =
                product(&values, &matrix(a)).into_iter().map(|h| h as f32).collect();
            if let Some(kept) = kept {
                h.iter_mut().zip(kept).for_each(|(h, kept)| *h *= kept);
            }
            let more = product(&(h, rank), &matrix(b));
            expected.iter_mut().zip(more).for_each(|(y, more)| *y += f64::from(scale) * more);
        }
        let out = weight.shape()[0];
        assert_eq!(found.dims(), [rows, 1, out]);
        let found = floats(found.reshape([rows, out]));
        let largest = expected.iter().fold(0.0f64, |most, y| most.max(y.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            let off = (f64::from(*found) - expected).abs();
            assert!(off < 0.01 * largest, "{rows} rows, {outs:?}, {ranks:?}: {found}, {expected}");
        }
    }
}

#[test]
fn products_of_few_rows_agree_with_the_formula() {
    for device in devices().into_iter().filter(records) {
        let nf4 = QuantConfig::nf4();
        for config in [Some(nf4.double_quant(true)), Some(nf4), Some(QuantConfig::fp4()), None] {
            for dtype in [FloatDType::BF16, FloatDType::F16] {
                let check_of = |inputs, rows, outs: &[_], ranks: &[_]| {
                    check(&device, config.as_ref(), dtype, [rows, inputs], outs, ranks);
                };
                let check = |rows, outs: &[_], ranks: &[_]| check_of(512, rows, outs, ranks);
                for rows in 1..=8 {
                    check(rows, &[96, 32, 16], &[8, 0, 24]);
                }
                // More tiles than blocks; ranks that are no multiple of anything, and more than are held at once.
                check(3, &[4240], &[16]);
                check(8, &[64, 4992], &[0, 0]);
                check(5, &[4992, 48], &[140, 5]);
                if config.is_some() {
                    for rows in [9, 16, 17, 32, 33, 63, 64] {
                        check(rows, &[96, 32, 16], &[8, 0, 24]);
                    }
                    // Slices of the inputs, and blocks with outputs of several weights.
                    check(40, &[4240, 48], &[150, 5]);
                    // One slice, for its outputs and for its inputs.
                    check(64, &[33_808], &[16]);
                    check_of(256, 20, &[96], &[8]);
                }
            }
        }
    }
}

#[test]
fn other_products_are_left_to_others() {
    let device = devices().remove(0);
    let packed = |shape| {
        let dense = random(shape, 1, &device);
        Frozen::new(PackedWeight::quantize(dense, &QuantConfig::nf4()).unwrap())
    };
    fn plain(weight: &Frozen) -> FewWeight<'_> {
        FewWeight { weight, update: None, kept: None }
    }
    let weight = packed([32, 512]);
    let x = |rows| random([rows, 512], 1, &device);
    // Not in 16 bits, too many rows, weights for other inputs.
    assert!(matmul_few(&x(2), &[plain(&weight)]).is_none());
    assert!(matmul_few(&x(65).cast(FloatDType::F16), &[plain(&weight)]).is_none());
    let other = packed([32, 256]);
    let both = [plain(&weight), plain(&other)];
    assert!(matmul_few(&x(2).cast(FloatDType::F16), &both).is_none());
    assert!(matmul_few(&x(2).slice([0..0, 0..512]), &[plain(&weight)]).is_none());
}
