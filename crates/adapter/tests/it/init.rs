//! Each initialisation against its definition.

use crate::common::*;
use burn::tensor::{Distribution, Tensor};
use burn_lora_adapter::{Adaptable, AdaptableExt, Init, InputStats, LoraConfig};
use burn_lora_quant::QuantConfig;
use std::collections::BTreeMap;

const Q: &str = "model.layers.0.self_attn.q_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

fn start(lora: LoraConfig) -> Tiny {
    let mut model = Tiny::load("gqa", &device());
    model.add_adapter("default", &lora).unwrap();
    model
}

fn lora() -> LoraConfig {
    LoraConfig::new(4, 10).targets(["q_proj", "down_proj"])
}

fn factors(model: &Tiny, path: &str) -> [Vec<f32>; 2] {
    let lora = layer(model, path).adapters().lora("default").unwrap();
    [vec(lora.lora_a.val()), vec(lora.lora_b.val())]
}

fn moments(values: &[f32]) -> (f32, f32, f32) {
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let square = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / n;
    (mean, square.sqrt(), values.iter().fold(0.0, |max, v| v.abs().max(max)))
}

#[test]
fn random_starts() {
    let [a, b] = factors(&start(lora().targets(["down_proj"])), DOWN);
    let bound = 1.0 / 160f32.sqrt();
    let (mean, std, max) = moments(&a);
    assert!(mean.abs() < 0.005 && max <= bound && max > 0.97 * bound);
    assert!((std - bound / 3f32.sqrt()).abs() < 0.003, "uniform: {std}");
    assert!(b.iter().all(|b| *b == 0.0));

    let [a, b] = factors(&start(lora().init(Init::Gaussian)), DOWN);
    let (mean, std, max) = moments(&a);
    assert!(mean.abs() < 0.03 && (std - 0.25).abs() < 0.02 && max > 0.6, "{mean} {std} {max}");
    assert!(b.iter().all(|b| *b == 0.0));

    let [_, b] = factors(&start(lora().init(Init::Random)), DOWN);
    let (_, std, max) = moments(&b);
    assert!(max <= 0.5 && (std - 0.5 / 3f32.sqrt()).abs() < 0.03);

    let embedding = start(lora().targets(["embed_tokens"]));
    let [a, b] = factors(&embedding, "model.embed_tokens");
    assert!(a.iter().all(|a| *a == 0.0));
    assert!((moments(&b).1 - 1.0).abs() < 0.15);
}

/// The same seed and path give the same values, whatever else is adapted.
#[test]
fn seeds() {
    let a = |lora: LoraConfig, path| factors(&start(lora), path)[0].clone();
    let base = a(lora(), Q);
    assert_eq!(base, a(lora().targets(["q_proj"]), Q));
    assert_ne!(base, a(lora().seed(1), Q));
    assert_ne!(base, a(lora(), "model.layers.1.self_attn.q_proj"));
}

#[test]
fn orthogonal_factors_have_no_product() {
    let model = start(lora().init(Init::Orthogonal));
    for path in [Q, DOWN] {
        let lora = layer(&model, path).adapters().lora("default").unwrap();
        let [a, b] = factors(&model, path);
        assert!(moments(&a).1 > 0.01 && moments(&b).1 > 0.01);
        assert!(moments(&vec(lora.delta_weight())).2 < 1e-6);
    }
    let error = lora().init(Init::Orthogonal).rank_pattern([("q_proj", 3)]).validate();
    assert!(error.unwrap_err().to_string().contains("even"));
}

/// base + scaling·B·A is the weight as it was, and B·A is what the definition says.
#[test]
fn residual_starts() {
    let original = Tiny::load("gqa", &device());
    for init in [Init::Pissa, Init::PissaNiter(8), Init::Olora] {
        for rslora in [false, true] {
            let model = start(lora().init(init.clone()).rslora(rslora));
            for path in [Q, DOWN] {
                let (was, now) = (layer(&original, path).weight(), layer(&model, path));
                let lora = now.adapters().lora("default").unwrap();
                let update = lora.delta_weight();
                let sum = now.weight() + update.clone();
                let worst = max_difference(sum, was.clone());
                assert!(worst < 1e-6, "{init:?} {path}: {worst}");
                assert!(max_difference(now.weight(), was.clone()) > 1e-2, "the base gave it up");
                if init == Init::Olora {
                    // B has orthogonal columns; what is left of W is orthogonal to them.
                    let b = lora.lora_b.val();
                    let gram = matmul(b.clone().transpose(), b.clone());
                    let eye = Tensor::eye(4, &device());
                    assert!(max_difference(gram, eye) < 1e-5);
                } else {
                    // The error of the best approximation of rank 4, from the weight's spectrum.
                    let rest = vec(now.weight());
                    let rest: f64 = rest.iter().map(|v| f64::from(*v).powi(2)).sum();
                    let best = best_error(&vec(was.clone()), was.dims(), 4);
                    let slack = if init == Init::Pissa { 1.0001 } else { 1.01 };
                    assert!(rest <= best * slack, "{init:?} {path}: {rest} {best}");
                }
            }
        }
    }
}

/// The sum of the squares of all but the first `rank` singular values.
fn best_error(values: &[f32], [rows, columns]: [usize; 2], rank: usize) -> f64 {
    let matrix = faer::Mat::from_fn(rows, columns, |i, j| f64::from(values[i * columns + j]));
    let singular = matrix.singular_values().unwrap();
    singular.iter().skip(rank).map(|s| s * s).sum()
}

