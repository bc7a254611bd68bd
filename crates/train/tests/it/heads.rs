//! Objectives of a head of classes against TRL's RewardTrainer, transformers and torch (testdata/heads.py): losses, metrics,
//! gradients, ten steps.

use crate::{
    common::*,
    steps::{self, adapter},
};
use burn_lora_adapter::{AdaptableExt, LoraConfig};
use burn_lora_llama::SequenceClassifier;
use burn_lora_text::Tokenizer;
use burn_lora_train::{
    BatchConfig, Dataset, Metric, Objective, Recompute, TrainConfig, Trainer,
    data::{IGNORE_INDEX, Sample, Truncation},
    evaluate_with,
    metric::LabelScores,
    objective::{
        MultiLabelClassification, Regression, Reward, SequenceClassification, TokenClassification,
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

fn path(name: &str) -> PathBuf {
    golden("heads").join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path(name)).unwrap()).unwrap()
}

fn from<T: DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn sample(value: &Value) -> Sample {
    let ids: Vec<u32> = from(value);
    Sample { loss_mask: vec![true; ids.len()], ids }
}

fn pairs(margins: bool) -> Dataset {
    let pairs: Vec<Value> = from(&read("data.json")["pairs"]);
    let both =
        pairs.iter().map(|pair| [sample(&pair["chosen_ids"]), sample(&pair["rejected_ids"])]);
    let data = Dataset::from_pairs(both).unwrap();
    let values = pairs.iter().flat_map(|pair| [from::<f32>(&pair["margin"]); 2]);
    if margins { data.with_values(Reward::MARGIN, values).unwrap() } else { data }
}

/// The sequences, with columns of numbers.
fn sequences(columns: &[(&str, Vec<f32>)]) -> Dataset {
    let rows: Vec<Value> = from(&read("data.json")["sequences"]);
    let data = Dataset::from_samples(rows.iter().map(sample)).unwrap();
    columns
        .iter()
        .fold(data, |data, (name, values)| data.with_values(*name, values.clone()).unwrap())
}

fn tagged() -> Dataset {
    let data = read("data.json");
    let (rows, tags): (Vec<Vec<u32>>, Vec<Vec<i32>>) =
        (from(&data["sequences"]), from(&data["tags"]));
    Dataset::from_labeled_tokens(rows.into_iter().zip(tags)).unwrap()
}

fn column(rows: &Value, at: usize) -> Vec<f32> {
    from::<Vec<Vec<f32>>>(rows).iter().map(|row| row[at]).collect()
}

fn model(start: &str) -> SequenceClassifier {
    let folder = path("start").join(start);
    let shape =
        &tensors(&folder.join("adapter_model.safetensors"))["base_model.model.score.weight"].0;
    let loader = loader(&golden("gqa"));
    // The head is new, which is warned of, until the adapter has its own.
    let (model, _) = burn_lora_io::collect(|| match start {
        "tags" => loader.load_token_classifier(shape[0], &device()),
        _ => loader.load_classifier(shape[0], &device()),
    });
    let mut model = model.unwrap();
    model.load_adapter("default", folder).unwrap();
    model
}

/// A case of the goldens; `but` names metrics that depend on the size of the batches.
fn check(
    (name, start): (&str, &str),
    objective: &(impl Objective<SequenceClassifier> + Clone + 'static),
    data: &Dataset,
    but: &[&str],
    change: impl Fn(TrainConfig) -> TrainConfig,
) {
    steps::check(&path(name), || model(start), objective.clone(), data, 5, but, change);
}

/// A case as it is; with layers that are run again, packed rows, and two micro-batches, which make no difference.
fn check_ways<O: Objective<SequenceClassifier> + Clone + 'static>(
    case: (&str, &str),
    objective: &O,
    data: &Dataset,
    but: &[&str],
    micro: usize,
) {
    check(case, objective, data, &[], |run| run);
    check(case, objective, data, &[], |run| run.recompute(Recompute::EveryLayer));
    check(case, objective, data, &[], |run| {
        let batches = BatchConfig { packing: Some(128), ..run.batches.clone() };
        run.batches(batches)
    });
    check(case, objective, data, but, |run| {
        let batches = BatchConfig { size: micro, ..run.batches.clone() };
        run.batches(batches).gradient_accumulation_steps(2)
    });
}

