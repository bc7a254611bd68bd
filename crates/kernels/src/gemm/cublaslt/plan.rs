//! Algorithms chosen by cuBLASLt, and calls of it.

use crate::{
    cuda,
    gemm::{Gemm, matrix::Matrix},
};
use burn_cubecl::tensor::CubeTensor;
use cubecl::server::Handle;
use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
};

/// A static with a fixed address: cuBLASLt reads settings through pointers.
static WORKSPACE_BYTES: u64 = Gemm::WORKSPACE_BYTES as u64;

/// Properties by which cuBLASLt chooses an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    pub lhs: Matrix,
    pub rhs: Matrix,
    pub out: Matrix,
    pub batch: i32,
    pub dtype: sys::cudaDataType,
    pub out_dtype: sys::cudaDataType,
    pub tf32: bool,
    /// Whether each row of E4M3 factors has a scale: [`send`] says it.
    pub scaled: bool,
    /// The largest power of two that divides every address, up to 256.
    pub alignment: u32,
}

/// Factors of a product on the device, the scales of the rows of both if they have some, and the tensor to
/// add to.
pub(super) struct Operands {
    pub factors: [Handle; 2],
    pub scales: Option<[Handle; 2]>,
    pub add: Option<Handle>,
}

/// Sends `out = alpha · lhs · rhs + add` to the device's thread, in order after the kernels launched so far.
pub(super) fn send(problem: Problem, operands: Operands, out: &CubeTensor, alpha: f32) {
    let Operands { factors, scales, add } = operands;
    let (adds, scaled) = (add.is_some(), scales.is_some());
    // From CubeCL's pool, so that a later use of the same memory is ordered after this one.
    let workspace = out.client.empty(WORKSPACE_BYTES as usize);
    let read = factors.into_iter().chain(add).chain(scales.into_iter().flatten()).collect();
    let written = vec![out.handle.clone(), workspace];
    cuda::enqueue::<Gemm>(&out.client, read, written, move |read, written, stream| {
        let (out, workspace) = (written[0], written[1]);
        let addresses = [read[0], read[1], if adds { read[2] } else { out }, out];
        let problem = Problem { scaled, alignment: alignment(&addresses), ..problem };
        let run = |lt: &mut CublasLt| {
            let plan = lt.plan(problem)?;
            if let [.., lhs, rhs] = read
                && scaled
            {
                plan.set_scales([*lhs, *rhs])?;
            }
            let factors = [alpha, if adds { 1.0 } else { 0.0 }];
            plan.run(addresses, factors, workspace, stream.cast())
        };
        CUBLASLT
            .with_borrow_mut(run)
            .map_err(|error| format!("cuBLASLt: {error:?} for {problem:?}"))
    });
}

/// The largest power of two that divides every address, up to 256.
fn alignment(addresses: &[u64]) -> u32 {
    1 << addresses.iter().fold(256, |bits, address| bits | address).trailing_zeros()
}

/// Descriptors of a problem, and the algorithm chosen for it.
struct Plan {
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    /// Layouts of `lhs`, `rhs` and the output, which is also that of the tensor to add.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
}

// cuBLASLt's numbers, stable between versions: `sys` names those of the CUDA version that it was built
// for, which may be older than the library that runs.
const FAST_ACCUM: u32 = 25;
/// Addresses of the scales of the first and the second factor.
const SCALE_POINTERS: [u32; 2] = [17, 18];
/// Modes of the scales of the first and the second factor.
const SCALE_MODES: [u32; 2] = [31, 32];
/// A scale for each row (`CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F`).
const OUTER_VEC: u32 = 3;

/// Sets an attribute of a product by its number.
///
/// # Safety
/// The descriptor is alive, and the value has the type that the attribute asks for.
unsafe fn set_attribute<T>(
    desc: sys::cublasLtMatmulDesc_t,
    attribute: u32,
    value: &T,
) -> Result<(), CublasError> {
    type Set = unsafe extern "C" fn(
        sys::cublasLtMatmulDesc_t,
        u32,
        *const c_void,
        usize,
    ) -> sys::cublasStatus_t;
    // SAFETY: the library has this function with these parameters, an enumeration being a `u32`.
    unsafe {
        let set = sys::culib().get::<Set>(b"cublasLtMatmulDescSetAttribute\0");
        let set = set.map_err(|_| CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))?;
        set(desc, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()).result()
    }
}

thread_local! {
    /// State of the thread's device: see [`cuda::enqueue`].
    static CUBLASLT: RefCell<CublasLt> = RefCell::default();
}

/// Number of plans after which all are dropped: ever new shapes must not fill the memory.
const MAX_PLANS: usize = 4096;

#[derive(Default)]
struct CublasLt {
    handle: Option<sys::cublasLtHandle_t>,
    plans: HashMap<Problem, Plan>,
}

