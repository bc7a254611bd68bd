//! Bytes of tensors, on all cores: most of the time of a copy goes into pages that are touched for the
//! first time.

use burn::tensor::{AllocationProperty, Device, TensorData};
use rayon::prelude::*;

/// Bytes that a core takes at a time.
const PART: usize = 1 << 20;

/// Returns a copy.
pub(crate) fn copied(bytes: &[u8]) -> Vec<u8> {
    let mut copy = vec![0; bytes.len()];
    let parts = copy.par_chunks_mut(PART).zip(bytes.par_chunks(PART));
    parts.for_each(|(to, from)| to.copy_from_slice(from));
    copy
}

/// Returns `true` if tensors of the device are in host memory.
pub(super) fn is_cpu(_device: &Device) -> bool {
    #[cfg(feature = "cpu")]
    if *_device == Device::flex() {
        return true;
    }
    false
}

/// Returns the data in memory of its own.
pub(super) fn owned(data: TensorData) -> TensorData {
    if data.bytes().property() == AllocationProperty::Native {
        return data;
    }
    TensorData::from_bytes_vec(copied(data.as_bytes()), data.shape().clone(), data.dtype())
}

/// Returns the largest number that `of` finds in a part.
pub(super) fn largest<T: Ord + Send>(
    bytes: &[u8],
    of: impl Fn(&[u8]) -> T + Send + Sync,
) -> Option<T> {
    bytes.par_chunks(PART).map(of).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole() {
        for len in [0, 1, PART, PART + 3, 3 * PART - 1] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7 / 5) as u8).collect();
            assert_eq!(copied(&bytes), bytes);
            let sum = largest(&bytes, <[u8]>::len);
            assert_eq!(sum, (len > 0).then_some(len.min(PART)));
        }
    }
}
