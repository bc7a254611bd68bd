//! JSON as written by Python: `NaN`, `Infinity` and `-Infinity`, which JSON does not have, are read
//! as `null`.

use std::{
    cell::Cell,
    collections::VecDeque,
    io::{self, BufRead, Read},
};

/// The words, which count outside of strings only.
const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];

/// Position of the reader.
#[derive(Debug)]
pub(super) struct Place {
    /// Line, from 1.
    pub line: Cell<usize>,
    /// Line of the first of these words.
    pub words: Cell<Option<usize>>,
}

impl Place {
    pub fn new(line: usize) -> Self {
        Self { line: Cell::new(line), words: Cell::new(None) }
    }
}

/// Reader that replaces these words by `null` in the text of another reader.
pub(super) struct Python<'a, R> {
    from: R,
    place: &'a Place,
    /// Whether it is in a string, and after a backslash there.
    string: bool,
    escape: bool,
    /// Bytes read ahead.
    ahead: VecDeque<u8>,
    /// The rest of a `null`.
    null: &'static [u8],
}

impl<'a, R: BufRead> Python<'a, R> {
    pub fn new(from: R, place: &'a Place) -> Self {
        Self { from, place, string: false, escape: false, ahead: VecDeque::new(), null: b"" }
    }

    fn raw(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.ahead.pop_front() {
            return Ok(Some(byte));
        }
        let byte = self.from.fill_buf()?.first().copied();
        self.from.consume(usize::from(byte.is_some()));
        Ok(byte)
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if let Some((first, rest)) = self.null.split_first() {
            self.null = rest;
            return Ok(Some(*first));
        }
        let Some(byte) = self.raw()? else { return Ok(None) };
        match byte {
            b'\n' => self.place.line.set(self.place.line.get() + 1),
            _ if self.escape => {
                self.escape = false;
                return Ok(Some(byte));
            }
            b'\\' if self.string => self.escape = true,
            b'"' => self.string = !self.string,
            b'N' | b'I' | b'-' if !self.string && self.is_word(byte)? => {
                let line = self.place.words.get().unwrap_or(self.place.line.get());
                self.place.words.set(Some(line));
                self.null = b"ull";
                return Ok(Some(b'n'));
            }
            _ => (),
        }
        Ok(Some(byte))
    }

    /// Returns `true` if a byte begins one of the words, which is then consumed.
    fn is_word(&mut self, first: u8) -> io::Result<bool> {
        for word in WORDS.iter().filter(|word| word[0] == first) {
            let mut read = vec![];
            for expected in &word[1..] {
                let Some(byte) = self.raw()? else { break };
                read.push(byte);
                if byte != *expected {
                    break;
                }
            }
            if read == word[1..] {
                return Ok(true);
            }
            for byte in read.into_iter().rev() {
                self.ahead.push_front(byte);
            }
        }
        Ok(false)
    }
}

/// Reads a byte at a time, as serde_json asks, so that the line is exact at each byte.
impl<R: BufRead> Read for Python<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let Some(place) = bytes.first_mut() else { return Ok(0) };
        let Some(byte) = self.byte()? else { return Ok(0) };
        *place = byte;
        Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_null_outside_of_strings() {
        let text =
            "{\"NaN\": NaN,\n \"a\\\"\": [-Infinity, Infinity, -1, \"Infinity\\\\\"], \"b\": Nap}";
        let (place, mut found) = (Place::new(1), String::new());
        Python::new(text.as_bytes(), &place).read_to_string(&mut found).unwrap();
        let expected =
            "{\"NaN\": null,\n \"a\\\"\": [null, null, -1, \"Infinity\\\\\"], \"b\": Nap}";
        assert_eq!(found, expected);
        assert_eq!((place.line.get(), place.words.get()), (2, Some(1)));
    }
}
