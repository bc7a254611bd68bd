//! Checkpoints of quantized weights: what is refused.

use crate::weights::{copy, error};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{fs, path::Path};

/// What is wrong with a checkpoint of 8 bits is said by name.
#[test]
fn eight_bit_checkpoints_that_do_not_fit_are_refused() {
    let base = Path::new("../../testdata/eight_bit");
    let path = "model.layers.0.mlp.up_proj";
    for (name, scales) in
        [("int8", "SCB"), ("fp8", "weight_scale_inv"), ("channel", "weight_scale")]
    {
        let scales = format!("{path}.{scales}");
        let change = |change: &dyn Fn(&mut Stored)| {
            let folder = copy(&base.join(name));
            change_tensors(&folder.path().join("model.safetensors"), change);
            error(folder.path())
        };
        let short = change(&|tensors| {
            let (_, shape, bytes, dtype) = tensors.iter_mut().find(|t| t.0 == scales).unwrap();
            shape[0] -= 1;
            let rest: usize = shape.iter().product();
            bytes.truncate(rest * if *dtype == Dtype::BF16 { 2 } else { 4 });
        });
        assert!(short.contains("up_proj"), "{name}: {short}");
        let missing = change(&|tensors| tensors.retain(|tensor| tensor.0 != scales));
        assert!(missing.contains("up_proj"), "{name}: {missing}");
        let surplus = change(&|tensors| {
            let tensor = tensors.iter().find(|t| t.0 == scales).unwrap().clone();
            tensors.push((scales.replace("up_proj", "side_proj"), tensor.1, tensor.2, tensor.3));
        });
        assert!(
            surplus.contains("unexpected") && surplus.contains("side_proj"),
            "{name}: {surplus}"
        );
    }
    for (settings, expected) in [
        (r#"{ "quant_method": "gptq" }"#, "quant_method` is gptq"),
        (
            r#"{ "quant_method": "compressed-tensors", "format": "pack-quantized" }"#,
            "pack-quantized",
        ),
        (r#"{ "quant_method": "bitsandbytes" }"#, "load_in_4bit` is false"),
    ] {
        let folder = copy(&base.join("fp8"));
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["quantization_config"] = serde_json::from_str(settings).unwrap();
        fs::write(&path, config.to_string()).unwrap();
        let error = error(folder.path());
        assert!(error.contains(expected), "{error}");
    }
}

/// The tensors of a file: names, shapes, bytes and dtypes.
type Stored = Vec<(String, Vec<usize>, Vec<u8>, Dtype)>;

/// Rewrites the tensors of a file.
fn change_tensors(path: &Path, change: &dyn Fn(&mut Stored)) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), view.shape().to_vec(), view.data().to_vec(), view.dtype())
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, bytes, dtype)| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}
