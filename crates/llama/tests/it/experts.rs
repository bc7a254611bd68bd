//! Adapters on experts: what PEFT refuses, and rows of a batch with other adapters each.

use crate::{
    common::*,
    decoders::{folder, load},
};
use burn_lora_adapter::{AdaptableExt, BASE, Init, LoraConfig, Selection};

/// What PEFT cannot do with experts is refused, and what names none of them.
#[test]
fn settings_for_experts_are_checked() {
    let lora =
        || LoraConfig::new(2, 4).targets(["o_proj"]).target_parameters(["experts.down_proj"]);
    let error = |family: &str, lora: LoraConfig| {
        load(family).add_adapter("default", &lora).unwrap_err().to_string()
    };
    assert!(error("mixtral", lora().dropout(0.1)).contains("dropout"));
    assert!(error("mixtral", lora().dora(true)).contains("DoRA"));
    assert!(error("phi3", lora()).contains("the model has no experts"));
    let wrong = error("mixtral", lora().target_parameters(["experts.up_proj"]));
    assert!(wrong.contains("model.layers.0.mlp.experts.down_proj"), "{wrong}");

    // As in PEFT, experts are none of `all-linear`, and the router is neither.
    let mut model = load("mixtral");
    let report = model.add_adapter("default", &LoraConfig::new(2, 4).all_linear()).unwrap();
    assert!(report.adapted.iter().all(|path| path.contains("self_attn")), "{report:?}");
}

/// Rows of a batch with other adapters each, on experts too, have what each has alone.
#[test]
fn rows_may_have_other_adapters() {
    let mut model = load("mixtral");
    model.load_adapter("theirs", folder("mixtral").join("lora_experts")).unwrap();
    let lora = LoraConfig::new(2, 4).targets(["o_proj"]).target_parameters(["experts.down_proj"]);
    model.add_adapter("ours", &lora.init(Init::Random)).unwrap();
    let (tokens, segments, _) = batch_of(&folder("mixtral").join("io.safetensors"), &device());
    let run = |selection: Selection| {
        let segments = segments.clone().with_adapters(model.activate(selection).unwrap());
        model.forward(tokens.clone(), &segments)
    };
    let rows = ["ours", BASE, "theirs"];
    let mixed = run(Selection::rows(rows));
    for (row, name) in rows.into_iter().enumerate() {
        let alone = match name {
            BASE => run(Selection::base()),
            name => run(Selection::adapters([name])),
        };
        let [found, expected] = [&mixed, &alone].map(|all| vec(all.clone().narrow(0, row, 1)));
        assert!(difference(&found, &expected) < 1e-5, "{name}");
    }
}
