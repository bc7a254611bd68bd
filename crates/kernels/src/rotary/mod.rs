//! Rotary position embedding.

mod autodiff;
#[cfg(feature = "cubecl")]
mod cube;
#[cfg(feature = "cpu")]
mod flex;

#[cfg(feature = "fusion")]
use burn::{backend::fusion::custom::TensorSpec, tensor::Shape};
use burn::{
    backend::{
        Backend, Dispatch, backend_extension,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Int, Tensor},
};

/// Rotary position embedding (arXiv:2104.09864), half-split as in transformers: with the angle `a`
/// of a position and a frequency, `(x, y)` at `(i, i + head_dim / 2)` becomes
/// `(x cos a - y sin a, y cos a + x sin a)`. The output has the heads before the sequence. With a
/// table narrower than a head, only that first part of each head is rotated (partial rotary).
///
/// # Shapes
/// - x: `[batch, sequence, heads, head_dim]`
/// - positions: `[batch, sequence]` or `[1, sequence]`, row indices of the table
/// - table: `[positions, rotary_dim]`, cosines followed by sines, in float32; `rotary_dim` is
///   `head_dim`, or less
/// - output: `[batch, heads, sequence, head_dim]`
///
/// # Panics
/// If the shapes do not fit; on a CPU also if a position is outside of the table. A GPU returns NaN
/// for such a token.
pub fn rotate(x: Tensor<4>, positions: Tensor<2, Int>, table: Tensor<2>) -> Tensor<4> {
    let [batch, length, _, width] = x.dims();
    check([batch, length, width], &positions.dims(), &table.dims());
    assert_eq!(table.dtype(), DType::F32, "rotate: the dtype of the table");
    let (positions, table) = (positions.cast(DType::I32).into_dispatch(), table.into_dispatch());
    Tensor::from_dispatch(Dispatch::rotate(x.into_dispatch(), positions, table, false))
}

/// Gradient of the input of [`rotate`], from that of its output, without a graph.
///
/// # Shapes
/// - grad: `[batch, heads, sequence, head_dim]`
/// - positions, table: as those of [`rotate`]
/// - output: `[batch, sequence, heads, head_dim]`
///
/// # Panics
/// As [`rotate`].
pub fn rotate_grad(grad: Tensor<4>, positions: Tensor<2, Int>, table: Tensor<2>) -> Tensor<4> {
    let [batch, _, length, width] = grad.dims();
    check([batch, length, width], &positions.dims(), &table.dims());
    assert_eq!(table.dtype(), DType::F32, "rotate: the dtype of the table");
    let (positions, table) = (positions.cast(DType::I32).into_dispatch(), table.into_dispatch());
    let grad = grad.inner().into_dispatch();
    Tensor::from_dispatch(Dispatch::rotate(grad, positions, table, true))
}

/// Checks the shapes of a rotation: of the sequences (`[batch, sequence, head_dim]`), their
/// positions and the table.
///
/// # Panics
/// If the shapes do not fit.
fn check([batch, length, width]: [usize; 3], positions: &[usize], table: &[usize]) {
    let (&[rows, count], &[_, table_width]) = (positions, table) else {
        panic!("rotate: positions {positions:?} and table {table:?} have two dimensions")
    };
    assert!(rows == 1 || rows == batch, "rotate: positions of {rows} rows, a batch of {batch}");
    assert_eq!(count, length, "rotate: positions of a sequence");
    assert!(table_width <= width, "rotate: a table of {table_width}, wider than a head of {width}");
    assert!(width.is_multiple_of(2), "rotate: a head of {width} has no two halves");
    assert!(table_width.is_multiple_of(2), "rotate: a table of {table_width} has no two halves");
}

/// [`rotate`] on primitives, whose shapes it has checked.
#[backend_extension(
    Flex: cfg(feature = "cpu"),
    Cube: cfg(feature = "cubecl"),
    Fusion: cfg(feature = "fusion"),
    Autodiff
)]
pub trait RotaryOps: Backend {
    /// Rotates the pairs `(i, i + rotary_dim / 2)` of each head by the angles of its position, and
    /// puts the heads before the sequence: `[batch, sequence, heads, head_dim]` to
    /// `[batch, heads, sequence, head_dim]`. With `inverse`, rotates and permutes back: the gradient.
    #[fusion(meta = |x, _positions, _table, _inverse| TensorSpec::new(
        swapped(&x.shape),
        x.dtype,
    ))]
    fn rotate(
        x: FloatTensor<Self>,
        positions: IntTensor<Self>,
        table: FloatTensor<Self>,
        inverse: bool,
    ) -> FloatTensor<Self>;
}

/// Exchanges the two middle dimensions of a shape.
#[cfg(feature = "fusion")]
fn swapped(shape: &Shape) -> Shape {
    Shape::new([shape[0], shape[2], shape[1], shape[3]])
}
