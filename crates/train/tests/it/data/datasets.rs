//! Samples in memory, parts of a data set, reports.

use super::{samples, tokenizer};
use burn_lora_train::{
    TrainError,
    data::{Dataset, OnError, Report, Sample},
};
use serde_json::json;
use std::path::PathBuf;

#[test]
fn samples_come_back_as_they_were() {
    let all = [
        Sample { ids: vec![0, (1 << 31) - 1, 7], loss_mask: vec![true, false, true] },
        Sample { ids: vec![5, 6], loss_mask: vec![false, true] },
    ];
    let data = Dataset::from_samples(all.clone()).unwrap();
    assert_eq!([data.sample(0), data.sample(1)], all);
    assert_eq!(data.source(1), "samples:2");
    let clone = data.clone();
    drop(data);
    assert_eq!(clone.sample(1), all[1]);
}

#[test]
fn samples_that_cannot_be_used() {
    let wrong = |ids: &[u32], trained: &[bool]| {
        let good = Sample { ids: vec![5, 6], loss_mask: vec![false, true] };
        let wrong = Sample { ids: ids.to_vec(), loss_mask: trained.to_vec() };
        Dataset::from_samples([good, wrong]).unwrap_err().to_string()
    };
    assert_eq!(wrong(&[1, 2], &[true]), "samples:2: 2 tokens, but 1 in `loss_mask`");
    let none = "none of its 2 tokens is one to train on";
    assert_eq!(wrong(&[1, 2], &[true, false]), format!("samples:2: {none}"));
    assert_eq!(wrong(&[], &[]), "samples:2: none of its 0 tokens is one to train on");
    assert_eq!(wrong(&[1, 1 << 31], &[true; 2]), "samples:2: 2147483648 is no token");
    assert_eq!(Dataset::from_samples([]).unwrap_err().to_string(), "samples: no examples");
}

fn ids(data: &Dataset) -> Vec<Vec<u32>> {
    (0..data.len()).map(|index| data.sample(index).ids).collect()
}

#[test]
fn a_split_divides() {
    let data = samples(&[2; 101]);
    let (train, eval) = data.split(0.25, 7);
    assert_eq!((train.len(), eval.len()), (76, 25));
    let mut all = [ids(&train), ids(&eval)].concat();
    assert!(ids(&train).is_sorted() && ids(&eval).is_sorted());
    all.sort();
    assert_eq!(all, ids(&data));
    assert_eq!(eval.source(0), format!("samples:{}", eval.sample(0).ids[0] / 2 + 1));

    let again = data.split(0.25, 7);
    assert_eq!((ids(&again.0), ids(&again.1)), (ids(&train), ids(&eval)));
    assert_ne!(ids(&data.split(0.25, 8).1), ids(&eval));
    // A part of a part.
    let (rest, quarter) = train.split(0.25, 7);
    let mut parts = [ids(&rest), ids(&quarter)].concat();
    parts.sort();
    assert_eq!(parts, ids(&train));
    assert!(data.split(0.0, 7).1.is_empty());
    assert!(data.split(1.0, 7).0.is_empty());
}

#[test]
#[should_panic(expected = "NaN is no fraction")]
fn a_split_by_no_number() {
    samples(&[2]).split(f64::NAN, 0);
}

#[test]
fn the_first_samples() {
    let data = samples(&[2, 3, 4]);
    assert_eq!(ids(&data.take(2)), ids(&data)[..2]);
    assert_eq!(data.take(5).len(), 3);
}

#[test]
fn reports_are_of_the_part() {
    let data = samples(&[2, 3, 7]);
    let report = Report {
        examples: 3,
        samples: 3,
        tokens: 12,
        target_tokens: 9,
        longest: 7,
        ..Report::default()
    };
    assert_eq!(data.report(), report);
    assert_eq!(report.mean_length(), 4.0);
    let part =
        Report { examples: 2, samples: 2, tokens: 5, target_tokens: 3, longest: 3, ..report };
    assert_eq!(data.take(2).report(), part);
}

#[test]
fn previews_in_colour() {
    let record = json!({"prompt": "a\u{1b}[31m", "completion": "é"});
    let data = Dataset::from_records([record]).load(&tokenizer()).unwrap();
    assert_eq!(
        data.preview(0, &tokenizer(), true).unwrap(),
        "a\u{241b}[31m\u{1b}[32mé<|im_end|>\u{1b}[0m"
    );
}

#[test]
fn previews_show_control_characters() {
    let record = json!({"text": "a\u{7}\u{8}\r\u{7f}\u{9b}\u{202e}\t\n東"});
    let data = Dataset::from_records([record]).load(&tokenizer()).unwrap();
    assert_eq!(
        data.preview(0, &tokenizer(), false).unwrap(),
        "a«\u{2407}\u{2408}\u{240d}\u{2421}\\u{9b}\\u{202e}\t\n東<|im_end|>»"
    );
}

/// Each kind of file, the first with a record that cannot be used, and behind the limit what would be an error.
#[test]
fn reading_ends_with_the_last_sample_that_is_wanted() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let line = json!({ "text": "hello" });
    let json = vec![line.to_string(); 600];
    let files = [
        file("a.jsonl", format!("{{}}\n{}\n", json.join("\n"))),
        file("b.csv", format!("text\n{}", "hello\n".repeat(3))),
        file("c.json", format!("[{}, x]", json.join(","))),
        folder.path().join("there is no such file.parquet"),
    ];
    let read = |limit: usize, files: &[PathBuf]| {
        let data = Dataset::from_files(files).on_error(OnError::Skip).limit(limit);
        let data = data.load(&tokenizer())?;
        let sources: Vec<_> = [0, data.len() - 1].map(|index| data.source(index)).into();
        let names = sources.iter().map(|source| source.rsplit('/').next().unwrap().to_owned());
        Ok::<_, TrainError>((data.len(), data.report().left_out(), names.collect::<Vec<_>>()))
    };
    let (first, line) = ("a.jsonl:2".to_owned(), |line: &str| line.to_owned());
    for (limit, last) in [(1, "a.jsonl:2"), (512, "a.jsonl:513"), (513, "a.jsonl:514")] {
        assert_eq!(read(limit, &files).unwrap(), (limit, 1, vec![first.clone(), line(last)]));
    }
    for (limit, last) in [(600, "a.jsonl:601"), (602, "b.csv:3"), (1203, "c.json:1")] {
        assert_eq!(read(limit, &files).unwrap(), (limit, 1, vec![first.clone(), line(last)]));
    }
    // One more reads on.
    let error = read(1204, &files).unwrap_err().to_string();
    assert!(error.contains("c.json:1: not the JSON expected"), "{error}");
    // In a file of its own, all that is there is less than what is wanted.
    assert_eq!(read(9, &files[1..2]).unwrap().0, 3);
    let error = read(0, &files).unwrap_err().to_string();
    assert!(error.contains("`limit` is 0: it has to be above 0"), "{error}");
    let records = Dataset::from_records(vec![json!({ "text": "hello" }); 7]).limit(5);
    assert_eq!(records.load(&tokenizer()).unwrap().len(), 5);
}
