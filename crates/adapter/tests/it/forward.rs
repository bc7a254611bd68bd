//! The forward pass and its gradients.

use crate::common::*;
use burn::{
    module::Module,
    nn::LinearConfig,
    tensor::{Device, Distribution, FloatDType, Int, Tensor, activation::gelu},
};
use burn_lora_adapter::{
    Adaptable, AdaptableExt, AdaptedEmbedding, AdaptedLayer, AdaptedLinear, FrozenLayer, Init,
    LoraConfig, Selection, adaptable,
};
use burn_lora_kernels::Gemm;
use burn_lora_quant::QuantConfig;

/// Every kind of update, with alpha ≠ rank; named.
fn variants() -> Vec<(&'static str, LoraConfig)> {
    let lora = || LoraConfig::new(4, 10).all_linear().init(Init::Random);
    vec![
        ("plain", lora()),
        ("rslora", lora().rslora(true)),
        ("dora", lora().dora(true)),
        ("patterns", lora().rank_pattern([("q_proj", 2)]).alpha_pattern([("v_proj", 20)])),
        ("dropout", lora().dropout(0.1)),
        ("dora, dropout", lora().dora(true).dropout(0.1)),
        ("with the head copied", lora().modules_to_save(["lm_head", "norm"])),
        ("with the embedding", lora().targets(["q_proj", "embed_tokens"])),
        ("with the embedding, dora", lora().targets(["q_proj", "embed_tokens"]).dora(true)),
        ("kaiming", lora().init(Init::Kaiming)),
        ("gaussian", lora().init(Init::Gaussian)),
        ("loftq", lora().init(Init::Loftq { iterations: 1, config: QuantConfig::nf4() })),
        ("pissa", lora().init(Init::Pissa)),
        ("olora", lora().init(Init::Olora)),
        ("orthogonal", lora().init(Init::Orthogonal)),
    ]
}

/// axolotl-rs trained v_proj only, because a softmax had no backward; its test asked whether some
/// parameter moved. Here each adapter of each target has to get a gradient, in each variant, on a
/// dense and on a packed base; and nothing else gets one.
#[test]
fn every_adapter_gets_a_gradient() {
    let device = device();
    for packed in [false, true] {
        for (name, lora) in variants() {
            let mut model = Tiny::load("gqa", &device);
            if packed && name != "loftq" {
                model.quantize_base(&QuantConfig::nf4().double_quant(true)).unwrap();
            }
            let model = model.with_adapter(&lora).unwrap().train();
            let grads = model.forward(tokens(&device)).powf_scalar(2.0).mean().backward();
            // B is zero where the start is the base's own output.
            let zero_b = ["kaiming", "gaussian"].contains(&name);
            let mut adapted = 0;
            for (path, layer) in model.layers() {
                let case = format!("{name}, packed {packed}: {path}");
                let norm = |grad: Option<Tensor<2>>| {
                    let grad = vec(grad.unwrap_or_else(|| panic!("{case}: no gradient")));
                    assert!(grad.iter().all(|g| g.is_finite()), "{case}");
                    grad.iter().map(|g| g * g).sum::<f32>()
                };
                if let Some(lora) = layer.adapters().lora("default") {
                    adapted += 1;
                    assert_ne!(lora.alpha(), lora.rank() as f64);
                    let a = norm(lora.lora_a.val().grad(&grads));
                    assert!(zero_b || a > 0.0, "{case}: A");
                    assert!(norm(lora.lora_b.val().grad(&grads)) > 0.0, "{case}: B");
                    if let Some(magnitude) = &lora.magnitude {
                        let grad = magnitude.val().grad(&grads).map(Tensor::unsqueeze);
                        assert!(norm(grad) > 0.0, "{case}: magnitude");
                    }
                }
                if let Some(saved) = layer.adapters().saved("default") {
                    assert!(norm(saved.weight.val().grad(&grads)) > 0.0, "{case}: copy");
                }
            }
            assert!(adapted >= 4, "{name}");
            // The frozen base, whatever is trained beside it.
            for layer in &model.model.layers {
                if let Some(weight) = layer.mlp.up_proj.base.weight.dense() {
                    assert!(weight.val().grad(&grads).is_none(), "{name}");
                }
            }
            assert!(model.model.embed_tokens.weight.val().grad(&grads).is_none());
        }
    }
}

