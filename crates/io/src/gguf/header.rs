//! The header of a GGUF file: metadata and the tensor table. Everything in it is validated.

use super::{
    tensor::{TensorInfo, TensorType},
    value::{Value, double, float, integer, kind, width},
};
use std::collections::BTreeMap;

/// Default alignment of tensors, in bytes.
const ALIGNMENT: u64 = 32;

/// Maximal nesting of arrays; no known model has nested arrays.
const MAX_DEPTH: usize = 4;

type Header = (BTreeMap<String, Value>, BTreeMap<String, TensorInfo>);

/// Reads the header. The error is the reason, without the path.
pub(super) fn read(bytes: &[u8]) -> Result<Header, String> {
    if !bytes.starts_with(b"GGUF") {
        return Err("no GGUF file: it does not begin with `GGUF`".into());
    }
    let mut reader = Reader { bytes, at: 4 };
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err("a big-endian file: convert the model for little endian".into());
        }
        version => {
            return Err(format!(
                "GGUF version {version}; supported are 2 and 3: convert the model again"
            ));
        }
    }
    // The minimal sizes of a tensor's entry and of a metadata pair.
    let tensor_count = reader.count(8 + 4 + 8 + 4 + 8, "tensors")?;
    let pair_count = reader.count(8 + 4 + 1, "values of metadata")?;
    let mut metadata = BTreeMap::new();
    for index in 0..pair_count {
        let key = reader.string().map_err(|e| format!("key {index} of the metadata: {e}"))?;
        let value = reader.u32().and_then(|kind| reader.value(kind, 0));
        let value = value.map_err(|reason| format!("`{key}`: {reason}"))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("`{key}` is twice in the metadata"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(value) => {
            let alignment = value.as_u64().filter(|alignment| alignment.is_power_of_two());
            alignment.ok_or_else(|| {
                format!("`general.alignment` is {}, expected a power of two", value.brief())
            })?
        }
    };
    let mut found = Vec::with_capacity(tensor_count);
    for index in 0..tensor_count {
        let name = reader.string().map_err(|reason| format!("tensor {index}: {reason}"))?;
        let tensor = reader.tensor().map_err(|reason| format!("`{name}`: {reason}"))?;
        found.push((name, tensor));
    }
    let start = (reader.at as u64).checked_next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in found {
        let tensor = tensor.place(start, alignment, bytes.len());
        let tensor = tensor.map_err(|reason| format!("`{name}`: {reason}"))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("`{name}` is twice in the file"));
        }
    }
    Ok((metadata, tensors))
}

/// An entry of the tensor table.
struct Line {
    shape: Vec<usize>,
    dtype: Result<TensorType, u32>,
    offset: u64,
}

impl Line {
    /// Locates the tensor in a file of `length` bytes.
    fn place(
        self,
        start: Option<u64>,
        alignment: u64,
        length: usize,
    ) -> Result<TensorInfo, String> {
        let Self { shape, dtype, offset } = self;
        if !offset.is_multiple_of(alignment) {
            return Err(format!("its offset {offset} is no multiple of {alignment}"));
        }
        let bytes = match dtype {
            Ok(dtype) => dtype.bytes(&shape)?,
            // A type that is not supported: its size is unknown, and it is not read.
            Err(_) => 0,
        };
        let range = || {
            let start = usize::try_from(start?.checked_add(offset)?).ok()?;
            let end = start.checked_add(bytes)?;
            (end <= length).then_some(start..end)
        };
        let range = range().ok_or_else(|| {
            format!("{bytes} bytes at {offset} go over the end of the file: it was cut off")
        })?;
        Ok(TensorInfo { shape, dtype, range })
    }
}

/// Sequential reader of the header.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let bytes = self.bytes[self.at..].get(..count).ok_or_else(|| self.cut_off())?;
        self.at += count;
        Ok(bytes)
    }

    fn cut_off(&self) -> String {
        format!("the file ends within its header, after byte {}: it was cut off", self.at)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes[self.at..].first_chunk().ok_or_else(|| self.cut_off())?;
        self.at += N;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// Reads a number of items of at least `size` bytes each; an error if the rest of the file is
    /// too short for them, so that nothing is allocated for a false number.
    fn count(&mut self, size: usize, what: &str) -> Result<usize, String> {
        let count = self.u64()?;
        let rest = self.bytes.len() - self.at;
        usize::try_from(count).ok().filter(|count| *count <= rest / size).ok_or_else(|| {
            format!("{count} {what} do not fit into the {rest} bytes that follow: it was cut off")
        })
    }

    fn string(&mut self) -> Result<String, String> {
        let count = self.count(1, "bytes of text")?;
        let text = str::from_utf8(self.take(count)?).map_err(|error| error.to_string())?;
        Ok(text.to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, String> {
        Ok(match kind {
            kind::STRING => Value::String(self.string()?),
            kind::ARRAY => self.values(depth)?,
            _ => {
                let width = width(kind).ok_or_else(|| format!("unknown kind of value {kind}"))?;
                let bytes = self.take(width)?;
                match kind {
                    kind::F32 => Value::F32(float(bytes)),
                    kind::F64 => Value::F64(double(bytes)),
                    kind::BOOL => Value::Bool(bytes != [0]),
                    kind::U8 | kind::U16 | kind::U32 | kind::U64 => {
                        Value::U64(integer(kind, bytes) as u64)
                    }
                    _ => Value::I64(integer(kind, bytes) as i64),
                }
            }
        })
    }

    fn values(&mut self, depth: usize) -> Result<Value, String> {
        if depth == MAX_DEPTH {
            return Err(format!("arrays in arrays, more than {MAX_DEPTH} deep"));
        }
        let kind = self.u32()?;
        match kind {
            kind::STRING => {
                let count = self.count(8, "strings")?;
                Ok(Value::Strings((0..count).map(|_| self.string()).collect::<Result<_, _>>()?))
            }
            kind::ARRAY => {
                for _ in 0..self.count(4 + 8, "arrays")? {
                    self.values(depth + 1)?;
                }
                Ok(Value::Nested)
            }
            _ => {
                let width = width(kind).ok_or_else(|| format!("unknown kind of array {kind}"))?;
                let count = self.count(width, "numbers")?;
                let bytes = self.take(count * width)?;
                let items = bytes.chunks_exact(width);
                Ok(match kind {
                    kind::F32 => Value::F32s(items.map(float).collect()),
                    kind::F64 => Value::F32s(items.map(|item| double(item) as f32).collect()),
                    _ => Value::Ints(kind, bytes.to_vec()),
                })
            }
        }
    }

    fn tensor(&mut self) -> Result<Line, String> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("{dimensions} dimensions, expected 1 to 4"));
        }
        let mut shape = vec![];
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size).ok().filter(|size| *size > 0);
            shape.push(size.ok_or("a dimension of 0, or larger than memory can be")?);
        }
        shape.reverse();
        let dtype = self.u32()?;
        Ok(Line { shape, dtype: TensorType::from_id(dtype).ok_or(dtype), offset: self.u64()? })
    }
}