/// On a packed base PiSSA's residual is packed again.
#[test]
fn pissa_on_a_packed_base() {
    let mut model = Tiny::load("gqa", &device());
    model.quantize_base(&QuantConfig::nf4()).unwrap();
    let was = layer(&model, Q).weight();
    model.add_adapter("default", &lora().init(Init::Pissa)).unwrap();
    let now = layer(&model, Q);
    assert!(now.packed().is_some());
    let sum = now.weight() + now.adapters().lora("default").unwrap().delta_weight();
    let error = moments(&vec(sum - was)).1;
    assert!(error > 1e-4 && error < 0.01, "the error of packing the rest: {error}");
}

/// The error of base + scaling·B·A falls with each round, and is below that of quantizing alone.
#[test]
fn loftq_comes_closer_with_each_round() {
    let original = Tiny::load("gqa", &device());
    let config = QuantConfig::nf4();
    for path in [Q, DOWN] {
        let was = layer(&original, path).weight();
        let packed = burn_lora_quant::PackedWeight::quantize(was.clone(), &config).unwrap();
        let square = |error: Tensor<2>| error.powf_scalar(2.0).mean().into_scalar::<f32>();
        let mut last = square(packed.dequantize(burn::tensor::FloatDType::F32) - was.clone());
        for iterations in 1..=4 {
            let model = start(lora().init(Init::Loftq { iterations, config }));
            let now = layer(&model, path);
            assert!(now.packed().is_some());
            let lora = now.adapters().lora("default").unwrap();
            let error = square(now.weight() + lora.delta_weight() - was.clone());
            assert!(error < last, "{path}, round {iterations}: {error} after {last}");
            last = error;
        }
    }
    let mut packed = Tiny::load("gqa", &device());
    packed.quantize_base(&config).unwrap();
    let error = packed.add_adapter("default", &lora().init(Init::Loftq { iterations: 1, config }));
    assert!(error.unwrap_err().to_string().contains("load the base dense"));
}

/// EVA: A holds the directions of the inputs, B is zero, and ranks go to where they explain most.
#[test]
fn eva_finds_the_directions_of_the_inputs() {
    let device = device();
    let noise =
        |rows, width| Tensor::<2>::random([rows, width], Distribution::Normal(0.0, 1.0), &device);
    // Inputs of q_proj lie in 2 directions; those of down_proj in 6 of falling size.
    let (u, v) = (noise(2, 64), noise(6, 160));
    let sizes = Tensor::<1>::from_floats([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], &device);
    let mut inputs = BTreeMap::new();
    for i in 0..3 {
        let mut q = InputStats::new(8);
        let mut down = InputStats::new(8);
        for _ in 0..3 {
            q.update(matmul(noise(50, 2), u.clone()) + 2.0 + noise(50, 64) * 1e-3).unwrap();
            let mixed = noise(50, 6) * sizes.clone().unsqueeze();
            down.update(matmul(mixed, v.clone()) + noise(50, 160) * 1e-3).unwrap();
        }
        let ratios = q.explained_variance_ratio();
        assert!(ratios[0] + ratios[1] > 0.999 && ratios[2] < 1e-4, "{ratios:?}");
        inputs.insert(format!("model.layers.{i}.self_attn.q_proj"), q);
        inputs.insert(format!("model.layers.{i}.mlp.down_proj"), down);
    }
    let mut model = Tiny::load("gqa", &device);
    let eva = lora().init(Init::Eva { rho: 2.0 });
    let error = model.add_adapter("default", &eva).unwrap_err().to_string();
    assert!(error.contains("add_adapter_with_inputs"), "{error}");
    model.add_adapter_with_inputs("default", &eva, &inputs).unwrap();
    let of = |path: &str| layer(&model, path).adapters().lora("default").unwrap();
    assert_eq!((of(Q).rank(), of(DOWN).rank()), (2, 6));
    assert_eq!(of(Q).scaling(), 2.5, "alphas follow");
    // u lies in the space that A's rows span.
    let a = of(Q).lora_a.val();
    let eye = Tensor::eye(2, &device);
    assert!(max_difference(matmul(a.clone(), a.clone().transpose()), eye) < 1e-4);
    let projected = matmul(matmul(u.clone(), a.clone().transpose()), a);
    assert!(max_difference(projected, u) < 1e-2);
    assert!(vec(of(Q).lora_b.val()).iter().all(|b| *b == 0.0));
    // The file says what ranks became.
    let out = folder();
    model.save_adapter("default", &out).unwrap();
    Tiny::load("gqa", &device).load_adapter("default", &out).unwrap();
}

#[test]
fn bad_starts_are_named() {
    let mut model = Tiny::load("gqa", &device());
    let mut error = |lora: LoraConfig| model.add_adapter("x", &lora).unwrap_err().to_string();
    let large = LoraConfig::new(65, 130).targets(["q_proj"]).init(Init::Olora);
    assert!(error(large).contains("at most 64"));
    let embedding = lora().targets(["embed_tokens"]).init(Init::Pissa);
    assert!(error(embedding).contains("model.embed_tokens"));
    let eva = lora().init(Init::Eva { rho: 0.5 });
    assert!(error(eva).contains("rho"));

    // A weight that is not finite: nothing is attached, and layers that were done are as they were.
    let before = layer(&model, "model.layers.0.self_attn.q_proj").weight();
    for (path, layer) in model.layers_mut() {
        if path == "model.layers.1.self_attn.q_proj" {
            layer.set_weight(layer.weight() * f32::NAN);
        }
    }
    let error = model.add_adapter("x", &lora().targets(["q_proj"]).init(Init::Pissa)).unwrap_err();
    assert!(error.to_string().contains("model.layers.1.self_attn.q_proj"), "{error}");
    assert!(model.adapter_names().is_empty());
    let after = layer(&model, "model.layers.0.self_attn.q_proj").weight();
    assert!(max_difference(before, after) < 1e-6);
}
