//! What products in FP8 cost in quality: losses of a run with them and without.
//!
//! `cargo bench --features cuda --bench fp8 -- cuda MODEL DATA [STEPS [OUTLIERS..]]`
//!
//! MODEL is a folder or a GGUF file with its tokenizer, packed in NF4 with double quantization; DATA any
//! file that a dataset is loaded from, a tenth of which is for validation. Each number of OUTLIERS is a
//! run of its own with a model that has outliers: every 64th channel after each norm is so many times as
//! large, and the weights that read it are as many times smaller, so that the function is the same.

#[path = "support/device.rs"]
mod support;

use burn::tensor::{Device, Tensor, TensorData};
use burn_lora_adapter::{AdaptableExt, AdaptedLinear, FrozenLayer, LoraConfig};
use burn_lora_llama::{Llama, Tokenizer, layers::RmsNorm};
use burn_lora_quant::QuantConfig;
use burn_lora_train::{Dataset, Every, TrainConfig, Trainer};
use support::device;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [name, model, data, rest @ ..] = &arguments[..] else {
        println!("fp8 DEVICE MODEL DATA [STEPS [OUTLIERS..]] (nothing to do)");
        return;
    };
    let numbers: Vec<usize> = rest.iter().map(|a| a.parse().expect("a number")).collect();
    let (steps, outliers) = numbers.split_first().map_or((300, &[1][..]), |(n, rest)| (*n, rest));
    let tokenizer = Tokenizer::from_pretrained(model).expect("the tokenizer loads");
    let data =
        Dataset::from_files([data]).max_length(512).load(&tokenizer).expect("the data loads");
    let (train, validation) = data.split(0.1, 0);
    println!("{name}, {model}: {} samples, {} for validation", train.len(), validation.len());
    for &factor in outliers.iter().chain(outliers.is_empty().then_some(&1)) {
        let [plain, fp8] = [false, true].map(|fp8| {
            let model = load(model, name, factor, fp8);
            let losses = run(model, [&train, &validation], steps);
            println!("outliers {factor}, FP8 {fp8}: {losses:?}");
            losses
        });
        for (what, of) in [("training", 0), ("validation", 1)] {
            let change = 100.0 * (fp8[of] / plain[of] - 1.0);
            println!(
                "outliers {factor}, {what}: {:.4} and {:.4}, {change:+.2} %",
                plain[of], fp8[of]
            );
        }
    }
}

fn load(model: &str, device_name: &str, factor: usize, fp8: bool) -> Llama {
    let (device, dtype) = device(device_name);
    let mut model = Llama::from_pretrained(model).dtype(dtype).load(&device).expect("it loads");
    if factor > 1 {
        add_outliers(&mut model, factor as f32, &device);
    }
    model.quantize_base(&QuantConfig::nf4().double_quant(true)).expect("valid settings");
    if fp8 {
        model.compute_in_fp8().expect("a device with FP8");
    }
    model.with_adapter(&LoraConfig::new(16, 32).all_linear()).expect("it has linear layers")
}

/// Makes every 64th channel between a norm and the projections that read it larger.
fn add_outliers(model: &mut Llama, factor: f32, device: &Device) {
    let scale = |width: usize, factor: f32| {
        let values: Vec<f32> = (0..width).map(|c| if c % 64 == 7 { factor } else { 1.0 }).collect();
        Tensor::<1>::from_data(TensorData::new(values, [width]), device)
    };
    let norm = |norm: &mut RmsNorm| {
        let weight = norm.weight.weight.clone();
        let width = weight.dims()[0];
        norm.weight.weight = weight.map(|w| w.clone() * scale(width, factor).cast(w.dtype()));
    };
    let reader = |layer: Option<&mut AdaptedLinear>| {
        let layer = layer.expect("a Llama's projections");
        let weight = layer.weight();
        let width = weight.dims()[1];
        layer.set_weight(weight * scale(width, 1.0 / factor).unsqueeze());
    };
    for layer in &mut model.model.layers {
        norm(&mut layer.input_layernorm);
        norm(&mut layer.post_attention_layernorm);
        let attention = &mut layer.self_attn;
        let projections = [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj];
        projections.into_iter().for_each(|layer| reader(layer.as_mut()));
        let mlp = layer.mlp.as_mut().expect("a Llama's MLP");
        [&mut mlp.gate_proj, &mut mlp.up_proj].into_iter().for_each(|l| reader(l.as_mut()));
    }
}

/// Returns the mean loss of the last fifty steps, and the validation loss after the last.
fn run(mut model: Llama, [train, validation]: [&Dataset; 2], steps: usize) -> [f64; 2] {
    let mut config = TrainConfig::new(2e-4).batch_size(8);
    config.gradient_accumulation_steps = 1;
    config.epochs = 1000.0;
    config.max_steps = Some(steps);
    config.log_steps = 1;
    config.evaluate = Some(Every::Steps(steps));
    let report = Trainer::new(config).fit(&mut model, train, Some(validation)).expect("it trains");
    let last: Vec<f64> = report.log.iter().rev().take(50).map(|at| at.loss).collect();
    let mean = last.iter().sum::<f64>() / last.len() as f64;
    [mean, report.evaluations.last().expect("one at the end").loss]
}
