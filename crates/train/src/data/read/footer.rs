//! The footer of a Parquet file, skimmed: the crate takes memory for as many items as a list announces,
//! before it reads one.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// Structs and lists within each other; Parquet's own have fewer than ten.
const DEPTH: usize = 32;

/// Returns `false` for a footer in which a length is more than the bytes that follow it can hold. What is
/// wrong otherwise (no footer, one that is cut off) is left to the crate, whose errors say so.
///
/// The footer is a struct in [Thrift's compact
/// protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), before its
/// length in 4 bytes and `PAR1`.
pub(super) fn is_sound(file: &mut File) -> io::Result<bool> {
    let mut end = [0; 8];
    let length = file.metadata()?.len();
    if length < 8 {
        return Ok(true);
    }
    file.seek(SeekFrom::Start(length - 8))?;
    file.read_exact(&mut end)?;
    let footer = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let Some(start) = (length - 8).checked_sub(footer) else { return Ok(true) };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(start))?;
    file.by_ref().take(footer).read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(Skim(&bytes).fields(0).is_some())
}

/// What is left to skim. All of its functions give nothing where a length goes past it.
struct Skim<'a>(&'a [u8]);

impl Skim<'_> {
    fn skip(&mut self, count: u64) -> Option<()> {
        self.0 = self.0.get(usize::try_from(count).ok()?..)?;
        Some(())
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A struct: fields up to a zero.
    fn fields(&mut self, depth: usize) -> Option<()> {
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            if head >> 4 == 0 {
                self.varint()?; // Its number; else it is counted from the last one.
            }
            match head & 15 {
                1 | 2 => (), // A boolean, which is its type.
                kind => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<()> {
        if depth > DEPTH {
            return None;
        }
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => self.varint().and_then(|length| self.skip(length)),
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.items(count, &[head & 15], depth)
            }
            11 => match self.varint()? {
                0 => Some(()),
                count => {
                    let kinds = self.byte()?;
                    self.items(count, &[kinds >> 4, kinds & 15], depth)
                }
            },
            12 => self.fields(depth + 1),
            13 => self.skip(16),
            _ => None,
        }
    }

    fn items(&mut self, count: u64, kinds: &[u8], depth: usize) -> Option<()> {
        // Each has a byte at least.
        if count > self.0.len() as u64 {
            return None;
        }
        (0..count).try_for_each(|_| kinds.iter().try_for_each(|kind| self.value(*kind, depth + 1)))
    }
}