#[test]
fn reward_models_agree_with_trl() {
    check(("reward", "reward"), &Reward::default(), &pairs(false), &[], |run| run);
    let centered = Reward::for_model(&model("reward")).unwrap().center_rewards(0.1);
    check(("reward_centered", "reward"), &centered, &pairs(false), &[], |run| run);
    let objective = Reward::default().center_rewards(0.02);
    // Those of a batch, as TRL has them.
    let but = ["min_reward", "max_reward"];
    check_ways(("reward_margin", "reward"), &objective, &pairs(true), &but, 2);
}

#[test]
fn classes_agree() {
    let data = sequences(&[("label", from(&read("data.json")["class"]))]);
    let objective = SequenceClassification::for_model(&model("three"));
    check_ways(("single", "three"), &objective, &data, &[], 3);
    let weighted = objective.class_weights([0.5, 2.0, 1.25]);
    check(("weighted", "three"), &weighted, &data, &[], |run| run);
}

#[test]
fn several_labels_agree() {
    let present = &read("data.json")["present"];
    let data = ["a", "b", "c"].iter().enumerate().map(|(at, name)| (*name, column(present, at)));
    let data = sequences(&data.collect::<Vec<_>>());
    let objective = MultiLabelClassification::new(["a", "b", "c"]);
    check_ways(("multi_label", "three"), &objective, &data, &[], 3);
    let weighted = objective.pos_weights([0.5, 2.0, 1.25]);
    check(("multi_label_weighted", "three"), &weighted, &data, &[], |run| run);
}

#[test]
fn regression_agrees() {
    let targets = &read("data.json")["target"];
    let data = sequences(&[("x", column(targets, 0)), ("y", column(targets, 1))]);
    check(("regression", "reward"), &Regression::new(["x"]), &data, &[], |run| run);
    check_ways(("regression_of_two", "two"), &Regression::new(["x", "y"]), &data, &[], 3);
}

#[test]
fn labels_of_tokens_agree() {
    let objective = TokenClassification::for_model(&model("tags"));
    check_ways(("tags", "tags"), &objective, &tagged(), &[], 3);
    let weighted = objective.class_weights([0.25, 2.0, 1.0, 1.5]);
    check(("tags_weighted", "tags"), &weighted, &tagged(), &[], |run| run);
}

#[test]
fn scores_of_labels_are_those_of_scikit_learn() {
    let labels: Vec<f32> = from(&read("data.json")["class"]);
    let cases = [("three", sequences(&[("label", labels)])), ("tags", tagged())];
    for (start, data) in cases {
        for size in [1, 5] {
            let batches = BatchConfig { size, ..BatchConfig::default() };
            let found = LabelScores { batches }.measure(&model(start), &data).unwrap();
            let expected: Vec<f64> = from(&read("scores.json")[start]);
            let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9);
            assert!(near, "{start}: {found:?}, not {expected:?}");
        }
    }
    assert!(LabelScores::default().measure(&model("three"), &sequences(&[])).is_err());
}

/// Batches with weights count by their samples, as in transformers' `Trainer`.
#[test]
fn weighted_batches_count_by_samples() {
    let labels: Vec<f32> = from(&read("data.json")["class"]);
    let data = sequences(&[("label", labels)]);
    let model = model("three");
    let objective = SequenceClassification::new(3).class_weights([0.5, 2.0, 1.25]);
    let loss = |data: &Dataset, size| {
        let batches = BatchConfig { size, ..BatchConfig::default() };
        evaluate_with(&objective, &model, data, &batches).unwrap().loss
    };
    // Each sample by itself: its weight cancels out.
    let plain = SequenceClassification::new(3);
    let single = evaluate_with(&plain, &model, &data, &BatchConfig::default()).unwrap().loss;
    assert!((loss(&data, 1) - single).abs() < 1e-6);
    assert!((loss(&data, 5) - single).abs() > 1e-2);
    // A class of no weight is ignored.
    let ignored = SequenceClassification::new(3).class_weights([0.0, 0.0, 1.0]);
    let batches = BatchConfig { size: 5, ..BatchConfig::default() };
    let found = evaluate_with(&ignored, &model, &data, &batches).unwrap().loss;
    let only: f64 = [0, 4]
        .iter()
        .map(|at| {
            let one = Dataset::from_samples([data.sample(*at)])
                .unwrap()
                .with_values("label", [2.0])
                .unwrap();
            evaluate_with(&plain, &model, &one, &batches).unwrap().loss
        })
        .sum();
    assert!((found - only / 2.0).abs() < 1e-5, "{found}, not {}", only / 2.0);
}

