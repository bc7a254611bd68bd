//! Which adapters take part: selected for good, brought by a batch, one for each row.

use crate::common::*;
use burn::{
    module::{Module, Param},
    nn::LinearConfig,
    tensor::{Device, Distribution, Gradients, Int, Tensor},
};
use burn_lora_adapter::{
    Adaptable, AdaptableExt, AdaptedLayer, AdaptedLinear, BASE, Init, LoraConfig, PackedMerge,
    Selection,
};
use burn_lora_quant::QuantConfig;
use std::collections::BTreeMap;

fn two_adapters(device: &Device) -> Tiny {
    let mut model = Tiny::load("gqa", device);
    let lora = LoraConfig::new(4, 12).targets(["q_proj", "up_proj"]).init(Init::Random);
    model.add_adapter("a", &lora).unwrap();
    model.add_adapter("b", &lora.targets(["q_proj"]).rslora(true).seed(9)).unwrap();
    model
}

#[test]
fn adapters_are_switched_added_and_deleted() {
    let device = device();
    let mut model = two_adapters(&device);
    let run = |model: &Tiny| model.forward(tokens(&device));
    let base = run(&Tiny::load("gqa", &device));
    let a = run(&model);
    model.select(Selection::adapters(["b"])).unwrap();
    let b = run(&model);
    model.select(Selection::adapters(["a", "b"])).unwrap();
    let both = run(&model);
    for pair in [[&base, &a], [&base, &b], [&a, &b], [&a, &both], [&b, &both]] {
        assert!(max_difference(pair[0].clone(), pair[1].clone()) > 1e-3);
    }
    // The updates of one layer add up.
    let x = Tensor::<2>::ones([1, 64], &device);
    let mut with = |names: &[&str]| {
        let selection = Selection::adapters(names);
        let layer = |m: &Tiny| m.model.layers[0].self_attn.q_proj.forward(x.clone());
        model.with_selection(selection, layer).unwrap()
    };
    let sum = with(&["a"]) + with(&["b"]) - with(&[]);
    assert!(max_difference(with(&["a", "b"]), sum) < 1e-5);
    assert_eq!(max_difference(run(&model), both), 0.0, "the scope is over");

    assert_eq!(max_difference(model.with_selection(Selection::base(), run).unwrap(), base), 0.0);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        model.with_selection(Selection::base(), |_| panic!("inside")).ok();
    }));
    assert!(panicked.is_err());
    model.delete_adapter("a").unwrap();
    assert_eq!(max_difference(run(&model), b), 0.0, "b is what is left of the selection");
    model.add_adapter("c", &LoraConfig::new(2, 6).targets(["q_proj"])).unwrap();
    model.select(Selection::rows(["b", "c", BASE])).unwrap();
    model.delete_adapter("c").unwrap();
    let selection = model.lm_head.adapters().selection().clone();
    assert_eq!(selection, Selection::rows(["b", BASE, BASE]), "rows stay rows");
    let error = model.select(Selection::adapters(["a"])).unwrap_err().to_string();
    assert!(error.contains("`a`") && error.contains("has b"), "{error}");
}

#[test]
fn only_selected_adapters_are_trained() {
    let device = device();
    let mut model = two_adapters(&device);
    let one = 3 * (4 * (64 + 64) + 4 * (64 + 160));
    assert_eq!(model.summary().trainable, one);
    model.select(Selection::adapters(["b"])).unwrap();
    assert_eq!(model.summary().trainable, 3 * 4 * (64 + 64));
    model.select(Selection::base()).unwrap();
    assert_eq!(model.summary().trainable, 0);
}

