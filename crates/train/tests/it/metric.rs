//! Metrics of evaluations, and the best by them.

use crate::{common::*, runs::*};
use burn::module::Module;
use burn_lora_adapter::{AdaptableExt, LoraConfig};
use burn_lora_llama::{GenerateConfig, Llama};
use burn_lora_text::Tokenizer;
use burn_lora_train::{
    Answers, BatchConfig, Dataset, EarlyStopping, Every, Goal, Report, RunConfig, TrainConfig,
    TrainError, Trainer, Validation, evaluate,
    watch::{MetricsLog, Record, StopReason},
};
use serde_json::json;
use std::{cell::RefCell, fs, path::PathBuf};

fn quickstart() -> PathBuf {
    golden("quickstart/model")
}

/// Examples with an answer of several tokens each.
fn priced() -> Dataset {
    let tokenizer = Tokenizer::from_pretrained(quickstart()).unwrap();
    let names = ["drill", "kettle", "ham", "rope", "saw", "boat", "lamp", "desk"];
    let records = names.iter().zip(1..).map(|(name, number)| {
        json!({ "prompt": format!("A {name}.\nPrice is $"), "completion": format!("{}", number * 137) })
    });
    Dataset::from_records(records).load(&tokenizer).unwrap()
}

/// A model that has learned some of these examples by heart, and others not.
fn taught(data: &Dataset) -> Llama {
    let base = loader(&quickstart()).load(&device()).unwrap();
    let mut model = base.with_adapter(&LoraConfig::new(8, 16).all_linear().seed(1)).unwrap();
    let run = TrainConfig::new(5e-3).batch_size(4).epochs(12);
    Trainer::new(run).fit(&mut model, &data.take(4), None).unwrap();
    model
}

/// A greedy answer is the example's where each of its tokens, given those before, is the likeliest.
#[test]
fn exact_match_is_what_the_accuracies_of_tokens_say() {
    let data = priced();
    let model = taught(&data);
    let answers = Answers::new(GenerateConfig::new(16)).exact_match().batch_size(3);
    let found = answers.of(&model, &data).unwrap();
    assert_eq!(
        found.iter().map(|answer| answer.example).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 6, 7]
    );
    assert!(found[1].prompt.ends_with("A kettle.\nPrice is $"), "{:?}", found[1]);
    let mut right = 0;
    for (index, answer) in found.iter().enumerate() {
        assert_eq!(answer.expected.trim(), format!("{}", (index + 1) * 137));
        let alone = Dataset::from_samples([data.sample(index)]).unwrap();
        let accuracy = evaluate(&model, &alone, &BatchConfig::default()).unwrap();
        let learned = accuracy.metrics.get("mean_token_accuracy") == Some(1.0);
        assert_eq!(answer.given.trim() == answer.expected, learned, "{answer:?}");
        right += usize::from(learned);
    }
    assert!((1..8).contains(&right), "{right} of 8 are right, so that this shows nothing");

    let valid = Validation::new(&data).metric(answers);
    let run = TrainConfig::new(1e-9).max_steps(1).evaluate(Every::Steps(1));
    let report = Trainer::new(run).fit(&mut model.clone(), &data, valid).unwrap();
    assert_eq!(report.evaluations[0].metrics.get("exact_match"), Some(right as f64 / 8.0));
}

