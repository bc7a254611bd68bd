//! JSON: a list of objects, an object with such a list, or an object a line.

use super::{Record, Sink, columns, example};
use crate::error::TrainError;
use burn_lora_llama::ChatValue as Value;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::{
    cell::Cell,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The column of an object that is the whole file.
const DATA: &str = "data";

fn open(path: &Path) -> Result<BufReader<File>, TrainError> {
    let open = || {
        let mut file = BufReader::new(burn_lora_io::open(path)?);
        if file.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
            file.consume(BYTE_ORDER_MARK.len());
        }
        Ok(file)
    };
    open().map_err(|source| TrainError::io(path, source))
}

/// An object a line; empty lines are passed over.
pub(super) fn read_lines(path: &Path, sink: &mut Sink) -> Result<(), TrainError> {
    let mut file = open(path)?;
    let mut bytes = vec![];
    for line in 1.. {
        bytes.clear();
        let count = file.read_until(b'\n', &mut bytes);
        if count.map_err(|source| TrainError::io(path, source))? == 0 {
            break;
        }
        if !bytes.trim_ascii().is_empty() {
            sink(line, parse(&bytes))?;
        }
    }
    Ok(())
}

fn parse(line: &[u8]) -> Result<Record, String> {
    let line = str::from_utf8(line).map_err(|error| format!("not UTF-8: {error}"))?;
    let value = serde_json::from_str(line).map_err(|error| {
        // Its line is always the first.
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {reason} at column {}", error.column())
    })?;
    columns(value)
}

/// A list of objects, alone or as the `data` of an object. Many files of this name have an object a
/// line instead: a first object without `data` is taken for that.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<(), TrainError> {
    let lines = Cell::new(1);
    let mut failed = None;
    let reader = CountLines { file: open(path)?, lines: &lines };
    let mut json = serde_json::Deserializer::from_reader(reader);
    let list = List { lines: &lines, sink, failed: &mut failed };
    let read = json.deserialize_any(Document(list)).and_then(|found| {
        if found {
            json.end()?;
        }
        Ok(found)
    });
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Ok(true)) => Ok(()),
        (None, Ok(false)) => read_lines(path, sink),
        (None, Err(error)) => match error.io_error_kind() {
            Some(_) => Err(TrainError::io(path, error.into())),
            None => {
                let line = error.line().max(1);
                Err(example(path, line, format!("not the JSON expected: {error}")))
            }
        },
    }
}

/// Counts the lines that were begun. The reader above asks for a byte at a time, so that the count is
/// exact at each of them.
struct CountLines<'a> {
    file: BufReader<File>,
    lines: &'a Cell<usize>,
}

impl Read for CountLines<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(bytes)?;
        let lines = bytes[..count].iter().filter(|byte| **byte == b'\n').count();
        self.lines.set(self.lines.get() + lines);
        Ok(count)
    }
}

/// A list whose items go to `sink`, one after the other.
struct List<'a, 'b> {
    lines: &'a Cell<usize>,
    sink: &'a mut Sink<'b>,
    /// What the sink said: serde's error has room for text only.
    failed: &'a mut Option<TrainError>,
}

impl<'de> Visitor<'de> for List<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a list of examples")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let line = Cell::new(0);
        while let Some(value) = items.next_element_seed(Item { lines: self.lines, line: &line })? {
            if let Err(error) = (self.sink)(line.get(), columns(value)) {
                *self.failed = Some(error);
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for List<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

/// A value, and the line on which it begins.
struct Item<'a> {
    lines: &'a Cell<usize>,
    line: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.line.set(self.lines.get());
        serde::Deserialize::deserialize(deserializer)
    }
}

/// A whole file; false if it is an object without `data`.
struct Document<'a, 'b>(List<'a, 'b>);

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = bool;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a list of examples, or an object with such a list as its `data`")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<bool, A::Error> {
        self.0.visit_seq(items).map(|()| true)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<bool, A::Error> {
        let mut list = Some(self.0);
        while let Some(key) = entries.next_key::<String>()? {
            match list.take_if(|_| key == DATA) {
                Some(list) => entries.next_value_seed(list)?,
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(list.is_none())
    }
}
