//! bitsandbytes' tensors: a checkpoint that transformers wrote, there and back, and bad ones.

use crate::common::{Golden, devices, ulps};
use burn::tensor::{DType, FloatDType, TensorData};
use burn_lora_quant::{Format, PackedWeight, QuantConfig, QuantError, codec::Packed};
use std::{collections::BTreeMap, path::PathBuf};

type Tensors = BTreeMap<String, TensorData>;

/// `testdata/gqa/bnb4bit`: NF4 with double quantization.
fn checkpoint() -> Tensors {
    let path = PathBuf::from("../../testdata/gqa/bnb4bit/model.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = |view: &safetensors::tensor::TensorView<'_>| match view.dtype() {
        safetensors::Dtype::U8 => TensorData::new(view.data().to_vec(), view.shape()),
        safetensors::Dtype::F32 => {
            TensorData::new(bytemuck::pod_collect_to_vec::<u8, f32>(view.data()), view.shape())
        }
        other => panic!("{other:?}"),
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), data(view))).collect()
}

const NAME: &str = "model.layers.0.self_attn.q_proj.weight";

fn read(tensors: &Tensors, name: &str) -> Result<Packed, QuantError> {
    Packed::from_bitsandbytes(name, |name| tensors.get(name).cloned())
}

#[test]
fn a_checkpoint_there_and_back() {
    let tensors = checkpoint();
    let weights: Vec<&str> =
        tensors.keys().filter_map(|name| name.strip_suffix(".absmax")).collect();
    assert_eq!(weights.len(), 3 * 7);
    for device in devices() {
        for name in &weights {
            let packed = read(&tensors, name).unwrap();
            let packed = PackedWeight::from_packed(packed, &device).to_packed().unwrap();
            let written = packed.to_bitsandbytes(name, FloatDType::F32).unwrap();
            let expected: Vec<_> = tensors.keys().filter(|key| key.starts_with(*name)).collect();
            assert_eq!(written.len(), expected.len(), "{name}");
            for (name, data) in written {
                assert_eq!(data.dtype(), tensors[&name].dtype(), "{name}");
                assert_eq!(data.shape(), tensors[&name].shape(), "{name}");
                assert!(data.as_bytes() == tensors[&name].as_bytes(), "{name} differs");
            }
        }
    }
}

/// Without double quantization, and with a last byte of which half is used.
#[test]
fn single_quantization_and_odd_lengths() {
    for format in [Format::Nf4, Format::Fp4] {
        for shape in [[16, 64], [3, 37]] {
            let weight: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32).sin()).collect();
            let packed = Packed::quantize(&weight, shape, &QuantConfig::new(format)).unwrap();
            let tensors: Tensors =
                packed.to_bitsandbytes("w", FloatDType::BF16).unwrap().into_iter().collect();
            assert_eq!(tensors["w"].shape().to_vec(), [weight.len().div_ceil(2), 1]);
            assert_eq!(tensors["w.absmax"].dtype(), DType::F32);
            assert_eq!(read(&tensors, "w").unwrap(), packed);
        }
    }
}

/// A golden made by hand from bitsandbytes' parts decodes to bitsandbytes' values.
#[test]
fn goldens_as_tensors() {
    for golden in Golden::all() {
        let state = format!(
            r#"{{"quant_type": "{}", "blocksize": {}, "dtype": "float32", "shape": {:?}, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": {}}}"#,
            golden.config.format().name(),
            if golden.name.ends_with("128") { 128 } else { 64 },
            golden.shape,
            golden.f32("dq.offset")[0],
        );
        let bytes = |data: Vec<u8>| {
            let len = data.len();
            TensorData::new(data, [len])
        };
        let floats = |data: Vec<f32>| {
            let len = data.len();
            TensorData::new(data, [len])
        };
        let tensors: Tensors = [
            ("w", bytes(golden.u8("codes"))),
            ("w.absmax", bytes(golden.u8("dq.absmax"))),
            ("w.quant_map", floats(golden.config.format().codebook().to_vec())),
            ("w.nested_absmax", floats(golden.f32("dq.nested_absmax"))),
            ("w.nested_quant_map", floats(golden.f32("dq.nested_map"))),
            (
                &format!("w.quant_state.bitsandbytes__{}", golden.config.format().name()),
                bytes(state.into_bytes()),
            ),
        ]
        .into_iter()
        .map(|(name, data)| (name.to_string(), data))
        .collect();
        let packed = read(&tensors, "w").unwrap();
        for (found, expected) in packed.dequantize().iter().zip(golden.f32("dq.dequantized")) {
            assert!(ulps(*found, expected) <= 1, "{}: {found} {expected}", golden.name);
        }
    }
}

