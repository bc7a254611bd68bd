//! The codec against bitsandbytes 0.50.2 on the CPU (`testdata/nf4`, made by `testdata/make.py`).

use crate::common::{Golden, ulps};
use burn_lora_quant::{Format, QuantConfig, codec::Packed};

/// Nearest entry of the map, as bitsandbytes' CPU library finds it: in a table of 65,536 entries,
/// so for the value rounded to that grid. Its CUDA kernel, like ours, compares the value itself.
fn nearest_on_grid(map: &[f32], value: f64) -> u8 {
    let value = ((value + 1.0) * 32767.5).round_ties_even() / 32767.5 - 1.0;
    let distance = |entry: &f32| (f64::from(*entry) - value).abs();
    let nearest = map.iter().enumerate().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
    nearest.unwrap().0 as u8
}

/// Every code is bitsandbytes' code, but for FP4's two zeros: bitsandbytes' CPU path gives a value
/// that rounds to zero the code of the other sign (1000 above, 0000 below), its CUDA kernel, like
/// ours, the code of its own. Both decode to zero.
fn assert_codes(packed: &Packed, golden: &Golden) {
    let expected = golden.u8("codes");
    let found: &[u8] = &bytemuck::cast_slice(&packed.codes)[..expected.len()];
    let halves = |bytes: &[u8]| bytes.iter().flat_map(|b| [b >> 4, b & 15]).collect::<Vec<_>>();
    let zeros = |code: u8| golden.config.format() == Format::Fp4 && code & 7 == 0;
    for (i, (a, b)) in halves(found).into_iter().zip(halves(&expected)).enumerate() {
        assert!(a == b || zeros(a) && zeros(b), "{}, element {i}: {a} {b}", golden.name);
    }
}

#[test]
fn codes_absmax_and_values() {
    for golden in Golden::all() {
        let packed = Packed::quantize(&golden.f32("weight"), golden.shape, &golden.config).unwrap();
        let name = &golden.name;
        assert_codes(&packed, &golden);
        let absmax: Vec<u32> = golden.f32("absmax").iter().map(|a| a.to_bits()).collect();
        assert!(packed.scales == absmax, "{name}: the absmax differ");
        assert!(packed.dequantize() == golden.f32("dequantized"), "{name}: the values differ");
    }
}

#[test]
fn double_quantization() {
    let mut on_grid = 0;
    for golden in Golden::all() {
        let (name, config) = (&golden.name, golden.config.double_quant(true));
        let packed = Packed::quantize(&golden.f32("weight"), golden.shape, &config).unwrap();
        assert_codes(&packed, &golden);

        let tables: Vec<f32> = packed.tables.iter().map(|&bits| f32::from_bits(bits)).collect();
        let map = golden.f32("dq.nested_map");
        assert!(tables[16..272] == map, "{name}: the map differs");
        // torch sums float32, this crate float64
        let offset = golden.f32("dq.offset")[0];
        assert!(ulps(tables[272], offset) <= 1, "{name}: {} {offset}", tables[272]);
        let nested = golden.f32("dq.nested_absmax");
        assert_eq!(tables.len() - 273, nested.len());
        for (found, expected) in tables[273..].iter().zip(&nested) {
            // one bit of the offset is up to four of this difference
            assert!(ulps(*found, *expected) <= 4, "{name}: {found} {expected}");
        }

        let codes = bytemuck::cast_slice::<_, u8>(&packed.scales);
        let expected = golden.u8("dq.absmax");
        for (block, absmax) in golden.f32("absmax").into_iter().enumerate() {
            if codes[block] != expected[block] {
                let value = f64::from((absmax - offset) / nested[block / 256]);
                assert_eq!(nearest_on_grid(&map, value), expected[block], "{name}, block {block}");
                on_grid += 1;
            }
        }

        // With bitsandbytes' own scales every value is bitsandbytes' value.
        let mut theirs = packed.clone();
        bytemuck::cast_slice_mut::<_, u8>(&mut theirs.scales)[..expected.len()]
            .copy_from_slice(&expected);
        theirs.tables[272] = offset.to_bits();
        theirs.tables[273..].copy_from_slice(bytemuck::cast_slice(&nested));
        for (found, expected) in theirs.dequantize().iter().zip(golden.f32("dq.dequantized")) {
            assert!(ulps(*found, expected) <= 1, "{name}: {found} {expected}");
        }
    }
    // wide_nf4_128 and wide_fp4_128, block 89: 1.2e-5 from the midpoint of two neighbours
    assert_eq!(on_grid, 2, "8-bit codes that only the grid explains");
}

#[test]
fn golden_vectors_through_the_codec() {
    let x: Vec<f32> = (0..64).map(|i| 2.0 * (-1.0 + 2.0 * i as f32 / 63.0)).collect();
    for (config, expected) in [
        (QuantConfig::nf4(), "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff"),
        (QuantConfig::fp4(), "bbbbbbaaaaaaaadddddccccffeeee99911166667744445555522222222333333"),
    ] {
        let packed = Packed::quantize(&x, [1, 64], &config).unwrap();
        let hex: String =
            packed.codes.iter().flat_map(|w| w.to_le_bytes()).map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, expected);
        assert_eq!(packed.scales, [2f32.to_bits()]);
    }
    assert_eq!(QuantConfig::fp4().format(), Format::Fp4);
}

#[test]
fn a_zero_block_is_zero() {
    for format in Format::ALL {
        let packed = Packed::quantize(&[0.0; 96], [3, 32], &QuantConfig::new(format)).unwrap();
        assert!(packed.dequantize().iter().all(|&v| v == 0.0), "{}", format.name());
    }
    let nf4 = Packed::quantize(&[0.0; 64], [1, 64], &QuantConfig::nf4()).unwrap();
    assert!(nf4.codes.iter().all(|&word| word == 0x7777_7777));
}
