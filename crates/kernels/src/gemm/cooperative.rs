//! The matrix product by cooperative matrices that a whole cube holds: Vulkan's driver moves their
//! tiles from memory to tensor cores (`VK_NV_cooperative_matrix2`). It needs no tuning run, and is
//! twice as fast on an H200 as the best of Burn's kernels.

use super::{
    Dims, Gemm,
    matrix::{Factors, Matrix},
    output_shape,
    target::Target,
    tile::{EDGE, TILES, Tile, tile},
};
use crate::cube::{MAX_ITEMS, check, elem, empty, own};
use burn::{backend::ops::FloatTensorOps, tensor::DType};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::{
    calculate_cube_count_elemwise,
    client::Client,
    cmma::{self, Cube, MatrixIdent, MatrixLayout},
    ir::{ElemType, FloatKind},
    prelude::*,
};

/// Rows of `lhs` up to which Burn's products of a vector are faster.
const FEW: usize = 8;

/// Multiple of which steps are.
const STEP: usize = 16;

/// More rows or columns than a matrix has: checks against a constant cost nothing where none fails.
const ANY: u32 = 1 << 24;

/// Returns `true` if [`gemm`] computes this product, whose shapes were checked.
pub(super) fn supports(lhs: &CubeTensor, rhs: &CubeTensor, gemm: Gemm) -> bool {
    let few = !gemm.trans_lhs && lhs.meta.shape()[lhs.meta.shape().num_dims() - 2] <= FEW;
    let fits = [lhs, rhs].iter().all(|factor| {
        let width = *factor.meta.shape().last().expect("a matrix");
        if factor.meta.shape().num_elements() == 0 {
            return false;
        }
        let elements = factor.handle.size_in_used() as usize / factor.dtype.size();
        elements <= MAX_ITEMS && width.max(elements / width) < ANY as usize
    });
    !few && fits && has_tiles(&lhs.client, lhs.dtype)
}

/// Returns `true` if the device multiplies all tiles in this dtype, with float32 sums.
fn has_tiles(client: &Client, dtype: DType) -> bool {
    let (factor, sum) = (elem(dtype), ElemType::Float(FloatKind::F32));
    let matmul = &client.features().matmul;
    let is_supported = |tile: &Tile| {
        matmul.cube_mma.iter().any(|config| {
            let whole = |dim: usize, granularity: u32| dim.is_multiple_of(granularity as usize);
            (config.a_type, config.b_type, config.cd_type) == (factor, factor, sum)
                && config.units_per_block.is_none_or(|units| units == tile.units)
                && whole(tile.m, config.m_granularity)
                && whole(tile.n, config.n_granularity)
                && whole(STEP, config.k_granularity)
        })
    };
    matches!(dtype, DType::F16 | DType::BF16)
        && matmul.cmma_tensor_addressing
        && TILES.iter().chain([&EDGE]).all(is_supported)
}

/// Returns `true` if [`gemm`] adds this product to a tensor: if tiles cover it, and no factor scales it.
pub(super) fn adds(lhs: &CubeTensor, rhs: &CubeTensor, to: &CubeTensor, gemm: Gemm) -> bool {
    let dims = Dims::of(lhs.meta.shape(), rhs.meta.shape(), gemm);
    let (m, batch) = if dims.flat(gemm) { (dims.batch * dims.m, 1) } else { (dims.m, dims.batch) };
    let covers = |tile: Tile| m.is_multiple_of(tile.m) && dims.n.is_multiple_of(tile.n);
    gemm.alpha == 1.0 && has_whole_rows(to) && tile(m, dims.n, batch).is_some_and(covers)
}

/// Computes the product, or the sum of it and the target, if [`adds`] says so.
pub(super) fn gemm(lhs: CubeTensor, rhs: CubeTensor, target: Target, gemm: Gemm) -> CubeTensor {
    let shape = output_shape(lhs.meta.shape(), rhs.meta.shape(), gemm);
    let [lhs, rhs] = [lhs, rhs].map(with_whole_rows);
    let factors = Factors::of(lhs, rhs, gemm);
    let (out, add) = match target {
        Target::New => {
            let dtype = gemm.output_dtype(factors.tensors[0].dtype);
            (empty(&factors.tensors[0], shape, dtype), false)
        }
        Target::Sum(out) => (own(out), true),
        Target::Place(out) => (out, true),
    };
    let product = Product::new(&factors, &out, add);
    let ([m, n], batch) = (product.dims(), factors.batch);
    match tile(m, n, batch) {
        None => product.launch(EDGE, false, [0, 0], [m, n]),
        Some(tile) => {
            let [rows, cols] = [m / tile.m * tile.m, n / tile.n * tile.n];
            product.launch(tile, true, [0, 0], [rows, cols]);
            product.launch(EDGE, false, [rows, 0], [m - rows, n]);
            product.launch(EDGE, false, [0, cols], [rows, n - cols]);
        }
    }
    if gemm.alpha == 1.0 { out } else { CubeBackend::float_mul_scalar(out, gemm.alpha.into()) }
}

