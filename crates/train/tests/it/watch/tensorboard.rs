//! TensorBoard's files, read back by a reader of its own.

use super::{evaluation, started, step};
use burn_lora_train::watch::{Observer, StepMetrics, TensorBoard};
use std::{collections::BTreeMap, fs, path::Path};

/// CRC-32C bit by bit.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(n);
    *bytes = rest;
    head
}

fn records(path: &Path) -> Vec<Vec<u8>> {
    let file = fs::read(path).unwrap();
    let mut rest = &file[..];
    let mut records = Vec::new();
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let masked = |data: &[u8]| {
        let crc = crc32c(data);
        crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
    };
    while !rest.is_empty() {
        let length = take(&mut rest, 8);
        assert_eq!(take(&mut rest, 4), masked(length));
        let data = take(&mut rest, u64::from_le_bytes(length.try_into().unwrap()) as usize);
        assert_eq!(take(&mut rest, 4), masked(data));
        records.push(data.to_vec());
    }
    records
}

/// The fields of a message: number and content (an integer in eight bytes).
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn integer(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = take(message, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = integer(&mut message);
        let content = match key & 7 {
            0 => integer(&mut message).to_le_bytes().to_vec(),
            1 => take(&mut message, 8).to_vec(),
            2 => {
                let length = integer(&mut message) as usize;
                take(&mut message, length).to_vec()
            }
            5 => take(&mut message, 4).to_vec(),
            kind => panic!("kind {kind}"),
        };
        fields.push((key >> 3, content));
    }
    fields
}

fn field(message: &[u8], number: u64) -> Option<Vec<u8>> {
    fields(message).into_iter().find(|field| field.0 == number).map(|field| field.1)
}

fn step_of(event: &[u8]) -> u64 {
    u64::from_le_bytes(field(event, 2).unwrap().try_into().unwrap())
}

fn scalars(event: &[u8]) -> BTreeMap<String, f32> {
    let values = fields(&field(event, 5).unwrap()).into_iter();
    let scalar = |(number, value): (u64, Vec<u8>)| {
        assert_eq!(number, 1);
        let tag = String::from_utf8(field(&value, 1).unwrap()).unwrap();
        (tag, f32::from_le_bytes(field(&value, 2).unwrap().try_into().unwrap()))
    };
    values.map(scalar).collect()
}

#[test]
fn events_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    // With `BURN_LORA_EVENTS` they stay, for TensorBoard itself.
    let keep = std::env::var_os("BURN_LORA_EVENTS").map(std::path::PathBuf::from);
    let folder = keep.unwrap_or(folder.path().join("runs"));
    let mut board = TensorBoard::new(&folder);
    board.started(&started(None)).unwrap();
    board.step(&step(1)).unwrap();
    board.step(&StepMetrics { loss: f64::NAN, memory: None, ..step(300) }).unwrap();
    board.evaluated(&evaluation(300)).unwrap();
    let mut board = TensorBoard::new(&folder);
    board.started(&started(Some(200))).unwrap();
    board.step(&StepMetrics { loss: 0.75, ..step(201) }).unwrap();

    let mut files: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    assert!(files.iter().all(|file| file.to_str().unwrap().contains("events.out.tfevents.")));

    let first = records(&files[0]);
    assert_eq!(first.len(), 4);
    assert_eq!(field(&first[0], 3).unwrap(), b"brain.Event:2");
    let wall_time = f64::from_le_bytes(field(&first[0], 1).unwrap().try_into().unwrap());
    assert!((1.7e9..1e11).contains(&wall_time));
    assert_eq!(first.iter().map(|event| step_of(event)).collect::<Vec<_>>(), [0, 1, 300, 300]);

    let expected = [
        ("train/epoch", 0.1),
        ("train/grad_norm", 1.0 / 3.0),
        ("train/learning_rate", 2e-4),
        ("train/loss", 0.3),
        ("train/mean_token_accuracy", 0.5),
        ("train/memory", (1 << 30) as f32),
        ("train/num_tokens", 100.0),
        ("train/step_seconds", 0.25),
        ("train/tokens_per_second", 1234.5),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(tag, value)| (tag.to_owned(), value)).into();
    assert_eq!(scalars(&first[1]), expected);
    let second = scalars(&first[2]);
    assert!(second["train/loss"].is_nan() && !second.contains_key("train/memory"));
    let evaluated = scalars(&first[3]);
    assert_eq!(evaluated["eval/loss"], 1.5);
    assert_eq!(evaluated["eval/num_tokens"], 77.0);
    assert_eq!(evaluated.len(), 4);

    // The second has TensorBoard forget the steps from 201 on: a session that starts (1).
    let second = records(&files[1]);
    assert_eq!(step_of(&second[1]), 201);
    assert_eq!(field(&second[1], 7).unwrap(), [1 << 3, 1]);
    assert_eq!(scalars(&second[2])["train/loss"], 0.75);
}
