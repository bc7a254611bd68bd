//! Preference objectives against TRL's trainers (testdata/preferences.py): losses, metrics, gradients, ten steps.

use crate::{
    common::*,
    steps::{self, adapter},
};
use burn::tensor::Tensor;
use burn_lora_adapter::{AdaptableExt, Init, LoraConfig, Selection};
use burn_lora_llama::{Llama, LlamaConfig};
use burn_lora_text::Tokenizer;
use burn_lora_train::{
    BatchConfig, Dataset, EarlyStopping, Every, OptimizerConfig, Recompute, Schedule, TrainConfig,
    Trainer,
    data::{Batch, Sample},
    evaluate_with,
    objective::{
        BySequence, CpoConfig, Dpo, DpoConfig, Kto, KtoConfig, Losses, OrpoConfig, Reference,
        SequenceLoss, Sequences,
    },
    prepare, reference_log_probs,
    watch::StopReason,
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

pub fn json(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// An answer with its prompt.
pub fn sample(prompt: &Value, answer: &Value) -> Sample {
    let (prompt, answer) = (ids(prompt), ids(answer));
    let loss_mask = [vec![false; prompt.len()], vec![true; answer.len()]].concat();
    Sample { ids: [prompt, answer].concat(), loss_mask }
}

fn pairs() -> Dataset {
    pairs_of("pairs.json")
}

fn pairs_of(file: &str) -> Dataset {
    let pairs = json(file);
    let pairs = pairs.as_array().unwrap().iter();
    let pairs = pairs
        .map(|pair| ["chosen", "rejected"].map(|answer| sample(&pair["prompt"], &pair[answer])));
    Dataset::from_pairs(pairs).unwrap()
}

/// Answers that are desirable or not.
fn answers() -> Dataset {
    let answers = json("answers.json");
    let answers = answers.as_array().unwrap();
    let samples = answers.iter().map(|one| sample(&one["prompt"], &one["completion"]));
    let labels = answers.iter().map(|one| f32::from(u8::from(one["label"].as_bool().unwrap())));
    Dataset::from_samples(samples).unwrap().with_values("label", labels).unwrap()
}

fn base() -> Llama {
    loader(&golden("gqa")).load(&device()).unwrap()
}

/// A model whose layers have a sliding window.
fn windowed() -> Llama {
    let config = fs::read_to_string(golden("gqa/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
    config["model_type"] = serde_json::json!("mistral");
    config["sliding_window"] = serde_json::json!(8);
    Llama::random(&LlamaConfig::from_json(&config.to_string()).unwrap(), 1, &device())
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

/// TRL's ORPO and CPO have the mean of the logits over prompts and padding, too, and no accuracy.
const OTHERS: [&str; 3] = ["logits/chosen", "logits/rejected", "mean_token_accuracy"];

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
        check(name, settings::<OrpoConfig>(name), &pairs(), &OTHERS, |run| run);
    }
}

#[test]
fn cpo_agrees_with_trl() {
    for name in ["cpo/sigmoid", "cpo/smoothed", "cpo/hinge", "cpo/ipo", "cpo/simpo"] {
        check(name, settings::<CpoConfig>(name), &pairs(), &OTHERS, |run| run);
    }
}

/// Prompts that are long enough to be read once for both answers.
#[test]
fn shared_prompts_agree_with_trl() {
    let data = pairs_of("long.json");
    let check = |change: &dyn Fn(TrainConfig) -> TrainConfig| {
        let (dpo, orpo, cpo) = ("dpo/long", "orpo/long", "cpo/long");
        // Their reference reads prompts so, too.
        let batches = change(TrainConfig::new(1.0)).batches;
        let compared = prepare(&settings::<DpoConfig>(dpo), &base(), &data, &batches).unwrap();
        check(dpo, settings::<DpoConfig>(dpo), &compared, &[], change);
        check(orpo, settings::<OrpoConfig>(orpo), &data, &OTHERS, change);
        check(cpo, settings::<CpoConfig>(cpo), &data, &OTHERS, change);
    };
    let with = |run: TrainConfig, change: &dyn Fn(&mut BatchConfig)| {
        let mut batches = run.batches.clone();
        change(&mut batches);
        run.batches(batches)
    };
    check(&|run| run);
    check(&|run| with(run, &|batches| batches.share_prompts = false));
    check(&|run| with(run, &|batches| batches.packing = Some(160)));
    check(&|run| run.recompute(Recompute::EveryLayer));
}

/// The mean log-probability of the prompts' tokens, those of both answers.
#[derive(Clone)]
struct OfPrompts;

impl SequenceLoss for OfPrompts {
    fn settings(&self) -> Value {
        serde_json::json!("of_prompts")
    }

    fn reads_prompts(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["prompt_tokens"]
    }

    fn count(&self, batch: &Batch) -> usize {
        batch.sources.len()
    }

    fn losses(&self, sequences: &Sequences) -> Losses {
        let [logps, lengths] = sequences.prompts.clone().unwrap();
        // Other weights for both, so that they cannot stand for each other.
        let weights = Tensor::arange(0..logps.dims()[0] as i64, &logps.device()).float() + 1.0;
        let weights = if logps.is_autodiff() { weights.autodiff() } else { weights };
        let loss = (logps / lengths.clone() * weights).sum().neg();
        Losses { loss, metrics: vec![lengths.inner().sum()] }
    }
}

/// A prompt that is read once counts for both answers.
#[test]
fn a_shared_prompt_is_the_prompt_of_both() {
    let data = pairs_of("long.json");
    let step = |share_prompts: bool| {
        let mut model = model();
        let config = TrainConfig::new(1.0).optimizer(OptimizerConfig::Sgd { momentum: 0.0 });
        let batches =
            BatchConfig { size: 4, shuffle: false, share_prompts, ..BatchConfig::default() };
        let config = config.schedule(Schedule::Constant).max_steps(1).batches(batches);
        let config = TrainConfig { max_grad_norm: None, weight_decay: 0.0, ..config };
        let report =
            Trainer::new(config).fit_with(BySequence(OfPrompts), &mut model, &data, None).unwrap();
        (report.log[0].loss, report.log[0].metrics.get("prompt_tokens").unwrap(), adapter(&model))
    };
    let (once, twice) = (step(true), step(false));
    assert!((once.0 - twice.0).abs() < 1e-5 && once.1 == twice.1, "{} {}", once.0, twice.0);
    for (name, (_, values)) in &once.2 {
        let off = difference(values, &twice.2[name].1);
        assert!(off < 1e-5, "{name}: {off}");
    }
}

/// The prompt is in the row once, but for its last token, which predicts the first of each answer.
#[test]
fn a_shared_prompt_is_in_the_row_once() {
    let data = pairs_of("long.json");
    let batches = BatchConfig { shuffle: false, ..BatchConfig::default() };
    let tokens = |share: bool, windows: bool| {
        let batches = BatchConfig { share_prompts: share, ..batches.clone() };
        let model = if windows { windowed() } else { base() };
        let data = prepare(&BySequence(OrpoConfig::default()), &model, &data, &batches).unwrap();
        let epoch = data.epoch(&batches, 0).unwrap();
        assert_eq!(epoch.len(), 4);
        let all = epoch.iter().map(|rows| data.batch(rows, &batches));
        all.map(|batch| (batch.rows, batch.tokens, batch.target_count)).collect::<Vec<_>>()
    };
    let (once, twice) = (tokens(true, false), tokens(false, false));
    let expected = json("long.json");
    let prompts = expected.as_array().unwrap().iter().map(|pair| ids(&pair["prompt"]).len());
    for (prompt, (once, twice)) in prompts.zip(once.iter().zip(&twice)) {
        assert_eq!((once.0, twice.0), (1, 2));
        assert_eq!((once.1 + prompt - 1, once.2), (twice.1, twice.2));
    }
    // A layer with a window would count what lies between.
    assert_eq!(tokens(true, true), twice);
}

#[test]
fn kto_agrees_with_trl() {
    let batches = BatchConfig { size: 4, ..BatchConfig::default() };
    for name in ["kto/kto", "kto/weighted", "kto/apo_zero_unpaired"] {
        let objective = settings::<KtoConfig>(name);
        let data = prepare(&objective, &base(), &answers(), &batches).unwrap();
        steps::check(&path(name), model, objective.clone(), &data, 4, &[], |run| run);
        steps::check(&path(name), model, objective, &data, 4, &[], |run| {
            run.recompute(Recompute::EveryLayer)
        });
    }
}

#[test]
fn labels_that_are_wrong() {
    let tokenizer = Tokenizer::from_pretrained(golden("quickstart/model")).unwrap();
    let record =
        |label: Value| serde_json::json!({"prompt": "a", "completion": "b", "label": label});
    for (label, part) in [
        (serde_json::json!("yes"), "records:1: `label` is text"),
        (serde_json::json!(2), "records:1: `label` is 2, but must be true or false"),
        (serde_json::json!(null), "records:1: `label` is null"),
    ] {
        let error = Dataset::from_records([record(label)]).unpaired().load(&tokenizer);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    for label in [serde_json::json!("True"), serde_json::json!(1), serde_json::json!(true)] {
        let data = Dataset::from_records([record(label)]).unpaired().load(&tokenizer).unwrap();
        assert_eq!(data.batch(&[vec![0]], &BatchConfig::default()).values["label"], [1.0]);
    }
    let record = serde_json::json!({"prompt": "a", "completion": "b"});
    let error = Dataset::from_records([record]).unpaired().load(&tokenizer).unwrap_err();
    assert!(error.to_string().contains("no column `label`"), "{error}");
    let error = |data: &Dataset| {
        let run = Trainer::new(TrainConfig::new(1e-3));
        run.fit_with(Kto::new(0.1), &mut model(), data, None).unwrap_err().to_string()
    };
    assert!(error(&pairs()).contains("`.unpaired()`"));
    assert!(error(&golden_data("gqa")).contains("no numbers `label`"));
    let data = answers().with_values("label", [1.0, 0.0, 0.5, 1.0, 0.0, 0.0]).unwrap();
    assert!(error(&data).contains("`label` is 0.5"));
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
    check(name, objective(), &data, &[], |run| {
        let batches = BatchConfig { size: 2, ..run.batches.clone() };
        run.batches(batches).gradient_accumulation_steps(2)
    });
}

/// On as many GPUs as `BURN_LORA_GPUS` says, with a part of each batch on each.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs BURN_LORA_GPUS"]
fn several_devices_agree_with_trl() {
    let count = std::env::var("BURN_LORA_GPUS").expect("BURN_LORA_GPUS is set");
    let count: usize = count.parse().unwrap();
    let (data, rows) = (compared(), 4 / count);
    for name in ["dpo/sigmoid", "dpo/hinge", "dpo/ipo", "dpo/robust"] {
        let objective = settings::<DpoConfig>(name);
        steps::check_by(&path(name), model, objective, &data, rows, &[], |run| {
            Trainer::new(run).devices((0..count).map(burn::tensor::Device::cuda))
        });
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
    assert!(error.contains("`prepare` the data"), "{error}");
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

/// Metrics of an objective say which evaluation is the best, and when to stop.
#[test]
fn a_run_stops_by_a_metric_of_its_objective() {
    let data = pairs();
    let run = |metric: &str| {
        let config = TrainConfig::new(1e-2).epochs(20).batch_size(4);
        let config = config.evaluate(Every::Steps(1)).metric_for_best_model(metric);
        let early = EarlyStopping { patience: 2, threshold: 0.0 };
        Trainer::new(config.early_stopping(early)).fit_with(
            Dpo::new(0.5),
            &mut model(),
            &data,
            &data,
        )
    };
    let report = run("rewards/accuracies").unwrap();
    let (best, value) = report.finished.best.unwrap();
    assert_eq!((value, report.finished.reason), (1.0, StopReason::EarlyStopping));
    assert_eq!(report.finished.steps, best + 2);
    let of = |at: usize| report.evaluations[at].metrics.get("rewards/accuracies").unwrap();
    assert!(best == 1 || of(best - 2) < 1.0);
    let error = run("rewards/kl").unwrap_err().to_string();
    assert!(error.contains("`rewards/margins`"), "{error}");
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
