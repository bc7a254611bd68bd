//! Which layers are meant, and what is said when none is.

use crate::common::*;
use burn_lora_adapter::{Adaptable, AdapterError, Init, LoraConfig};
use burn_lora_io::collect;

fn adapted(lora: LoraConfig) -> Vec<String> {
    let mut model = Tiny::load("gqa", &device());
    model.add_adapter("default", &lora).unwrap().adapted
}

fn error(lora: LoraConfig) -> String {
    let mut model = Tiny::load("gqa", &device());
    let error = model.add_adapter("default", &lora).unwrap_err();
    assert!(model.adapter_names().is_empty());
    error.to_string()
}

fn lora() -> LoraConfig {
    LoraConfig::new(4, 12)
}

#[test]
fn alphas_and_targets_of_all_kinds() {
    let names: Vec<String> = vec!["q_proj".into(), "v_proj".into()];
    let expected = LoraConfig::new(32, 64).targets(["q_proj", "v_proj"]);
    assert_eq!(LoraConfig::new(32, 64.0).targets(&names), expected);
    assert_eq!(LoraConfig::new(32, 64usize).targets(names.as_slice()), expected);
    assert_eq!(LoraConfig::new(32, 64f32).targets(vec!["q_proj", "v_proj"]), expected);
    let array: &[&str; 2] = &["q_proj", "v_proj"];
    assert_eq!(LoraConfig::new(32, 64u32).targets(array), expected);
    assert_eq!(LoraConfig::new(32, 64).targets(names.clone()), expected);
}

#[test]
fn names_match_as_in_peft() {
    assert_eq!(adapted(lora().targets(["q_proj"])).len(), 3);
    assert_eq!(adapted(lora().targets(["self_attn.q_proj", "mlp.up_proj"])).len(), 6);
    let one = "model.layers.1.mlp.up_proj";
    assert_eq!(adapted(lora().targets([one])), [one]);
    assert_eq!(adapted(lora().all_linear()).len(), 21, "all but the head");
    assert_eq!(adapted(lora().targets(["lm_head"])), ["lm_head"]);
    let no_mlp = lora().all_linear().exclude(["up_proj", "mlp.gate_proj", "down_proj"]);
    assert_eq!(adapted(no_mlp).len(), 12);
    assert_eq!(adapted(lora().all_linear().exclude_regex(r".*mlp.*")).len(), 12);
    let regex = r".*\.layers\.[02]\..*(?<!k|v)_proj";
    assert_eq!(adapted(lora().targets_regex(regex)).len(), 10, "Python's look-behind");
    assert_eq!(adapted(lora().targets(["q_proj"]).layers([0, 2])).len(), 2);
    assert_eq!(adapted(lora().targets(["q_proj"]).layers([])).len(), 3);
    // A whole path is meant wherever it lies.
    assert_eq!(adapted(lora().targets(["q_proj", "lm_head"]).layers([0])).len(), 2);
    assert_eq!(
        adapted(lora().targets(["q_proj", "self_attn.q_proj"])).len(),
        3,
        "one in the other"
    );
    let mut model = Tiny::load("gqa", &device());
    let report = model.add_adapter("default", &lora().targets(["q_proj"]).layers([1])).unwrap();
    assert_eq!(report.to_string(), "q_proj: 1 layer");
    // What is left out of the updates can be trained whole.
    let whole = lora().all_linear().exclude(["lm_head"]).modules_to_save(["lm_head"]);
    assert_eq!(Tiny::load("gqa", &device()).add_adapter("x", &whole).unwrap().saved, ["lm_head"]);
    let pattern = lora().targets(["q_proj"]).layers([1]).layers_pattern(["layers"]);
    assert_eq!(adapted(pattern), ["model.layers.1.self_attn.q_proj"]);
    // PEFT copies what ends with the name, dot or not, and what lies in it.
    let mut model = Tiny::load("gqa", &device());
    let lora_and = lora().targets(["q_proj"]).modules_to_save(["head", "layers.0.mlp"]);
    let report = model.add_adapter("default", &lora_and).unwrap();
    assert_eq!(report.saved.len(), 4);
    assert_eq!(report.targets[1..], [("head".into(), 1), ("layers.0.mlp".into(), 3)]);
    let saved = lora().targets(["lm_head", "q_proj"]).modules_to_save(["lm_head"]);
    assert!(error(saved).contains("lm_head"), "it cannot be both");
}

#[test]
fn what_matches_nothing_is_an_error_with_near_names() {
    let text = error(lora().targets(["q_proj", "v_prj"]));
    assert!(text.contains("target_modules: `v_prj`") && text.contains("v_proj"), "{text}");
    assert!(text.find("v_proj").unwrap() < text.find("down_proj").unwrap_or(usize::MAX));
    // PEFT's rules, not a search for parts of names.
    assert!(error(lora().targets(["proj"])).contains("`proj`"));
    assert!(error(lora().targets_regex("q_proj")).contains("q_proj"));
    let text = error(lora().targets(["q_proj"]).rank_pattern([("k_proj", 2)]));
    assert!(text.contains("rank_pattern: `k_proj`"), "{text}");
    let text = error(lora().targets(["q_proj"]).alpha_pattern([("o_proj", 2.5)]));
    assert!(text.contains("alpha_pattern: `o_proj`"), "{text}");
    let text = error(lora().targets(["q_proj"]).layers([1, 7]));
    assert!(text.contains("`7`") && text.contains("0 to 2"), "{text}");
    let text = error(lora().targets(["q_proj"]).modules_to_save(["heads"]));
    assert!(text.contains("modules_to_save: `heads`") && text.contains("lm_head"), "{text}");
}

