//! Products of few rows at the rate of memory, on CUDA: one to eight, and in 4 bits up to 64.

use super::{
    FewOps, FewProducts, MOST,
    limits::{FEW, TILE},
};
use crate::{
    layout::Layout,
    ops::PackedTensors,
    scale::{NESTED_BLOCK, ScaleRule},
};
use burn::{
    backend::{TensorMetadata, tensor::FloatTensor},
    tensor::{DType, Shape},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use burn_lora_kernels::{
    cube::{check_contiguous, empty},
    cuda::{Kernel, Scalar},
};
use cubecl::{client::Client, server::Handle};

/// Threads per block, as in the sources.
const THREADS: usize = 256;

/// Outputs of a block of the kernel for many rows, inputs of its stages, and how many of these it has.
const WIDE: usize = 128;
const COLUMNS: usize = 128;
const STAGES: usize = 2;

/// Fewest inputs of a slice of it, and of a slice of a product with an A.
const SLICE: usize = 512;
const INPUT_SLICE: usize = 2048;

/// Words of the table of parameters.
const WORDS: usize = 8 * MOST + 2;

/// Blocks that run at once on each of the largest GPUs' 132 multiprocessors, two on each.
const BLOCKS: usize = 264;

/// Parts of a weight as the kernels read them: codes, scales and tables; or the values, and twice what is not read.
type Parts = [CubeTensor; 3];

/// A weight; A and B of its update, and what is kept of its h, if it has them.
struct Factors {
    parts: Parts,
    update: Option<[CubeTensor; 2]>,
    kept: Option<CubeTensor>,
}

impl FewOps for CubeBackend {
    fn packed_few(
        x: FloatTensor<Self>,
        w0: PackedTensors<Self>,
        w1: PackedTensors<Self>,
        w2: PackedTensors<Self>,
        a0: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        k0: FloatTensor<Self>,
        k1: FloatTensor<Self>,
        k2: FloatTensor<Self>,
        layout: Layout,
        known: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let parts = [w0, w1, w2].map(|packed| [packed.codes, packed.scales, packed.tables]);
        three(x, parts, [a0, a1, a2], [b0, b1, b2], [k0, k1, k2], Some(layout), &known)
    }

    fn dense_few(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        a0: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        b2: FloatTensor<Self>,
        k0: FloatTensor<Self>,
        k1: FloatTensor<Self>,
        k2: FloatTensor<Self>,
        known: FewProducts,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let parts = [w0, w1, w2].map(|weight| [weight, x.clone(), x.clone()]);
        three(x, parts, [a0, a1, a2], [b0, b1, b2], [k0, k1, k2], None, &known)
    }
}

/// [`products`] of all that there are, and the first one in the place of the others.
fn three(
    x: CubeTensor,
    parts: [Parts; MOST],
    a: [CubeTensor; MOST],
    b: [CubeTensor; MOST],
    kept: [CubeTensor; MOST],
    layout: Option<Layout>,
    known: &FewProducts,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let factors =
        parts.into_iter().zip(a).zip(b).zip(kept).zip(known.updated.iter().zip(known.masked));
    let factors = factors.take(known.count).map(|((((parts, a), b), kept), (updated, masked))| {
        Factors { parts, update: updated.then_some([a, b]), kept: masked.then_some(kept) }
    });
    let mut found = products(x, factors.collect(), layout, known);
    found.resize(MOST, found[0].clone());
    let [y0, y1, y2] = <[_; MOST]>::try_from(found).expect("three");
    (y0, y1, y2)
}

/// [`products`] with one weight, and without an update.
pub(crate) fn product(
    x: CubeTensor,
    packed: PackedTensors<CubeBackend>,
    layout: Layout,
) -> CubeTensor {
    let parts = [packed.codes, packed.scales, packed.tables];
    let factors = vec![Factors { parts, update: None, kept: None }];
    let known =
        FewProducts { count: 1, outputs: [layout.shape[0]; MOST], ..FewProducts::default() };
    products(x, factors, Some(layout), &known).remove(0)
}

/// Computes `x · Wᵀ + scale · (x · Aᵀ) · Bᵀ` for each weight. Its layout is `layout` but for the outputs; without one, weights
/// are dense.
///
/// # Shapes
/// - x: `[rows, in]`
/// - outputs: `[rows, out]`
fn products(
    x: CubeTensor,
    factors: Vec<Factors>,
    layout: Option<Layout>,
    products: &FewProducts,
) -> Vec<CubeTensor> {
    let (client, x, count) = (x.client.clone(), into_contiguous(x), factors.len());
    let ([rows, inputs], dtype) = (x.meta.shape().dims(), x.dtype);
    check_contiguous(&client, &x, dtype, rows * inputs);
    let outputs = &products.outputs[..count];
    let (mut parts, mut a, mut b, mut kept) = (vec![], vec![], vec![], vec![]);
    let (mut ranks, mut masked) = (vec![], vec![]);
    for (factors, outputs) in factors.into_iter().zip(outputs) {
        parts.push(checked(&client, factors.parts, layout, [*outputs, inputs], dtype));
        // What is not there is not read.
        let none = || x.handle.clone();
        let (mut of_a, mut of_b, mut of_kept, mut rank) = (none(), none(), none(), 0);
        masked.push(usize::from(factors.kept.is_some()));
        if let Some(update) = factors.update {
            let update = update.map(into_contiguous);
            rank = update[0].shape()[0];
            check_contiguous(&client, &update[0], dtype, rank * inputs);
            check_contiguous(&client, &update[1], dtype, outputs * rank);
            [of_a, of_b] = update.map(|factor| factor.handle);
        }
        if let Some(kept) = factors.kept.map(into_contiguous) {
            check_contiguous(&client, &kept, DType::F32, rows * rank);
            of_kept = kept.handle;
        }
        a.push(of_a);
        b.push(of_b);
        kept.push(of_kept);
        ranks.push(rank);
    }
    let launch = Launch { layout, dtype, count };
    let words = |numbers: &[usize]| numbers.iter().map(|number| *number as u64).collect::<Vec<_>>();
    // The sums of each A's products, a tile of ranks after the other.
    let all = ranks.iter().map(|rank| rank.next_multiple_of(TILE)).sum::<usize>();
    let slices = (inputs / INPUT_SLICE).clamp(1, 8);
    let h = empty(&x, Shape::new([slices, rows, all.max(1)]), DType::F32);
    if all > 0 {
        let grid = [all / TILE, rows.div_ceil(FEW), slices];
        let read = [a, kept, vec![x.handle.clone()]].concat();
        let kernel = launch.kernel("few_inputs", false, rows);
        let sizes = integers([inputs, all, rows]);
        let (written, numbers) = (vec![h.handle.clone()], words(&[&ranks[..], &masked].concat()));
        // SAFETY: the parameters are those of the source, for these macros; the buffers are as long as just checked, and there
        // is a block for each tile of ranks, eight rows and a slice. Inputs are a multiple of what a block takes (`divides`).
        unsafe { kernel.launch_table(&client, grid, read, written, numbers, WORDS, sizes) };
    }
    let found: Vec<_> =
        outputs.iter().map(|out| empty(&x, Shape::new([rows, *out]), dtype)).collect();
    let written: Vec<_> = found.iter().map(|y| y.handle.clone()).collect();
    let [codes, scales, tables] =
        [0, 1, 2].map(|part| parts.iter().map(|all| all[part].clone()).collect());
    let read = [codes, scales, tables, b, vec![x.handle.clone(), h.handle.clone()]].concat();
    let factors = products.scales[..count].iter().map(|scale| u64::from(scale.to_bits()));
    let numbers = [words(outputs), words(&ranks), factors.collect()].concat();
    let sizes = integers([inputs, all, rows, slices]);
    let width = outputs.iter().sum::<usize>();
    if rows <= FEW {
        let kernel = launch.kernel("few_rows", all > 0, rows);
        let grid = [(width / TILE).min(BLOCKS), 1, 1];
        // SAFETY: as above; outputs are a multiple of a tile's (`divides`), which blocks share out.
        unsafe { kernel.launch_table(&client, grid, read, written, numbers, WORDS, sizes) };
        return found;
    }
    let kernel = launch.kernel("many_rows", all > 0, rows);
    let blocks = width.div_ceil(WIDE);
    let slices = (BLOCKS / blocks).clamp(1, (inputs / SLICE).max(1));
    if slices == 1 {
        // SAFETY: as above, with a block for each eight tiles.
        unsafe {
            kernel.launch_table(&client, [blocks, 1, 1], read, written, numbers, WORDS, sizes)
        };
        return found;
    }
    let sums = empty(&x, Shape::new([slices, rows, width]), DType::F32);
    let to = vec![sums.handle.clone(); count];
    // SAFETY: as above; a slice of the grid writes its own of the sums.
    unsafe { kernel.launch_table(&client, [blocks, slices, 1], read, to, numbers, WORDS, sizes) };
    let kernel = launch.kernel("many_sums", true, rows);
    let (grid, sizes) = ([width.div_ceil(4 * THREADS), rows, 1], integers([slices, rows, width]));
    let (read, numbers) = (vec![sums.handle], words(outputs));
    // SAFETY: as above; each thread writes four outputs of a row, none past the end.
    unsafe { kernel.launch_table(&client, grid, read, written, numbers, WORDS, sizes) };
    found
}

/// The parts of a weight of this shape, as long as they have to be.
fn checked(
    client: &Client,
    parts: Parts,
    layout: Option<Layout>,
    shape: [usize; 2],
    dtype: DType,
) -> [Handle; 3] {
    let parts = parts.map(into_contiguous);
    match layout.map(|layout| Layout { shape, ..layout }) {
        Some(layout) => {
            layout.check();
            let lens = [layout.code_words(), layout.scale_words(), layout.table_words()];
            for (part, len) in parts.iter().zip(lens) {
                check_contiguous(client, part, DType::U32, len);
            }
        }
        None => check_contiguous(client, &parts[0], dtype, shape[0] * shape[1]),
    }
    parts.map(|part| part.handle)
}

fn integers<const N: usize>(numbers: [usize; N]) -> Vec<Scalar> {
    numbers.map(|number| Scalar::I32(number as i32)).to_vec()
}

/// What the kernels of some products are compiled for.
struct Launch {
    layout: Option<Layout>,
    dtype: DType,
    count: usize,
}

impl Launch {
    fn kernel(&self, name: &'static str, overlaps: bool, rows: usize) -> Kernel {
        let rule = match self.layout.map(|layout| layout.scales) {
            Some(ScaleRule::DoubleQuant) => 1,
            Some(_) => 0,
            None => 2,
        };
        let mut defines = vec![
            ("HALF", usize::from(self.dtype == DType::F16)),
            ("COUNT", self.count),
            ("RULE", rule),
            ("NESTED", NESTED_BLOCK),
            ("OFFSET", Layout::OFFSET),
            ("WORDS", WORDS),
        ];
        let (mut source, mut shared_bytes) =
            (concat!(include_str!("common.cu"), include_str!("few.cu")), 0);
        if rows > FEW {
            // One kernel for 9 to 16 rows, one up to 32, one up to 64.
            let tiles = rows.div_ceil(FEW).next_power_of_two();
            defines.extend([("TILES", tiles), ("STAGES", STAGES)]);
            source = concat!(include_str!("common.cu"), include_str!("many.cu"));
            // Rows of x in 16 bits and codes in each stage; the tables; what aligns all to 1024 bytes.
            let stage = tiles * FEW * COLUMNS * 2 + WIDE * COLUMNS / 2;
            shared_bytes = STAGES * stage + 256 * 32 * 4 + 1024 + 1024;
        }
        Kernel { source, defines, name, threads: THREADS, shared_bytes, overlaps }
    }
}
