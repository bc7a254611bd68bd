//! Pairs of a chosen and a rejected answer: what is read, what is refused, and how they stay together.

use super::tokenizer;
use burn_lora_train::{
    BatchConfig, TrainError,
    data::{Dataset, OnError, Truncation},
};
use serde_json::{Value, json};

fn load(records: &[Value]) -> Result<Dataset, TrainError> {
    Dataset::from_records(records).load(&tokenizer())
}

fn texts(record: Value) -> [String; 2] {
    let data = load(&[record]).unwrap();
    assert_eq!((data.len(), data.samples_per_example(), data.report().examples), (2, 2, 1));
    assert_eq!([0, 1].map(|sample| data.part_of_pair(sample)), [Some("chosen"), Some("rejected")]);
    [0, 1].map(|sample| data.preview(sample, &tokenizer(), false).unwrap())
}

fn error(records: &[Value]) -> String {
    load(records).unwrap_err().to_string()
}

#[test]
fn texts_and_messages_with_and_without_a_prompt() {
    let end = "<|im_end|>»";
    let expected = [format!("hello« world{end}"), format!("hello« hello{end}")];
    assert_eq!(
        texts(json!({"prompt": "hello", "chosen": " world", "rejected": " hello"})),
        expected
    );
    assert_eq!(texts(json!({"chosen": "hello world", "rejected": "hello hello"})), expected);
    assert_eq!(
        texts(json!({"prompt": null, "chosen": "hello world", "rejected": "hello hello"})),
        expected
    );

    let user = json!({"role": "user", "content": "a"});
    let bot = |text: &str| json!({"role": "assistant", "content": text});
    let [b, c] = ["b", "c"].map(|answer| {
        format!("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«{answer}<|im_end|>\n»")
    });
    let expected = [b, c];
    for record in [
        json!({"prompt": [user], "chosen": [bot("b")], "rejected": [bot("c")]}),
        json!({"chosen": [user, bot("b")], "rejected": [user, bot("c")]}),
        // As UltraFeedback has it: the prompt in both places, and a column for other trainers.
        json!({"prompt": "a", "chosen": [user, bot("b")], "rejected": [user, bot("c")], "score_chosen": 3}),
        json!({"prompt": "a", "chosen": [bot("b")], "rejected": [bot("c")]}),
    ] {
        assert_eq!(texts(record.clone()), expected, "{record}");
    }
    // Instructions and turns before; what tools say belongs to the answer.
    let [chosen, _] = texts(json!({
        "system": "s", "chosen": [user, bot("x"), user, bot("b")], "rejected": [user, bot("x"), user, bot("c")],
    }));
    let begin = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n";
    assert_eq!(chosen, format!("{begin}{}", expected[0]));
}

#[test]
fn pairs_that_cannot_be_used() {
    let pair = json!({"prompt": "hello", "chosen": " world", "rejected": " hello"});
    for (record, reason) in [
        (json!({"prompt": "hello", "chosen": " a", "rejected": " a"}), "both answers are the same"),
        (json!({"chosen": "hello", "rejected": "hello"}), "both answers are the same"),
        (json!({"prompt": "a", "chosen": " b"}), "no known format"),
        (
            json!({"prompt": "a", "chosen": " b", "rejected": 3}),
            "both answers are text, or both are lists",
        ),
        (json!({"prompt": "a", "chosen": [], "rejected": []}), "`chosen` has no messages"),
        (
            json!({"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]}),
            "`chosen`: none of its",
        ),
    ] {
        let found = error(std::slice::from_ref(&record));
        assert!(found.contains("records:1") && found.contains(reason), "{record}: {found}");
    }
    let other = json!({"prompt": "hello", "completion": " world"});
    assert!(error(&[pair.clone(), other.clone()]).contains("records:2: no column `chosen`"));
    assert!(error(&[other, pair]).contains("records:2: no column `completion`"));
}

#[test]
fn bad_pairs_are_counted() {
    let long = "hello ".repeat(30);
    let records = [
        json!({"prompt": "hello", "chosen": " world", "rejected": " hello"}),
        json!({"prompt": "hello", "chosen": " a", "rejected": " a"}),
        // The prompt fills all the room.
        json!({"prompt": long, "chosen": " world", "rejected": " hello"}),
        // The answers differ behind the limit only.
        json!({"prompt": "hello", "chosen": format!("{long}a"), "rejected": format!("{long}b")}),
    ];
    let data = Dataset::from_records(&records).on_empty(OnError::Skip).max_length(12);
    let data = data.load(&tokenizer()).unwrap();
    let report = data.report();
    assert_eq!((report.examples, report.empty, report.equal), (1, 1, 2));
    assert!(report.to_string().contains("2 with the same answer twice"), "{report}");
    let data = Dataset::from_records(&records[..1]).truncation(Truncation::KeepEnd).max_length(2);
    let data = data.load(&tokenizer()).unwrap();
    assert_eq!(data.preview(0, &tokenizer(), false).unwrap(), " world«<|im_end|>»");
    assert_eq!(data.report().truncated, 1);
}

#[test]
fn pairs_stay_together() {
    let records = (0..40).map(|number| {
        let answer = |word: &str| word.repeat(1 + number % 7);
        json!({"prompt": "hello", "chosen": answer(" world"), "rejected": answer(" hello")})
    });
    let data = Dataset::from_records(records.collect::<Vec<_>>()).load(&tokenizer()).unwrap();
    let limited = Dataset::from_records(
        [0; 3].map(|_| json!({"prompt": "hello", "chosen": " world", "rejected": " hello"})),
    );
    assert_eq!(limited.limit(2).load(&tokenizer()).unwrap().len(), 4);
    let configs = [
        BatchConfig { size: 3, ..BatchConfig::default() },
        BatchConfig { size: 3, group_by_length: true, ..BatchConfig::default() },
        BatchConfig { size: 2, packing: Some(40), ..BatchConfig::default() },
    ];
    let (train, valid) = data.split(0.3, 1);
    assert_eq!((train.len(), valid.len(), train.take(5).len()), (56, 24, 10));
    for config in &configs {
        for data in [&data, &train, &valid] {
            let mut seen = vec![];
            for rows in data.epoch(config, 3).unwrap() {
                assert!(config.packing.is_some() || rows.len() <= 2 * config.size);
                let batch = data.batch(&rows, config);
                for pair in batch.sources.chunks(2) {
                    assert_eq!((pair[0] % 2, pair[1]), (0, pair[0] + 1));
                    assert_eq!(data.source(pair[0]), data.source(pair[1]));
                }
                seen.extend(batch.sources);
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..data.len()).collect::<Vec<_>>());
        }
    }
    let error = data.epoch(&BatchConfig { packing: Some(12), ..BatchConfig::default() }, 0);
    assert!(error.unwrap_err().to_string().contains("do not fit into packed rows of 12"));
}

/// Numbers that come after the loading follow their samples into parts.
#[test]
fn values_follow_their_samples() {
    let pair = json!({"prompt": "hello", "chosen": " world", "rejected": " hello"});
    let data = load(&vec![pair; 10]).unwrap();
    let data = data.with_values("number", (0..20).map(|number| number as f32)).unwrap();
    let (_, part) = data.split(0.4, 3);
    let part = part.take(3);
    let batch = part.batch(&[vec![4], vec![5]], &BatchConfig::default());
    let line: f32 = part.source(4).rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(batch.values["number"], [2.0 * (line - 1.0), 2.0 * (line - 1.0) + 1.0]);
}
