//! Copies between a CUDA device and pinned host memory, on a stream beside the one of the kernels.

use super::enqueue;
use cubecl::{bytes::Bytes, client::Client, server::Handle};
use cudarc::driver::{
    DriverError, result,
    sys::{self, CUdeviceptr, CUevent, CUstream},
};
use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::c_void,
    ptr, slice,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Pinned host memory of a tensor, for the copies of one device. It goes back to the pool when it is
/// dropped: copies of a device follow each other, so that the next one may still wait for the last.
#[derive(Debug)]
pub(crate) struct Pinned {
    memory: Memory,
    bytes: usize,
    device: sys::CUdevice,
}

/// Capacity and address of pinned memory.
type Memory = (usize, usize);

/// Free memory of each device.
type Free = HashMap<sys::CUdevice, BTreeSet<Memory>>;

fn free() -> MutexGuard<'static, Free> {
    static FREE: LazyLock<Mutex<Free>> = LazyLock::new(Mutex::default);
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Pinned {
    fn drop(&mut self) {
        free().entry(self.device).or_default().insert(self.memory);
    }
}

fn allocate(bytes: usize) -> Result<Memory, DriverError> {
    // SAFETY: the context of the device's thread is current.
    Ok((bytes, unsafe { result::malloc_host(bytes, 0) }?.expose_provenance()))
}

/// The stream of a device's copies, and those that the kernels' stream has not been told to wait for,
/// with the device's memory that they use.
struct Copies {
    stream: CUstream,
    pending: Vec<(Handle, CUevent)>,
    /// For reuse.
    events: Vec<CUevent>,
    /// Memory that uploads go through, with the end of the last copy from each, in the order of these.
    staging: VecDeque<(usize, CUevent)>,
}

/// Bytes of one copy of an upload, and the most of them that are under way.
const PART: usize = 32 << 20;
const PARTS: usize = 8;

thread_local! {
    /// State of the thread's device: see [`enqueue`].
    static COPIES: RefCell<Option<Copies>> = const { RefCell::new(None) };
}

/// Calls `body` with the copies of the thread's device.
fn with_copies(body: impl FnOnce(&mut Copies) -> Result<(), DriverError>) -> Result<(), String> {
    COPIES
        .with_borrow_mut(|copies| {
            let copies = match copies {
                Some(copies) => copies,
                None => {
                    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
                    let staging = VecDeque::new();
                    copies.insert(Copies { stream, pending: vec![], events: vec![], staging })
                }
            };
            body(copies)
        })
        .map_err(|error| format!("a copy to or from the host: {error}"))
}

/// # Safety
/// Stream and event are alive, of the current context.
unsafe fn wait(stream: CUstream, event: CUevent) -> Result<(), DriverError> {
    let default = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: as required of the caller.
    unsafe { result::stream::wait_event(stream, event, default) }
}

impl Copies {
    fn event(&mut self) -> Result<CUevent, DriverError> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        self.events.pop().map_or_else(|| result::event::create(flags), Ok)
    }

    /// Enqueues a copy after the kernels so far; `memory` of the device stays allocated for it.
    ///
    /// # Safety
    /// `copy` enqueues its work on the stream that it gets, within memory that is alive until then.
    unsafe fn run(
        &mut self,
        compute: CUstream,
        memory: Handle,
        copy: impl FnOnce(CUstream) -> sys::CUresult,
    ) -> Result<(), DriverError> {
        let event = self.event()?;
        // SAFETY: streams and event are alive; an event can be recorded again once it was waited for.
        unsafe {
            result::event::record(event, compute)?;
            wait(self.stream, event)?;
            copy(self.stream).result()?;
            result::event::record(event, self.stream)?;
        }
        self.pending.push((memory, event));
        Ok(())
    }

    /// Takes the least memory of the pool that is large enough, or allocates it, in the place of smaller
    /// memory if there is some: it is of shorter batches.
    fn pinned(&self, bytes: usize) -> Result<Pinned, DriverError> {
        let mut device = 0;
        // SAFETY: the context of the device's thread is current.
        unsafe { sys::cuCtxGetDevice(&mut device) }.result()?;
        let (found, smaller) = {
            let mut free = free();
            let free = free.entry(device).or_default();
            let found = free.range((bytes, 0)..).next().copied();
            found.map(|found| free.remove(&found));
            (found, if found.is_none() { free.pop_last() } else { None })
        };
        if let Some((_, address)) = smaller {
            // SAFETY: no copy uses what is freed, once those so far are done.
            unsafe {
                result::stream::synchronize(self.stream)?;
                result::free_host(ptr::with_exposed_provenance_mut(address))?;
            }
        }
        let memory = found.map_or_else(|| allocate(bytes), Ok)?;
        Ok(Pinned { memory, bytes, device })
    }

    /// Returns [`PART`] bytes of pinned memory that no copy reads any more.
    fn stage(&mut self) -> Result<(usize, CUevent), DriverError> {
        // SAFETY: the event is alive.
        let done = |(_, event): &(usize, CUevent)| unsafe { sys::cuEventQuery(*event) };
        let first = self.staging.front().map(|first| done(first).result().is_ok());
        match first {
            Some(done) if done || self.staging.len() == PARTS => {
                let (address, event) = self.staging.pop_front().expect("there is one");
                // SAFETY: the event is alive.
                unsafe { sys::cuEventSynchronize(event) }.result()?;
                Ok((address, event))
            }
            _ => Ok((allocate(PART)?.1, self.event()?)),
        }
    }
}