/// Returns the tensor, or a copy that [has whole rows](has_whole_rows).
fn with_whole_rows(tensor: CubeTensor) -> CubeTensor {
    if has_whole_rows(&tensor) { tensor } else { into_contiguous(tensor) }
}

/// Returns `true` if all matrices of a tensor are rows of one: they start at multiples of its stride.
fn has_whole_rows(tensor: &CubeTensor) -> bool {
    let starts = |matrix: Matrix| matrix.batch_stride % matrix.stride.max(1) == 0;
    Matrix::of(tensor, false).is_some_and(starts)
}

/// A batch of matrices in memory, whose rows follow each other.
#[derive(CubeType, CubeLaunch)]
struct Stored {
    batches: u32,
    /// Number of rows from one matrix to the next.
    batch_rows: u32,
    rows: u32,
    cols: u32,
    /// Number of elements from one row to the next.
    stride: u32,
}

/// How a kernel reads or writes [`Stored`] matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Access {
    /// The factor is the transpose of the stored matrix.
    transposed: bool,
    /// Rows start at multiples of 16 bytes: the driver moves as many at once where it can tell.
    aligned: bool,
    /// The stride, in a kernel that is made for it.
    stride: Option<u32>,
}

/// What a kernel is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    tile: Tile,
    /// No tile reaches beyond the output.
    inside: bool,
    /// Number of terms of a last step, or 0: a tile's if some of them are past the end.
    rest: usize,
    /// What is in the output is added to.
    add: bool,
    lhs: Access,
    rhs: Access,
    out: Access,
}

/// Part of the output: where it starts, and the number of tiles down and across.
#[derive(CubeType, CubeLaunch)]
struct Region {
    row: u32,
    col: u32,
    down: u32,
    across: u32,
}

/// Returns the matrices up to one of them for cooperative loads and stores: what is past its end
/// counts as zeros, or must not be asked for if `inside`.
#[cube]
fn view<F: Float>(
    values: &[F],
    stored: &Stored,
    batch: u32,
    #[comptime] access: Access,
    #[comptime] inside: bool,
) -> TensorView<F> {
    let stride = if let Some(stride) = comptime!(access.stride) {
        stride.runtime()
    } else if comptime!(access.aligned) {
        stored.stride / 8 * 8
    } else {
        stored.stride
    };
    let (rows, cols, mode) = if comptime!(inside) {
        (ANY.runtime(), ANY.runtime(), comptime!(TensorClampMode::Undefined))
    } else {
        let rows = batch * stored.batch_rows + stored.rows;
        (rows, stored.cols, comptime!(TensorClampMode::Constant(0)))
    };
    TensorView::new(values, seq![rows, cols])
        .with_strides(seq![stride, 1])
        .with_clamp_mode(mode)
        .finish()
}

/// Returns the part of a matrix from a row and a column on; its first stored row is `first`.
#[cube]
fn part<F: Float>(
    view: &TensorView<F>,
    first: u32,
    row: u32,
    col: u32,
    #[comptime] rows: u32,
    #[comptime] cols: u32,
    #[comptime] access: Access,
) -> TensorView<F> {
    if comptime!(access.transposed) {
        view.slice(seq![first + col, row], seq![cols, rows]).permuted(seq![1, 0])
    } else {
        view.slice(seq![first + row, col], seq![rows, cols])
    }
}