/// Each row of a batch with its own adapter is what each adapter alone makes of the row.
#[test]
fn rows_have_their_own_adapters() {
    let device = device();
    for packed in [false, true] {
        let mut model = two_adapters(&device);
        let dora = LoraConfig::new(2, 6).targets(["v_proj"]).dora(true).init(Init::Random);
        let dora = dora.modules_to_save(["lm_head"]);
        model.add_adapter("c", &dora).unwrap();
        if packed {
            model.quantize_base(&QuantConfig::nf4()).unwrap();
        }
        train_copies(&mut model, "c");
        for (_, layer) in model.layers_mut() {
            if let Some(lora) = layer.adapters_mut().lora_mut("c") {
                lora.lora_b = lora.lora_b.clone().map(|b| b * 3.0);
            }
        }
        let tokens: Tensor<2, Int> = Tensor::cat(vec![tokens(&device), tokens(&device)], 0);
        let names = ["b", BASE, "a", "c", "b", "a"];
        let mixed =
            model.with_selection(Selection::rows(names), |m| m.forward(tokens.clone())).unwrap();
        for (row, name) in names.into_iter().enumerate() {
            let alone = if name == BASE { Selection::base() } else { Selection::adapters([name]) };
            let tokens = tokens.clone().narrow(0, row, 1);
            let alone = model.with_selection(alone, |m| m.forward(tokens)).unwrap();
            let worst = max_difference(mixed.clone().narrow(0, row, 1), alone);
            assert!(worst < 1e-4, "row {row}, {name}, packed {packed}: {worst}");
        }
        let error = model.select(Selection::rows(["a", "x"])).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
        assert!(model.select(Selection::adapters([BASE])).is_err());
    }
}

/// A batch brings its adapters with it, and the model stays as it is: also with gradients.
#[test]
fn a_batch_brings_its_adapters() {
    let device = device();
    let x = Tensor::<3>::random([4, 5, 64], Distribution::Normal(0.0, 1.0), &device);
    for (packed, alpha) in [(true, 8.0), (false, 3.0)] {
        let linear = AdaptedLinear::from(LinearConfig::new(64, 32).init(&device));
        let linear = if packed { linear.quantize(&QuantConfig::nf4()).unwrap() } else { linear };
        let mut model = One { linear };
        for (name, rank, alpha) in [("a", 4, 8.0), ("b", 2, alpha / 2.0)] {
            let lora = LoraConfig::new(rank, alpha).targets(["linear"]).init(Init::Random);
            model.add_adapter(name, &lora).unwrap();
        }
        model.select(Selection::adapters(["a", "b"])).unwrap();
        let before = model.linear.adapters().selection().clone();
        let names = ["b", BASE, "a", "b"];
        let mixed = model.activate(Selection::rows(names)).unwrap();
        let model = model.train();
        let weights = |grads: &Gradients, name: &str| {
            let lora = model.linear.adapters().lora(name).unwrap();
            [&lora.lora_a, &lora.lora_b].map(|param| param.val().grad(grads).unwrap())
        };
        let y = model.linear.forward_with(x.clone().autodiff(), Some(&mixed));
        let grads = (y.clone() * y.clone()).sum().backward();
        let mut sums: BTreeMap<&str, [Tensor<2>; 2]> = BTreeMap::new();
        for (row, name) in names.into_iter().enumerate() {
            let one = if name == BASE { Selection::base() } else { Selection::adapters([name]) };
            let one = model.activate(one).unwrap();
            let x = x.clone().narrow(0, row, 1).autodiff();
            let alone = model.linear.forward_with(x, Some(&one));
            let found = y.clone().inner().narrow(0, row, 1);
            assert!(max_difference(found, alone.clone().inner()) < 1e-5, "row {row}, {packed}");
            if name != BASE {
                let grads = (alone.clone() * alone).sum().backward();
                let [a, b] = weights(&grads, name);
                let sum = match sums.remove(name) {
                    Some([a0, b0]) => [a + a0, b + b0],
                    None => [a, b],
                };
                sums.insert(name, sum);
            }
        }
        for (name, sum) in sums {
            for (found, expected) in weights(&grads, name).into_iter().zip(sum) {
                let size = expected.clone().abs().max().into_scalar::<f32>();
                assert!(max_difference(found, expected) < 1e-5 * size, "{name} {packed}");
            }
        }
        assert_eq!(*model.linear.adapters().selection(), before);
        let error = model.activate(Selection::rows(["x"])).unwrap_err().to_string();
        assert!(error.contains("`x`"), "{error}");
    }
}

