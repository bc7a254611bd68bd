//! Preference objectives against TRL's trainers (testdata/preferences.py): losses, metrics, gradients, ten steps.

use crate::{
    common::*,
    steps::{self, adapter},
};
use burn_lora_adapter::{AdaptableExt, Init, LoraConfig, Selection};
use burn_lora_llama::Llama;
use burn_lora_text::{ChatTemplate, Tokenizer};
use burn_lora_train::{
    BatchConfig, Dataset, OptimizerConfig, Recompute, Schedule, TrainConfig, Trainer,
    data::Sample,
    evaluate_with,
    objective::{BySequence, CpoConfig, Dpo, DpoConfig, OrpoConfig, Reference, SequenceLoss},
    reference_log_probs,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{fs, path::PathBuf};

const DPO: [&str; 12] = [
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "mixture",
];

fn path(name: &str) -> PathBuf {
    golden("preferences").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn pairs() -> Dataset {
    let pairs = json("pairs.json");
    let pairs = pairs.as_array().unwrap().iter().map(|pair| {
        ["chosen", "rejected"].map(|answer| {
            let (prompt, answer) = (ids(&pair["prompt"]), ids(&pair[answer]));
            let loss_mask = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
            Sample { ids: [prompt, answer].concat(), loss_mask }
        })
    });
    Dataset::from_pairs(pairs).unwrap()
}

fn base() -> Llama {
    loader(&golden("gqa")).load(&device()).unwrap()
}

fn model() -> Llama {
    let mut model = base();
    model.load_adapter("default", golden("gqa").join("lora_qv")).unwrap();
    model
}

/// Settings of a golden, in our names, which are TRL's.
fn settings<C: DeserializeOwned>(case: &str) -> BySequence<C> {
    BySequence(serde_json::from_value(json(&format!("{case}.json"))["settings"].clone()).unwrap())
}

fn check<L: SequenceLoss + Clone + 'static>(
    name: &str,
    objective: BySequence<L>,
    data: &Dataset,
    but: &[&str],
    change: impl Fn(TrainConfig) -> TrainConfig,
) {
    steps::check(&path(name), model, objective, data, 4, but, change);
}

/// TRL's ORPO and CPO have none; and that of a step is the mean of those of its micro-batches, whose answers have other
/// lengths.
const ACCURACY: [&str; 1] = ["mean_token_accuracy"];

/// The pairs with the log-probabilities of the base.
fn compared() -> Dataset {
    let data = pairs();
    let batches = BatchConfig { size: 3, ..BatchConfig::default() };
    let found = reference_log_probs(&base(), &Reference::Start, &data, &batches).unwrap();
    data.with_values(Reference::LOG_PROBS, found).unwrap()
}

#[test]
fn dpo_agrees_with_trl() {
    let data = compared();
    for name in DPO.map(|case| format!("dpo/{case}")) {
        check(&name, settings::<DpoConfig>(&name), &data, &[], |run| run);
    }
}

#[test]
fn orpo_agrees_with_trl() {
    for name in ["orpo/default", "orpo/strong"] {
        check(name, settings::<OrpoConfig>(name), &pairs(), &ACCURACY, |run| run);
    }
}

#[test]
fn cpo_agrees_with_trl() {
    for name in ["cpo/sigmoid", "cpo/smoothed", "cpo/hinge", "cpo/ipo", "cpo/simpo"] {
        check(name, settings::<CpoConfig>(name), &pairs(), &ACCURACY, |run| run);
    }
}

/// Layers that are run again, packed rows, and two micro-batches make no difference.
#[test]
fn the_way_makes_no_difference() {
    let (name, data) = ("dpo/robust", compared());
    let objective = || settings::<DpoConfig>(name);
    check(name, objective(), &data, &[], |run| run.recompute(Recompute::EveryLayer));
    check(name, objective(), &data, &[], |run| {
        let batches = BatchConfig { packing: Some(128), ..run.batches.clone() };
        run.batches(batches)
    });
    check(name, objective(), &data, &ACCURACY, |run| {
        let batches = BatchConfig { size: 2, ..run.batches.clone() };
        run.batches(batches).gradient_accumulation_steps(2)
    });
}

#[test]
fn records_are_the_tokens_of_trl() {
    let found = json("records.json");
    let mut tokenizer = Tokenizer::from_pretrained(golden("quickstart/model")).unwrap();
    let template = ChatTemplate::new(found["template"].as_str().unwrap()).unwrap();
    tokenizer.set_chat_template(template);
    for record in found["records"].as_array().unwrap() {
        let data = Dataset::from_records([&record["record"]]).load(&tokenizer).unwrap();
        assert_eq!((data.len(), data.report().examples), (2, 1));
        for (sample, answer) in [(0, "chosen_ids"), (1, "rejected_ids")] {
            let (prompt, answer) = (ids(&record["prompt_ids"]), ids(&record[answer]));
            let Sample { ids, loss_mask } = data.sample(sample);
            let mask = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
            assert_eq!((ids, loss_mask), ([prompt, answer].concat(), mask), "{}", record["kind"]);
        }
    }
}

/// A trained head has gradients of its own, which depend on those of the sequences.
#[test]
fn a_head_that_is_trained_makes_no_difference_to_the_rest() {
    let data = compared();
    let step = |head: bool| {
        let lora = LoraConfig::new(4, 8).targets(["q_proj", "v_proj"]).init(Init::Random).seed(3);
        let lora = if head { lora.modules_to_save(["lm_head"]) } else { lora };
        let mut model = base().with_adapter(&lora).unwrap();
        let config = TrainConfig::new(1.0).optimizer(OptimizerConfig::Sgd { momentum: 0.0 });
        let batches = BatchConfig { size: 4, shuffle: false, ..BatchConfig::default() };
        let config = config.schedule(Schedule::Constant).max_steps(1).batches(batches);
        let config = TrainConfig { max_grad_norm: None, weight_decay: 0.0, ..config };
        let report = Trainer::new(config).fit_with(Dpo::new(0.3), &mut model, &data, None).unwrap();
        (adapter(&model), report.log[0].loss)
    };
    let (plain, trained) = (step(false), step(true));
    assert!((plain.1 - trained.1).abs() < 1e-6);
    for (name, (_, values)) in &plain.0 {
        let off = difference(values, &trained.0[name].1);
        assert!(off < 1e-6, "{name}: {off}");
    }
    let head = &trained.0["base_model.model.lm_head.weight"].1;
    let before = &tensors(&golden("gqa").join("model.safetensors"))["lm_head.weight"].1;
    assert!(difference(head, before) > 1e-4);
}

#[test]
fn a_reference_has_to_be_known() {
    let data = pairs();
    let (model, batches) = (model(), BatchConfig::default());
    let objective = Dpo::new(0.1);
    let error = evaluate_with(&objective, &model, &data, &batches).unwrap_err().to_string();
    assert!(error.contains("reference_log_probs"), "{error}");
    // The base itself has no margins, and another adapter's are those of this adapter against it.
    let found = evaluate_with(&objective, &base(), &compared(), &batches).unwrap();
    assert!(found.metrics.get("rewards/margins").unwrap().abs() < 1e-6);
    let mut two = model;
    two.load_adapter("other", golden("gqa").join("rslora")).unwrap();
    two.select(Selection::adapters(["default"])).unwrap();
    let config =
        DpoConfig { reference: Reference::Adapter("other".into()), ..DpoConfig::default() };
    let against = evaluate_with(&BySequence(config.clone()), &two, &data, &batches).unwrap();
    let by = |name: &str| {
        reference_log_probs(&two, &Reference::Adapter(name.into()), &data, &batches).unwrap()
    };
    let (a, b) = (by("default"), by("other"));
    let margin =
        (0..a.len()).map(|at| if at % 2 == 0 { a[at] - b[at] } else { b[at] - a[at] }).sum::<f32>();
    let expected = f64::from(margin) * 0.1 / (a.len() / 2) as f64;
    assert!((against.metrics.get("rewards/margins").unwrap() - expected).abs() < 1e-6);
    let missing = DpoConfig { reference: Reference::Adapter("none".into()), ..config };
    let error = evaluate_with(&BySequence(missing), &two, &data, &batches).unwrap_err().to_string();
    assert!(error.contains("none"), "{error}");
}

/// A run that was stopped and resumed ends with the same bits: the reference is that of the start.
#[test]
fn a_resumed_run_compares_with_the_same_reference() {
    let run = |stop: bool| {
        let output = tempfile::tempdir().unwrap();
        let config = TrainConfig::new(1e-2).epochs(3).batch_size(2).output(output.path());
        let go = |resume: bool, pause: Option<usize>| {
            let mut model = model();
            let trainer = Trainer::new(config.clone()).resume(resume).pause_at(pause);
            trainer.fit_with(Dpo::new(0.5), &mut model, &pairs(), None).unwrap();
            adapter(&model)
        };
        if stop {
            go(false, Some(3));
        }
        go(stop, None)
    };
    assert!(run(false) == run(true));
}

#[test]
fn settings_that_are_wrong() {
    let wrong = |config: Value| {
        let config: DpoConfig = serde_json::from_value(config).unwrap();
        config.validate().unwrap_err().to_string()
    };
    for (config, part) in [
        (serde_json::json!({"beta": 0.0}), "`objective.beta` is 0"),
        (serde_json::json!({"loss_type": []}), "name one at least"),
        (serde_json::json!({"loss_weights": [1.0, 2.0]}), "give one for each"),
        (serde_json::json!({"label_smoothing": 0.1}), "only the losses `robust` and `exo_pair`"),
        (serde_json::json!({"label_smoothing": 0.5, "loss_type": ["robust"]}), "[0, 0.5)"),
        (serde_json::json!({"loss_type": ["exo_pair"]}), "needs one"),
    ] {
        let error = wrong(config.clone());
        assert!(error.contains(part), "{config}: {error}");
    }
    let error = Trainer::new(TrainConfig::new(1e-3)).fit_with(
        BySequence(OrpoConfig::default()),
        &mut model(),
        &golden_data("gqa"),
        None,
    );
    assert!(error.unwrap_err().to_string().contains("need `chosen` and `rejected`"));
}
