//! One optimizer step, whatever way its gradients are computed.

use crate::common::*;
use burn::module::Module;
use burn_lora_adapter::{Adaptable, AdaptableExt, Init, LoraConfig};
use burn_lora_llama::{Keep, Llama, LlamaError};
use burn_lora_quant::{QuantConfig, QuantError};
use burn_lora_train::{
    BatchConfig, Dataset, OptimizerConfig, Recompute, TrainConfig, Trainer, data::Sample,
};
use std::collections::BTreeMap;

fn model(dropout: f64) -> Llama {
    let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).dropout(dropout).seed(3);
    let model = loader(&golden("gqa")).load(&device()).unwrap();
    model.with_adapter(&lora).unwrap()
}

/// Eight samples of different lengths, with different parts trained.
fn data() -> Dataset {
    let samples = (0..8u32).map(|number| {
        let length = 5 + (number * 7) % 11;
        let ids = (0..length).map(|at| (number * 31 + at * 17) % 125 + 1).collect();
        let trained = (0..length).map(|at| at > number % 4).collect();
        Sample { ids, loss_mask: trained }
    });
    Dataset::from_samples(samples).unwrap()
}

/// Plain descent: a step at rate 1 is the gradient.
fn config(size: usize, accumulate: usize) -> TrainConfig {
    let batches = BatchConfig { size, shuffle: false, ..BatchConfig::default() };
    let mut config = TrainConfig::new(1.0)
        .optimizer(OptimizerConfig::Sgd { momentum: 0.0 })
        .schedule(burn_lora_train::Schedule::Constant)
        .batches(batches)
        .gradient_accumulation_steps(accumulate)
        .max_steps(1)
        .max_grad_norm(None);
    config.log_steps = 1;
    config
}

/// The loss, and every adapter tensor after a step.
fn after(mut model: Llama, config: TrainConfig) -> (f64, BTreeMap<String, Vec<f32>>) {
    let report = Trainer::new(config).fit(&mut model, &data(), None).unwrap();
    (report.log[0].loss, saved(&model))
}

/// Every adapter tensor, as saved.
fn saved(model: &Llama) -> BTreeMap<String, Vec<f32>> {
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter("default", folder.path()).unwrap();
    let tensors = tensors(&folder.path().join("adapter_model.safetensors"));
    tensors.into_iter().map(|(name, (_, values))| (name, values)).collect()
}

fn same(
    what: &str,
    (loss, found): (f64, BTreeMap<String, Vec<f32>>),
    expected: &(f64, BTreeMap<String, Vec<f32>>),
) {
    assert!((loss - expected.0).abs() < 1e-5, "{what}: loss {loss}, expected {}", expected.0);
    for (name, values) in &expected.1 {
        let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let off = difference(&found[name], values);
        assert!(off < 1e-5 * norm.max(1.0), "{what}: {name} differs by {off}");
    }
}

#[test]
fn micro_batches_make_no_difference() {
    let expected = after(model(0.0), config(8, 1));
    let before = saved(&model(0.0));
    for (name, values) in &expected.1 {
        assert!(difference(&before[name], values) > 1e-4, "{name} has no gradient");
    }
    for (size, accumulate) in [(4, 2), (2, 4), (1, 8), (3, 3)] {
        let found = after(model(0.0), config(size, accumulate));
        same(&format!("{accumulate} micro-batches of {size}"), found, &expected);
    }
    let packed = BatchConfig { packing: Some(32), ..config(8, 1).batches };
    let found = after(model(0.0), config(8, 1).batches(packed));
    same("packed", found, &expected);
}

/// `BURN_LORA_REPEAT` says how often: what goes wrong now and then takes many.
#[test]
fn the_same_step_again_makes_no_difference() {
    let times = std::env::var("BURN_LORA_REPEAT").map_or(2, |times| times.parse().unwrap());
    let expected = after(model(0.0), config(3, 3));
    for number in 0..times {
        same(&format!("time {number}"), after(model(0.0), config(3, 3)), &expected);
    }
}

