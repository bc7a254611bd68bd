//! Records of preferences: the tokens that TRL makes of them (testdata/preferences.py), whole and cut.

use crate::{
    common::*,
    preferences::{ids, json, sample},
};
use burn_lora_llama::Llama;
use burn_lora_text::{ChatTemplate, Tokenizer};
use burn_lora_train::{
    BatchConfig, Dataset,
    data::{IGNORE_INDEX, OnError, Sample},
    objective::Kto,
    prepare,
};
use serde_json::Value;

/// A file of records with the tokens that TRL makes of them, and the tokenizer.
fn records(file: &str) -> (Value, Tokenizer) {
    let found = json(file);
    let mut tokenizer = Tokenizer::from_pretrained(golden("quickstart/model")).unwrap();
    let template = ChatTemplate::new(found["template"].as_str().unwrap()).unwrap();
    tokenizer.set_chat_template(template);
    (found, tokenizer)
}

#[test]
fn records_are_the_tokens_of_trl() {
    let (found, tokenizer) = records("records.json");
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

#[test]
fn long_records_are_cut_as_in_trl() {
    let (found, tokenizer) = records("records.json");
    for record in found["records"].as_array().unwrap() {
        for cut in record["cut"].as_array().unwrap() {
            let name = format!("{} {} {}", record["kind"], cut["truncation"], cut["max_length"]);
            let truncation = serde_json::from_value(cut["truncation"].clone()).unwrap();
            let data = Dataset::from_records([&record["record"]])
                .max_length(cut["max_length"].as_u64().unwrap() as usize)
                .truncation(truncation)
                .on_empty(OnError::Skip)
                .load(&tokenizer);
            let Some(answers) = cut["answers"].as_array() else {
                // Of the only pair nothing is left.
                assert!(data.unwrap_err().to_string().contains("nothing to train on"), "{name}");
                continue;
            };
            let data = data.unwrap();
            for (sample, answer) in answers.iter().enumerate() {
                let Sample { ids: found, loss_mask } = data.sample(sample);
                let mask: Vec<_> =
                    ids(&answer["completion_mask"]).iter().map(|mask| *mask == 1).collect();
                assert_eq!((found, loss_mask), (ids(&answer["input_ids"]), mask), "{name}");
            }
        }
    }
}

#[test]
fn unpaired_records_are_the_tokens_of_trl() {
    let (found, tokenizer) = records("unpaired.json");
    let base = Llama::from_pretrained(golden("quickstart/model")).load(&device()).unwrap();
    for kind in found["kinds"].as_array().unwrap() {
        let records = kind["records"].as_array().unwrap();
        let data = Dataset::from_records(records).unpaired().load(&tokenizer).unwrap();
        let samples = kind["samples"].as_array().unwrap();
        assert_eq!(data.len(), samples.len(), "{}", kind["kind"]);
        let batches = BatchConfig { size: 2, ..BatchConfig::default() };
        let data = prepare(&Kto::new(0.1), &base, &data, &batches).unwrap();
        let rows: Vec<_> = (0..data.len()).map(|sample| vec![sample]).collect();
        let batch = data.batch(&rows, &BatchConfig { pad_to_multiple_of: Some(64), ..batches });
        let other = batch.mismatched.as_deref().unwrap();
        for (number, expected) in samples.iter().enumerate() {
            let wanted = sample(&expected["prompt_ids"], &expected["completion_ids"]);
            assert_eq!(data.sample(number), wanted, "{}", kind["kind"]);
            let label = f32::from(u8::from(expected["label"].as_bool().unwrap()));
            assert_eq!(batch.values["label"][number], label, "{}", kind["kind"]);
            let wanted = sample(&expected["prompt_ids"], &expected["KL_completion_ids"]);
            let row = &other.ids[number * other.length..][..wanted.ids.len()];
            assert_eq!(row, wanted.ids, "{}", kind["kind"]);
            let targets = &other.targets[number * other.length..][..other.length];
            let count = targets.iter().filter(|target| **target != IGNORE_INDEX).count();
            assert_eq!(count, wanted.target_count(), "{}", kind["kind"]);
        }
    }
}
