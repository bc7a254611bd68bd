//! What the tests of this crate share: a small decoder without attention, over golden weights.

#[path = "../../../../tests/common/mod.rs"]
mod shared;
pub use shared::*;
#[path = "../../../../tests/common/panics.rs"]
mod panics;
pub use panics::panics;

use burn::{
    module::Module,
    tensor::{DType, Device, Int, Tensor, TensorData, activation::silu},
};
use burn_lora_adapter::{Adaptable, AdaptedEmbedding, AdaptedLinear, AdaptedVector, adaptable};

/// A model of one layer.
#[derive(Module, Debug)]
pub struct One {
    pub linear: AdaptedLinear,
}
adaptable!(One { linear });

#[derive(Module, Debug)]
pub struct Attention {
    pub q_proj: AdaptedLinear,
    pub k_proj: AdaptedLinear,
    pub v_proj: AdaptedLinear,
    pub o_proj: AdaptedLinear,
}
adaptable!(Attention { q_proj, k_proj, v_proj, o_proj });

#[derive(Module, Debug)]
pub struct Mlp {
    pub gate_proj: AdaptedLinear,
    pub up_proj: AdaptedLinear,
    pub down_proj: AdaptedLinear,
}
adaptable!(Mlp { gate_proj, up_proj, down_proj });

#[derive(Module, Debug)]
pub struct Layer {
    pub self_attn: Attention,
    pub mlp: Mlp,
}
adaptable!(Layer { self_attn, mlp });

#[derive(Module, Debug)]
pub struct Decoder {
    pub embed_tokens: AdaptedEmbedding,
    pub layers: Vec<Layer>,
    pub norm: AdaptedVector,
}
adaptable!(Decoder { embed_tokens, layers, norm });

/// The layers of a Llama with their paths. What lies between them is not a Llama's: every linear
/// layer matters to the output, and no more is needed here.
#[derive(Module, Debug)]
pub struct Tiny {
    pub model: Decoder,
    pub lm_head: AdaptedLinear,
}
adaptable!(Tiny { model, lm_head });

impl Tiny {
    /// The golden model of a variant.
    pub fn load(variant: &str, device: &Device) -> Self {
        let file = tensors(&golden(variant).join("model.safetensors"));
        let get = |name: &str| tensor2(&file[name], device);
        let linear = |name: String| AdaptedLinear::dense(get(&format!("{name}.weight")), None);
        let count = (0..)
            .take_while(|i| file.contains_key(&format!("model.layers.{i}.mlp.up_proj.weight")));
        let layers = count.map(|i| {
            let linear = |name: &str| linear(format!("model.layers.{i}.{name}"));
            Layer {
                self_attn: Attention {
                    q_proj: linear("self_attn.q_proj"),
                    k_proj: linear("self_attn.k_proj"),
                    v_proj: linear("self_attn.v_proj"),
                    o_proj: linear("self_attn.o_proj"),
                },
                mlp: Mlp {
                    gate_proj: linear("mlp.gate_proj"),
                    up_proj: linear("mlp.up_proj"),
                    down_proj: linear("mlp.down_proj"),
                },
            }
        });
        let embed = get("model.embed_tokens.weight");
        let head =
            if file.contains_key("lm_head.weight") { get("lm_head.weight") } else { embed.clone() };
        Self {
            model: Decoder {
                embed_tokens: AdaptedEmbedding::new(embed),
                layers: layers.collect(),
                norm: AdaptedVector::new(tensor1(&file["model.norm.weight"], device)),
            },
            lm_head: AdaptedLinear::dense(head, None),
        }
    }

    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let mut h = self.model.embed_tokens.forward(tokens);
        for layer in &self.model.layers {
            let attention = &layer.self_attn;
            let q = squash(attention.q_proj.forward(h.clone()));
            let kv =
                squash(attention.k_proj.forward(h.clone()) * attention.v_proj.forward(h.clone()));
            let repeat = q.dims()[2] / kv.dims()[2];
            let mixed = q * Tensor::cat(vec![kv; repeat], 2);
            h = squash(h + attention.o_proj.forward(mixed));
            let gate = silu(layer.mlp.gate_proj.forward(h.clone()));
            h = squash(
                h.clone() + layer.mlp.down_proj.forward(gate * layer.mlp.up_proj.forward(h)),
            );
        }
        self.lm_head.forward(h * self.model.norm.val().unsqueeze())
    }
}

/// Into (-1, 1), smoothly and without an overflow on any device.
fn squash(x: Tensor<3>) -> Tensor<3> {
    x.clone() / (x.abs() + 1.0)
}

/// A batch of three sequences.
pub fn tokens(device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = (0..3 * 7).map(|i| (i * 37 + 11) % 90).collect();
    Tensor::from_data(TensorData::new(ids, [3, 7]), device)
}

pub const VARIANTS: [&str; 2] = ["gqa", "llama3"];
pub const CASES: [&str; 5] = ["lora_qv", "lora_all", "rslora", "dora", "patterns"];

fn tensor2(tensor: &(Vec<usize>, Vec<f32>), device: &Device) -> Tensor<2> {
    let (shape, values) = tensor.clone();
    Tensor::from_data(TensorData::new(values, [shape[0], shape[1]]), (device, DType::F32))
}

fn tensor1(tensor: &(Vec<usize>, Vec<f32>), device: &Device) -> Tensor<1> {
    let (shape, values) = tensor.clone();
    Tensor::from_data(TensorData::new(values, [shape[0]]), (device, DType::F32))
}

pub fn vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().into_data().try_into_vec().unwrap()
}

/// A product in float32: Burn's own rounds to TF32 on CUDA.
pub fn matmul(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    burn_lora_kernels::Gemm::new().run(a, b)
}

/// The largest absolute difference.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max })
}

pub fn max_difference<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
    assert_eq!(a.dims(), b.dims());
    difference(&vec(a), &vec(b))
}

/// Makes the copies of an adapter others than their bases.
pub fn train_copies(model: &mut Tiny, name: &str) {
    for (_, layer) in model.layers_mut() {
        let copies = layer.adapters_mut().saved_mut(name);
        copies.for_each(|copy| copy.weight = copy.weight.clone().map(|w| w * 1.3 + 0.02));
    }
}

/// A folder of this test's own, removed at the end.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The path's layer of a model.
pub fn layer<'a>(model: &'a Tiny, path: &str) -> &'a dyn burn_lora_adapter::AdaptedLayer {
    model.layers().into_iter().find(|(name, _)| name == path).unwrap().1
}
