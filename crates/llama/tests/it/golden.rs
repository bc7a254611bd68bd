//! Logits, losses and gradients against transformers, peft and bitsandbytes (testdata/make.py).

use crate::common::*;
use burn::{
    module::Module,
    tensor::{Device, FloatDType, Tensor, activation::log_softmax},
};
use burn_lora_adapter::{Adaptable, AdaptableExt};
use burn_lora_llama::{Llama, Loader, Segments};
use burn_lora_quant::QuantConfig;
use std::path::Path;

const CASES: [&str; 5] = ["lora_qv", "lora_all", "rslora", "dora", "patterns"];

pub fn loader(folder: &Path) -> Loader {
    Llama::from_pretrained(folder).dtype(FloatDType::F32)
}

fn nf4() -> QuantConfig {
    QuantConfig::nf4().double_quant(true)
}

/// The mean of the losses of the target tokens, as transformers computes it.
fn loss(logits: Tensor<3>, labels: &[i32], device: &Device) -> Tensor<1> {
    let [batch, length, vocabulary] = logits.dims();
    let logits = logits.narrow(1, 0, length - 1).reshape([batch * (length - 1), vocabulary]);
    let targets = labels.chunks(length).flat_map(|row| row[1..].iter().copied());
    let targets: Vec<i32> = targets.collect();
    let count = targets.iter().filter(|target| **target >= 0).count() as f32;
    let weights = targets.iter().map(|target| if *target >= 0 { 1.0 / count } else { 0.0 });
    let weights = float(weights.collect(), [targets.len(), 1], device);
    let rows = targets.len();
    let targets = int(targets.into_iter().map(|target| target.max(0)).collect(), [rows, 1], device);
    (log_softmax(logits, 1).gather(1, targets) * weights).sum().neg()
}

/// Runs the batch of a golden model and compares logits and loss.
pub fn check(
    model: &Llama,
    base: &Path,
    expected: &Path,
    device: &Device,
    what: &str,
) -> Tensor<1> {
    let (tokens, segments, labels) = batch_of(&base.join("io.safetensors"), device);
    let io = tensors(expected);
    let logits = model.forward(tokens, &segments);
    let found = difference(&vec(logits.clone()), &io["logits"].1);
    assert!(found < 1e-4, "{what}: logits differ by {found}");
    let loss = loss(logits, &labels, device);
    let found = difference(&vec(loss.clone()), &io["loss"].1);
    assert!(found < 1e-5, "{what}: the loss differs by {found}");
    loss
}

/// A CPU names the token; a GPU, which would have to wait for it, gives no number.
#[test]
fn a_token_that_is_not_in_the_vocabulary() {
    let device = device();
    let model = loader(&golden("gqa")).load(&device).unwrap();
    let vocabulary = model.config.vocab_size as i32;
    for unknown in [vocabulary, -1, i32::MAX] {
        let tokens = int(vec![1, 2, 3, 4, unknown, 5], [2, 3], &device);
        let run = || vec(model.forward(tokens, &Segments::whole(2, 3)));
        if std::env::var_os("BURN_LORA_GPU").is_none() {
            panics(&format!("token {unknown} is not in a vocabulary of {vocabulary}"), run);
            continue;
        }
        let nan: Vec<bool> = run().chunks(vocabulary as usize).map(|row| row[0].is_nan()).collect();
        // Attention may give no number to what comes before it in its own row, too: 0 times NaN.
        assert_eq!(nan[..3], [false; 3], "{unknown}");
        assert_eq!(nan[4..], [true; 2], "{unknown}");
    }
}

#[test]
fn base_models_agree() {
    let device = device();
    for variant in VARIANTS {
        for folder in [golden(variant), golden(variant).join("sharded")] {
            let model = loader(&folder).load(&device).unwrap();
            let what = folder.display().to_string();
            check(
                &model,
                &golden(variant),
                &golden(variant).join("io.safetensors"),
                &device,
                &what,
            );
        }
    }
}

