//! Epochs, packing, and batches.

use super::samples;
use burn_lora_llama::Segments;
use burn_lora_train::data::{Batch, BatchConfig, Dataset, IGNORE_INDEX, Rows, Sample};
use proptest::prelude::*;

fn flat(batches: &[Rows]) -> Vec<usize> {
    batches.concat().concat()
}

fn sorted(mut samples: Vec<usize>) -> Vec<usize> {
    samples.sort_unstable();
    samples
}

#[test]
fn an_epoch_depends_on_its_number_and_the_seed_alone() {
    let data = samples(&[2, 9, 4, 3, 8, 5, 6, 7, 2, 3, 4, 5]);
    for config in [
        BatchConfig { size: 3, ..BatchConfig::default() },
        BatchConfig { size: 2, packing: Some(10), ..BatchConfig::default() },
        BatchConfig { size: 2, group_by_length: true, ..BatchConfig::default() },
    ] {
        let first = data.epoch(&config, 0).unwrap();
        assert_eq!(sorted(flat(&first)), (0..12).collect::<Vec<_>>());
        assert_eq!(data.epoch(&config, 0).unwrap(), first);
        assert_ne!(data.epoch(&config, 1).unwrap(), first);
        let other = BatchConfig { seed: 7, ..config };
        assert_ne!(data.epoch(&other, 0).unwrap(), first);
    }
}

#[test]
fn without_shuffling_the_order_is_that_of_the_data() {
    let data = samples(&[2, 9, 4, 3, 8]);
    let config = BatchConfig { size: 2, shuffle: false, ..BatchConfig::default() };
    let batches = data.epoch(&config, 3).unwrap();
    assert_eq!(batches, [vec![vec![0], vec![1]], vec![vec![2], vec![3]], vec![vec![4]]]);
    let packed = BatchConfig { packing: Some(9), ..config.clone() };
    // 9 | 8 | 4, 3, 2 in the order of their first samples.
    let batches = data.epoch(&packed, 3).unwrap();
    assert_eq!(batches, [vec![vec![2, 3, 0], vec![1]], vec![vec![4]]]);
    let dropped = BatchConfig { drop_last: true, ..config };
    assert_eq!(flat(&data.epoch(&dropped, 0).unwrap()), [0, 1, 2, 3]);
}

#[test]
fn groups_of_similar_lengths() {
    // 64 batches of 2 in groups of 16 batches.
    let lengths: Vec<_> = (0..128).map(|place| 2 + place * 37 % 101).collect();
    let data = samples(&lengths);
    let config = BatchConfig { size: 2, group_by_length: true, ..BatchConfig::default() };
    let order = flat(&data.epoch(&config, 0).unwrap());
    assert_eq!(sorted(order.clone()), (0..128).collect::<Vec<_>>());
    let length = |place: usize| lengths[order[place]];
    assert_eq!(length(0), 102, "the longest first");
    for group in 0..4 {
        // Its first may be the one that was swapped for the longest.
        let group: Vec<_> = (group * 32 + 1..group * 32 + 32).map(length).collect();
        assert!(group.is_sorted_by(|a, b| a >= b), "{group:?}");
    }
    assert!(!(0..128).map(length).is_sorted_by(|a, b| a >= b), "groups are no global order");
    // Fewer samples than a group.
    let few = samples(&[3, 5, 4]);
    let config = BatchConfig { shuffle: false, ..config };
    assert_eq!(flat(&few.epoch(&config, 0).unwrap()), [1, 0, 2]);
}