#[test]
fn words_are_the_tokens_of_transformers() {
    for record in read("words.json").as_array().unwrap() {
        let folder = golden(record["tokenizer"].as_str().unwrap());
        let tokenizer = Tokenizer::from_pretrained(folder).unwrap();
        let words: Vec<String> = from(&record["tokens"]);
        let names: Vec<String> = (0..=words.len()).map(|number| format!("L{number}")).collect();
        let labels: Vec<i32> = from(&record["labels"]);
        let load = |tags: Value, column: &str| {
            let record = json!({ "tokens": words, column: tags, "id": 7 });
            Dataset::from_records([record]).token_labels(&names).load(&tokenizer).unwrap()
        };
        let numbers: Vec<usize> = (1..=words.len()).collect();
        for data in [load(json!(numbers), "ner_tags"), load(json!(names[1..]), "labels")] {
            assert_eq!(data.sample(0).ids, from::<Vec<u32>>(&record["ids"]));
            assert_eq!(data.token_labels(0), labels);
        }
        // Truncation keeps tokens and labels together.
        if labels.len() > 4 {
            for truncation in [Truncation::KeepStart, Truncation::KeepEnd] {
                let record = json!({ "tokens": words, "labels": numbers });
                let data = Dataset::from_records([record]).max_length(4).truncation(truncation);
                let data = data.load(&tokenizer).unwrap();
                let from = if truncation == Truncation::KeepStart { 0 } else { labels.len() - 4 };
                assert_eq!(data.token_labels(0), &labels[from..][..4]);
            }
        }
    }
}

#[test]
fn a_token_classifier_has_a_bias() {
    let base = golden("gqa");
    let (model, warnings) =
        burn_lora_io::collect(|| loader(&base).load_token_classifier(2, &device()));
    assert!(warnings.iter().any(|warning| warning.contains("score.weight")), "{warnings:?}");
    let lora = LoraConfig::new(2, 4).all_linear().modules_to_save(["score"]).task_type("TOKEN_CLS");
    let saved = adapter(&model.unwrap().with_adapter(&lora).unwrap());
    assert_eq!(saved["base_model.model.score.bias"], (vec![2], vec![0.0; 2]));
}

#[test]
fn data_that_do_not_fit_are_refused() {
    let mut reward = model("reward");
    let mut error = |objective: &dyn Fn(Trainer, &mut SequenceClassifier) -> Option<String>| {
        objective(Trainer::new(TrainConfig::new(1e-3)), &mut reward).unwrap()
    };
    let class = |labels: [f32; 5]| sequences(&[("label", labels.to_vec())]);
    let fit = |run: Trainer, model: &mut SequenceClassifier, objective: Reward, data: &Dataset| {
        run.fit_with(objective, model, data, None).err().map(|error| error.to_string())
    };
    let found = error(&|run, model| fit(run, model, Reward::default(), &class([0.0; 5])));
    assert!(found.contains("the data need `chosen` and `rejected`"), "{found}");
    let found =
        error(&|run, model| fit(run, model, Reward::default().center_rewards(-1.0), &pairs(false)));
    assert!(found.contains("center_rewards_coefficient"), "{found}");
    let found = Reward::for_model(&model("three")).unwrap_err().to_string();
    assert!(found.contains("is 3: a reward is a single number"), "{found}");

    let check = |objective: &dyn Objective<SequenceClassifier>, data: &Dataset| {
        objective.check(data).unwrap_err().to_string()
    };
    let classes = SequenceClassification::new(3);
    let found = check(&classes, &class([0.0, 1.0, 3.0, 0.0, 0.0]));
    assert_eq!(found, "samples:3: `label` is 3: the classes are 0 to 2");
    let found = check(&classes.clone().class_weights([1.0]), &class([0.0; 5]));
    assert!(found.contains("there are 3 labels: give one for each"), "{found}");
    let found = check(&classes.class_weights([1.0, -1.0, 1.0]), &class([0.0; 5]));
    assert!(found.contains("0 at least"), "{found}");
    let found =
        check(&MultiLabelClassification::new(["label", "b"]), &class([0.0, 1.0, 0.0, 2.0, 0.0]));
    assert!(found.starts_with("samples:4: `label` is 2"), "{found}");
    let found = check(&Regression::new(["b"]), &class([0.0; 5]));
    assert!(found.contains("no numbers `b`"), "{found}");
    let found = check(&TokenClassification::new(4), &class([0.0; 5]));
    assert!(found.contains("`tokens` and `ner_tags`"), "{found}");
    let found = check(&TokenClassification::new(3), &tagged());
    assert!(found.starts_with("samples:1: a token has the label 3"), "{found}");
    let found = check(&burn_lora_train::objective::NextToken::default(), &tagged());
    assert!(found.contains("TokenClassification"), "{found}");
    assert!(Dataset::from_labeled_tokens([(vec![5, 6], vec![0])]).is_err());
    assert!(Dataset::from_labeled_tokens([(vec![5], vec![IGNORE_INDEX])]).is_err());
}

