//! Each objective, from data to an evaluated adapter.

use crate::commands::{run, small_model};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// From pairs to an adapter that prefers the chosen answers, by what the program says.
#[test]
fn a_preference_is_trained() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = small_model(folder.path());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (data, out) = (path("pairs.jsonl"), path("out"));
    let pair = serde_json::json!({ "prompt": "hello", "chosen": " world", "rejected": " hello" });
    let equal = serde_json::json!({ "prompt": "hello", "chosen": " a", "rejected": " a" });
    fs::write(&data, format!("{}{equal}\n", format!("{pair}\n").repeat(16))).unwrap();
    let words = ["--model", &model, "--data", &data, "--objective", "dpo", "--device", "cpu"];
    let train = [
        &["train"][..],
        &words,
        &["--output", &out, "--format", "none", "--lr", "1e-2", "--epochs", "4"],
        &["--set", "objective.beta=0.5", "--valid-split", "0.25", "--batch-size", "2"],
    ]
    .concat();
    let error = run(&train).unwrap_err();
    assert!(
        error.contains("pairs.jsonl:17") && error.contains("both answers are the same"),
        "{error}"
    );
    let train = [&train[..], &["--set", "data.on_empty='skip'"]].concat();
    let shown = run(&train).unwrap();
    let skipped = "1 with the same answer twice";
    assert!(shown.contains(skipped) && shown.contains("Example 1, chosen"), "{shown}");

    let file = format!("{out}/run.toml");
    let found = run(&["eval", "--config", &file, "--adapter", "base", "--adapter", &out, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&found.unwrap()).unwrap();
    let [before, after] = [0, 1].map(|at| &found["results"][at]);
    assert_eq!(before["rewards/margins"], 0.0, "{found}");
    assert!(after["rewards/margins"].as_f64().unwrap() > 0.5, "{found}");
    assert_eq!(after["rewards/accuracies"], 1.0, "{found}");

    // The next-token loss does not take rejected answers for examples.
    let words: Vec<_> =
        train.iter().map(|word| if *word == "dpo" { "next_token" } else { word }).collect();
    let words: Vec<_> = words
        .into_iter()
        .map(|word| if word == "objective.beta=0.5" { "train.seed=1" } else { word })
        .collect();
    let error = run(&[&words[..], &["--resume"]].concat()).unwrap_err();
    assert!(error.contains("choose an objective of pairs"), "{error}");
}

/// A run in a folder of its own.
struct Case {
    folder: tempfile::TempDir,
    model: String,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (model, _) = small_model(folder.path());
        Self { folder, model }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Trains on records for four epochs.
    fn train(&self, output: &str, records: &[Value], more: &[&str]) -> Result<String, String> {
        let data = self.path("data.jsonl");
        let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
        fs::write(&data, lines).unwrap();
        let output = self.path(output);
        let words = ["train", "--model", &self.model, "--data", &data, "--output", &output];
        let rest = ["--device", "cpu", "--format", "none", "--lr", "1e-2", "--epochs", "4"];
        run(&[&words[..], &rest, &["--batch-size", "4", "--valid-split", "0.25"], more].concat())
    }

    /// Evaluates on the validation data.
    fn eval(&self, output: &str, adapters: &[&str]) -> Result<Vec<Value>, String> {
        let (file, output) = (self.path(&format!("{output}/run.toml")), self.path(output));
        let mut words = vec!["eval", "--config", &file, "--json"];
        for adapter in adapters {
            words.extend(["--adapter", if *adapter == "out" { &output } else { adapter }]);
        }
        let found: Value = serde_json::from_str(&run(&words)?).unwrap();
        Ok(found["results"].as_array().unwrap().clone())
    }
}

fn number(row: &Value, name: &str) -> f64 {
    row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))
}

