//! Kernels in CUDA C++, compiled at first use.

use super::{capability_of, enqueue};
use cubecl::{client::Client, server::Handle};
use cudarc::{
    driver::{result, sys},
    nvrtc,
};
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ffi::{CString, c_void},
    fmt::Display,
};

/// A kernel in CUDA C++ without includes, and its launch settings. Its parameters are pointers to
/// the buffers that it reads, pointers to those that it writes, and scalars, in this order.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The source; it may hold several kernels.
    pub source: &'static str,
    /// Names and values of the macros.
    pub defines: Vec<(&'static str, usize)>,
    /// The `extern "C"` name of the kernel.
    pub name: &'static str,
    /// Threads per block.
    pub threads: usize,
    /// Bytes of dynamic shared memory per block, the same for every launch.
    pub shared_bytes: usize,
    /// Whether it may begin before the kernel launched before it has ended, for whose results it waits itself
    /// (`griddepcontrol.wait`); from compute capability 9.0 on.
    pub overlaps: bool,
}

/// A scalar parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Scalar {
    I32(i32),
    I64(i64),
    F32(f32),
}

/// A compiled source, and its kernels used so far.
struct Module {
    module: sys::CUmodule,
    functions: HashMap<&'static str, sys::CUfunction>,
}

/// A source, identified by its static address, and its macros.
type Source = (*const u8, Vec<(&'static str, usize)>);

thread_local! {
    /// Modules of the thread's device: see [`enqueue`]. Kept until the process ends.
    static MODULES: RefCell<HashMap<Source, Module>> = RefCell::default();
}

impl Kernel {
    /// Launches the kernel on `grid` blocks, after the kernels launched so far. An empty grid does
    /// nothing.
    ///
    /// # Safety
    /// The client must be one of a CUDA device, and the buffers its own, at least one of them
    /// written. The kernel must have these parameters, and stay within the buffers.
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
        enqueue::<Self>(client, read, written, move |read, written, stream| {
            let buffers = read.iter().chain(written).map(pointer).collect();
            // SAFETY: as required of the caller.
            unsafe { self.run(grid, buffers, &scalars, stream) }
        });
    }

    /// Launches the kernel as [`launch`](Self::launch) does, but with the pointers, in the same order, and
    /// `lengths` after them in one parameter: an array of `words` integers of 64 bits in a struct. So one launch
    /// takes any number of buffers; a kernel's parameters are 4 KiB at most.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch).
    ///
    /// # Panics
    /// If they are more than `words`.
    #[expect(clippy::too_many_arguments, reason = "those of a launch, and of the table")]
    pub unsafe fn launch_table(
        self,
        client: &Client,
        grid: [usize; 3],
        read: Vec<Handle>,
        written: Vec<Handle>,
        lengths: Vec<u64>,
        words: usize,
        scalars: Vec<Scalar>,
    ) {
        assert!(read.len() + written.len() + lengths.len() <= words, "{}: too much", self.name);
        if grid.contains(&0) {
            return;
        }
        enqueue::<Self>(client, read, written, move |read, written, stream| {
            let mut table = [read, written, &lengths].concat();
            table.resize(words, 0);
            // SAFETY: as required of the caller.
            unsafe { self.run(grid, vec![pointer(&table[0])], &scalars, stream) }
        });
    }

    /// # Safety
    /// As for [`launch`](Self::launch); these are the first parameters.
    unsafe fn run(
        &self,
        grid: [usize; 3],
        mut parameters: Vec<*mut c_void>,
        scalars: &[Scalar],
        stream: sys::CUstream,
    ) -> Result<(), String> {
        let function = self.function()?;
        parameters.extend(scalars.iter().map(|scalar| match scalar {
            Scalar::I32(value) => pointer(value),
            Scalar::I64(value) => pointer(value),
            Scalar::F32(value) => pointer(value),
        }));
        let [x, y, z] = grid.map(|blocks| u32::try_from(blocks).unwrap_or(u32::MAX));
        let (threads, shared) = ((self.threads as u32, 1, 1), self.shared_bytes as u32);
        if self.overlaps && architecture().map_err(|error| self.failed(error))? == "compute_90a" {
            // SAFETY: as required of the caller.
            return unsafe { overlapping(function, [x, y, z], self, stream, &mut parameters) }
                .map_err(|error| self.failed(error));
        }
        // SAFETY: as required of the caller; parameters are read before the call returns.
        unsafe {
            result::launch_kernel(function, (x, y, z), threads, shared, stream, &mut parameters)
        }
        .map_err(|error| self.failed(error))
    }

    fn function(&self) -> Result<sys::CUfunction, String> {
        MODULES.with_borrow_mut(|modules| {
            let module = match modules.entry((self.source.as_ptr(), self.defines.clone())) {
                Entry::Occupied(module) => module.into_mut(),
                Entry::Vacant(place) => place.insert(self.compile()?),
            };
            match module.functions.entry(self.name) {
                Entry::Occupied(function) => Ok(*function.get()),
                Entry::Vacant(place) => Ok(*place.insert(self.find(module.module)?)),
            }
        })
    }

    fn compile(&self) -> Result<Module, String> {
        let defines = self.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
        let options = nvrtc::CompileOptions {
            arch: Some(architecture().map_err(|error| self.failed(error))?),
            options: defines.chain(["--std=c++17".to_owned()]).collect(),
            ..nvrtc::CompileOptions::default()
        };
        let code = nvrtc::compile_ptx_with_opts(self.source, options)
            .map_err(|error| self.failed(format!("{error:?}")))?;
        let code = CString::new(code.to_src()).map_err(|error| self.failed(error))?;
        // SAFETY: the code ends with a zero.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = module.map_err(|error| self.failed(error))?;
        Ok(Module { module, functions: HashMap::new() })
    }

    /// Returns the kernel of a module, with its shared memory enabled.
    fn find(&self, module: sys::CUmodule) -> Result<sys::CUfunction, String> {
        let name = CString::new(self.name).map_err(|error| self.failed(error))?;
        let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the module is loaded, and stays so.
        unsafe {
            let function = result::module::get_function(module, name);
            function.and_then(|function| {
                let bytes = self.shared_bytes as i32;
                result::function::set_function_attribute(function, most, bytes)?;
                Ok(function)
            })
        }
        .map_err(|error| self.failed(error))
    }

    fn failed(&self, reason: impl Display) -> String {
        format!("{}: {reason}", self.name)
    }
}

/// Launches a kernel that may overlap with the one before it.
///
/// # Safety
/// As for [`Kernel::launch`].
unsafe fn overlapping(
    function: sys::CUfunction,
    [x, y, z]: [u32; 3],
    kernel: &Kernel,
    stream: sys::CUstream,
    parameters: &mut [*mut c_void],
) -> Result<(), result::DriverError> {
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: kernel.threads as u32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared_bytes as u32,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: 1,
    };
    // SAFETY: as required of the caller; what the driver gets lives until it returns.
    unsafe {
        sys::cuLaunchKernelEx(&config, function, parameters.as_mut_ptr(), std::ptr::null_mut())
    }
    .result()
}

/// Architecture to compile for, for the current context: that of compute capability 9.0 with all of its
/// features (`wgmma`), which no other device runs, or else the least one that has what the kernels use.
/// The driver compiles for the device.
fn architecture() -> Result<&'static str, result::DriverError> {
    let mut device = 0;
    // SAFETY: the context of the device's thread is current.
    unsafe { sys::cuCtxGetDevice(&mut device) }.result()?;
    Ok(match capability_of(device)? {
        (9, 0) => "compute_90a",
        (8, 9) | (9.., _) => "compute_89",
        _ => "compute_80",
    })
}

/// Pointer to a parameter in the driver's form; the driver only reads it.
fn pointer<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}
