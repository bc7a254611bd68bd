//! One launch over many vectors.

use crate::{
    cube::check_contiguous,
    cuda::{Kernel, Scalar},
    optimizer::{Batch, Step},
};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{client::Client, server::Handle};

/// Words of the table: eight a vector are below the 4 KiB of a kernel's parameters.
const WORDS: usize = 8 * Batch::MOST;

/// Threads of a block.
const THREADS: usize = 256;

/// The buffers of a vector: those that a kernel reads of it and those that it writes.
#[derive(Debug)]
pub struct Buffers {
    pub len: usize,
    pub read: Vec<Handle>,
    pub written: Vec<Handle>,
}

/// Returns the buffer of a contiguous tensor.
///
/// # Panics
/// If it has another dtype or length, is not contiguous, or is on another device.
pub fn checked(client: &Client, tensor: &CubeTensor, dtype: DType, len: usize) -> Handle {
    check_contiguous(client, tensor, dtype, len);
    tensor.handle.clone()
}

/// A kernel of `optimizer.cu`.
pub struct ManyKernel {
    pub name: &'static str,
    /// Values that a block takes at a time; `adamw_coded` takes a word of four a thread.
    pub chunk: usize,
    /// Most blocks; `usize::MAX` for one a chunk.
    pub blocks: usize,
}

impl ManyKernel {
    /// Launches the kernel on vectors with as many buffers each: the table has the first buffer that is read of
    /// each vector, then the second, .., then `read`; in the same way those that are written; then the lengths.
    ///
    /// # Safety
    /// The client must be one of a CUDA device with tensor cores. The kernel must be one for these buffers,
    /// which must be contiguous and as long as it takes them to be.
    pub unsafe fn launch(
        self,
        client: &Client,
        vectors: &[Buffers],
        read: Vec<Handle>,
        written: Vec<Handle>,
        step: Option<Step>,
    ) {
        let Some(first) = vectors.first() else { return };
        let kinds = |count: usize, buffer: &dyn Fn(&Buffers, usize) -> Handle| -> Vec<Handle> {
            (0..count).flat_map(|kind| vectors.iter().map(move |v| buffer(v, kind))).collect()
        };
        let each_read = kinds(first.read.len(), &|vector, kind| vector.read[kind].clone());
        let each_written = kinds(first.written.len(), &|vector, kind| vector.written[kind].clone());
        let chunks: usize = vectors.iter().map(|vector| vector.len.div_ceil(self.chunk)).sum();
        let count = Scalar::I32(vectors.len() as i32);
        let kernel = Kernel {
            source: include_str!("optimizer.cu"),
            defines: vec![("WORDS", WORDS), ("THREADS", THREADS), ("CHUNK", self.chunk)],
            name: self.name,
            threads: THREADS,
            shared_bytes: 0,
            overlaps: false,
        };
        // SAFETY: as required of the caller; blocks take the chunks that the lengths have.
        unsafe {
            kernel.launch_table(
                client,
                [chunks.min(self.blocks), 1, 1],
                [each_read, read].concat(),
                [each_written, written].concat(),
                vectors.iter().map(|vector| vector.len as u64).collect(),
                WORDS,
                std::iter::once(count).chain(step.into_iter().flat_map(scalars)).collect(),
            );
        }
    }
}

/// The coefficients, in the order of `Step` in the source.
fn scalars(step: Step) -> [Scalar; 8] {
    let Step { beta1, rest1, beta2, rest2, keep, size, root, eps } = step;
    [beta1, rest1, beta2, rest2, keep, size, root, eps].map(Scalar::F32)
}
