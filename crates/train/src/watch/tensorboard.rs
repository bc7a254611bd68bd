//! TensorBoard event files.
//!
//! A file is a sequence of records, each a protocol buffer `Event`
//! (<https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto>). The few
//! fields of it that scalars need are written by hand.

use super::{EvalMetrics, Named, Observer, Started, StepMetrics};
use crate::error::TrainError;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// An observer that writes scalars for TensorBoard, under the tags of Hugging Face's trainers:
/// `train/loss`, `train/grad_norm`, `eval/loss` and so on.
///
/// Each run, and each resumption, writes a file of its own. A resumption from step `k` makes
/// TensorBoard discard what came after `k`.
///
/// ```
/// use burn_lora_train::watch::{Observer, Started, StepMetrics, TensorBoard};
///
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path().join("runs");
/// let mut board = TensorBoard::new(&folder);
/// board.started(&Started::default())?;
/// board.step(&StepMetrics { step: 1, loss: 2.5, ..Default::default() })?;
/// // tensorboard --logdir runs
/// # Ok::<_, burn_lora_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct TensorBoard {
    folder: PathBuf,
    file: Option<(PathBuf, File)>,
}

impl TensorBoard {
    /// Creates a writer of event files in a folder, which is created when the run starts.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), file: None }
    }

    fn open(&self) -> Result<(PathBuf, File), TrainError> {
        let now = now();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = format!(
            "events.out.tfevents.{:010}.{:09}.burn-lora",
            now.as_secs(),
            now.subsec_nanos()
        );
        let path = self.folder.join(name);
        let create = || {
            fs::create_dir_all(&self.folder)?;
            let mut file = File::create_new(&path)?;
            write_event(&mut file, 0, &bytes(FILE_VERSION, b"brain.Event:2"))?;
            Ok(file)
        };
        let file = create().map_err(|error| TrainError::io(&path, error))?;
        Ok((path, file))
    }

    fn write(&mut self, step: usize, content: &[u8]) -> Result<(), TrainError> {
        let (path, file) = match &mut self.file {
            Some(open) if open.0.exists() => open,
            _ => {
                let open = self.open()?;
                self.file.insert(open)
            }
        };
        write_event(file, step, content).map_err(|error| TrainError::io(path, error))
    }
}

impl Observer for TensorBoard {
    fn started(&mut self, run: &Started) -> Result<(), TrainError> {
        self.file = Some(self.open()?);
        match run.resumed_from {
            Some(step) => self.write(step + 1, &bytes(SESSION_LOG, &[SESSION_STATUS, START])),
            None => Ok(()),
        }
    }

    fn step(&mut self, metrics: &StepMetrics) -> Result<(), TrainError> {
        let mut scalars = vec![
            ("loss", metrics.loss),
            ("grad_norm", metrics.grad_norm),
            ("learning_rate", metrics.learning_rate),
            ("epoch", metrics.epoch),
            ("num_tokens", metrics.num_tokens as f64),
            ("tokens_per_second", metrics.tokens_per_second),
            ("step_seconds", metrics.step_seconds),
        ];
        scalars.extend(metrics.memory.map(|memory| ("memory", memory as f64)));
        self.write(metrics.step, &summary("train", &scalars, &metrics.metrics))
    }

    fn evaluated(&mut self, metrics: &EvalMetrics) -> Result<(), TrainError> {
        let scalars = [("loss", metrics.loss), ("num_tokens", metrics.tokens as f64)];
        self.write(metrics.step, &summary("eval", &scalars, &metrics.metrics))
    }
}

// Keys of fields: the number of the field times 8, and its kind: 0 an integer, 1 eight bytes, 2 a
// length and so many bytes, 5 four bytes.
const WALL_TIME: u8 = 1 << 3 | 1;
const STEP: u8 = 2 << 3;
const FILE_VERSION: u8 = 3 << 3 | 2;
const SUMMARY: u8 = 5 << 3 | 2;
const SESSION_LOG: u8 = 7 << 3 | 2;
/// Of `SessionLog`.
const SESSION_STATUS: u8 = 1 << 3;
const START: u8 = 1;
/// Of `Summary`.
const VALUE: u8 = 1 << 3 | 2;
/// Of `Summary.Value`.
const TAG: u8 = 1 << 3 | 2;
const SIMPLE_VALUE: u8 = 2 << 3 | 5;

/// Writes a record: length, checksum of the length, data, checksum of the data.
fn write_event(file: &mut File, step: usize, content: &[u8]) -> io::Result<()> {
    let mut event = vec![WALL_TIME];
    event.extend(now().as_secs_f64().to_le_bytes());
    event.push(STEP);
    event.extend(integer(step));
    event.extend(content);

    let length = (event.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(checksum(&length).to_le_bytes());
    record.extend(&event);
    record.extend(checksum(&event).to_le_bytes());
    file.write_all(&record)
}

fn summary(group: &str, scalars: &[(&str, f64)], metrics: &Named) -> Vec<u8> {
    let values = scalars.iter().copied().chain(metrics.iter()).flat_map(|(name, value)| {
        let mut field = bytes(TAG, format!("{group}/{name}").as_bytes());
        field.push(SIMPLE_VALUE);
        field.extend((value as f32).to_le_bytes());
        bytes(VALUE, &field)
    });
    bytes(SUMMARY, &values.collect::<Vec<_>>())
}

fn bytes(key: u8, content: &[u8]) -> Vec<u8> {
    let mut field = vec![key];
    field.extend(integer(content.len()));
    field.extend(content);
    field
}

/// Encodes an integer: seven bits per byte, the lowest first; the highest bit says that more
/// follow.
fn integer(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Masked CRC-32C, which differs from the checksum of data that contain it.
fn checksum(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}
