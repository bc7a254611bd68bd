//! Which layers are meant, and what is said when none is.

use crate::common::*;
use burn_lora_adapter::{AdaptableExt, AdapterError, Init, LoraConfig};
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

/// What is unusual is said once, and works.
#[test]
fn unusual_settings_are_warned_of() {
    let said = |lora: LoraConfig| {
        let mut model = Tiny::load("gqa", &device());
        let (added, warnings) = collect(|| model.add_adapter("x", &lora.targets(["q_proj"])));
        added.unwrap();
        warnings
    };
    assert!(said(LoraConfig::new(64, 128).dropout(0.3)).is_empty());
    let warnings = said(LoraConfig::new(300, 300));
    assert!(warnings[0].contains("r is 300"), "{warnings:?}");
    let beyond =
        "300 at `model.layers.0.self_attn.q_proj`, which is [64, 64], and at 2 more layers";
    assert!(warnings[1].contains(beyond), "{warnings:?}");
    assert!(said(LoraConfig::new(1, 32)).is_empty());
    assert!(said(LoraConfig::new(16, 64)).is_empty());
    assert_eq!(said(LoraConfig::new(4, 33)), ["lora_alpha is 33, over 4 times the rank 4"]);
    assert_eq!(said(LoraConfig::new(16, 65)), ["lora_alpha is 65, over 4 times the rank 16"]);
    assert_eq!(
        said(LoraConfig::new(4, 8).alpha_pattern([("q_proj", 34)]).rank_pattern([("q_proj", 4)])),
        ["alpha_pattern is 34, over 4 times the rank 4"]
    );
    assert_eq!(
        said(LoraConfig::new(4, 8).dropout(0.4)),
        ["lora_dropout is 0.4: more than 0.3 is unusual"]
    );
    let warnings = said(LoraConfig::new(4, 8).exclude(["layers.0.self_attn.q_proj", "q_prj"]));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("exclude_modules: `q_prj` matches no layer"), "{warnings:?}");
    assert!(warnings[0].contains("nearest: q_proj"), "{warnings:?}");
    let lora = LoraConfig::new(4, 8).exclude_regex(".*nope.*");
    assert!(said(lora)[0].contains("exclude_modules"));
    // What `modules_to_save` takes first is there nevertheless.
    let lora = LoraConfig::new(4, 8).modules_to_save(["lm_head"]).exclude(["lm_head"]);
    assert!(said(lora).is_empty());
}

/// A pattern of others may try every way to match.
#[test]
fn patterns_without_end_are_errors() {
    let endless = r"(([a-z._0-9]+)+)+\1#";
    for lora in [
        LoraConfig::new(4, 8).targets_regex(endless),
        LoraConfig::new(4, 8).targets(["q_proj"]).exclude_regex(endless),
        LoraConfig::new(4, 8).targets(["q_proj"]).rank_pattern([(endless, 2)]),
        LoraConfig::new(4, 8).targets(["q_proj"]).alpha_pattern([(endless, 2)]),
        LoraConfig::new(4, 8).targets(["q_proj"]).modules_to_save([endless]),
        LoraConfig::new(4, 8).targets(["q_proj"]).layers([0]).layers_pattern([endless]),
    ] {
        let mut model = Tiny::load("gqa", &device());
        let error = model.add_adapter("x", &lora).unwrap_err().to_string();
        assert!(error.contains("make it simpler") && error.contains(endless), "{error}");
    }
}

#[test]
fn numbers_that_no_adapter_can_have_are_named() {
    let lora = || LoraConfig::new(4, 8).targets(["q_proj"]);
    let error = |lora: LoraConfig| {
        let mut model = Tiny::load("gqa", &device());
        model.add_adapter("x", &lora).unwrap_err().to_string()
    };
    let alpha = |alpha: f64| LoraConfig::new(4, alpha).targets(["q_proj"]);
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.0, -1.0, 1e308, 1e-320] {
        assert!(error(alpha(value)).contains("lora_alpha is"), "{value}");
        let pattern = lora().alpha_pattern([("q_proj", value)]);
        assert!(error(pattern).contains("alpha_pattern is"), "{value}");
    }
    assert!(error(lora().dropout(f64::NAN)).contains("lora_dropout is NaN"));
    for rank in [1 << 21, 1_000_000_000, 1 << 62, usize::MAX] {
        assert!(error(LoraConfig::new(rank, 8).targets(["q_proj"])).contains("r is"), "{rank}");
        assert!(error(lora().rank_pattern([("q_proj", rank)])).contains("rank_pattern is"));
    }
    // It could be, in a model of other sizes.
    let large = error(LoraConfig::new(100_000, 8).targets(["q_proj"]));
    assert!(large.contains("rank 100000 of a weight [64, 64]"), "{large}");
    for init in [Init::PissaNiter(100_000_000), Init::PissaNiter(101)] {
        assert!(error(lora().init(init)).contains("at most 100 rounds"));
    }
    let config = burn_lora_quant::QuantConfig::nf4();
    let endless = Init::Loftq { iterations: 1_000_000_000, config };
    assert!(error(lora().init(endless)).contains("loftq with 1000000000 rounds"));
}