/// Enqueues a copy of `bytes` bytes to pinned memory, which `put` gets; `receipt` counts as written by it.
pub(crate) fn copy_to_host(
    client: &Client,
    from: Handle,
    bytes: usize,
    receipt: &Handle,
    put: impl FnOnce(Pinned) + Send + 'static,
) {
    let written = vec![receipt.clone()];
    enqueue::<Copies>(client, vec![from.clone()], written, move |read, _, compute| {
        with_copies(|copies| {
            let pinned = copies.pinned(bytes)?;
            let to: *mut c_void = ptr::with_exposed_provenance_mut(pinned.memory.1);
            // SAFETY: both are of this size, and alive: the device's is held until the copy is waited
            // for, the host's is not given to others but for copies after this one.
            unsafe {
                let copy =
                    |stream| sys::cuMemcpyDtoHAsync_v2(to, read[0] as CUdeviceptr, bytes, stream);
                copies.run(compute, from, copy)?;
            }
            put(pinned);
            Ok(())
        })
    });
}

/// Enqueues a copy of the pinned memory that `take` gives, if that which `receipt` stands for has put it
/// there. Kernels may read it after [`await_copies`].
pub(crate) fn copy_to_device(
    client: &Client,
    receipt: Handle,
    take: impl FnOnce() -> Option<Pinned> + Send + 'static,
    to: &Handle,
) {
    let memory = to.clone();
    enqueue::<Copies>(client, vec![receipt], vec![to.clone()], move |_, written, compute| {
        let pinned = take().ok_or("nothing waits in host memory")?;
        with_copies(|copies| {
            let from: *const c_void = ptr::with_exposed_provenance(pinned.memory.1);
            // SAFETY: as above; the destination was allocated with this size.
            unsafe {
                let (to, bytes) = (written[0] as CUdeviceptr, pinned.bytes);
                let copy = |stream| sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream);
                copies.run(compute, memory, copy)
            }
        })
    });
}

/// Enqueues a copy of bytes, by way of pinned memory: neither the host nor the device waits for the other.
/// Kernels may read it after [`await_copies`].
pub(crate) fn upload(client: &Client, bytes: Bytes, to: &Handle) {
    let memory = to.clone();
    enqueue::<Copies>(client, vec![], vec![to.clone()], move |_, written, compute| {
        with_copies(|copies| {
            for (part, at) in bytes.chunks(PART).zip((written[0]..).step_by(PART)) {
                let (address, event) = copies.stage()?;
                let staged: *mut u8 = ptr::with_exposed_provenance_mut(address);
                // SAFETY: the pinned memory is of this size, and nobody else's until the event has happened;
                // the destination is as long as the bytes.
                unsafe {
                    copy_on_all_cores(part, slice::from_raw_parts_mut(staged, part.len()));
                    let (from, to, bytes) = (staged.cast(), at as CUdeviceptr, part.len());
                    let copy = |stream| sys::cuMemcpyHtoDAsync_v2(to, from, bytes, stream);
                    copies.run(compute, memory.clone(), copy)?;
                    result::event::record(event, copies.stream)?;
                }
                copies.staging.push_back((address, event));
            }
            Ok(())
        })?;
        // Giving back so many pages takes longer than the copy.
        thread::spawn(move || drop(bytes));
        Ok(())
    });
}

/// Copies on threads of its own: those of a pool may wait for the device.
fn copy_on_all_cores(from: &[u8], to: &mut [u8]) {
    const LEAST: usize = 2 << 20;
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get());
    let share = from.len().div_ceil(threads).max(LEAST);
    thread::scope(|scope| {
        for (to, from) in to.chunks_mut(share).zip(from.chunks(share)) {
            scope.spawn(|| to.copy_from_slice(from));
        }
    });
}

/// Lets the kernels that follow wait for all copies so far, whose memory of the device is free then.
pub(crate) fn await_copies(client: &Client, tensor: &Handle) {
    enqueue::<Copies>(client, vec![], vec![tensor.clone()], |_, _, compute| {
        with_copies(|copies| {
            for (memory, event) in copies.pending.drain(..) {
                // SAFETY: both are alive.
                unsafe { wait(compute, event)? };
                copies.events.push(event);
                drop(memory);
            }
            Ok(())
        })
    });
}