/// Single answers, and both of pairs.
#[test]
fn answers_that_are_desirable_or_not_are_trained() {
    let case = Case::new();
    let answer = |text, label| json!({ "prompt": "hello", "completion": text, "label": label });
    let both = [answer(" world", true), answer(" hello", false)];
    let answers: Vec<_> = both.iter().cycle().take(16).cloned().collect();
    let pair = json!({ "prompt": "hello", "chosen": " world", "rejected": " hello" });
    for (name, records) in [("single", answers.clone()), ("pairs", vec![pair; 8])] {
        case.train(name, &records, &["--objective", "kto", "--set", "objective.beta=0.5"]).unwrap();
        let found = case.eval(name, &["base", "out"]).unwrap();
        assert_eq!(number(&found[0], "rewards/margins"), 0.0, "{name}");
        assert!(number(&found[1], "rewards/margins") > 0.5, "{name}: {found:?}");
        assert!(number(&found[1], "loss") < number(&found[0], "loss"));
        assert!(found[1].get("kl").is_some());
    }
    // Three of four are desirable.
    let unlike = [&answers[..], &vec![answer(" world", true); 16]].concat();
    let again = ["--objective", "kto"];
    case.train("unlike", &unlike, &again).unwrap();
    let one = ["--objective", "kto", "--set", "train.batches.size=1"];
    let error = case.train("one", &answers, &one).unwrap_err();
    assert!(error.contains("it has to be 2 at least"), "{error}");
    let packed = ["--objective", "kto", "--set", "train.batches.packing=64"];
    case.train("packed", &answers, &packed).unwrap();
    let error = case.train("none", &[json!({ "prompt": "a", "completion": "b" })], &again);
    assert!(error.unwrap_err().contains("data.jsonl:1: no column `label`"));
}

/// By a teacher in memory, and by its most probable tokens, which stay in a file.
#[test]
fn a_teacher_is_distilled() {
    let case = Case::new();
    let records: Vec<_> = (0..16)
        .map(|number| json!({ "prompt": format!("say {number}"), "completion": " hello world" }))
        .collect();
    let taught = case.path("taught");
    case.train("taught", &records, &[]).unwrap();
    let of_teacher = format!("objective.teacher_adapter='{taught}'");
    let words = ["--objective", "distillation", "--set", &of_teacher];
    let error = case.train("none", &records, &words).unwrap_err();
    assert!(error.contains("(--teacher MODEL)"), "{error}");

    let words = [&words[..], &["--teacher", &case.model]].concat();
    case.train("whole", &records, &words).unwrap();
    let found = case.eval("whole", &["base", "out"]).unwrap();
    assert!(number(&found[1], "loss") < 0.5 * number(&found[0], "loss"), "{found:?}");

    let file = case.path("teacher.safetensors");
    let stored = format!("objective.teacher_logits='{file}'");
    let words = [&words[..], &["--set", "objective.loss_top_k=16", "--set", &stored]].concat();
    case.train("stored", &records, &words).unwrap();
    let found = case.eval("stored", &["base", "out"]).unwrap();
    assert!(number(&found[1], "loss") < 0.5 * number(&found[0], "loss"), "{found:?}");
    let valid = Path::new(&file).with_extension("valid.safetensors");
    assert!(Path::new(&file).is_file() && valid.is_file());
    // They are read again, also without the teacher, and belong to their data.
    let without = format!(
        "objective={{name='distillation', loss_top_k=16, beta=0.0, teacher_logits='{file}'}}"
    );
    case.train("again", &records, &["--set", &without]).unwrap();
    let error = case.train("other", &records[1..], &["--set", &without]).unwrap_err();
    assert!(error.contains("teacher.safetensors") && error.contains("other data"), "{error}");
    let other = [&words[..], &["--set", "objective.teacher_format=nf4"]].concat();
    let error = case.train("other", &records, &other).unwrap_err();
    assert!(error.contains("the run's teacher is") && error.contains("in nf4"), "{error}");
    // Other data are evaluated by the teacher, and leave the files alone.
    let before = fs::read(&file).unwrap();
    let (toml, out) = (case.path("stored/run.toml"), case.path("stored"));
    let data = case.path("few.jsonl");
    fs::write(&data, format!("{}\n", records[3])).unwrap();
    run(&["eval", "--config", &toml, "--adapter", &out, "--data", &data]).unwrap();
    assert_eq!(fs::read(&file).unwrap(), before);
    let other = without.replace("top_k=16", "top_k=8");
    let error = case.train("other", &records, &["--set", &other]).unwrap_err();
    assert!(error.contains("the 16 most probable"), "{error}");
    let error = case.train("other", &records, &["--teacher", &case.model]).unwrap_err();
    assert!(error.contains("only `--objective distillation`"), "{error}");
}

