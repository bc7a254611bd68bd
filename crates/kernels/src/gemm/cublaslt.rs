//! The matrix product by cuBLASLt.

use super::{Dims, Gemm, fp8::matrix::Fp8Matrix, output_shape};
use crate::{cube::empty, cuda};
use burn::tensor::DType;
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use cubecl::client::Client;
use cudarc::cublaslt::{
    result::{self, CublasError},
    sys,
};
use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    sync::OnceLock,
};

/// A static with a fixed address: cuBLASLt reads settings through pointers.
static WORKSPACE_BYTES: u64 = Gemm::WORKSPACE_BYTES as u64;

/// Returns `true` if [`gemm`] supports this product, whose shapes were checked; Burn's matmul
/// computes the others.
pub(super) fn supports(lhs: &CubeTensor, rhs: &CubeTensor) -> bool {
    cuda::runs(&lhs.client)
        && data_type(lhs.dtype).is_some()
        && [lhs, rhs].iter().all(|tensor| tensor.meta.shape().num_elements() > 0)
        && library_is_present()
}

pub(super) fn library_is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: the call only tries to open each candidate name of the library.
    found_once(&PRESENT, || unsafe { sys::is_culib_present() })
}

/// Looks for the library at the first call, and warns once if there is none.
fn found_once(once: &OnceLock<bool>, look: impl FnOnce() -> bool) -> bool {
    *once.get_or_init(|| {
        let present = look();
        if !present {
            burn_lora_io::warn!(
                "libcublasLt is not found, so matrix products run on Burn's own kernels, which \
                 are about three times as slow: install cuBLAS or set LD_LIBRARY_PATH"
            );
        }
        present
    })
}

fn data_type(dtype: DType) -> Option<sys::cudaDataType> {
    match dtype {
        DType::BF16 => Some(sys::cudaDataType::CUDA_R_16BF),
        DType::F16 => Some(sys::cudaDataType::CUDA_R_16F),
        DType::F32 => Some(sys::cudaDataType::CUDA_R_32F),
        _ => None,
    }
}

/// Destination of a product.
pub(super) enum Target {
    /// A new tensor.
    New,
    /// This tensor, to which the product is added, or a new one if its memory is shared.
    Sum(CubeTensor),
    /// This tensor, to which the product is added in place even if its memory is shared: see
    /// [`fits`].
    Place(CubeTensor),
}

/// Returns `true` if a product can be added to a tensor in place: each of its matrices has its own
/// matrix of `rhs`, and no element is there twice, as in an expanded tensor.
pub(super) fn fits(rhs: &CubeTensor, part: &CubeTensor) -> bool {
    let leading = |tensor: &CubeTensor| {
        let shape = tensor.meta.shape();
        shape[..shape.num_dims() - 2].to_vec()
    };
    let batch: usize = leading(part).iter().product();
    Matrix::of(part, false).is_some_and(|Matrix { rows, cols, stride, batch_stride, op }| {
        let extent = (cols as i64 - 1) * stride + rows as i64;
        op == 0 && (batch == 1 || batch_stride >= extent && leading(rhs) == leading(part))
    })
}

/// Computes the product: allocates the output and sends the call to the device's thread, in order
/// after the kernels launched so far.
pub(super) fn gemm(lhs: CubeTensor, rhs: CubeTensor, target: Target, gemm: Gemm) -> CubeTensor {
    let shape = output_shape(lhs.meta.shape(), rhs.meta.shape(), gemm);
    let dims = Dims::of(lhs.meta.shape(), rhs.meta.shape(), gemm);
    // With one matrix for all leading dimensions, these become more rows, unless they are
    // transposed.
    let flat = dims.shared && !gemm.trans_lhs;
    let leading = &lhs.meta.shape()[..lhs.meta.shape().num_dims() - 2];
    let batch = if flat { 1 } else { leading.iter().product::<usize>() };
    let (lhs, mut lhs_matrix) = into_matrix(lhs, flat);
    let (rhs, mut rhs_matrix) = into_matrix(rhs, false);
    lhs_matrix.op ^= i32::from(gemm.trans_lhs);
    rhs_matrix.op ^= i32::from(gemm.trans_rhs);

    let (client, dtype) = (lhs.client.clone(), lhs.dtype);
    let out_dtype = gemm.output_dtype(dtype);
    let beta = if matches!(target, Target::New) { 0.0 } else { 1.0 };
    let new = || empty(&lhs, shape, out_dtype);
    let (out, add) = match target {
        Target::New => (new(), None),
        // This handle and the clone to write to share one buffer.
        Target::Place(add) => (add.clone(), Some(add)),
        Target::Sum(add) => place(Some(add), new),
    };
    let out_matrix = Matrix::of(&out, flat).expect("contiguous, or the caller has checked");
    // From CubeCL's pool, so that a later use of the same memory is ordered after this one.
    let workspace = client.empty(WORKSPACE_BYTES as usize);

    let problem = Problem {
        lhs: lhs_matrix,
        rhs: rhs_matrix,
        out: out_matrix,
        batch: i32::try_from(batch).expect("matrices that a GPU can hold"),
        dtype: data_type(dtype).expect("checked by `supports`"),
        out_dtype: data_type(out_dtype).expect("float32, or the same"),
        tf32: gemm.tf32,
        scaled: false,
        alignment: 256,
    };
    let mut read = vec![lhs.handle, rhs.handle];
    read.extend(add.map(|add| add.handle));
    let written = vec![out.handle.clone(), workspace];
    cuda::enqueue::<Gemm>(&client, read, written, move |read, written, stream| {
        let (out, workspace) = (written[0], written[1]);
        let addresses = [read[0], read[1], read.get(2).copied().unwrap_or(out), out];
        let problem = Problem { alignment: alignment(&addresses), ..problem };
        let run = |lt: &mut CublasLt| {
            lt.plan(problem)?.run(addresses, [gemm.alpha, beta], workspace, stream.cast())
        };
        CUBLASLT
            .with_borrow_mut(run)
            .map_err(|error| format!("cuBLASLt: {error:?} for {problem:?}"))
    });
    out
}

