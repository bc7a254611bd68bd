//! A merged model as a checkpoint: rounded once, in the dtype of its base, with the mode of any file.

use crate::common::*;
use burn::tensor::FloatDType;
use burn_lora_adapter::{Adaptable, AdaptableExt, PackedMerge};
use burn_lora_llama::{Llama, SaveOptions};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};

const DTYPES: [FloatDType; 3] = [FloatDType::F32, FloatDType::BF16, FloatDType::F16];

fn load(folder: &Path, dtype: FloatDType) -> Llama {
    Llama::from_pretrained(folder).dtype(dtype).load(&device()).unwrap()
}

/// The values of a checkpoint, of any dtype.
fn values(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        let pairs = || view.data().as_chunks::<2>().0.iter().copied();
        let values = match view.dtype() {
            safetensors::Dtype::BF16 => pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            safetensors::Dtype::F16 => pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            _ => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        (name.to_owned(), values)
    });
    tensors.collect()
}

#[test]
fn a_merged_checkpoint_is_rounded_once() {
    let out = tempfile::tempdir().unwrap();
    let [base, merged] = ["base", "merged"].map(|name| out.path().join(name));
    for stored in DTYPES {
        load(&golden("gqa"), FloatDType::F32)
            .save_pretrained(&base, &SaveOptions::new().dtype(stored))
            .unwrap();
        assert_eq!(Llama::from_pretrained(&base).stored_dtypes().unwrap(), [stored]);
        // The sums, exactly.
        let mut model = load(&base, FloatDType::F32);
        model.load_adapter("default", golden("gqa").join("lora_all")).unwrap();
        let sums = model.layers().into_iter().filter_map(|(path, layer)| {
            let lora = layer.adapters().lora("default")?;
            let (rank, width) = (lora.rank(), layer.shape()[1]);
            let [a, b] = [vec(lora.lora_a.val()), vec(lora.lora_b.val())];
            let sum = |(at, weight): (usize, f32)| {
                let (row, column) = (at / width, at % width);
                let terms = (0..rank)
                    .map(|i| f64::from(b[row * rank + i]) * f64::from(a[i * width + column]));
                f64::from(weight) + lora.scaling() * terms.sum::<f64>()
            };
            let sums = vec(layer.weight()).into_iter().enumerate().map(sum);
            Some((format!("{path}.weight"), sums.collect::<Vec<f64>>()))
        });
        let sums: BTreeMap<_, _> = sums.collect();
        assert_eq!(sums.len(), 21);
        for written in DTYPES {
            let exact = if stored == written { stored } else { FloatDType::F32 };
            let mut model = load(&base, exact);
            model.load_adapter("default", golden("gqa").join("lora_all")).unwrap();
            model.merge_and_unload(PackedMerge::Dense(exact)).unwrap();
            model.save_pretrained(&merged, &SaveOptions::new().dtype(written)).unwrap();
            let found = values(&merged);
            for (name, sums) in &sums {
                let round = |value: f64| match written {
                    FloatDType::BF16 => bf16::from_f64(value).to_f32(),
                    FloatDType::F16 => f16::from_f64(value).to_f32(),
                    _ => value as f32,
                };
                let pairs = found[name].iter().zip(sums);
                let off = pairs.filter(|(found, sum)| **found != round(**sum));
                // A sum that is taken in another order may fall on the other side of a tie.
                let (off, count) = (off.count(), sums.len());
                assert!(off * 1000 <= count, "{stored:?} to {written:?}, {name}: {off} of {count}");
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn a_saved_model_has_the_mode_of_any_file() {
    use std::os::unix::fs::PermissionsExt;
    let out = tempfile::tempdir().unwrap();
    load(&golden("gqa"), FloatDType::F32).save_pretrained(out.path(), &SaveOptions::new()).unwrap();
    let mode = |name: &str| {
        let other = out.path().join(name);
        fs::write(out.path().join("other"), "").unwrap();
        let any = fs::metadata(out.path().join("other")).unwrap().permissions().mode();
        (fs::metadata(other).unwrap().permissions().mode(), any)
    };
    for name in ["model.safetensors", "config.json"] {
        let (found, any) = mode(name);
        assert_eq!(found, any, "{name}");
    }
}

/// Float16 ends at 65504.
#[test]
fn values_that_float16_does_not_reach_are_not_written() {
    let out = tempfile::tempdir().unwrap();
    let mut model = load(&golden("gqa"), FloatDType::F32);
    for (path, layer) in model.layers_mut() {
        if path == "model.layers.1.mlp.up_proj" {
            layer.set_weight(layer.weight() * 1e6);
        }
    }
    let options = SaveOptions::new().dtype(FloatDType::F16);
    let error = model.save_pretrained(out.path(), &options).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.mlp.up_proj.weight"), "{error}");
    assert!(error.contains("model.safetensors") && error.contains("bfloat16"), "{error}");
    assert!(!out.path().join("model.safetensors").exists());
    model.save_pretrained(out.path(), &SaveOptions::new()).unwrap();
}