/// Against the definition, `y = W·x + s·B·A·x` or `m/n·(...)`, with the matrices made whole; and the
/// gradients of A and B against those of that.
#[test]
fn outputs_and_gradients_are_those_of_the_definition() {
    let device = device();
    for packed in [false, true] {
        for dora in [false, true] {
            let linear = LinearConfig::new(64, 48).init(&device);
            let mut linear = AdaptedLinear::from(linear);
            if packed {
                linear = linear.quantize(&QuantConfig::nf4()).unwrap();
            }
            let lora = LoraConfig::new(4, 10).targets(["linear"]).init(Init::Random).dora(dora);
            let mut model = One { linear }.with_adapter(&lora).unwrap();
            if dora {
                // A magnitude that is no longer the norm.
                let lora = model.linear.adapters_mut().lora_mut("default").unwrap();
                lora.magnitude = lora.magnitude.take().map(|m| m.map(|m| m * 1.25));
            }
            let model = model.train();
            let x = Tensor::<3>::random([2, 20, 64], Distribution::Normal(0.0, 1.0), &device);
            let weight_of_loss =
                Tensor::<3>::random([2, 20, 48], Distribution::Normal(0.0, 1.0), &device);

            let x1 = x.clone().autodiff().require_grad();
            let y = model.linear.forward(x1.clone());
            let grads = (y.clone() * weight_of_loss.clone()).sum().backward();

            let lora = model.linear.adapters().lora("default").unwrap();
            let leaf = |tensor: Tensor<2>| tensor.inner().autodiff().require_grad();
            let (a, b) = (leaf(lora.lora_a.val()), leaf(lora.lora_b.val()));
            let x2 = x.autodiff().require_grad();
            let w = model.linear.weight().autodiff() + matmul(b.clone(), a.clone()) * (10.0 / 4.0);
            let w = match &lora.magnitude {
                None => w,
                Some(magnitude) => {
                    let norm = w.clone().powf_scalar(2.0).sum_dim(1).sqrt().detach();
                    w * (magnitude.val().inner().autodiff().unsqueeze_dim(1) / norm)
                }
            };
            let bias = model.linear.bias().unwrap().val().inner().autodiff();
            let product = Gemm::new().trans_rhs().run(x2.clone(), w.unsqueeze());
            let expected = product + bias.unsqueeze();
            let case = format!("packed {packed}, dora {dora}");
            let worst = max_difference(y, expected.clone());
            assert!(worst < 2e-5, "{case}: {worst}");
            let wanted = (expected * weight_of_loss).sum().backward();
            for (what, found, wanted) in [
                ("A", lora.lora_a.val().grad(&grads), a.grad(&wanted)),
                ("B", lora.lora_b.val().grad(&grads), b.grad(&wanted)),
            ] {
                let worst = max_difference(found.unwrap(), wanted.unwrap());
                assert!(worst < 2e-4, "{case} {what}: {worst}");
            }
            let worst = max_difference(x1.grad(&grads).unwrap(), x2.grad(&wanted).unwrap());
            assert!(worst < 2e-5, "{case} x: {worst}");
        }
    }
}

/// candle-lora scales the base too, which alpha = rank hides.
#[test]
fn scaling_leaves_the_base_alone() {
    let device = device();
    let x = Tensor::<2>::ones([3, 64], &device);
    let mut model = Tiny::load("gqa", &device);
    let layer = |model: &Tiny| model.model.layers[0].self_attn.q_proj.forward(x.clone());
    let base = layer(&model);
    model.add_adapter("default", &LoraConfig::new(4, 12).targets(["q_proj"])).unwrap();
    // B is zero: exactly the base, whatever the scale.
    assert_eq!(max_difference(layer(&model), base), 0.0);
}

