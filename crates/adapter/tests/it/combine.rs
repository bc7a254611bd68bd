//! One adapter of several.

use crate::common::*;
use burn::tensor::Tensor;
use burn_lora_adapter::{Adaptable, AdaptableExt, AdaptedLinear, Combine, Init, LoraConfig};

const Q: &str = "model.layers.0.self_attn.q_proj";
const UP: &str = "model.layers.0.mlp.up_proj";

fn model() -> Tiny {
    let mut model = Tiny::load("gqa", &device());
    let lora = LoraConfig::new(4, 10).targets(["q_proj", "up_proj"]).init(Init::Random);
    model.add_adapter("a", &lora).unwrap();
    model.add_adapter("b", &lora.clone().targets(["q_proj"]).seed(3).rslora(true)).unwrap();
    model.add_adapter("large", &LoraConfig::new(6, 10).targets(["q_proj"]).seed(4)).unwrap();
    model
}

fn delta(model: &Tiny, path: &str, name: &str) -> Tensor<2> {
    layer(model, path).adapters().lora(name).unwrap().delta_weight()
}

const PAIR: [(&str, f64); 2] = [("a", 0.8), ("b", -0.5)];

#[test]
fn cat_and_svd_are_the_sum() {
    let mut model = model();
    model.combine_adapters("cat", &PAIR, &Combine::cat()).unwrap();
    model.combine_adapters("svd", &PAIR, &Combine::svd().rank(8)).unwrap();
    model.combine_adapters("low", &PAIR, &Combine::svd()).unwrap();
    let sum = delta(&model, Q, "a") * 0.8 - delta(&model, Q, "b") * 0.5;
    for (name, rank, tolerance) in [("cat", 8, 1e-6), ("svd", 8, 1e-5), ("low", 4, 1.0)] {
        let lora = layer(&model, Q).adapters().lora(name).unwrap();
        assert_eq!((lora.rank(), lora.scaling()), (rank, 1.0), "{name}");
        assert!(max_difference(delta(&model, Q, name), sum.clone()) < tolerance, "{name}");
        // Only a has up_proj.
        let up = delta(&model, UP, "a") * 0.8;
        assert!(max_difference(delta(&model, UP, name), up) < tolerance.min(1e-5), "{name}");
    }
    let error =
        |name| (delta(&model, Q, name) - sum.clone()).powf_scalar(2.0).sum().into_scalar::<f32>();
    let all = sum.clone().powf_scalar(2.0).sum().into_scalar::<f32>();
    assert!(error("low") > 1e-6 && error("low") < 0.6 * all);
}

/// A and B each by the root of the weight, a sign to A alone.
#[test]
fn linear_weighs_both_sides() {
    let mut model = model();
    model.combine_adapters("linear", &PAIR, &Combine::linear()).unwrap();
    let of = |name| {
        let lora = layer(&model, Q).adapters().lora(name).unwrap();
        (lora.lora_a.val(), lora.lora_b.val())
    };
    let (wa, wb) = ((0.8f32 * 2.5).sqrt(), (0.5f32 * 5.0).sqrt());
    let (a, b, linear) = (of("a"), of("b"), of("linear"));
    assert!(max_difference(linear.0, a.0 * wa - b.0 * wb) < 1e-6);
    assert!(max_difference(linear.1, a.1 * wa + b.1 * wb) < 1e-6);
}