/// What overflows in the update of one row is that row's alone.
#[test]
fn an_update_that_overflows_spoils_its_own_row_alone() {
    let device = device();
    let mut model = One { linear: LinearConfig::new(16, 16).init(&device).into() };
    let lora = LoraConfig::new(2, 4).targets(["linear"]).init(Init::Random);
    for name in ["a", "b"] {
        model.add_adapter(name, &lora).unwrap();
    }
    let large = model.linear.adapters_mut().lora_mut("a").unwrap();
    large.lora_a = large.lora_a.clone().map(|a| a * 0.0 + 3e38);
    let mixed = model.activate(Selection::rows(["a", "b", BASE])).unwrap();
    let y = model.linear.forward_with(Tensor::<2>::ones([3, 16], &device), Some(&mixed));
    let y: Vec<f32> = y.into_data().try_into_vec().unwrap();
    assert!(!y[0].is_finite() && y[16..].iter().all(|value| value.is_finite()), "{y:?}");
}

/// The stacked updates of a batch are those of the layer as it is now, however it was changed.
#[test]
fn a_batch_sees_each_change_of_the_layer() {
    let device = device();
    let x = Tensor::<3>::random([3, 2, 16], Distribution::Normal(0.0, 1.0), &device);
    let mut model = One { linear: LinearConfig::new(16, 16).init(&device).into() };
    for (name, alpha) in [("a", 4.0), ("b", 6.0)] {
        let lora = LoraConfig::new(2, alpha).targets(["linear"]).init(Init::Random);
        model.add_adapter(name, &lora).unwrap();
    }
    let names = ["b", BASE, "a"];
    let mixed = model.activate(Selection::rows(names)).unwrap();
    let check = |model: &One, what: &str| {
        for _ in 0..2 {
            let y = model.linear.forward_with(x.clone(), Some(&mixed));
            for (row, name) in names.into_iter().enumerate() {
                let of = if name == BASE { Selection::base() } else { Selection::adapters([name]) };
                let of = model.activate(of).unwrap();
                let alone = model.linear.forward_with(x.clone().narrow(0, row, 1), Some(&of));
                let worst = max_difference(y.clone().narrow(0, row, 1), alone);
                assert!(worst < 1e-5, "{what}, row {row}: {worst}");
            }
        }
    };
    check(&model, "new");
    struct Twice;
    impl burn::module::ModuleMapper for Twice {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value * 2.0)
        }
    }
    let before = model.clone();
    let mut model = model.map(&mut Twice);
    check(&model, "mapped");
    model.linear.adapters_mut().lora_mut("a").unwrap().set_scaling(0.5);
    check(&model, "scaled");
    let lora = model.linear.adapters_mut().lora_mut("b").unwrap();
    lora.lora_b = lora.lora_b.clone().map(|b| b * -3.0);
    check(&model, "a parameter of its own");
    let mut model = model.load_record(before.clone().into_record());
    check(&model, "loaded");
    model.merge(PackedMerge::Requantize).unwrap();
    let y = model.linear.forward_with(x.clone(), Some(&mixed));
    let merged = model.linear.forward(x.clone());
    assert!(max_difference(y, merged) < 1e-5, "merged");
    model.unmerge();
    check(&model, "unmerged");
    check(&model.train().valid(), "trained");
    check(&before, "as before");
}

#[test]
#[should_panic(expected = "a batch of 3")]
fn rows_have_to_fit_the_batch() {
    let device = device();
    let mut model = two_adapters(&device);
    model.select(Selection::rows(["a", "b"])).unwrap();
    model.forward(tokens(&device));
}