/// Adds the product of one step to `sum`: columns `at..` of `lhs` and rows `at..` of `rhs`.
#[cube]
fn add_step<F: Float>(
    lhs: &TensorView<F>,
    rhs: &TensorView<F>,
    firsts: (u32, u32),
    row: u32,
    col: u32,
    at: u32,
    sum: &cmma::Matrix<f32, Cube>,
    #[comptime] plan: Plan,
    #[comptime] k: usize,
) {
    let Tile { m, n, .. } = comptime!(plan.tile);
    let (rows, cols, depth) = comptime!((m as u32, n as u32, k as u32));
    let layout = MatrixLayout::Undefined;
    // SAFETY: they are loaded before they are read.
    let mut a = unsafe { cmma::Matrix::<F, Cube>::uninitialized(MatrixIdent::A, m, n, k, layout) };
    // SAFETY: as above.
    let mut b = unsafe { cmma::Matrix::<F, Cube>::uninitialized(MatrixIdent::B, m, n, k, layout) };
    cmma::load_tensor(&mut a, &part::<F>(lhs, firsts.0, row, at, rows, depth, plan.lhs));
    cmma::load_tensor(&mut b, &part::<F>(rhs, firsts.1, at, col, depth, cols, plan.rhs));
    cmma::execute(&a, &b, sum, sum);
}

/// Loads a tile of the output.
#[cube]
fn initial<O: Float>(out: &[O], stride: u32, #[comptime] tile: Tile) -> cmma::Matrix<f32, Cube> {
    let (ident, layout) = (MatrixIdent::Accumulator, MatrixLayout::RowMajor);
    let tile =
        cmma::Matrix::<O, Cube>::from_slice(ident, tile.m, tile.n, tile.k, layout, out, stride);
    cmma::cast::<O, f32, Cube>(&tile)
}

#[cube(launch_unchecked)]
fn product_kernel<F: Float, O: Float>(
    lhs: &[F],
    rhs: &[F],
    out: &mut [O],
    lhs_stored: &Stored,
    rhs_stored: &Stored,
    out_stored: &Stored,
    region: &Region,
    k: u32,
    #[comptime] plan: Plan,
    #[define(F)] _dtype: ElemType,
    #[define(O)] _out_dtype: ElemType,
) {
    let Tile { m: tile_m, n: tile_n, k: tile_k, .. } = comptime!(plan.tile);
    let (height, width, depth) = comptime!((tile_m as u32, tile_n as u32, tile_k as u32));
    let inside = comptime!(plan.inside);
    let (down, across) = (region.down, region.across);
    let batch = CUBE_POS as u32 / (down * across);
    if batch >= out_stored.batches {
        terminate!();
    }
    // Cubes that run at the same time share rows and columns: eight rows of tiles, column by column.
    let id = CUBE_POS as u32 % (down * across);
    let band = id / (8 * across) * 8;
    let within = id % (8 * across);
    let in_band = min(down - band, 8);
    let (row, col) = ((band + within % in_band) * height, within / in_band * width);
    // The driver moves 16 bytes at once if it can tell that columns start at a multiple of them.
    let (row, col) =
        if inside { (row, col) } else { (region.row + row, region.col / 16 * 16 + col) };

    // One matrix may serve for all.
    let lhs_batch = min(batch, lhs_stored.batches - 1);
    let rhs_batch = min(batch, rhs_stored.batches - 1);
    let firsts = (lhs_batch * lhs_stored.batch_rows, rhs_batch * rhs_stored.batch_rows);
    let first = batch * out_stored.batch_rows;
    let sum = if comptime!(plan.add) {
        let start = ((first + row) * out_stored.stride + col) as usize;
        initial::<O>(&out[start..], out_stored.stride, plan.tile)
    } else {
        let (ident, layout) = (MatrixIdent::Accumulator, MatrixLayout::Undefined);
        cmma::Matrix::<f32, Cube>::from_value(ident, tile_m, tile_n, tile_k, layout, 0.0)
    };
    let left = view::<F>(lhs, lhs_stored, lhs_batch, plan.lhs, inside);
    let right = view::<F>(rhs, rhs_stored, rhs_batch, plan.rhs, inside);
    let whole = k / depth * depth;
    for at in range_stepped(0, whole, depth) {
        add_step::<F>(&left, &right, firsts, row, col, at, &sum, plan, tile_k);
    }
    if comptime!(plan.rest > 0) {
        let inside = comptime!(inside && plan.rest < tile_k);
        let left = view::<F>(lhs, lhs_stored, lhs_batch, plan.lhs, inside);
        let right = view::<F>(rhs, rhs_stored, rhs_batch, plan.rhs, inside);
        add_step::<F>(&left, &right, firsts, row, col, whole, &sum, plan, plan.rest);
    }
    let sum: cmma::Matrix<O, Cube> = cmma::cast(&sum);
    let out = view::<O>(&*out, out_stored, batch, plan.out, inside);
    let mut place = part::<O>(&out, first, row, col, height, width, plan.out);
    cmma::store_tensor(&mut place, &sum);
}

