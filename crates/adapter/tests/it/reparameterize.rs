//! LoRA on the weights of Burn's own layers, against the layer that the goldens test.

use crate::common::*;
use burn::{
    module::{Module, Param},
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    tensor::{Device, Distribution, Int, Tensor},
};
use burn_lora_adapter::{
    AdaptableExt, AdaptedLayer, AdaptedLinear, Init, LoraConfig, LoraReparameterizer, LoraWeight,
    adaptable,
};
use burn_lora_quant::{EightBitConfig, QuantConfig};

#[derive(Module, Debug)]
struct Plain {
    embedding: Embedding,
    layers: Vec<Linear>,
}

#[derive(Module, Debug)]
struct Adapted {
    layers: Vec<AdaptedLinear>,
}
adaptable!(Adapted { layers });

fn plain(device: &Device) -> Plain {
    let linear = |width, out| LinearConfig::new(width, out).init(device);
    Plain {
        embedding: EmbeddingConfig::new(16, 64).init(device),
        layers: vec![linear(64, 128), linear(128, 64)],
    }
}

fn lora_of(linear: &Linear) -> &LoraWeight {
    linear.weight.reparameterization().unwrap()
}

#[test]
fn it_computes_what_an_adapted_layer_does() {
    let device = device();
    let lora = || LoraConfig::new(4, 10).all_linear().init(Init::Random);
    for (case, config) in [
        ("lora", lora()),
        ("dora", lora().dora(true)),
        ("patterns", lora().rank_pattern([("layers.1", 2)]).alpha_pattern([("layers.0", 3)])),
        ("pissa", lora().init(Init::Pissa)),
        ("kaiming", lora().init(Init::Kaiming)),
    ] {
        for packed in [false, true] {
            let base = plain(&device);
            let layers = base.layers.iter().cloned().map(AdaptedLinear::from).collect();
            let mut adapted = Adapted { layers };
            let mut reparameterizer = LoraReparameterizer::new(&base, &config).unwrap();
            assert_eq!(reparameterizer.report().adapted, ["layers.0", "layers.1"]);
            if packed {
                adapted.quantize_base(&QuantConfig::nf4()).unwrap();
                reparameterizer = reparameterizer.quantize(QuantConfig::nf4());
            }
            let adapted = adapted.with_adapter(&config).unwrap().train();
            let model = base.train().apply_reparameterization(reparameterizer);

            let x = Tensor::<2>::random([5, 64], Distribution::Normal(0.0, 1.0), &device);
            let run = |y: Tensor<2>| {
                let grads = (y.clone() * y.clone()).sum().backward();
                (vec(y), grads)
            };
            let input = || x.clone().autodiff();
            let (found, grads) = run(model.layers[1].forward(model.layers[0].forward(input())));
            let expected = adapted.layers[1].forward(adapted.layers[0].forward(input()));
            let (expected, expected_grads) = run(expected);
            // Burn's own layers multiply in TF32, where a GPU has it.
            let limit = if std::env::var_os("BURN_LORA_GPU").is_some() { 5e-3 } else { 2e-5 };
            let close = |found: &[f32], expected: &[f32], what: &str| {
                let size = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() < limit * size, "{case}, {packed}: {what}");
                }
            };
            close(&found, &expected, "outputs");
            for (ours, theirs) in model.layers.iter().zip(&adapted.layers) {
                let (ours, theirs) =
                    (lora_of(ours).lora(), theirs.adapters().lora("default").unwrap());
                let pairs = [(&ours.lora_a, &theirs.lora_a), (&ours.lora_b, &theirs.lora_b)];
                for (ours, theirs) in pairs {
                    let found = vec(ours.val().grad(&grads).unwrap());
                    close(&found, &vec(theirs.val().grad(&expected_grads).unwrap()), "gradients");
                }
                if let (Some(ours), Some(theirs)) = (&ours.magnitude, &theirs.magnitude) {
                    let found = vec(ours.val().grad(&grads).unwrap());
                    close(&found, &vec(theirs.val().grad(&expected_grads).unwrap()), "magnitudes");
                }
            }
            // Merged, it is a plain model again.
            let merged = model.valid().materialize();
            assert!(merged.layers[0].weight.reparameterization::<LoraWeight>().is_none());
            assert_eq!(merged.layers[0].weight.val().dims(), [64, 128]);
            let y = merged.layers[1].forward(merged.layers[0].forward(x));
            close(&vec(y), &expected, "merged");
        }
    }
}

#[test]
fn records_have_the_quantized_base() {
    let device = device();
    let config = LoraConfig::new(4, 10).targets(["layers.0"]).init(Init::Random);
    let model = || {
        let base = plain(&device);
        let lora = LoraReparameterizer::new(&base, &config).unwrap();
        base.apply_reparameterization(lora.quantize(EightBitConfig::int8()))
    };
    let x = Tensor::<2>::ones([2, 64], &device);
    let (one, other) = (model(), model());
    let y = vec(one.layers[0].forward(x.clone()));
    assert_ne!(y, vec(other.layers[0].forward(x.clone())));
    let loaded = other.load_record(one.into_record());
    assert_eq!(vec(loaded.layers[0].forward(x)), y);
    assert!(lora_of(&loaded.layers[0]).base().dense().is_none());
    // An embedding is meant by its name only, and the rest is frozen.
    let ids = Tensor::<2, Int>::zeros([1, 1], &device);
    assert_eq!(loaded.embedding.forward(ids).dims(), [1, 1, 64]);
    let trained = |param: &Param<Tensor<2>>| param.clone().train().is_require_grad();
    assert!(!trained(&loaded.layers[1].weight) && !trained(&loaded.embedding.weight));
}

#[test]
fn what_a_weight_alone_cannot_do_is_refused() {
    let model = plain(&device());
    let error = |config: &LoraConfig| match LoraReparameterizer::new(&model, config) {
        Ok(_) => panic!("it was taken"),
        Err(error) => error.to_string(),
    };
    let lora = || LoraConfig::new(4, 8).targets(["layers.0"]);
    assert!(error(&lora().dropout(0.1)).contains("lora_dropout"));
    assert!(error(&lora().modules_to_save(["layers.1"])).contains("modules_to_save"));
    assert!(error(&lora().init(Init::Eva { rho: 2.0 })).contains("eva"));
    assert!(error(&LoraConfig::new(4, 8).targets(["layer.0"])).contains("layer.0"));
    let large = LoraConfig::new(65, 8).targets(["layers.0"]).init(Init::Olora);
    assert!(error(&large).contains("rank 65 of a weight [64, 128]: at most 64"));
}