/// The tokenizer of the small model, with a chat template.
fn chatty() -> (tempfile::TempDir, Tokenizer) {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\n\
        {% endgeneration %}{% else %}{{ m.content }}\n{% endif %}{% endfor %}";
    let config = quickstart().join("tokenizer_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    config["chat_template"] = template.into();
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    fs::copy(quickstart().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_pretrained(folder.path()).unwrap();
    (folder, tokenizer)
}

#[test]
fn every_turn_is_asked_after_those_before_it() {
    let (_folder, tokenizer) = chatty();
    let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
    let chat = json!({ "messages": [turn("user", "A drill."), turn("assistant", "$12"),
        turn("user", "A ham."), turn("assistant", "$345")] });
    let data = Dataset::from_records([chat]).load(&tokenizer).unwrap();
    let model = loader(&quickstart()).load(&device()).unwrap();
    let found = Answers::new(GenerateConfig::new(2)).of(&model, &data).unwrap();
    let [first, second] = &found[..] else { panic!("{found:?}") };
    assert!(first.prompt.ends_with("A drill.\n") && first.expected.trim() == "$12", "{first:?}");
    assert!(second.prompt.ends_with("A drill.\n$12\nA ham.\n"), "{second:?}");
    assert_eq!(second.expected.trim(), "$345");
}

#[test]
fn examples_are_spread_over_the_data() {
    let data = priced();
    let model = loader(&quickstart()).load(&device()).unwrap();
    let found = Answers::new(GenerateConfig::new(1)).examples(3).of(&model, &data).unwrap();
    assert_eq!(found.iter().map(|answer| answer.example).collect::<Vec<_>>(), [0, 2, 5]);
}

/// Runs six steps with an evaluation after each, whose metric has these values.
fn run_with(
    values: &[f64],
    goal: Goal,
    change: impl Fn(TrainConfig) -> TrainConfig,
) -> (Report, Llama) {
    let values = RefCell::new(values.iter().copied());
    let next = |_: &Llama, _: &Dataset| Ok(values.borrow_mut().next().expect("a value"));
    let folder = tempfile::tempdir().unwrap();
    let run = small(folder.path())
        .max_steps(6)
        .evaluate(Every::Steps(1))
        .metric_for_best_model("given")
        .load_best_at_end(true);
    let valid = data(40, 4);
    let mut tuned = model();
    let valid = Validation::new(&valid).metric_fn("given", goal, next);
    let report = Trainer::new(change(run)).fit(&mut tuned, &data(0, 24), valid).unwrap();
    (report, tuned)
}

#[test]
fn the_best_is_by_any_metric_in_its_direction() {
    let values = [0.25, 0.5, 0.125, 0.5, f64::NAN, 0.375];
    for (goal, best) in [(Goal::Higher, (2, 0.5)), (Goal::Lower, (3, 0.125))] {
        let (report, tuned) = run_with(&values, goal, |run| run);
        assert_eq!(report.finished.best, Some(best));
        assert_eq!(report.finished.best_metric, "given");
        // Its parameters are those of that step.
        let loss = evaluate(&tuned.valid(), &data(40, 4), &BatchConfig::default()).unwrap().loss;
        let then = report.evaluations[best.0 - 1].loss;
        assert!((loss - then).abs() < 1e-6, "{loss}, and {then} after step {}", best.0);
        let others = report.evaluations.iter().filter(|found| found.step != best.0);
        assert!(others.into_iter().all(|other| (other.loss - then).abs() > 1e-5));
    }
}

#[test]
fn a_run_stops_by_any_metric() {
    for (goal, sign) in [(Goal::Higher, 1.0), (Goal::Lower, -1.0)] {
        let values = [1.0, 2.0, 2.25, 1.5, 9.0, 9.0].map(|value| sign * value);
        // 2.25 is the best, but no gain of a half.
        let early = EarlyStopping { patience: 2, threshold: 0.5 };
        let (report, _) = run_with(&values, goal, |run| run.early_stopping(early));
        assert_eq!(report.finished.reason, StopReason::EarlyStopping);
        assert_eq!(report.finished.steps, 4);
        assert_eq!(report.finished.best, Some((3, sign * 2.25)));
    }
}

#[test]
fn metrics_that_cannot_be_are_errors_before_the_first_step() {
    let (train, valid) = (data(0, 8), data(40, 4));
    let error = |run: TrainConfig, valid: Validation<'_, Llama>| {
        let error = Trainer::new(run).fit(&mut model(), &train, valid).unwrap_err();
        error.to_string()
    };
    let run = || TrainConfig::new(1e-3).evaluate(Every::Steps(1));
    let zero = |_: &Llama, _: &Dataset| Ok(0.0);

    let found = error(
        run().metric_for_best_model("accuracy"),
        Validation::new(&valid).metric_fn("bleu", Goal::Higher, zero),
    );
    for name in ["`loss`", "`perplexity`", "`mean_token_accuracy`", "`bleu`"] {
        assert!(found.contains(name), "{found}");
    }
    for taken in ["loss", "step", "perplexity"] {
        let found = error(run(), Validation::new(&valid).metric_fn(taken, Goal::Lower, zero));
        assert!(found.contains(&format!("`{taken}`")) && found.contains("another"), "{found}");
    }
    let found =
        error(TrainConfig::new(1e-3), Validation::new(&valid).metric_fn("a", Goal::Lower, zero));
    assert!(found.starts_with("`evaluate` is not set"), "{found}");
    let found =
        error(TrainConfig::new(1e-3).metric_for_best_model("loss"), Validation::new(&valid));
    assert!(
        found.contains("metric_for_best_model") && found.contains("needs `evaluate`"),
        "{found}"
    );

    // What a metric itself says.
    let failing = |_: &Llama, _: &Dataset| {
        Err(TrainError::Device { what: "a metric".into(), reason: "does not work".into() })
    };
    let found = error(run(), Validation::new(&valid).metric_fn("a", Goal::Lower, failing));
    assert_eq!(found, "a metric: does not work");
    let answers = || Answers::new(GenerateConfig::new(2)).exact_match();
    let found = error(run(), Validation::new(&valid).metric(answers()));
    assert!(found.contains("a tokenizer has read"), "{found}");
    let tokenizer = Tokenizer::from_pretrained(quickstart()).unwrap();
    let text = Dataset::from_records([json!({ "text": "A drill." })]).load(&tokenizer).unwrap();
    let model = loader(&quickstart()).load(&device()).unwrap();
    let found = answers().of(&model, &text).unwrap_err().to_string();
    assert!(found.contains("no prompt"), "{found}");
}

#[test]
fn another_metric_is_another_run() {
    let folder = tempfile::tempdir().unwrap();
    let (train, valid) = (data(0, 8), data(40, 4));
    let run = || small(folder.path()).max_steps(2).evaluate(Every::Steps(1));
    Trainer::new(run()).fit(&mut model(), &train, &valid).unwrap();
    let other = run().max_steps(3).metric_for_best_model("mean_token_accuracy");
    let error = Trainer::new(other).resume(true).fit(&mut model(), &train, &valid).unwrap_err();
    assert!(error.to_string().contains("`metric_for_best_model` was not set"), "{error}");
    Trainer::new(run().max_steps(3)).resume(true).fit(&mut model(), &train, &valid).unwrap();
}

#[test]
fn a_run_file_can_ask_for_exact_matches() {
    let folder = tempfile::tempdir().unwrap();
    let [data, output] = ["data.jsonl", "out"].map(|name| folder.path().join(name));
    let line =
        |n: usize| format!("{}\n", json!({ "prompt": format!("{n} + "), "completion": "1" }));
    fs::write(&data, (0..12).map(line).collect::<String>()).unwrap();
    let mut run = RunConfig { devices: vec!["cpu".parse().unwrap()], ..RunConfig::default() };
    run.model.path = Some(quickstart());
    run.data.files = vec![data];
    run.train.output = Some(output.clone());
    run.metrics.exact_match = true;
    run.train.metric_for_best_model = Some("exact_match".into());
    let error = run.validate().unwrap_err().to_string();
    assert!(error.contains("nothing to answer"), "{error}");
    for setting in [
        "data.valid_split=0.5",
        "train.epochs=2",
        "train.batches.size=2",
        "generate.max_new_tokens=4",
    ] {
        run = run.with_setting(setting).unwrap();
    }
    let report = run.run().unwrap();
    assert_eq!(report.finished.best_metric, "exact_match");
    let found: Vec<_> = MetricsLog::read(&output.join("metrics.jsonl")).unwrap();
    let found = found.into_iter().filter_map(|record| match record {
        Record::Evaluation(found) => found.metrics.get("exact_match"),
        Record::Step(_) => None,
    });
    assert_eq!(found.count(), 2);
}