#[test]
fn no_adapter_is_exactly_the_base() {
    let device = device();
    let x = Tensor::<2>::random([5, 64], Distribution::Default, &device);
    let dense = Tensor::<2>::random([32, 64], Distribution::Default, &device);
    let packed =
        burn_lora_quant::PackedWeight::quantize(dense.clone(), &QuantConfig::nf4()).unwrap();
    let expected = packed.matmul(x.clone());
    let layer = AdaptedLinear::packed(packed, None);
    assert_eq!(max_difference(layer.forward(x.clone()), expected), 0.0);
    let layer = AdaptedLinear::dense(dense, None);
    let one = layer.forward(x.clone().narrow(0, 0, 1).squeeze_dim::<1>(0));
    assert!(max_difference(one.unsqueeze::<2>(), layer.forward(x).narrow(0, 0, 1)) < 1e-5);
}

#[test]
fn compute_is_in_the_dtype_of_the_input() {
    let device = device();
    if !device.supports_dtype(burn::tensor::DType::F16) {
        return;
    }
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 12).targets(["q_proj"]).init(Init::Random);
    model.add_adapter("default", &lora).unwrap();
    let layer = &model.model.layers[0].self_attn.q_proj;
    let x = Tensor::<2>::random([3, 64], Distribution::Default, &device);
    let half = layer.forward(x.clone().cast(FloatDType::F16));
    assert_eq!(half.dtype(), burn::tensor::DType::F16);
    let worst = max_difference(half.cast(FloatDType::F32), layer.forward(x));
    assert!(worst > 0.0 && worst < 1e-2, "{worst}");
    let lora = layer.adapters().lora("default").unwrap();
    assert_eq!(lora.lora_a.val().dtype(), burn::tensor::DType::F32);
}

/// Dropout: on in training only; the mean of the update stays.
#[test]
fn dropout_is_for_training() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 12).targets(["q_proj"]).init(Init::Random).dropout(0.5);
    model.add_adapter("default", &lora).unwrap();
    let x = Tensor::<2>::ones([8000, 64], &device);
    let run = |model: &Tiny| model.model.layers[0].self_attn.q_proj.forward(x.clone());
    let expected = run(&model);
    assert_eq!(max_difference(run(&model), expected.clone()), 0.0);
    let training = model.clone().train();
    let dropped = run(&training);
    assert!(max_difference(dropped.clone(), expected.clone()) > 1e-3);
    let mean = max_difference(dropped.mean_dim(0), expected.clone().mean_dim(0));
    // A standard deviation of the mean is about 0.02.
    assert!(mean < 0.1, "{mean}");
    assert_eq!(max_difference(run(&training.valid()), expected), 0.0);
}

/// A model that is no language model: a block of a vision transformer, with Burn's own layers
/// between the adapted ones.
#[test]
fn a_vision_block() {
    use burn::nn::{LayerNorm, LayerNormConfig};
    #[derive(Module, Debug)]
    struct Block {
        norm: LayerNorm,
        qkv: AdaptedLinear,
        proj: AdaptedLinear,
        fc: Vec<AdaptedLinear>,
        gate: Option<AdaptedLinear>,
    }
    adaptable!(Block { qkv, proj as "attn.proj", fc as "mlp", gate });
    let device = device();
    let linear = |d_in, d_out| LinearConfig::new(d_in, d_out).init(&device).into();
    let block = Block {
        norm: LayerNormConfig::new(32).init(&device),
        qkv: linear(32, 96),
        proj: linear(32, 32),
        fc: vec![linear(32, 64), linear(64, 32)],
        gate: None,
    };
    let paths: Vec<_> = block.layers().into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["qkv", "attn.proj", "mlp.0", "mlp.1"]);
    let lora = LoraConfig::new(2, 6).targets(["attn.proj", "mlp.1", "qkv"]).init(Init::Random);
    let block = block.with_adapter(&lora).unwrap().train();
    let forward = |x: Tensor<3>| {
        let h = block.qkv.forward(block.norm.forward(x.clone()));
        let [q, k, v] = [0, 32, 64].map(|at| h.clone().slice([0..2, 0..9, at..at + 32]));
        let scores = burn::tensor::activation::softmax(q.matmul(k.transpose()), 2);
        let x = x + block.proj.forward(scores.matmul(v));
        x.clone() + block.fc[1].forward(gelu(block.fc[0].forward(x)))
    };
    let x = Tensor::<3>::random([2, 9, 32], Distribution::Normal(0.0, 1.0), &device);
    let grads = forward(x).powf_scalar(2.0).sum().backward();
    for (path, layer) in block.layers() {
        let lora = layer.adapters().lora("default");
        assert_eq!(lora.is_some(), path != "mlp.0");
        if let Some(lora) = lora {
            let grad = vec(lora.lora_a.val().grad(&grads).unwrap());
            assert!(grad.iter().any(|g| *g != 0.0), "{path}");
        }
    }
    assert!(block.norm.gamma.val().grad(&grads).is_none(), "with_adapter freezes the rest");
}

