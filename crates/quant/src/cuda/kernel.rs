//! Kernels in CUDA C++: compiled when they are first used.

use super::enqueue;
use cubecl::{client::Client, server::Handle};
use cudarc::{
    driver::{result, sys},
    nvrtc,
};
use std::{cell::RefCell, collections::HashMap, ffi::CString, ffi::c_void};

/// A kernel in CUDA C++ without includes, and how it is launched. Its parameters are pointers to the
/// buffers that it reads, to those that it writes, and scalars, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The source.
    pub source: &'static str,
    /// Names and values of its macros.
    pub defines: Vec<(&'static str, usize)>,
    /// The `extern "C"` name.
    pub name: &'static str,
    /// Threads a block.
    pub threads: u32,
    /// Bytes of shared memory a block that are given at launch.
    pub shared_bytes: u32,
}

/// A parameter that is no pointer.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Scalar {
    I32(i32),
    I64(i64),
    F32(f32),
}

thread_local! {
    /// Of a device: see [`enqueue`]. Modules are kept as long as the process.
    static LOADED: RefCell<HashMap<Kernel, sys::CUfunction>> = RefCell::default();
}

impl Kernel {
    /// Launches it on `grid` blocks, after the kernels launched so far. No blocks are no work.
    ///
    /// # Safety
    /// The client has to be one of a CUDA device, and the buffers its own, one of them at least
    /// written. The kernel has to take these parameters, and to stay inside the buffers.
    pub unsafe fn launch(
        self,
        client: &Client,
        grid: [usize; 3],
        read: Vec<Handle>,
        written: Vec<Handle>,
        scalars: Vec<Scalar>,
    ) {
        if grid.contains(&0) {
            return;
        }
        enqueue::<Self>(client, read, written, move |addresses, stream| {
            let function = self.function()?;
            let mut parameters: Vec<*mut c_void> = addresses.iter().map(pointer).collect();
            parameters.extend(scalars.iter().map(|scalar| match scalar {
                Scalar::I32(value) => pointer(value),
                Scalar::I64(value) => pointer(value),
                Scalar::F32(value) => pointer(value),
            }));
            let [x, y, z] = grid.map(|blocks| blocks as u32);
            let (threads, shared) = ((self.threads, 1, 1), self.shared_bytes);
            // SAFETY: the caller's; parameters are read before the call returns.
            unsafe {
                result::launch_kernel(function, (x, y, z), threads, shared, stream, &mut parameters)
            }
            .map_err(|error| format!("{}: {error}", self.name))
        });
    }

    fn function(&self) -> Result<sys::CUfunction, String> {
        if let Some(function) = LOADED.with_borrow(|loaded| loaded.get(self).copied()) {
            return Ok(function);
        }
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", self.name);
        let defines = self.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
        // For the first device with what `has_tensor_cores` asks for; the driver does the rest.
        let options = nvrtc::CompileOptions {
            arch: Some("compute_80"),
            options: defines.chain(["--std=c++17".to_owned()]).collect(),
            ..nvrtc::CompileOptions::default()
        };
        let code = nvrtc::compile_ptx_with_opts(self.source, options)
            .map_err(|error| failed(&format!("{error:?}")))?;
        let code = CString::new(code.to_src()).map_err(|error| failed(&error))?;
        let name = CString::new(self.name).map_err(|error| failed(&error))?;
        let shared = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the code ends with a zero, and the module is not unloaded.
        let function = unsafe {
            let module = result::module::load_data(code.as_ptr().cast());
            module
                .and_then(|module| result::module::get_function(module, name))
                .and_then(|function| {
                    let bytes = self.shared_bytes as i32;
                    result::function::set_function_attribute(function, shared, bytes)?;
                    Ok(function)
                })
                .map_err(|error| failed(&error))?
        };
        LOADED.with_borrow_mut(|loaded| loaded.insert(self.clone(), function));
        Ok(function)
    }
}

/// As the driver takes parameters, which it only reads.
fn pointer<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}