/// What the error says after one thing was changed.
fn message(change: impl FnOnce(&mut Tensors)) -> String {
    let mut tensors = checkpoint();
    change(&mut tensors);
    read(&tensors, NAME).expect_err("a bad checkpoint was read").to_string()
}

fn set_state(tensors: &mut Tensors, change: impl FnOnce(&mut serde_json::Value)) {
    let name = format!("{NAME}.quant_state.bitsandbytes__nf4");
    let mut state = serde_json::from_slice(tensors[&name].as_bytes()).unwrap();
    change(&mut state);
    let json = serde_json::to_vec(&state).unwrap();
    let len = json.len();
    tensors.insert(name, TensorData::new(json, [len]));
}

#[test]
fn missing_tensors_are_named() {
    for part in ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        let name = format!("{NAME}{part}");
        let message = message(|tensors| drop(tensors.remove(&name)));
        assert!(message.contains(&format!("`{name}` is missing")), "{message}");
    }
    let message = message(|t| drop(t.remove(&format!("{NAME}.quant_state.bitsandbytes__nf4"))));
    assert!(message.contains("quant_state.bitsandbytes__nf4` is missing"), "{message}");
}

#[test]
fn truncated_tensors_are_named() {
    for part in ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"] {
        let name = format!("{NAME}{part}");
        let message = message(|tensors| {
            let data = &tensors[&name];
            let keep = data.as_bytes().len() - if data.dtype() == DType::F32 { 4 } else { 1 };
            let bytes = data.as_bytes()[..keep].to_vec();
            let short = if data.dtype() == DType::F32 {
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                let len = values.len();
                TensorData::new(values, [len])
            } else {
                TensorData::new(bytes, [keep])
            };
            tensors.insert(name.clone(), short);
        });
        assert!(message.contains(&name) && message.contains("expected"), "{message}");
    }
}

#[test]
fn wrong_values_are_named() {
    let cases: [(&str, serde_json::Value, &str); 8] = [
        ("quant_type", "int4".into(), "quant_type is `int4`"),
        ("blocksize", 48.into(), "blocksize is 48"),
        ("shape", serde_json::json!([4096]), "shape is [4096]"),
        ("shape", serde_json::json!([64, 65]), "2048 elements, expected 2080"),
        ("nested_blocksize", 128.into(), "nested_blocksize is Some(128)"),
        ("nested_dtype", "float16".into(), "nested_dtype is Some(\"float16\")"),
        ("nested_offset", serde_json::Value::Null, "nested_offset is None"),
        ("blocksize", "many".into(), "is not bitsandbytes' JSON"),
    ];
    for (field, value, expected) in cases {
        let message = message(|tensors| set_state(tensors, |state| state[field] = value));
        assert!(message.contains(expected) && message.contains(NAME), "{message}");
    }
    let message = message(|tensors| {
        let name = format!("{NAME}.absmax");
        tensors.insert(name, TensorData::new(vec![0f32; 64], [64]));
    });
    assert!(message.contains("absmax` is F32, expected U8"), "{message}");
}

#[test]
fn a_json_that_is_none() {
    let message = message(|tensors| {
        let name = format!("{NAME}.quant_state.bitsandbytes__nf4");
        tensors.insert(name, TensorData::new(b"{\"quant_type\": \"nf4\"".to_vec(), [20]));
    });
    assert!(message.contains("is not bitsandbytes' JSON"), "{message}");
}

#[test]
fn another_codebook_and_no_numbers() {
    let other = message(|tensors| {
        let mut map = Format::Nf4.codebook();
        map[3] = 0.5;
        tensors.insert(format!("{NAME}.quant_map"), TensorData::new(map.to_vec(), [16]));
    });
    assert!(other.contains("code 3 is 0.5"), "{other}");
    let infinite = message(|tensors| {
        tensors.insert(format!("{NAME}.nested_absmax"), TensorData::new(vec![f32::NAN], [1]));
    });
    assert!(infinite.contains("element 0 is NaN"), "{infinite}");
}

#[test]
fn formats_that_bitsandbytes_has_not() {
    let packed = Packed::quantize(&[1.0; 64], [2, 32], &QuantConfig::mxfp4()).unwrap();
    let error = packed.to_bitsandbytes("w", FloatDType::F32).unwrap_err().to_string();
    assert!(error.contains("mxfp4"), "{error}");
}