/// The factors and the output of a product.
struct Product<'a> {
    tensors: [&'a CubeTensor; 3],
    matrices: [Matrix; 3],
    batch: usize,
    /// It is added to what is in the output.
    add: bool,
    /// One matrix is multiplied by another one.
    of_layer: bool,
}

impl<'a> Product<'a> {
    fn new(factors: &'a Factors, out: &'a CubeTensor, add: bool) -> Self {
        let [lhs, rhs] = &factors.tensors;
        let [lhs_matrix, rhs_matrix] = factors.matrices;
        let out_matrix = Matrix::of(out, factors.flat).expect("contiguous");
        Self {
            tensors: [lhs, rhs, out],
            matrices: [lhs_matrix, rhs_matrix, out_matrix],
            batch: factors.batch,
            add,
            of_layer: factors.flat || lhs.meta.shape().num_dims() == 2,
        }
    }

    /// Rows and columns of the output.
    fn dims(&self) -> [usize; 2] {
        let Matrix { rows, cols, .. } = self.matrices[2];
        [cols, rows].map(|dim| dim as usize)
    }

    /// Number of terms of each sum.
    fn terms(&self) -> u64 {
        let Matrix { rows, cols, op, .. } = self.matrices[0];
        if op == 0 { rows } else { cols }
    }

    /// Computes the part of the output from a row and a column on.
    fn launch(&self, tile: Tile, inside: bool, [row, col]: [usize; 2], [rows, cols]: [usize; 2]) {
        if rows * cols == 0 {
            return;
        }
        let client = &self.tensors[0].client;
        // Kernels for these strides are a tenth faster, and take half a second each to compile: a few
        // for layers, whose widths are few, but none for attention, to each number of keys.
        let made_for_stride = self.of_layer && inside && tile.units == TILES[0].units;
        let [(a, a_stored, lhs), (b, b_stored, rhs), (c, c_stored, out)] =
            [0, 1, 2].map(|i| self.argument(i, made_for_stride));
        let counts = tile.counts(rows, cols);
        let cubes = self.batch * counts[0] * counts[1];
        let [row, col, down, across] = [row, col, counts[0], counts[1]].map(|value| value as u32);
        let region = RegionLaunch::new(row, col, down, across);
        let rest = match self.terms() as usize % tile.k {
            rest if rest == 0 || inside && rest.is_multiple_of(STEP) => rest,
            _ => tile.k,
        };
        let plan = Plan { tile, inside, rest, add: self.add, lhs, rhs, out };
        // SAFETY: the buffers hold the matrices, as `argument` has checked; tiles inside stay in
        // them, and what others access beyond is dropped.
        unsafe {
            product_kernel::launch_unchecked(
                client,
                calculate_cube_count_elemwise(client, cubes, CubeDim::new_1d(1)),
                CubeDim::new_1d(tile.units),
                a,
                b,
                c,
                a_stored,
                b_stored,
                c_stored,
                region,
                self.terms() as u32,
                plan,
                elem(self.tensors[0].dtype),
                elem(self.tensors[2].dtype),
            );
        }
    }

    /// Returns a tensor's buffer, its matrices, and how a kernel accesses them.
    fn argument(&self, i: usize, made_for_stride: bool) -> (BufferArg, StoredLaunch, Access) {
        let (tensor, matrix) = (self.tensors[i], self.matrices[i]);
        let Matrix { rows: width, cols: rows, stride, batch_stride, op } = matrix;
        check(&self.tensors[0].client, tensor, tensor.dtype);
        let leading = tensor.meta.shape().num_elements() as u64 / (width * rows);
        let batches = if batch_stride == 0 { 1 } else { leading.max(1) };
        let len = (batches as i64 - 1) * batch_stride + (rows as i64 - 1) * stride + width as i64;
        assert!(len as usize <= MAX_ITEMS, "gemm: {len} elements are more than a kernel can index");
        let batch_rows = if batches == 1 { 0 } else { batch_stride / stride };
        // SAFETY: the memory reaches to the last element by these strides, as `check` has made sure.
        let buffer = unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len as usize) };
        let [batches, width, rows] = [batches, width, rows].map(|value| value as u32);
        let stored = StoredLaunch::new(batches, batch_rows as u32, rows, width, stride as u32);
        let access = Access {
            transposed: op == 1,
            aligned: stride % 8 == 0 && tensor.handle.offset_start.unwrap_or(0).is_multiple_of(16),
            stride: made_for_stride.then_some(stride as u32),
        };
        (buffer, stored, access)
    }
}