/// Returns `true` if a product of E4M3 matrices takes a scale for each row of either.
pub(super) fn scales_rows(client: &Client) -> bool {
    // CUDA 12.9
    const VERSION: usize = 12_09_00;
    // SAFETY: the call has no requirements.
    library_is_present()
        && unsafe { sys::cublasLtGetVersion() } >= VERSION
        && cuda::compute_capability(client).is_ok_and(|capability| capability == (9, 0))
}

/// Computes `sum + lhs · rhsᵀ` of matrices in E4M3 in the memory of `sum`, or in what `new` allocates if that
/// is shared. With `scaled`, which [`scales_rows`] has to allow, rows are multiplied by their scales.
pub(super) fn gemm_fp8(
    [lhs, rhs]: [&Fp8Matrix; 2],
    scaled: bool,
    sum: Option<CubeTensor>,
    new: impl FnOnce() -> CubeTensor,
) -> CubeTensor {
    let beta = if sum.is_some() { 1.0 } else { 0.0 };
    let (out, sum) = place(sum, new);
    let client = out.client.clone();
    let matrix = |of: &Fp8Matrix, op| {
        let (rows, cols) = (of.width as u64, of.rows as u64);
        Matrix { rows, cols, stride: of.width as i64, batch_stride: 0, op }
    };
    let problem = Problem {
        lhs: matrix(lhs, 0),
        rhs: matrix(rhs, 1),
        out: Matrix::of(&out, false).expect("contiguous"),
        batch: 1,
        dtype: sys::cudaDataType::CUDA_R_8F_E4M3,
        out_dtype: data_type(out.dtype).expect("a float"),
        tf32: false,
        scaled,
        alignment: 256,
    };
    let workspace = client.empty(WORKSPACE_BYTES as usize);
    let handles = [&lhs.codes, &rhs.codes, &lhs.scales, &rhs.scales];
    let mut read = handles.map(Clone::clone).to_vec();
    read.extend(sum.map(|sum| sum.handle));
    let written = vec![out.handle.clone(), workspace];
    cuda::enqueue::<Fp8Matrix>(&client, read, written, move |read, written, stream| {
        let addresses = [read[0], read[1], read.get(4).copied().unwrap_or(written[0]), written[0]];
        let problem = Problem { alignment: alignment(&addresses), ..problem };
        let run = |lt: &mut CublasLt| {
            let plan = lt.plan(problem)?;
            plan.set_scales([read[2], read[3]])?;
            plan.run(addresses, [1.0, beta], written[1], stream.cast())
        };
        CUBLASLT
            .with_borrow_mut(run)
            .map_err(|error| format!("cuBLASLt: {error:?} for {problem:?}"))
    });
    out
}

/// Returns the tensor to write to, and the one to add to: the same, unless that is shared.
fn place(
    sum: Option<CubeTensor>,
    new: impl FnOnce() -> CubeTensor,
) -> (CubeTensor, Option<CubeTensor>) {
    match sum.map(into_contiguous) {
        // Asked before there is a second handle.
        Some(sum) if sum.can_mut() => (sum.clone(), Some(sum)),
        sum => (new(), sum),
    }
}