#[test]
fn columns_that_do_not_fit_are_refused() {
    let tokenizer = Tokenizer::from_pretrained("../../testdata/tokenizer").unwrap();
    let error = |record: Value| {
        let good = json!({ "text": "a", "labels": ["new"] });
        let data = Dataset::from_records([good, record]).label_set("labels", ["cheap", "new"]);
        data.load(&tokenizer).unwrap_err().to_string()
    };
    let found = error(json!({ "text": "a", "labels": ["old"] }));
    assert!(
        found.starts_with("records:2: ") && found.contains("`old`, expected one of cheap, new"),
        "{found}"
    );
    assert!(error(json!({ "text": "a", "labels": [2] })).contains("the label 2: they are 0 to 1"));
    assert!(error(json!({ "text": "a", "labels": "new" })).contains("labels"));
    assert!(error(json!({ "text": "a" })).contains("no column `labels`"));
    let list = |labels: Value| {
        let data = Dataset::from_records([json!({ "text": "a", "labels": labels })]);
        data.value_list("labels", ["x", "y"]).load(&tokenizer)
    };
    assert!(
        list(json!([1])).unwrap_err().to_string().contains("has 1 numbers, and there are 2 names")
    );
    assert!(list(json!([1, "b"])).unwrap_err().to_string().contains("must be a number"));
    let twice = Dataset::from_records([json!({ "text": "a", "x": 1, "l": [1, 2] })]);
    let twice = twice.value("x").value_list("l", ["x", "y"]).load(&tokenizer).unwrap_err();
    assert!(twice.to_string().contains("two numbers beside the tokens"), "{twice}");

    let words = |record: Value| {
        let data = Dataset::from_records([record]).token_labels(["O", "B"]).load(&tokenizer);
        data.unwrap_err().to_string()
    };
    let found = words(json!({ "tokens": ["a", "b"], "ner_tags": ["O"] }));
    assert!(found.contains("`tokens` has 2 words, but `ner_tags` has 1 labels"), "{found}");
    let found = words(json!({ "tokens": ["a", "b"], "ner_tags": ["O", "I"] }));
    assert!(found.contains("the label of the word `b` is `I`, expected one of O, B"), "{found}");
    assert!(words(json!({ "tokens": ["a"], "ner_tags": [2] })).contains("2, but must be 0 to 1"));
    assert!(words(json!({ "tokens": ["a"], "ner_tags": [null] })).contains("to train on"));
    let mixed = Dataset::from_records([json!({ "text": "a" })]).load(&tokenizer).unwrap();
    assert!(!mixed.has_token_labels());
}

#[test]
fn a_head_of_another_size_is_refused() {
    let mut model = model("three");
    let fit = Trainer::new(TrainConfig::new(1e-3)).fit_with(
        Reward::default(),
        &mut model,
        &pairs(false),
        None,
    );
    let error = fit.unwrap_err().to_string();
    assert!(error.contains("`labels of the head` is 3, and the objective's are 1"), "{error}");
    let error = evaluate_with(&Reward::default(), &model, &pairs(false), &BatchConfig::default());
    assert!(error.unwrap_err().to_string().contains("load_classifier"));
}
