//! Own work on CubeCL's CUDA stream: library calls, and kernels in CUDA C++.
//!
//! This file holds everything in this workspace that uses CubeCL's internals; the versions of
//! `cubecl` and `cubecl-server` are pinned exactly for its sake.

mod copies;
mod kernel;

pub(crate) use copies::{Pinned, await_copies, copy_to_device, copy_to_host, upload};
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
use cudarc::driver::{
    self, DriverError,
    sys::{self, CUdevice, CUstream},
};
use std::any::TypeId;

/// CubeCL's CUDA server: its module is private, this associated type is not.
type CudaServer = <CudaRuntime as Runtime>::Server;

/// Returns `true` if the client's device belongs to CubeCL's CUDA runtime.
pub(crate) fn runs(client: &Client) -> bool {
    client.service_id().service == TypeId::of::<CudaServer>()
}

/// Returns `true` if the device has tensor cores for 16-bit floats, bfloat16 included: compute
/// capability 8.0 and above.
pub fn has_tensor_cores(client: &Client) -> bool {
    let mut products = client.properties().features.matmul.mma.iter();
    let bf16 = ElemType::Float(FloatKind::BF16);
    runs(client) && products.any(|p| p.a_type == bf16 && [p.m, p.n, p.k] == [16, 8, 16])
}

/// Returns `true` if the device has tensor cores for E4M3: compute capability 8.9 and above.
pub(crate) fn has_fp8(client: &Client) -> bool {
    let mut products = client.properties().features.matmul.mma.iter();
    let e4m3 = ElemType::Float(FloatKind::E4M3);
    runs(client) && products.any(|p| p.a_type == e4m3)
}

/// Compute capability of the client's CUDA device, major and minor.
pub(crate) fn compute_capability(client: &Client) -> Result<(i32, i32), DriverError> {
    let ordinal = i32::from(client.service_id().device.index_id);
    capability_of(driver::result::device::get(ordinal)?)
}

fn capability_of(device: CUdevice) -> Result<(i32, i32), DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the driver gave the device.
    let attribute = |which| unsafe { driver::result::device::get_attribute(device, which) };
    Ok((attribute(MAJOR)?, attribute(MINOR)?))
}

/// Sends work to the device's thread, in order after the kernels launched so far. `body` gets the
/// addresses of the buffers that it reads and of those that it writes, and the stream on which to
/// enqueue the work. CubeCL has one such thread per device, with the device's context current:
/// thread-local variables of `body` need neither a lock nor a device id.
///
/// `body` is not called if one of its inputs failed. Unless it succeeds, the buffers that it writes
/// count as failed: reading them, or anything computed from them, reports the error. `Name` is
/// CubeCL's name for the work then.
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
            // Makes the stream wait for other streams' work on these buffers, and keeps the buffers
            // alive until this stream is done with them: dropped after the call.
            let buffers = || read.iter().chain(&written);
            let mut streams = server.write_streams().resolve(stream, buffers())?;
            let addresses = buffers().map(|buffer| {
                // What is recorded is replayed with these addresses: the pages stay.
                let location = buffer.memory.descriptor().location();
                streams.current().capturing.touch(buffer.stream, location);
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
