//! Storage of samples in an unnamed file that is mapped into memory: data may exceed the memory.

use super::{Report, read::example, sample::Sample};
use crate::error::TrainError;
use burn_lora_text::Tokenizer;
use memmap2::Mmap;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Bit set in a token that is trained on.
const TRAINED: u32 = 1 << 31;

/// Location of a sample, and its source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Index of its first token in the file.
    start: u64,
    pub length: u32,
    pub targets: u32,
    file: u32,
    line: u32,
}

/// All samples that were loaded together.
#[derive(Debug)]
pub(crate) struct Store {
    tokens: Mmap,
    entries: Vec<Entry>,
    /// Number of samples of an example: two of a pair.
    pub group: usize,
    files: Vec<PathBuf>,
    /// Counts of loading.
    pub report: Report,
    /// Highest token id.
    pub highest: u32,
    /// Tokens of the longest sample.
    pub longest: usize,
    /// Numbers beside the tokens, by name, one for each sample.
    pub values: BTreeMap<String, Vec<f32>>,
    /// Label of each token, of data that have them.
    labels: Vec<i32>,
    /// Tokenizer of the tokens, if they were encoded here.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that end a turn, but no generation yet.
    pub ends: BTreeSet<u32>,
    /// Maximum number of tokens of a sample, if there is one.
    pub max_length: Option<usize>,
    /// Folder of the file.
    pub folder: PathBuf,
}

impl Store {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn entry(&self, index: usize) -> Entry {
        self.entries[index]
    }

    pub fn sample(&self, index: usize) -> Sample {
        let Entry { start, length, .. } = self.entries[index];
        let tokens: &[u32] = bytemuck::cast_slice(&self.tokens);
        let tokens = &tokens[start as usize..][..length as usize];
        Sample {
            ids: tokens.iter().map(|token| token & !TRAINED).collect(),
            loss_mask: tokens.iter().map(|token| token & TRAINED != 0).collect(),
        }
    }

    pub fn has_labels(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Returns the labels of a sample's tokens, if there are any.
    pub fn labels(&self, index: usize) -> &[i32] {
        let Entry { start, length, .. } = self.entries[index];
        match self.has_labels() {
            true => &self.labels[start as usize..][..length as usize],
            false => &[],
        }
    }

    /// Returns the file and the line of a sample.
    pub fn source(&self, index: usize) -> (&Path, usize) {
        let Entry { file, line, .. } = self.entries[index];
        (&self.files[file as usize], line as usize)
    }
}

/// Writer of samples, one after the other.
pub(crate) struct Writer {
    file: BufWriter<File>,
    folder: PathBuf,
    tokens: u64,
    entries: Vec<Entry>,
    group: usize,
    files: Vec<PathBuf>,
    values: BTreeMap<String, Vec<f32>>,
    labels: Vec<i32>,
    highest: u32,
    pub report: Report,
    pub ends: BTreeSet<u32>,
    pub max_length: Option<usize>,
}

impl Writer {
    /// Creates a writer of samples from these files.
    pub fn new(folder: Option<&Path>, files: Vec<PathBuf>) -> Result<Self, TrainError> {
        let folder = folder.map_or_else(std::env::temp_dir, Path::to_owned);
        let file =
            tempfile::tempfile_in(&folder).map_err(|source| TrainError::io(&folder, source))?;
        let file = BufWriter::new(file);
        Ok(Self {
            file,
            folder,
            tokens: 0,
            entries: vec![],
            group: 1,
            files,
            highest: 0,
            values: BTreeMap::new(),
            labels: vec![],
            report: Report::default(),
            ends: BTreeSet::new(),
            max_length: None,
        })
    }

    /// Adds a sample, from a line of a file.
    pub fn push(&mut self, sample: &Sample, file: usize, line: usize) -> Result<(), TrainError> {
        let fits = |count: usize, what: &str| {
            u32::try_from(count).map_err(|_| self.wrong(file, line, format!("{count} {what}")))
        };
        let entry = Entry {
            start: self.tokens,
            length: fits(sample.ids.len(), "tokens are too many")?,
            targets: sample.target_count() as u32,
            file: file as u32,
            line: fits(line, "lines are too many")?,
        };
        let highest = sample.ids.iter().copied().max().unwrap_or(0);
        if highest >= TRAINED {
            return Err(self.wrong(file, line, format!("{highest} is no token")));
        }
        self.highest = self.highest.max(highest);
        for (id, trained) in sample.ids.iter().zip(&sample.loss_mask) {
            let token = if *trained { id | TRAINED } else { *id };
            let written = self.file.write_all(&token.to_ne_bytes());
            written.map_err(|source| TrainError::io(&self.folder, source))?;
        }
        self.tokens += u64::from(entry.length);
        self.entries.push(entry);
        Ok(())
    }

    /// Adds a number beside the tokens of the last sample.
    pub fn value(&mut self, name: &str, value: f32) {
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// Adds the labels of the last sample's tokens.
    pub fn labels(&mut self, labels: &[i32]) {
        self.labels.extend(labels);
    }

    /// Number of examples so far.
    pub fn len(&self) -> usize {
        self.entries.len() / self.group
    }

    /// Sets the number of samples of an example, before any are added.
    pub fn set_group(&mut self, samples: usize) {
        assert!(self.entries.is_empty() || self.group == samples);
        self.group = samples;
    }

    pub fn wrong(&self, file: usize, line: usize, reason: impl Into<String>) -> TrainError {
        example(&self.files[file], line, reason)
    }

    /// Returns the store of the samples written; at least one is required.
    pub fn finish(self, tokenizer: Option<&Tokenizer>) -> Result<Store, TrainError> {
        let Self { file, folder, entries, group, files, highest, values, labels, .. } = self;
        let (report, ends, max_length) = (self.report, self.ends, self.max_length);
        if entries.is_empty() {
            let mut reason = "no examples".to_owned();
            if report.left_out() > 0 {
                reason = format!("no examples are left\n{report}");
            }
            let path = files.first().map_or(Path::new("data"), PathBuf::as_path);
            return Err(TrainError::format(path, reason));
        }
        let map = || {
            let file = file.into_inner()?;
            // SAFETY: nothing writes to the file any more, and as it has no name, no other program
            // can open it.
            unsafe { Mmap::map(&file) }
        };
        let tokens = map().map_err(|source| TrainError::io(&folder, source))?;
        let tokenizer = tokenizer.cloned();
        Ok(Store {
            tokens,
            longest: entries.iter().map(|entry| entry.length as usize).max().unwrap_or(0),
            entries,
            group,
            files,
            report,
            highest,
            values,
            labels,
            tokenizer,
            ends,
            max_length,
            folder,
        })
    }
}
