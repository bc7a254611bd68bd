//! Skims the structs of a Parquet file before the `parquet` crate reads them: the crate iterates
//! over as many items as a list announces, some of which take no bytes.
//!
//! They are in [Thrift's compact
//! protocol](https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md).

use std::io::{self, BufReader, ErrorKind, Read, Result, Seek, SeekFrom};

/// Maximum nesting of structs and lists; Parquet's own have fewer than ten levels.
const DEPTH: usize = 32;

/// Field of a page header with the length of what follows it.
const PAGE_SIZE: i64 = 3;

/// Skims the footer: a struct before its length in 4 bytes and `PAR1`. A file that has none is left
/// to the crate, whose errors say so.
///
/// # Errors
/// An error if a length is more than the bytes that follow it.
pub(super) fn skim_footer(file: impl Read + Seek) -> Result<()> {
    let mut file = BufReader::new(file);
    let length = file.seek(SeekFrom::End(0))?;
    if length < 8 {
        return Ok(());
    }
    let (mut left, mut mark) = ([0; 4], [0; 4]);
    file.seek(SeekFrom::Start(length - 8))?;
    file.read_exact(&mut left)?;
    file.read_exact(&mut mark)?;
    let left = u32::from_le_bytes(left).into();
    let Some(start) = (length - 8).checked_sub(left) else { return Ok(()) };
    if mark != *b"PAR1" {
        return Ok(());
    }
    file.seek(SeekFrom::Start(start))?;
    Skim { file, left }.fields(0).map(drop)
}

/// Skims the headers of the pages of a column.
///
/// # Errors
/// An error if a length is more than the bytes that follow it.
pub(super) fn skim_pages(file: impl Read + Seek, start: u64, left: u64) -> Result<()> {
    let mut file = BufReader::new(file);
    file.seek(SeekFrom::Start(start))?;
    let mut skim = Skim { file, left };
    while skim.left > 0 {
        let size = skim.fields(0)?.and_then(|size| size.try_into().ok());
        skim.skip(size.ok_or_else(lie)?)?;
    }
    Ok(())
}

fn lie() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "it announces more than it has")
}

/// A file, and the number of bytes left to skim.
struct Skim<R> {
    file: BufReader<R>,
    left: u64,
}

impl<R: Read + Seek> Skim<R> {
    fn take(&mut self, count: u64) -> Result<()> {
        self.left = self.left.checked_sub(count).ok_or_else(lie)?;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        self.take(count)?;
        self.file.seek_relative(count.try_into().map_err(|_| lie())?)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1)?;
        let mut byte = [0];
        self.file.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(lie())
    }

    fn integer(&mut self) -> Result<i64> {
        let zigzag = self.varint()?;
        Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    /// Skims a struct: fields up to a zero. Returns the size if it is the header of a page.
    fn fields(&mut self, depth: usize) -> Result<Option<i64>> {
        let (mut field, mut size) = (0i64, None);
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(size);
            }
            // Its number is relative to the last one, or follows.
            field = match i64::from(head >> 4) {
                0 => self.integer()?,
                more => field.wrapping_add(more),
            };
            match head & 15 {
                // A boolean, which is its type.
                1 | 2 => (),
                4..=6 if field == PAGE_SIZE => size = Some(self.integer()?),
                kind => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<()> {
        if depth > DEPTH {
            return Err(lie());
        }
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                self.items(count, &[head & 15], depth)
            }
            11 => match self.varint()? {
                0 => Ok(()),
                count => {
                    let kinds = self.byte()?;
                    self.items(count, &[kinds >> 4, kinds & 15], depth)
                }
            },
            12 => self.fields(depth + 1).map(drop),
            13 => self.skip(16),
            _ => Err(lie()),
        }
    }

    fn items(&mut self, count: u64, kinds: &[u8], depth: usize) -> Result<()> {
        // Each has a byte at least.
        if count > self.left {
            return Err(lie());
        }
        (0..count).try_for_each(|_| kinds.iter().try_for_each(|kind| self.value(*kind, depth + 1)))
    }
}