/// On as many GPUs as `BURN_LORA_GPUS` says.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs BURN_LORA_GPUS"]
fn several_devices_make_no_difference() {
    let count = std::env::var("BURN_LORA_GPUS").expect("BURN_LORA_GPUS is set");
    let count: usize = count.parse().unwrap();
    let expected = after(model(0.0), config(8 / count, count));
    let mut model = model(0.0);
    let devices = (0..count).map(burn::tensor::Device::cuda);
    let trainer = Trainer::new(config(8 / count, 1)).devices(devices);
    let report = trainer.fit(&mut model, &data(), None).unwrap();
    same("several devices", (report.log[0].loss, saved(&model)), &expected);
}

#[test]
fn recomputation_makes_no_difference() {
    let _alone = the_generator();
    for dropout in [0.0, 0.3] {
        let settings = |recompute| {
            let config = config(4, 2).recompute(recompute);
            if dropout > 0.0 { config.neftune(5.0).label_smoothing(0.1) } else { config }
        };
        let expected = after(model(dropout), settings(Recompute::EveryLayer));
        for recompute in [Recompute::Every(2), Recompute::Every(9), Recompute::AllBut(1)] {
            // Without random numbers; with them the stretches draw others.
            if dropout == 0.0 {
                same(&format!("{recompute:?}"), after(model(0.0), settings(recompute)), &expected);
            }
        }
        let kept = settings(Recompute::EveryLayer).offload(true);
        same("offloaded", after(model(dropout), kept), &expected);
        let small = settings(Recompute::EveryLayer).loss_chunk(3);
        same("head in small chunks", after(model(dropout), small), &expected);
        // The last one is smaller. With dropout there are none.
        for recompute in [Recompute::EveryLayer, Recompute::Every(9), Recompute::AllBut(2)] {
            let settings = settings(recompute);
            if dropout == 0.0 || recompute == Recompute::EveryLayer {
                let kept = settings.clone().keep(Keep::Attention);
                same(&format!("{recompute:?}, kept"), after(model(dropout), kept), &expected);
                let some = settings.clone().keep(Keep::Outputs).offload(true).keep_attention_of(1);
                same(&format!("{recompute:?}, outputs"), after(model(dropout), some), &expected);
                let tiled = settings.keep(Keep::Outputs).offload(true).mlp_chunk(7);
                same(&format!("{recompute:?} in tiles"), after(model(dropout), tiled), &expected);
            }
        }
    }
    let none = after(model(0.0), config(4, 2).recompute(Recompute::None));
    same("none", none, &after(model(0.0), config(4, 2)));
}

#[test]
fn dropout_and_noise_are_the_same_when_run_again() {
    let _alone = the_generator();
    // If they were not, the gradient would be of another function: the loss would not fall along it.
    let settings = |recompute| {
        let mut config = config(8, 1).neftune(5.0).recompute(recompute);
        config.learning_rate = 1e-3;
        config
    };
    let a = after(model(0.5), settings(Recompute::EveryLayer));
    let b = after(model(0.5), settings(Recompute::EveryLayer));
    assert_eq!(a, b, "the same seed");
    let mut other = settings(Recompute::EveryLayer);
    other.seed = 1;
    assert_ne!(a.0, after(model(0.5), other).0, "another seed");
}

/// The noise on the embeddings is drawn in the first stretch, before anything else.
#[test]
fn noise_is_the_same_when_layers_are_run_again() {
    let _alone = the_generator();
    let settings = |recompute| config(4, 2).neftune(5.0).recompute(recompute);
    let expected = after(model(0.0), settings(Recompute::None));
    same("every layer", after(model(0.0), settings(Recompute::EveryLayer)), &expected);
    for kept in 0..5 {
        same("all but some", after(model(0.0), settings(Recompute::AllBut(kept))), &expected);
    }
    let silent = after(model(0.0), config(4, 2));
    assert!((silent.0 - expected.0).abs() > 1e-4, "there is no noise: {}", expected.0);
}