/// LoRA+ and LoRA-FA by parameter groups.
#[test]
fn groups_for_optimizers() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let lora = LoraConfig::new(4, 12).targets(["q_proj", "embed_tokens"]).dora(true);
    model.add_adapter("default", &lora.modules_to_save(["lm_head"])).unwrap();
    let groups = model.param_groups("default").unwrap();
    let counts = [&groups.a, &groups.b, &groups.magnitude, &groups.embedding, &groups.saved];
    assert_eq!(counts.map(Vec::len), [3, 3, 4, 2, 1]);
    let rates = groups.lora_plus(1e-4, 16.0);
    let rate = |id| {
        let hits: Vec<_> = rates.iter().filter(|(group, _)| group.matches(&id, None)).collect();
        assert_eq!(hits.len(), 1, "groups are disjoint");
        hits[0].1
    };
    assert_eq!((rate(groups.a[0]), rate(groups.b[0])), (1e-4, 1.6e-3));
    assert_eq!((rate(groups.magnitude[3]), rate(groups.saved[0])), (1.6e-3, 1e-4));

    model.freeze_a("default").unwrap();
    // Nothing thaws it by the way.
    model.add_adapter("other", &LoraConfig::new(2, 6).targets(["q_proj"])).unwrap();
    model.select(Selection::adapters(["default"])).unwrap();
    let model = model.train();
    let grads = model.forward(tokens(&device)).powf_scalar(2.0).sum().backward();
    let lora = model.model.layers[1].self_attn.q_proj.adapters().lora("default").unwrap();
    assert!(lora.lora_a.val().grad(&grads).is_none());
    assert!(lora.lora_b.val().grad(&grads).is_some());
}

/// PEFT's numbers for Llama 3.1 8B. The base is never made: its parameters are known by shape.
#[test]
fn summary_of_llama_8b() {
    use burn::module::{Param, ParamId};
    use burn_lora_adapter::{AdaptedEmbedding, AdaptedVector, Base};
    let device = device();
    fn lazy<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
        let make = move |device: &Device, _| Tensor::zeros(shape, device);
        Param::uninitialized(ParamId::new(), make, device.clone(), false, shape.into())
    }
    let linear =
        |out, width| AdaptedLinear::new(Base::from_params(lazy([out, width], &device), None));
    let layers = (0..32).map(|_| Layer {
        self_attn: Attention {
            q_proj: linear(4096, 4096),
            k_proj: linear(1024, 4096),
            v_proj: linear(1024, 4096),
            o_proj: linear(4096, 4096),
        },
        mlp: Mlp {
            gate_proj: linear(14336, 4096),
            up_proj: linear(14336, 4096),
            down_proj: linear(4096, 14336),
        },
    });
    let mut model = Tiny {
        model: Decoder {
            embed_tokens: AdaptedEmbedding::from_param(lazy([128_256, 4096], &device)),
            layers: layers.collect(),
            norm: AdaptedVector::from_param(lazy([4096], &device)),
        },
        lm_head: linear(128_256, 4096),
    };
    let lora = LoraConfig::new(32, 64).targets(["q_proj", "k_proj", "v_proj", "o_proj"]);
    model.add_adapter("default", &lora).unwrap();
    let summary = model.summary();
    // Without the 64 norms inside the layers, which this model lacks.
    let all = 8_030_261_248 - 64 * 4096 + 27_262_976;
    assert_eq!((summary.trainable, summary.total), (27_262_976, all));
    assert_eq!(summary.adapter_bytes, 27_262_976 * 4);
    assert!(summary.to_string().contains("109.1 MB"), "{summary}");
    assert!(summary.line().starts_with("trainable params: 27,262,976 || all params: 8,057,262"));
}