#[test]
fn settings_that_cannot_be_used() {
    let data = samples(&[2, 9]);
    let ok = BatchConfig::default();
    for (config, reason) in [
        (BatchConfig { size: 0, ..ok.clone() }, "`batches.size` is 0: "),
        (BatchConfig { packing: Some(0), ..ok.clone() }, "`batches.packing` is 0: "),
        (
            BatchConfig { pad_to_multiple_of: Some(0), ..ok.clone() },
            "`batches.pad_to_multiple_of` is 0: ",
        ),
        (
            BatchConfig { packing: Some(9), group_by_length: true, ..ok.clone() },
            "`batches.group_by_length` is true: ",
        ),
        (
            BatchConfig { size: 3, drop_last: true, ..ok.clone() },
            "`batches.drop_last` is true with a size of 3: nothing is left: there are 2 rows in all",
        ),
        (
            BatchConfig { size: 1 << 62, group_by_length: true, ..ok.clone() },
            "`batches.size` is 4611686018427387904: it must be 16777216 at most",
        ),
        (
            BatchConfig { packing: Some(1 << 40), ..ok.clone() },
            "`batches.packing` is 1099511627776: ",
        ),
        (
            BatchConfig { pad_to_multiple_of: Some(1 << 40), ..ok.clone() },
            "`batches.pad_to_multiple_of` is 1099511627776: ",
        ),
        (
            BatchConfig { packing: Some(8), ..ok },
            "samples:2: 9 tokens do not fit into packed rows of 8: ",
        ),
    ] {
        let error = data.epoch(&config, 0).unwrap_err().to_string();
        assert!(error.starts_with(reason), "{error}");
    }
    assert_eq!(data.take(0).epoch(&BatchConfig::default(), 0).unwrap(), Vec::<Rows>::new());
    serde_json::from_str::<BatchConfig>(r#"{"sise": 8}"#).unwrap_err();
}

#[test]
fn rows_are_padded_and_targets_are_the_next_tokens() {
    let data = Dataset::from_samples([
        Sample { ids: vec![10, 11, 12, 13], loss_mask: vec![true, true, false, true] },
        Sample { ids: vec![20, 21], loss_mask: vec![true, true] },
        Sample { ids: vec![0, 0, 0], loss_mask: vec![false, false, true] },
    ])
    .unwrap();
    let config = BatchConfig { pad_to_multiple_of: Some(5), ..BatchConfig::default() };
    let no = IGNORE_INDEX;
    assert_eq!(
        data.batch(&[vec![1], vec![0]], &config),
        Batch {
            ids: vec![20, 21, 0, 0, 0, 10, 11, 12, 13, 0],
            rows: 2,
            length: 5,
            segments: Segments::from_mask(&[vec![1, 1, 0, 0, 0], vec![1, 1, 1, 1, 0]]).unwrap(),
            targets: vec![21, no, no, no, no, 11, no, 13, no, no],
            tokens: 6,
            target_count: 3,
            sources: vec![1, 0],
            shared: vec![0; 2],
            last_tokens: vec![1, 8],
            values: Default::default(),
            token_labels: vec![],
            mismatched: None,
            top_logits: None,
        }
    );
    let config = BatchConfig { packing: Some(7), ..BatchConfig::default() };
    assert_eq!(
        data.batch(&[vec![0, 2], vec![1]], &config),
        Batch {
            ids: vec![10, 11, 12, 13, 0, 0, 0, 20, 21, 0, 0, 0, 0, 0],
            rows: 2,
            length: 7,
            segments: Segments::packed(7, &[vec![4, 3], vec![2]]).unwrap(),
            // The first token of a sample is never a target, nor is padding.
            targets: vec![11, no, 13, no, no, 0, no, 21, no, no, no, no, no, no],
            tokens: 9,
            target_count: 4,
            sources: vec![0, 2, 1],
            shared: vec![0; 3],
            last_tokens: vec![3, 6, 8],
            values: Default::default(),
            token_labels: vec![],
            mismatched: None,
            top_logits: None,
        }
    );
}

#[test]
fn padding_needs_no_row_of_its_own() {
    // The tokenizer's padding may be a token that the model's embedding does not have.
    let tokenizer = super::tokenizer_with(serde_json::json!({
        "eos_token": "<|im_end|>", "pad_token": "<|im_start|>",
    }));
    let records = ["aa", "aaaa"].map(|text| serde_json::json!({ "text": text }));
    let data = Dataset::from_records(records).load(&tokenizer).unwrap();
    let batch = data.batch(&[vec![0], vec![1]], &BatchConfig::default());
    assert_eq!(batch.ids[..5], [67, 67, 2, 0, 0]);
}

#[test]
fn best_fit_fills_rows() {
    // First fit would put the 3 beside the 6, and need a row more.
    let data = samples(&[6, 7, 3, 4]);
    let config = BatchConfig { shuffle: false, packing: Some(10), ..BatchConfig::default() };
    assert_eq!(flat(&data.epoch(&config, 0).unwrap()), [0, 3, 1, 2]);
}

proptest! {
    #[test]
    fn packing_loses_nothing(
        lengths in prop::collection::vec(2usize..=32, 1..200),
        epoch: u64,
        seed: u64,
        size in 1usize..5,
    ) {
        let data = samples(&lengths);
        let config = BatchConfig { size, seed, packing: Some(32), ..BatchConfig::default() };
        let batches = data.epoch(&config, epoch).unwrap();
        prop_assert_eq!(sorted(flat(&batches)), (0..lengths.len()).collect::<Vec<_>>());
        let rows = batches.concat();
        let filled: Vec<usize> =
            rows.iter().map(|row| row.iter().map(|sample| lengths[*sample]).sum()).collect();
        prop_assert!(filled.iter().all(|tokens| *tokens <= 32));
        // No two rows could be one.
        let mut least = filled.clone();
        least.sort_unstable();
        prop_assert!(least.len() < 2 || least[0] + least[1] > 32);
        for rows in &batches {
            let batch = data.batch(rows, &config);
            prop_assert_eq!(batch.tokens, rows.concat().iter().map(|s| lengths[*s]).sum::<usize>());
            prop_assert_eq!(batch.target_count, batch.tokens - batch.sources.len());
            for (place, target) in batch.targets.iter().enumerate() {
                // Tokens of a test's samples count up.
                prop_assert!(*target == IGNORE_INDEX || *target as u32 == batch.ids[place] + 1);
            }
        }
    }

    /// Best fit decreasing needs at most 11/9 of the best rows and 6/9 of one.
    #[test]
    fn packing_is_near_the_best(lengths in prop::collection::vec(2usize..=20, 1..8)) {
        let config = BatchConfig { packing: Some(20), ..BatchConfig::default() };
        let rows = samples(&lengths).epoch(&config, 0).unwrap().len();
        prop_assert!(9 * rows <= 11 * fewest_rows(&lengths, &mut vec![], 20) + 6);
    }
}

/// The fewest rows of `room` tokens, by trying all ways; `filled` are the rows so far.
fn fewest_rows(lengths: &[usize], filled: &mut Vec<usize>, room: usize) -> usize {
    let Some((length, rest)) = lengths.split_first() else { return filled.len() };
    filled.push(*length);
    let mut fewest = fewest_rows(rest, filled, room);
    filled.pop();
    for row in 0..filled.len() {
        if filled[row] + length <= room {
            filled[row] += length;
            fewest = fewest.min(fewest_rows(rest, filled, room));
            filled[row] -= length;
        }
    }
    fewest
}