/// The values of PEFT's `ties` and `magnitude_prune` on the matrices of its own documentation's
/// kind, computed by hand.
#[test]
fn ties_elects_signs() {
    let device = device();
    let mut one = One { linear: AdaptedLinear::dense(Tensor::zeros([1, 4], &device), None) };
    for name in ["a", "b"] {
        one.add_adapter(name, &LoraConfig::new(1, 4).targets(["linear"])).unwrap();
    }
    let values = [("a", [4.0, -3.0, 0.1, 2.0]), ("b", [-5.0, -1.0, 0.2, 1.5])];
    for (name, values) in values {
        for (_, layer) in one.layers_mut() {
            let lora = layer.adapters_mut().lora_mut(name).unwrap();
            let a = Tensor::<1>::from_floats(values, &device).unsqueeze();
            lora.lora_a = lora.lora_a.clone().map(|_| a);
            lora.lora_b = lora.lora_b.clone().map(|b| b.ones_like());
        }
    }
    let mut a = |name: &str, how: Combine| {
        // Weights of 1/4 make sqrt(weight · scaling) 1.
        one.combine_adapters(name, &[("a", 0.25), ("b", 0.25)], &how).unwrap();
        let layers = one.layers();
        vec(layers[0].1.adapters().lora(name).unwrap().lora_a.val())
    };
    // Half of the values: a keeps 4, -3; b keeps -5, 1.5. The sum of the first is negative.
    assert_eq!(a("prune", Combine::magnitude_prune(0.5)), [-1.0, -3.0, 0.0, 1.5]);
    assert_eq!(a("ties", Combine::ties(0.5)), [-5.0, -3.0, 0.0, 1.5]);
    // By number the first is a tie, which counts as positive.
    let frequency = Combine::ties(0.5).majority_by_frequency();
    assert_eq!(a("frequency", frequency), [4.0, -3.0, 0.0, 1.5]);
    assert_eq!(a("all", Combine::ties(1.0)), [-5.0, -2.0, 0.1 / 2.0 + 0.1, 1.75]);
    assert_eq!(a("dare", Combine::dare_linear(1.0)), a("sum", Combine::linear()));
}

/// DARE keeps a part of the values and scales it up, by the seed.
#[test]
fn dare_drops_values_at_random() {
    let mut model = model();
    let dare = Combine::dare_linear(0.5);
    for (name, how) in [("one", dare.clone()), ("same", dare.clone()), ("other", dare.seed(1))] {
        model.combine_adapters(name, &[("a", 1.0)], &how).unwrap();
    }
    let a = |name| vec(layer(&model, UP).adapters().lora(name).unwrap().lora_a.val());
    assert_eq!(a("one"), a("same"));
    assert_ne!(a("one"), a("other"));
    let kept = a("one").iter().filter(|value| **value != 0.0).count() as f32 / (4.0 * 64.0);
    assert!((kept - 0.5).abs() < 0.12, "{kept}");
    let factor = 2.0 * 2.5f32.sqrt();
    let scaled = a("one")
        .iter()
        .zip(a("a"))
        .all(|(new, old)| *new == 0.0 || (new - old * factor).abs() < 1e-6);
    assert!(scaled);
    model.combine_adapters("svd", &PAIR, &Combine::dare_ties(0.7).rank(3)).unwrap();
    assert_eq!(layer(&model, Q).adapters().lora("svd").unwrap().rank(), 3);
}

/// The combination is an adapter like any: it saves, loads and computes the same.
#[test]
fn combinations_are_saved() {
    let mut model = model();
    model.combine_adapters("cat", &PAIR, &Combine::cat()).unwrap();
    let out = folder();
    model.save_adapter("cat", &out).unwrap();
    let mut again = Tiny::load("gqa", &device());
    again.load_adapter("cat", &out).unwrap();
    model.select(burn_lora_adapter::Selection::adapters(["cat"])).unwrap();
    let [x, y] = [&again, &model].map(|model| model.forward(tokens(&device())));
    assert_eq!(max_difference(x, y), 0.0);
}

#[test]
fn what_does_not_go_together_is_said() {
    let mut model = model();
    let dora = LoraConfig::new(2, 6).targets(["q_proj"]).dora(true);
    model.add_adapter("dora", &dora.modules_to_save(["lm_head"])).unwrap();
    let mut error = |names: &[(&str, f64)], how: Combine| {
        model.combine_adapters("new", names, &how).unwrap_err().to_string()
    };
    assert!(error(&[("a", 1.0), ("x", 1.0)], Combine::cat()).contains("`x`"));
    assert!(error(&[("a", 1.0), ("large", 1.0)], Combine::linear()).contains("ranks differ"));
    assert!(error(&[("dora", 1.0)], Combine::cat()).contains("DoRA"));
    assert!(error(&[("a", f64::NAN)], Combine::cat()).contains("NaN"));
    assert!(error(&[("a", 1.0)], Combine::ties(1.5)).contains("density"));
    assert!(error(&[], Combine::cat()).contains("no adapters"));
    assert!(model.combine_adapters("a", &PAIR, &Combine::cat()).is_err());
}
