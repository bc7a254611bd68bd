//! Vectors of one call, which CUDA takes many at a time: a launch costs more than the work on a small vector.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

#[cfg(feature = "cuda")]
use std::sync::{Arc, Mutex, PoisonError};

/// The vectors of one call, which an operation on primitives gets one by one. A backend that takes many at a
/// time writes its results with the last of them.
#[derive(Clone, Debug)]
pub struct Batch {
    #[cfg(feature = "cuda")]
    waiting: Arc<Mutex<Waiting>>,
}

/// Vectors that no launch has taken yet.
#[cfg(feature = "cuda")]
#[derive(Debug)]
struct Waiting {
    vectors: Vec<cuda::Buffers>,
    /// Number of vectors that the call has not given yet.
    to_come: usize,
}

impl Batch {
    /// Most vectors of a launch.
    pub const MOST: usize = 60;

    /// Values of all vectors of a launch from which on it takes no more: they are alive until then, and large
    /// ones gain nothing.
    pub const ENOUGH: usize = 16 << 20;

    /// A call with this number of vectors, none of them empty. As many have to be given: results are there
    /// with the last one.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only CUDA collects"))]
    pub fn new(vectors: usize) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            waiting: Arc::new(Mutex::new(Waiting { vectors: vec![], to_come: vectors })),
        }
    }

    /// Adds the next vector. Returns those to launch now: if they are as many as a launch takes, or if this is
    /// the last one.
    #[cfg(feature = "cuda")]
    pub(super) fn add(&self, vector: cuda::Buffers) -> Option<Vec<cuda::Buffers>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.to_come = waiting.to_come.saturating_sub(1);
        waiting.vectors.push(vector);
        let values: usize = waiting.vectors.iter().map(|vector| vector.len).sum();
        let full = waiting.vectors.len() == Self::MOST || values >= Self::ENOUGH;
        let now = waiting.to_come == 0 || full;
        now.then(|| std::mem::take(&mut waiting.vectors))
    }
}