/// With products in FP8 a step is the same whatever is run again, and near that without. (Not so with other
/// micro-batches: a sum that differs in its last bit may be rounded to another E4M3.)
#[test]
fn products_in_fp8_make_little_difference() {
    let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).seed(3);
    let load = |fp8| {
        let loader =
            loader(&golden("gqa")).quantize(QuantConfig::nf4().double_quant(true)).fp8(fp8);
        loader.load(&device()).map(|model| model.with_adapter(&lora).unwrap())
    };
    let model = match load(true) {
        Ok(model) => model,
        Err(LlamaError::Quant(QuantError::Fp8 { .. }) | LlamaError::Adapter(_)) => return,
        Err(error) => panic!("{error}"),
    };
    let expected = after(model, config(8, 1));
    let again = |config| after(load(true).unwrap(), config);
    assert_eq!(again(config(8, 1)), expected, "the same bits");
    for recompute in [Recompute::None, Recompute::Every(2), Recompute::AllBut(1)] {
        same(&format!("{recompute:?}"), again(config(8, 1).recompute(recompute)), &expected);
    }
    let plain = after(load(false).unwrap(), config(8, 1));
    let change = (expected.0 / plain.0 - 1.0).abs();
    assert!(change > 0.0 && change < 0.01, "{} and {}", expected.0, plain.0);
}

#[test]
fn what_packed_layers_keep_changes_no_bit() {
    let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).seed(3);
    let load = || {
        let loader = loader(&golden("gqa")).quantize(QuantConfig::nf4().double_quant(true));
        loader.load(&device()).unwrap().with_adapter(&lora).unwrap()
    };
    let settings = || config(4, 2).offload(true);
    let expected = after(load(), settings());
    for keep in [Keep::Outputs, Keep::Attention, Keep::All] {
        assert_eq!(after(load(), settings().keep(keep)), expected, "{keep:?}");
    }
    assert_eq!(after(load(), settings().keep_attention_of(1)), expected);
    for recompute in [Recompute::None, Recompute::AllBut(2), Recompute::Every(2)] {
        assert_eq!(after(load(), settings().recompute(recompute)), expected, "{recompute:?}");
    }
    let here = settings().recompute(Recompute::AllBut(1)).keep(Keep::Attention).offload(false);
    assert_eq!(after(load(), here), expected, "on the device");
}

#[test]
fn layers_that_are_not_adapted_need_no_backward_pass() {
    for layers in [vec![2], vec![0], vec![1]] {
        let lora = LoraConfig::new(4, 12).all_linear().init(Init::Random).layers(layers.clone());
        let load = || loader(&golden("gqa")).load(&device()).unwrap().with_adapter(&lora).unwrap();
        let expected = after(load(), config(8, 1).recompute(Recompute::None));
        same(&format!("{layers:?}"), after(load(), config(8, 1)), &expected);
    }
}

#[test]
fn everything_can_be_trained() {
    let load = || {
        let model = loader(&golden("llama3")).load(&device()).unwrap();
        model.set_require_grad(true)
    };
    let mut model = load();
    let mut config = config(8, 1).recompute(Recompute::EveryLayer);
    config.learning_rate = 0.05;
    config.max_steps = Some(3);
    config.epochs = 3.0;
    let report = Trainer::new(config).fit(&mut model, &small_words(), None).unwrap();
    assert!(report.log[2].loss < report.log[0].loss, "{:?}", report.log);
    let (before, now) = (load(), model);
    for ((path, before), (_, now)) in before.layers().into_iter().zip(now.layers()) {
        let off = (before.weight() - now.weight()).abs().max().into_scalar::<f32>();
        assert!(off > 0.0, "{path} was not trained");
    }
}

/// The vocabulary of the other model is smaller.
fn small_words() -> Dataset {
    let samples = (0..8u32).map(|number| {
        let ids: Vec<u32> = (0..9).map(|at| (number * 31 + at * 17) % 90 + 1).collect();
        Sample { loss_mask: vec![true; ids.len()], ids }
    });
    Dataset::from_samples(samples).unwrap()
}
