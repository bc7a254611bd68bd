//! JSON: a list of objects, an object with such a list, or one object per line.

use super::{
    Sink, Stop, columns, example, open,
    python::{Place, Python},
};
use crate::error::TrainError;
use burn_lora_text::ChatValue as Value;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
        value::MapAccessDeserializer,
    },
};
use serde_json::de::IoRead;
use std::{
    cell::Cell,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

/// Key of the list in an object that is the whole file.
const DATA: &str = "data";

/// Maximum bytes of a line: one without an end would take all memory.
const LINE: u64 = 1 << 30;

/// Reads one object per line; empty lines are skipped. A file of this name that is one list, or has
/// objects over several lines, is read as such.
pub(super) fn read_lines(path: &Path, sink: &mut Sink) -> Result<(), Stop> {
    lines(path, sink, read)
}

/// Reads a list of objects, alone or as the `data` of an object. Many files of this name have one
/// object per line instead: a first object without `data` is taken for that.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<(), Stop> {
    if whole(path, sink, |json, list| json.deserialize_any(Document(list)))? {
        return Ok(());
    }
    lines(path, sink, |path, sink| whole(path, sink, objects).map(|_| ()))
}

/// Reads one object per line. A file whose first line is only the beginning of a value is read by
/// `other`.
fn lines(
    path: &Path,
    sink: &mut Sink,
    other: impl Fn(&Path, &mut Sink) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let failed = |source| TrainError::io(path, source);
    let mut file = open(path)?;
    let (mut bytes, mut first, mut warned) = (vec![], true, false);
    for line in 1.. {
        bytes.clear();
        let count = file.by_ref().take(LINE + 1).read_until(b'\n', &mut bytes).map_err(failed)?;
        if count == 0 {
            break;
        }
        if count as u64 > LINE {
            let reason = "a line of more than 1 GiB: these are no JSON lines";
            return Err(example(path, line, reason).into());
        }
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        let place = Place::new(line);
        let value = str::from_utf8(&bytes)
            .map_err(|error| format!("not UTF-8: {error}"))
            .map(|line| parse(line, &place));
        if std::mem::take(&mut first) {
            let open = matches!(&value, Ok(Err(error)) if error.is_eof());
            if open || bytes.trim_ascii_start().starts_with(b"[") {
                return other(path, sink);
            }
        }
        if place.words.get().is_some() && !std::mem::replace(&mut warned, true) {
            warn(path, line);
        }
        let value = value.and_then(|value| value.map_err(|error| said(&error)));
        sink(line, value.and_then(columns))?;
    }
    Ok(())
}

fn parse(line: &str, place: &Place) -> serde_json::Result<Value> {
    serde_json::from_str(line).or_else(|error| {
        let mut text = String::new();
        let read = Python::new(line.as_bytes(), place).read_to_string(&mut text);
        if read.is_ok() && place.words.get().is_some() {
            serde_json::from_str(&text)
        } else {
            Err(error)
        }
    })
}

/// Error of a line; serde_json takes each line for the first.
fn said(error: &serde_json::Error) -> String {
    let reason = error.to_string();
    let reason = reason.split(" at line ").next().unwrap_or_default();
    let hint = if reason.contains("hex escape") || reason.contains("surrogate") {
        " (half of a surrogate pair, as of an emoji that was cut, is no text)"
    } else {
        ""
    };
    format!("not JSON: {reason} at column {}{hint}", error.column())
}

fn warn(path: &Path, line: usize) {
    burn_lora_io::warn!(
        "{}:{line}: NaN or Infinity, which JSON does not have, is taken for null, here and on other \
         lines",
        path.display()
    );
}

type Json<'a> = serde_json::Deserializer<IoRead<Python<'a, BufReader<File>>>>;

/// Reads a file that is not read line by line. Returns `true` if it was what `read` expects.
fn whole(
    path: &Path,
    sink: &mut Sink,
    read: impl FnOnce(&mut Json<'_>, List<'_, '_>) -> serde_json::Result<bool>,
) -> Result<bool, Stop> {
    let place = Place::new(1);
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_reader(Python::new(open(path)?, &place));
    let list = List { line: &place.line, sink, failed: &mut failed };
    let read = read(&mut json, list).and_then(|found| {
        if found {
            json.end()?;
        }
        Ok(found)
    });
    if let Some(line) = place.words.get()
        && !matches!(read, Ok(false))
    {
        warn(path, line);
    }
    match (failed, read) {
        (Some(stop), _) => Err(stop),
        (None, Ok(found)) => Ok(found),
        (None, Err(error)) => Err(Stop::Failed(match error.io_error_kind() {
            Some(_) => TrainError::io(path, error.into()),
            None => {
                let line = error.line().max(1);
                example(path, line, format!("not the JSON expected: {error}"))
            }
        })),
    }
}

/// Reads objects one after the other, wherever lines end.
fn objects(json: &mut Json<'_>, mut list: List<'_, '_>) -> serde_json::Result<bool> {
    while json.end().is_err() {
        let begin = Cell::new(0);
        let value = json.deserialize_map(Object { line: list.line, begin: &begin })?;
        list.give(begin.get(), value)?;
    }
    Ok(true)
}

/// An object, and the line on which it begins.
struct Object<'a> {
    line: &'a Cell<usize>,
    begin: &'a Cell<usize>,
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("an object with columns")
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Value, A::Error> {
        self.begin.set(self.line.get());
        Value::deserialize(MapAccessDeserializer::new(entries))
    }
}

/// A list whose items go to `sink`, one after the other.
struct List<'a, 'b> {
    line: &'a Cell<usize>,
    sink: &'a mut Sink<'b>,
    /// Why the sink stops: serde's error has room for text only.
    failed: &'a mut Option<Stop>,
}

impl List<'_, '_> {
    fn give<E: Error>(&mut self, line: usize, value: Value) -> Result<(), E> {
        (self.sink)(line, columns(value)).map_err(|stop| {
            *self.failed = Some(stop);
            E::custom("stopped")
        })
    }
}

impl<'de> Visitor<'de> for List<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str("a list of examples")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let begin = Cell::new(0);
        while let Some(value) = items.next_element_seed(Item { line: self.line, begin: &begin })? {
            self.give(begin.get(), value)?;
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
    line: &'a Cell<usize>,
    begin: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.begin.set(self.line.get());
        Deserialize::deserialize(deserializer)
    }
}

/// A whole file; `false` if it is an object without `data`.
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
                None if key == DATA => return Err(A::Error::custom("`data` is there twice")),
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(list.is_none())
    }
}