#[test]
fn quantized_models_agree() {
    let device = device();
    for variant in VARIANTS {
        let expected = golden(variant).join("qlora/base_io.safetensors");
        let theirs = loader(&golden(variant).join("bnb4bit")).load(&device).unwrap();
        check(
            &theirs,
            &golden(variant),
            &expected,
            &device,
            &format!("{variant}, by bitsandbytes"),
        );
        assert!(
            theirs.model.layers[0]
                .mlp
                .as_ref()
                .unwrap()
                .up_proj
                .as_ref()
                .unwrap()
                .base
                .weight
                .dense()
                .is_none()
        );
        // Quantized here: the same codes, but for scales that bitsandbytes' CPU library looks up in
        // a table (docs/NUMERICS.md), which are one code off.
        let ours = loader(&golden(variant)).quantize(nf4()).load(&device).unwrap();
        let (mut differ, mut all) = (0, 0);
        for ((path, ours), (_, theirs)) in ours.layers().into_iter().zip(theirs.layers()) {
            let (Some(ours), Some(theirs)) = (ours.packed(), theirs.packed()) else { continue };
            let (ours, theirs) = (ours.to_packed().unwrap(), theirs.to_packed().unwrap());
            assert_eq!(ours.codes, theirs.codes, "{variant}: {path}");
            let (ours, theirs): (&[u8], &[u8]) =
                (bytemuck::cast_slice(&ours.scales), bytemuck::cast_slice(&theirs.scales));
            for (ours, theirs) in ours.iter().zip(theirs).filter(|(a, b)| a != b) {
                assert_eq!(ours.abs_diff(*theirs), 1, "{variant}: {path}");
                differ += 1;
            }
            all += ours.len();
        }
        assert!(differ * 100 < all, "{variant}: {differ} of {all} scales differ");
        let (tokens, segments, _) = batch(variant, &device);
        let found =
            difference(&vec(ours.forward(tokens, &segments)), &tensors(&expected)["logits"].1);
        let limit = if differ == 0 { 1e-4 } else { 5e-3 };
        assert!(found < limit, "{variant}, quantized here: logits differ by {found}");
    }
}

/// Logits, loss and the gradient of every tensor of an adapter.
fn check_adapter(mut model: Llama, base: &Path, case: &str, device: &Device) {
    let folder = base.join(case);
    model.load_adapter("default", &folder).unwrap();
    let model = model.train();
    let what = folder.display().to_string();
    let io = folder.join("io.safetensors");
    let grads = check(&model, base, &io, device, &what).backward();
    let io = tensors(&io);
    let mut compared = 0;
    for (path, layer) in model.layers() {
        let Some(lora) = layer.adapters().lora("default") else { continue };
        let prefix = format!("grad.base_model.model.{path}");
        let mut compare = |name: &str, grad: Vec<f32>| {
            let name = format!("{prefix}.{name}");
            let found = relative(&grad, &io[&name].1);
            assert!(found < 1e-4, "{what}: {name} differs by {found}");
            compared += 1;
        };
        compare("lora_A.weight", vec(lora.lora_a.val().grad(&grads).unwrap()));
        compare("lora_B.weight", vec(lora.lora_b.val().grad(&grads).unwrap()));
        if let Some(magnitude) = &lora.magnitude {
            compare("lora_magnitude_vector", vec(magnitude.val().grad(&grads).unwrap()));
        }
    }
    let expected = io.keys().filter(|name| name.starts_with("grad.")).count();
    assert!(compared > 0 && compared == expected, "{what}: {compared} of {expected} gradients");
}

#[test]
fn adapters_agree_gqa() {
    let device = device();
    for case in CASES {
        let model = loader(&golden("gqa")).load(&device).unwrap();
        check_adapter(model, &golden("gqa"), case, &device);
    }
}

#[test]
fn adapters_agree_llama3() {
    let device = device();
    for case in CASES {
        let model = loader(&golden("llama3")).load(&device).unwrap();
        check_adapter(model, &golden("llama3"), case, &device);
    }
}

#[test]
fn qlora_agrees() {
    let device = device();
    for variant in VARIANTS {
        let model = loader(&golden(variant).join("bnb4bit")).load(&device).unwrap();
        check_adapter(model, &golden(variant), "qlora", &device);
    }
}

/// Checkpoints of 8 bits as they are stored: bitsandbytes' LLM.int8, FP8 in blocks as DeepSeek has it and by
/// row as compressed-tensors does. The reference computes with the decoded weights.
#[test]
fn eight_bits_agree() {
    let device = device();
    for name in ["int8", "fp8", "channel"] {
        let folder = Path::new("../../testdata/eight_bit").join(name);
        let model = loader(&folder).load(&device).unwrap();
        let weight =
            &model.model.layers[0].mlp.as_ref().unwrap().up_proj.as_ref().unwrap().base.weight;
        assert!(model.config.quantized && weight.dense().is_none());
        let format = model.config.stored_format().unwrap();
        assert_eq!(format.bytes(weight.shape()), weight.bytes(), "{name}");
        check(&model, &folder, &folder.join("io.safetensors"), &device, name);
        check_adapter(model, &folder, "lora", &device);
    }
}
