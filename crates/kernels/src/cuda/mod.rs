//! Work of our own on CubeCL's CUDA stream: calls of libraries, and kernels in CUDA C++.
//!
//! All that touches CubeCL's internals in this workspace stands in this file; the versions of
//! `cubecl` and `cubecl-server` are pinned exactly for its sake.

mod kernel;

pub use kernel::{Kernel, Scalar};

use burn::backend::BackTrace;
use cubecl::{
    client::Client,
    cuda::CudaRuntime,
    device_handle::DeviceHandle,
    ir::{ElemType, FloatKind},
    prelude::KernelId,
    server::{BufferBinding, Handle, ServerError},
};
use cubecl_server::{
    runtime::Runtime,
    stream::{ExecuteScope, WriteScoped},
};
use cudarc::driver::sys::CUstream;
use std::any::TypeId;

/// CubeCL's CUDA server. Its module is private, its associated type is not.
type CudaServer = <CudaRuntime as Runtime>::Server;

/// Whether a client's device is one of CubeCL's CUDA runtime.
pub(crate) fn runs(client: &Client) -> bool {
    client.service_id().service == TypeId::of::<CudaServer>()
}

/// Whether it has tensor cores for 16-bit floats, bfloat16 too: compute capability 8.0 and above.
pub fn has_tensor_cores(client: &Client) -> bool {
    let mut products = client.properties().features.matmul.mma.iter();
    let bf16 = ElemType::Float(FloatKind::BF16);
    runs(client) && products.any(|p| p.a_type == bf16 && [p.m, p.n, p.k] == [16, 8, 16])
}

/// Sends work to the device's thread, where the kernels launched so far were sent, in this order:
/// `body` gets the addresses of the buffers that it reads and of those that it writes, and the stream on
/// which to enqueue the work. CubeCL has one such thread per device, with the device's context
/// current: what `body` keeps in thread-local variables needs no lock and no device id.
///
/// It is not called if one of its inputs failed, and what it writes counts as failed unless it
/// succeeds: a read of that, or of anything computed from it, reports the error. `Name` is what
/// CubeCL calls the work then.
pub(crate) fn enqueue<Name: 'static>(
    client: &Client,
    read: Vec<Handle>,
    written: Vec<Handle>,
    body: impl FnOnce(&[u64], &[u64], CUstream) -> Result<(), String> + Send + 'static,
) {
    let stream = written[0].stream;
    let bindings = |handles: Vec<Handle>| handles.into_iter().map(Handle::binding).collect();
    let (read, written): (Vec<BufferBinding>, Vec<BufferBinding>) =
        (bindings(read), bindings(written));
    DeviceHandle::<CudaServer>::new(client.service_id().device).submit(move |server| {
        let name = KernelId::new::<Name>();
        let scope = ExecuteScope::launching(server, name, stream, read.iter(), written.clone());
        let _ = scope.execute(|server| {
            // Makes the stream wait for work of other streams on these buffers, and keeps
            // those buffers alive until this stream is done with them: dropped after the call.
            let buffers = || read.iter().chain(&written);
            let mut streams = server.write_streams().resolve(stream, buffers())?;
            let addresses = buffers().map(|buffer| {
                let memory = &mut streams.get(&buffer.stream).memory_management_gpu;
                let (start, end) = (buffer.offset_start, buffer.offset_end);
                Ok::<_, ServerError>(memory.get_resource(buffer.memory.clone(), start, end)?.ptr)
            });
            let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
            let (to_read, to_write) = addresses.split_at(read.len());
            body(to_read, to_write, streams.current().sys)
                .map_err(|reason| ServerError::Generic { reason, backtrace: BackTrace::capture() })
        });
    });
}