impl CublasLt {
    fn plan(&mut self, problem: Problem) -> Result<&Plan, CublasError> {
        let handle = match self.handle {
            Some(handle) => handle,
            None => *self.handle.insert(result::create_handle()?),
        };
        if self.plans.len() >= MAX_PLANS && !self.plans.contains_key(&problem) {
            self.plans.clear();
        }
        match self.plans.entry(problem) {
            Entry::Occupied(plan) => Ok(plan.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(Plan::new(handle, &problem)?)),
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, problem: &Problem) -> Result<Self, CublasError> {
        use sys::{
            cublasLtMatmulDescAttributes_t::*, cublasLtMatmulPreferenceAttributes_t::*,
            cublasLtMatrixLayoutAttribute_t::*,
        };
        let compute = if problem.tf32 && problem.dtype == sys::cudaDataType::CUDA_R_32F {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let desc = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)?;
        let layout = |matrix: &Matrix, dtype| {
            let Matrix { rows, cols, stride, batch_stride, .. } = matrix;
            let layout = result::create_matrix_layout(dtype, *rows, *cols, *stride)?;
            // SAFETY: the layout is alive, and each value has the type its attribute asks for.
            unsafe {
                let set = |attribute, value: *const c_void, size| {
                    result::set_matrix_layout_attribute(layout, attribute, value, size)
                };
                let batch = (&raw const problem.batch).cast();
                set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch, 4)?;
                let stride = (&raw const *batch_stride).cast();
                set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride, 8)?;
            }
            Ok(layout)
        };
        let Problem { lhs, rhs, out, dtype, out_dtype, .. } = problem;
        let layouts = [layout(lhs, *dtype)?, layout(rhs, *dtype)?, layout(out, *out_dtype)?];
        let preference = result::create_matmul_pref()?;
        // SAFETY: the objects are alive, and each value has the type its attribute asks for.
        let best = unsafe {
            let op = |op, matrix: &Matrix| {
                result::set_matmul_desc_attribute(desc, op, (&raw const matrix.op).cast(), 4)
            };
            op(CUBLASLT_MATMUL_DESC_TRANSA, rhs)?;
            op(CUBLASLT_MATMUL_DESC_TRANSB, lhs)?;
            if *dtype == sys::cudaDataType::CUDA_R_8F_E4M3 {
                set_attribute(desc, FAST_ACCUM, &1i8)?;
            }
            if problem.scaled {
                SCALE_MODES
                    .into_iter()
                    .try_for_each(|mode| set_attribute(desc, mode, &OUTER_VEC))?;
                // Any address but 0, for which there is no algorithm.
                let some = u64::from(problem.alignment);
                SCALE_POINTERS
                    .into_iter()
                    .try_for_each(|place| set_attribute(desc, place, &some))?;
            }
            let prefer = |attribute, value: *const c_void, size| {
                result::set_matmul_pref_attribute(preference, attribute, value, size)
            };
            let workspace = (&raw const WORKSPACE_BYTES).cast();
            prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace, 8)?;
            let alignment = (&raw const problem.alignment).cast();
            prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment, 4)?;
            prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment, 4)?;
            prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment, 4)?;
            prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment, 4)?;
            let [lhs, rhs, out] = layouts;
            let best =
                result::get_matmul_algo_heuristic(handle, desc, rhs, lhs, out, out, preference);
            result::destroy_matmul_pref(preference)?;
            best?
        };
        Ok(Self { handle, desc, layouts, algo: best.algo })
    }

    /// Sets the addresses of the scales of `lhs` and `rhs`.
    fn set_scales(&self, [lhs, rhs]: [u64; 2]) -> Result<(), CublasError> {
        let mut scales = SCALE_POINTERS.into_iter().zip([rhs, lhs]);
        // SAFETY: the descriptor is alive, and the attributes are addresses.
        scales.try_for_each(|(place, address)| unsafe { set_attribute(self.desc, place, &address) })
    }

    /// Enqueues `out = factors[0] * product + factors[1] * add` on `stream`.
    fn run(
        &self,
        [lhs, rhs, add, out]: [u64; 4],
        factors: [f32; 2],
        workspace: u64,
        stream: sys::cudaStream_t,
    ) -> Result<(), CublasError> {
        let [lhs_layout, rhs_layout, out_layout] = self.layouts;
        // SAFETY: the buffers are allocated, as large as the layouts say, and stay allocated until
        // `stream` has passed this call; the factors are read before it returns.
        unsafe {
            result::matmul(
                self.handle,
                self.desc,
                (&raw const factors[0]).cast(),
                (&raw const factors[1]).cast(),
                rhs as *const c_void,
                rhs_layout,
                lhs as *const c_void,
                lhs_layout,
                add as *const c_void,
                out_layout,
                out as *mut c_void,
                out_layout,
                &self.algo,
                workspace as *mut c_void,
                WORKSPACE_BYTES as usize,
                stream,
            )
        }
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: the objects are this plan's own, and cuBLASLt has read them when a call returned.
        unsafe {
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
            let _ = result::destroy_matmul_desc(self.desc);
        }
    }
}
