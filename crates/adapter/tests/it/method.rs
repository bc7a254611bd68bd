//! A method of one's own: (IA)³, as docs/extending.md has it.

use crate::common::*;
use burn::{
    module::{Module, Param},
    tensor::{FloatDType, Tensor},
};
use burn_lora_adapter::{
    AdaptableExt, AdapterError, BoxedUpdate, FrozenLayer, Method, PackedMerge, Role, Selection,
    Site, TargetConfig, Targets, Update, UpdateTensor,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Ia3Config {
    target_modules: Targets,
}

#[derive(Module, Debug)]
struct Ia3 {
    ia3_l: Param<Tensor<1>>,
}

impl Update for Ia3 {
    fn rescales(&self) -> bool {
        true
    }

    fn factor(&self, _layer: &dyn FrozenLayer) -> Option<Tensor<1>> {
        Some(self.ia3_l.val())
    }
}

impl Method for Ia3Config {
    fn peft_type(&self) -> &'static str {
        "IA3"
    }

    fn targets(&self) -> TargetConfig {
        let targets = Some(self.target_modules.clone());
        TargetConfig { targets, ..TargetConfig::new("Ia3Config") }
    }

    fn settings(&self) -> Value {
        json!({ "target_modules": self.target_modules, "feedforward_modules": [] })
    }

    fn tensors(&self, site: &Site<'_>) -> Vec<UpdateTensor> {
        vec![UpdateTensor::new("ia3_l", "ia3_l", &[site.shape[0], 1], Role::Other)]
    }

    fn attach(
        &self,
        layer: &mut dyn FrozenLayer,
        site: &Site<'_>,
        _shared: &[Param<Tensor<2>>],
    ) -> Result<BoxedUpdate, AdapterError> {
        let ones = Tensor::ones([site.shape[0]], &layer.device());
        Ok(BoxedUpdate::new(Ia3 { ia3_l: Param::from_tensor(ones) }))
    }
}

fn ia3() -> Ia3Config {
    Ia3Config { target_modules: Targets::from(["k_proj", "down_proj"]) }
}

#[test]
fn a_method_of_ones_own() {
    let device = device();
    let mut model = Tiny::load("gqa", &device);
    let base = vec(model.forward(tokens(&device)));
    model.add_adapter("default", &ia3()).unwrap();
    assert!(difference(&vec(model.forward(tokens(&device))), &base) < 1e-5);
    assert_eq!(model.summary().trainable, 3 * (32 + 64));
    assert_eq!(model.param_groups("default").unwrap().other.len(), 6);

    let ones = model.layers_mut_of("default");
    for ia3 in ones {
        ia3.ia3_l = ia3.ia3_l.clone().map(|l| l * 1.25);
    }
    let adapted = vec(model.forward(tokens(&device)));
    assert!(difference(&adapted, &base) > 1e-3);

    let out = folder();
    model.save_adapter("default", out.path()).unwrap();
    let error = model.load_adapter("again", out.path()).unwrap_err().to_string();
    assert!(error.contains("peft_type is `IA3`: supported are LORA, VERA"), "{error}");
    model.load_adapter_as::<Ia3Config>("again", out.path()).unwrap();
    model.select(Selection::adapters(["again"])).unwrap();
    assert_eq!(vec(model.forward(tokens(&device))), adapted);

    // Rows with and without it.
    let rows = Selection::rows(["again", burn_lora_adapter::BASE, "default"]);
    let mixed = model.with_selection(rows, |model| model.forward(tokens(&device))).unwrap();
    let expected = [&adapted[..7 * 128], &base[7 * 128..14 * 128], &adapted[14 * 128..]].concat();
    assert!(difference(&vec(mixed), &expected) < 1e-5);

    model.merge(PackedMerge::Dense(FloatDType::F32)).unwrap();
    assert!(difference(&vec(model.forward(tokens(&device))), &adapted) < 1e-5);
    model.unmerge();
    model.select(Selection::base()).unwrap();
    assert!(difference(&vec(model.forward(tokens(&device))), &base) < 1e-5);
}

impl Tiny {
    fn layers_mut_of(&mut self, name: &str) -> impl Iterator<Item = &mut Ia3> {
        let layers = burn_lora_adapter::Adaptable::layers_mut(self).into_iter();
        layers.filter_map(move |(_, layer)| layer.adapters_mut().update_mut::<Ia3>(name))
    }
}