/// entrenar's NF4 was a setting that nothing read: here bytes are counted.
#[test]
fn a_packed_base_is_small() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let dense = model.summary();
    model.quantize_base(&QuantConfig::nf4().double_quant(true)).unwrap();
    let packed = model.summary();
    let weights = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160);
    assert_eq!(packed.code_bytes, weights / 2);
    assert_eq!(dense.dense_bytes - packed.dense_bytes, weights * 4);
    assert_eq!(dense.total, packed.total);
    assert!(packed.scale_bytes > 0);
}

/// DoRA's norm follows the base, however that changes.
#[test]
fn dora_follows_its_base() {
    let device = device();
    let x = Tensor::<2>::random([9, 64], Distribution::Normal(0.0, 1.0), &device);
    let fresh = |quantize: bool| {
        let mut model = Tiny::load("gqa", &device);
        if quantize {
            model.quantize_base(&QuantConfig::nf4()).unwrap();
        }
        model
    };
    let dora = LoraConfig::new(12, 30).targets(["q_proj"]).dora(true).init(Init::Random);
    let run = |model: &Tiny| model.model.layers[0].self_attn.q_proj.forward(x.clone());
    // A magnitude of its own, so that the norm matters.
    let fix = |model: &mut Tiny| {
        for (_, layer) in model.layers_mut() {
            if let Some(lora) = layer.adapters_mut().lora_mut("default") {
                lora.magnitude = lora.magnitude.take().map(|m| m.map(|m| m.ones_like()));
            }
        }
    };
    let mut expected = fresh(true);
    expected.add_adapter("default", &dora).unwrap();
    fix(&mut expected);
    let mut later = fresh(false);
    later.add_adapter("default", &dora).unwrap();
    fix(&mut later);
    let before = run(&later);
    later.quantize_base(&QuantConfig::nf4()).unwrap();
    assert!(max_difference(run(&later), before) > 1e-3);
    let worst = max_difference(run(&later), run(&expected));
    assert!(worst < 1e-5, "{worst}");
    later.dequantize_base(FloatDType::F32).unwrap();
    assert!(max_difference(run(&later), run(&expected)) < 1e-5);
}

/// Biases are trained with the adapter that trains them, and with no other.
#[test]
fn biases_are_trained_with_their_adapter() {
    let device = device();
    let mut one = One { linear: LinearConfig::new(8, 8).init(&device).into() };
    let lora = LoraConfig::new(2, 6).targets(["linear"]);
    one.add_adapter("plain", &lora).unwrap();
    one.add_adapter("bias", &lora.bias(burn_lora_adapter::Bias::All)).unwrap();
    assert_eq!(one.summary().trainable, 2 * 16);
    one.select(Selection::adapters(["bias"])).unwrap();
    assert_eq!(one.summary().trainable, 2 * 16 + 8);
    one.select(Selection::adapters(["plain"])).unwrap();
    assert_eq!(one.summary().trainable, 2 * 16);
}

/// A CPU names the token; a GPU, which would have to wait for it, gives no number for it.
#[test]
fn a_token_that_is_not_in_the_vocabulary() {
    let device = device();
    let table = Tensor::<2>::from_data([[1.0f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &device);
    let embedding = AdaptedEmbedding::new(table);
    for unknown in [3, -1, i32::MAX, i32::MIN] {
        let tokens = || Tensor::<2, Int>::from_ints([[1, unknown], [2, 0]], &device);
        let run =
            || -> Vec<f32> { embedding.forward(tokens()).into_data().try_into_vec().unwrap() };
        if std::env::var_os("BURN_LORA_GPU").is_none() {
            panics(&format!("token {unknown} is not in a vocabulary of 3"), run);
            continue;
        }
        let found = run();
        assert!(found[2].is_nan() && found[3].is_nan(), "{found:?}");
        assert_eq!((&found[..2], &found[4..]), (&[3.0, 4.0][..], &[5.0, 6.0, 1.0, 2.0][..]));
    }
}