/// As PEFT's files have them, old and new, and as run files do.
#[test]
fn settings_are_read_as_peft_reads_them() {
    let read = |json: &str| {
        let (config, warnings) = collect(|| serde_json::from_str::<LoraConfig>(json));
        (config.map_err(|error| error.to_string()), warnings)
    };
    // `null` is the default, and what is off is not worth a word.
    let off = r#"{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj"], "alpha_pattern": null,
        "rank_pattern": null, "bias": null, "lora_dropout": null, "use_dora": null,
        "modules_to_save": null, "fan_in_fan_out": false, "exclude_modules": [], "layers_pattern": "",
        "layers_to_transform": [], "loftq_config": null, "eva_config": null, "megatron_config": null,
        "target_parameters": [], "trainable_token_indices": [], "layer_replication": [],
        "alora_invocation_tokens": [], "use_bdlora": null, "runtime_config": {"x": 1},
        "enable_lora": null, "merge_weights": false, "future": {}, "future_name": "", "future_n": 0,
        "auto_mapping": {"base_model_class": "X"}, "revision": "main", "corda_config": {"a": 1},
        "inference_mode": true, "ensure_weight_tying": true}"#;
    let expected = LoraConfig::new(4, 12).targets(["q_proj"]);
    assert_eq!(read(off), (Ok(expected.clone()), vec![]));
    let json = |field: &str| {
        format!(r#"{{"r": 4, "lora_alpha": 12, "target_modules": ["q_proj"], {field}}}"#)
    };
    for (field, lora) in [
        (r#""init_lora_weights": null"#, expected.clone().init(Init::Random)),
        (r#""layers_to_transform": 1"#, expected.clone().layers([1])),
        (r#""layers_to_transform": [1], "layers_pattern": "h""#, {
            expected.clone().layers([1]).layers_pattern(["h"])
        }),
        (r#""layers_to_transform": [], "layers_pattern": ["h"]"#, expected.clone()),
        (r#""trainable_token_indices": [3, 1]"#, expected.clone().trainable_tokens([3, 1])),
        (r#""trainable_token_indices": {"lm_head": [1]}"#, {
            expected.clone().trainable_tokens_of([("lm_head", vec![1])])
        }),
        (r#""exclude_modules": ".*0.*""#, expected.clone().exclude_regex(".*0.*")),
        (r#""eva_config": {"rho": 3.0, "new": 1}, "init_lora_weights": "eva""#, {
            expected.clone().init(Init::Eva { rho: 3.0 })
        }),
    ] {
        assert_eq!(read(&json(field)), (Ok(lora), vec![]), "{field}");
    }
    for (field, part) in [
        (
            r#""use_future_scaling": true, "power": 0.5"#,
            "`power` = `0.5`, `use_future_scaling` = `true`",
        ),
        (r#""new\u0007": ["a\u001b"]"#, "`new\\u{7}`"),
        (r#""fan_in_fan_out": true"#, "fan_in_fan_out"),
        (r#""megatron_config": {"x": 1}"#, "megatron_config"),
    ] {
        let (config, warnings) = read(&json(field));
        assert_eq!((config, warnings.len()), (Ok(expected.clone()), 1), "{field}: {warnings:?}");
        assert!(warnings[0].contains(part) && !warnings[0].contains('\u{7}'), "{warnings:?}");
    }
    for (field, part) in [
        (r#""r": 4"#, "`r` is there twice"),
        (r#""use_rslora": 3"#, "`use_rslora` is `3`"),
        (r#""bias": "maybe""#, "`bias` is `maybe`"),
        (r#""rank_pattern": {"q": -1}"#, "`rank_pattern`"),
        (r#""layers_to_transform": [-1]"#, "`layers_to_transform`"),
        (r#""lora_dropout": NaN"#, "`lora_dropout`"),
        (r#""lora_dropout": 1e400"#, "`lora_dropout`"),
        (r#""target_parameters": "experts""#, "target_parameters"),
        (r#""trainable_token_indices": {"embed_tokens": [-1]}"#, "trainable_token_indices"),
        (r#""layer_replication": [[0, 2]]"#, "layer_replication"),
        (r#""alora_invocation_tokens": [1]"#, "alora_invocation_tokens"),
        (r#""lora_bias": true"#, "merge the adapter in Python"),
        (r#""use_qalora": true"#, "use_qalora"),
        (r#""ensure_weight_tying": true, "modules_to_save": ["lm_head"]"#, "ensure_weight_tying"),
        (r#""init_lora_weights": "corda""#, "path_initial_model_for_weight_conversion"),
        (r#""init_lora_weights": "lora_ga""#, "path_initial_model_for_weight_conversion"),
        (r#""init_lora_weights": "new""#, "`new`"),
        // What kind of adapter it is comes before all that another kind has otherwise.
        (r#""peft_type": "ADALORA", "rank_pattern": 7"#, "ADALORA"),
    ] {
        let (config, _) = read(&json(field));
        let error = config.unwrap_err();
        assert!(error.contains(part), "{field}: {error}");
    }
    for field in ["r", "lora_alpha"] {
        let error = read(&format!(r#"{{"{field}": null}}"#)).0.unwrap_err();
        assert!(error.contains(&format!("`{field}` is `null`")), "{error}");
    }
}