#[test]
fn patterns_choose_ranks_and_alphas() {
    let mut model = Tiny::load("gqa", &device());
    let lora = lora()
        .all_linear()
        .rank_pattern([("q_proj", 2), (r"layers\.1\.mlp\..*", 6)])
        .alpha_pattern([("v_proj", 20)])
        .init(Init::Gaussian);
    model.add_adapter("default", &lora).unwrap();
    let of = |path: &str| {
        let lora = layer(&model, path).adapters().lora("default").unwrap();
        (lora.rank(), lora.scaling())
    };
    assert_eq!(of("model.layers.0.self_attn.q_proj"), (2, 6.0));
    assert_eq!(of("model.layers.1.mlp.up_proj"), (6, 2.0));
    assert_eq!(of("model.layers.0.mlp.up_proj"), (4, 3.0));
    assert_eq!(of("model.layers.2.self_attn.v_proj"), (4, 5.0));
}

#[test]
fn bad_settings_say_what_is_wrong() {
    let bad = [
        (LoraConfig::new(0, 12).targets(["q_proj"]), "r is 0"),
        (LoraConfig::new(4, f64::NAN).targets(["q_proj"]), "lora_alpha is NaN"),
        (LoraConfig::new(4, -1).targets(["q_proj"]), "lora_alpha is -1"),
        (lora().targets(["q_proj"]).dropout(1.0), "lora_dropout is 1"),
        (lora().targets(["q_proj"]).dropout(-0.1), "lora_dropout is -0.1"),
        (lora().targets(["q_proj"]).dropout(f64::NAN), "lora_dropout is NaN"),
        (lora().targets_regex("(q"), "target_modules is `(q`"),
        (lora().targets_regex(".*").layers([0]), "layers_to_transform"),
        (lora().targets(["q_proj"]).layers_pattern(["h"]), "layers_pattern"),
        (lora().targets(["q_proj"]).rank_pattern([("q_proj", 0)]), "rank_pattern is 0"),
        (lora().targets(["q_proj"]).rank_pattern([("[", 2)]), "rank_pattern is `[`"),
        (lora(), "target_modules is not set"),
        (lora().targets(Vec::<String>::new()), "target_modules is empty"),
        (lora().targets(["q_proj"]).init(Init::Eva { rho: f64::NAN }), "rho NaN"),
    ];
    for (lora, part) in bad {
        let text = lora.validate().unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
        assert!(error(lora).contains(part));
    }
}

#[test]
fn names_of_adapters() {
    let mut model = Tiny::load("gqa", &device());
    let lora = lora().targets(["q_proj"]);
    for name in ["", "__base__"] {
        let error = model.add_adapter(name, &lora).unwrap_err();
        assert!(matches!(error, AdapterError::AdapterName { .. }));
    }
    model.add_adapter("default", &lora).unwrap();
    let error = model.add_adapter("default", &lora).unwrap_err();
    assert!(matches!(error, AdapterError::AdapterExists { .. }));
    let error = model.save_adapter("other", folder()).unwrap_err().to_string();
    assert!(error.contains("this model has default"), "{error}");
}

/// serde both ways, with PEFT's names and defaults.
#[test]
fn files_hold_every_setting() {
    let lora = LoraConfig::new(16, 24.5)
        .targets(["q_proj"])
        .exclude(["lm_head"])
        .dropout(0.1)
        .rslora(true)
        .dora(true)
        .bias(burn_lora_adapter::Bias::LoraOnly)
        .layers([0, 2])
        .layers_pattern(["layers"])
        .rank_pattern([("q_proj", 2)])
        .alpha_pattern([("q_proj", 3.5)])
        .modules_to_save(["lm_head"])
        .init(Init::PissaNiter(4))
        .seed(7)
        .base_model("meta-llama/Llama-3.1-8B");
    let json = serde_json::to_string(&lora).unwrap();
    assert_eq!(serde_json::from_str::<LoraConfig>(&json).unwrap(), lora);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["lora_alpha"], 24.5);
    assert_eq!(value["alpha_pattern"]["q_proj"], 3.5);

    let defaults: LoraConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(defaults, LoraConfig::default());
    assert_eq!((defaults.rank(), defaults.alpha()), (8, 8.0));
    for init in [
        Init::Random,
        Init::Gaussian,
        Init::Eva { rho: 1.5 },
        Init::Loftq { iterations: 3, config: burn_lora_quant::QuantConfig::nf4() },
    ] {
        let lora = LoraConfig::new(4, 12).all_linear().init(init);
        let json = serde_json::to_string(&lora).unwrap();
        assert_eq!(serde_json::from_str::<LoraConfig>(&json).unwrap(), lora);
    }
}

/// What is unusual is said, and works.
#[test]
fn unusual_settings_are_warned_of() {
    let said = |lora: LoraConfig| {
        let (valid, warnings) = collect(|| lora.targets(["q_proj"]).validate());
        valid.unwrap();
        warnings.join("; ")
    };
    assert_eq!(said(LoraConfig::new(64, 128).dropout(0.3)), "");
    assert!(said(LoraConfig::new(300, 300)).contains("r is 300"));
    assert!(said(LoraConfig::new(4, 17)).contains("lora_alpha is 17, over 4 times the rank 4"));
    assert!(said(LoraConfig::new(4, 8).dropout(0.4)).contains("lora_dropout is 0.4"));
    let unknown = || serde_json::from_str::<LoraConfig>(r#"{"enable_lora": true}"#).unwrap();
    assert!(collect(unknown).1.join("").contains("enable_lora"));
}