/// Rewards, classes, labels, numbers, labels of words: models with a head of their own.
#[test]
fn heads_are_trained() {
    let case = Case::new();
    fn of<T>(number: usize, even: T, odd: T) -> T {
        if number.is_multiple_of(2) { even } else { odd }
    }
    let texts = |number| of(number, "hello world", "good morning");
    let records = |of: &dyn Fn(usize) -> Value| (0..32).map(of).collect::<Vec<_>>();
    let pair = json!({ "prompt": "say", "chosen": " world", "rejected": " hello", "margin": 0.1 });
    let margin = "objective={name='reward', margin=true, center_rewards_coefficient=0.01}";
    case.train("reward", &vec![pair; 32], &["--set", margin]).unwrap();
    assert_eq!(number(&case.eval("reward", &["out"]).unwrap()[0], "accuracy"), 1.0);

    let classes =
        "objective={name='sequence_classification', labels=['no','yes'], class_weights=[1.0,2.0]}";
    let class = |at| json!({ "text": texts(at), "sort": of(at, "no", "yes") });
    let words = ["--set", classes, "--set", "data.columns.label='sort'"];
    let shown = case.train("classes", &records(&class), &words).unwrap();
    assert!(shown.contains("burn-lora eval --config"), "{shown}");
    assert_eq!(number(&case.eval("classes", &["out"]).unwrap()[0], "accuracy"), 1.0);
    let settings = fs::read_to_string(case.path("classes/adapter_config.json")).unwrap();
    assert!(settings.contains("SEQ_CLS") && settings.contains("score"), "{settings}");
    let error = case.eval("classes", &["base"]).unwrap_err();
    assert!(error.contains("--adapter"), "{error}");

    let labels = "objective={name='multi_label_classification', labels=['short','new']}";
    let label = |at| json!({ "text": texts(at), "labels": [of(at, "short", "new")] });
    case.train("labels", &records(&label), &["--set", labels]).unwrap();
    assert_eq!(number(&case.eval("labels", &["out"]).unwrap()[0], "label_accuracy"), 1.0);

    let targets = "objective={name='regression', targets=['price']}";
    let price = |at| json!({ "text": texts(at), "price": if at % 2 == 0 { 0.5 } else { -0.5 } });
    case.train("numbers", &records(&price), &["--set", targets]).unwrap();
    let found = number(&case.eval("numbers", &["out"]).unwrap()[0], "mean_absolute_error");
    assert!(found < 0.2, "{found}");

    let words = "objective={name='token_classification', labels=['O','B']}";
    let sentence = |_| json!({ "tokens": ["hello", "world"], "ner_tags": ["O", "B"] });
    case.train("words", &records(&sentence), &["--set", words]).unwrap();
    assert_eq!(number(&case.eval("words", &["out"]).unwrap()[0], "accuracy"), 1.0);

    // What a head cannot do, and what it needs.
    for (more, part) in [
        (vec!["--objective", "regression"], "`objective.targets` is not set"),
        (vec!["--objective", "sequence_classification"], "name two classes"),
        (vec!["--set", targets, "--sample", "hello"], "does not answer"),
        (vec!["--set", targets, "--set", "metrics.exact_match=true"], "does not answer"),
        (vec!["--set", targets, "--set", "tokens.add=['<x>']"], "no new tokens"),
        (vec!["--objective", "rewards"], "reward"),
        (vec!["--set", targets, "--set", "train.label_smoothing=0.1"], "only the next-token loss"),
        (vec!["--set", "objective.beta=0.3"], "beta"),
    ] {
        let error = case.train("none", &records(&price), &more).unwrap_err();
        assert!(error.contains(part), "{more:?}: {error}");
    }
    // An adapter of texts brings no head.
    case.train("texts", &records(&class), &[]).unwrap();
    let texts = case.path("texts");
    let more = ["--set", targets, "--adapter", &texts];
    let error = case.train("none", &records(&price), &more).unwrap_err();
    assert!(error.contains("it has no `score`"), "{error}");
    let error = case.train("none", &records(&class), &["--set", targets]).unwrap_err();
    assert!(error.contains("data.jsonl:1: no column `price`"), "{error}");
}
