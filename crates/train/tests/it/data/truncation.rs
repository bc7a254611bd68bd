//! Samples that are too long.

use super::{error, previews, tokenizer};
use burn_lora_train::data::{Dataset, OnError, Truncation};
use serde_json::json;

/// Of 6, 3 and 3 tokens: the space before a second `hello` is one of its own.
fn data() -> burn_lora_train::data::DatasetBuilder {
    Dataset::from_records([
        json!({"prompt": "hello world", "completion": " hello world"}),
        json!({"prompt": "hello", "completion": " world"}),
        json!({"prompt": "hello world", "completion": ""}),
    ])
}

#[test]
fn one_end_is_kept() {
    let start = data().max_length(4).load(&tokenizer()).unwrap();
    assert_eq!(
        previews(&start),
        ["hello world« hello»", "hello« world<|im_end|>»", "hello world«<|im_end|>»"]
    );
    assert_eq!(start.report().truncated, 1);
    let end = data().max_length(4).truncation(Truncation::KeepEnd).load(&tokenizer()).unwrap();
    assert_eq!(previews(&end)[0], " «hello world<|im_end|>»");
    assert_eq!((end.report().truncated, end.report().longest), (1, 4));
    let whole = data().max_length(6).load(&tokenizer()).unwrap();
    assert_eq!(whole.report().truncated, 0);
}

#[test]
fn or_it_is_left_out() {
    let data = data().max_length(4).truncation(Truncation::Drop).load(&tokenizer()).unwrap();
    let report = data.report();
    assert_eq!((report.examples, report.too_long, report.truncated), (2, 1, 0));
    assert_eq!(
        report.to_string(),
        "2 examples, 6 tokens, 3 (50.0%) of them trained on\nlongest 3 tokens, mean 3.0\n\
         left out: 1 (1 too long, 0 malformed, 0 with nothing to train on); the first: records:1: \
         6 tokens, more than the 4 allowed"
    );
}

#[test]
fn or_it_is_an_error() {
    assert_eq!(
        error(data().max_length(4).truncation(Truncation::Error)),
        "records:1: 6 tokens, more than the 4 allowed"
    );
}

#[test]
fn a_mask_that_truncation_empties_is_an_error() {
    assert_eq!(
        error(data().max_length(2)),
        "records:1: none of its tokens is left to train on after truncation from 6 to 2"
    );
    let data = data().max_length(2).on_empty(OnError::Skip).load(&tokenizer()).unwrap();
    let report = data.report();
    assert_eq!((report.examples, report.empty, report.truncated), (1, 2, 1));
}

#[test]
fn a_length_that_nothing_can_have() {
    assert!(error(data().max_length(1)).starts_with("`max_length` is 1: "));
}