/// The largest power of two that divides every address, up to 256.
fn alignment(addresses: &[u64]) -> u32 {
    1 << addresses.iter().fold(256, |bits, address| bits | address).trailing_zeros()
}

/// A matrix or a batch of matrices in memory, in cuBLASLt's terms: it takes every matrix as one
/// with contiguous columns, so that one with contiguous rows is the transposed matrix to it. That
/// is what it needs: the output has contiguous rows too, and is computed as
/// `out^T = rhs^T * lhs^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Matrix {
    rows: u64,
    cols: u64,
    /// Number of elements from one column to the next.
    stride: i64,
    /// Number of elements from one matrix to the next.
    batch_stride: i64,
    /// 0, `CUBLAS_OP_N`: this is the transposed matrix already; 1, `CUBLAS_OP_T`: transpose it.
    op: i32,
}

impl Matrix {
    /// Describes the last two dimensions, or with `flat` the last one and all others as rows.
    fn of(tensor: &CubeTensor, flat: bool) -> Option<Self> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let rank = shape.num_dims();
        let (leading, rows, cols) = (&shape[..rank - 2], shape[rank - 2], shape[rank - 1]);
        let count: usize = leading.iter().product();
        // `true` if one stride describes the leading dimensions, innermost last.
        let dense = |mut next: usize| {
            let mut dims = leading.iter().zip(&strides[..rank - 2]).rev();
            dims.all(|(&dim, &stride)| {
                let fits = dim == 1 || stride == next;
                next *= dim;
                fits
            })
        };
        let innermost = leading.iter().zip(&strides[..rank - 2]).rev().find(|(dim, _)| **dim != 1);
        let batch_stride = innermost.map_or(0, |(_, stride)| *stride);
        if count > 1 && !dense(batch_stride) || tensor.meta.is_tiled() {
            return None;
        }
        // The stride of a dimension of size 1 has no meaning.
        let next_row = if rows == 1 { cols } else { strides[rank - 2] };
        let next_col = if cols == 1 { 1 } else { strides[rank - 1] };
        let (rows, batch_stride, next_row) = match flat && count > 1 {
            true if rows == 1 => (count, 0, batch_stride),
            true if batch_stride == rows * next_row => (count * rows, 0, next_row),
            true => return None,
            false => (rows, batch_stride, next_row),
        };
        let (rows, cols, stride, op) = match (next_row, next_col) {
            (stride, 1) if stride >= cols => (cols, rows, stride, 0),
            (1, stride) if stride >= rows => (rows, cols, stride, 1),
            _ => return None,
        };
        let [rows, cols] = [rows, cols].map(|dim| dim as u64);
        Some(Self { rows, cols, stride: stride as i64, batch_stride: batch_stride as i64, op })
    }
}

/// Describes a tensor as a [`Matrix`], after a copy if it is none.
fn into_matrix(tensor: CubeTensor, flat: bool) -> (CubeTensor, Matrix) {
    if let Some(matrix) = Matrix::of(&tensor, flat) {
        return (tensor, matrix);
    }
    let tensor = into_contiguous(tensor);
    let matrix = Matrix::of(&tensor, flat).expect("contiguous");
    (tensor, matrix)
}

/// Properties by which cuBLASLt chooses an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Problem {
    lhs: Matrix,
    rhs: Matrix,
    out: Matrix,
    batch: i32,
    dtype: sys::cudaDataType,
    out_dtype: sys::cudaDataType,
    tf32: bool,
    /// Whether each row of E4M3 factors has a scale.
    scaled: bool,
    /// The largest power of two that divides every address, up to 256.
    alignment: u32,
}

/// Descriptors of a problem, and the algorithm chosen for it.
struct Plan {
    handle: sys::cublasLtHandle_t,
    desc: sys::cublasLtMatmulDesc_t,
    /// Layouts of `lhs`, `rhs` and the output, which is also that of the tensor to add.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algo: sys::cublasLtMatmulAlgo_t,
    scaled: bool,
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
        Ok(Self { handle, desc, layouts, algo: best.algo, scaled: problem.scaled })
    }

    /// Sets the addresses of the scales of `lhs` and `rhs`, if the product has some.
    fn set_scales(&self, [lhs, rhs]: [u64; 2]) -> Result<(), CublasError> {
        if !self.scaled {
            return Ok(());
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_said_once() {
        let once = OnceLock::new();
        let (found, warnings) =
            burn_lora_io::collect(|| [1, 2, 3].map(|_| found_once(&once, || false)));
        assert_eq!((found, warnings.len()), ([false; 3], 1), "{warnings:?}");
        assert!(warnings[0].contains("libcublasLt"), "{warnings:?}");
    }
}
