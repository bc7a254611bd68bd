//! Gated activations on CubeCL's runtimes, element by element.

use super::{Activation, CUBIC, GELU, GatedOps, QUICK};
use crate::cube::{UNITS, buffer, elem, empty, own, vector_size};
use burn::backend::{TensorMetadata, tensor::FloatTensor};
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use cubecl::{calculate_cube_count_elemwise, prelude::*};

/// `1 / (1 + exp(-x))`.
#[cube]
fn sigmoid(x: f32) -> f32 {
    1.0f32 / (1.0f32 + (-x).exp())
}

/// The sigmoid that an activation multiplies its input by.
#[cube]
fn factor(x: f32, #[comptime] activation: Activation) -> f32 {
    match activation {
        Activation::Silu => sigmoid(x),
        Activation::GeluTanh => sigmoid(GELU * (x + CUBIC * x * x * x)),
        Activation::QuickGelu => sigmoid(QUICK * x),
    }
}

/// Derivative of the sigmoid's argument.
#[cube]
fn inner(x: f32, #[comptime] activation: Activation) -> f32 {
    match activation {
        Activation::Silu => 1.0f32.runtime(),
        Activation::GeluTanh => GELU * (1.0f32 + 3.0f32 * CUBIC * x * x),
        Activation::QuickGelu => QUICK.runtime(),
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    count: usize,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < count {
        let (gates, ups) = (gate[ABSOLUTE_POS], up[ABSOLUTE_POS]);
        let mut result = Vector::<F, N>::empty();
        #[unroll]
        for i in 0..N::value().comptime() {
            let gate = f32::cast_from(gates.extract(i));
            let up = f32::cast_from(ups.extract(i));
            result.insert(i, F::cast_from(gate * factor(gate, activation) * up));
        }
        out[ABSOLUTE_POS] = result;
    }
}

/// Replaces gate and up by their gradients.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    grad: &[Vector<F, N>],
    gate: &mut [Vector<F, N>],
    up: &mut [Vector<F, N>],
    count: usize,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS < count {
        let (grads, gates, ups) = (grad[ABSOLUTE_POS], gate[ABSOLUTE_POS], up[ABSOLUTE_POS]);
        let mut of_gate = Vector::<F, N>::empty();
        let mut of_up = Vector::<F, N>::empty();
        #[unroll]
        for i in 0..N::value().comptime() {
            let grad = f32::cast_from(grads.extract(i));
            let gate = f32::cast_from(gates.extract(i));
            let up = f32::cast_from(ups.extract(i));
            let sigmoid = factor(gate, activation);
            of_up.insert(i, F::cast_from(grad * gate * sigmoid));
            let inside = gate * (1.0f32 - sigmoid) * inner(gate, activation);
            let slope = sigmoid * (1.0f32 + inside);
            of_gate.insert(i, F::cast_from(grad * up * slope));
        }
        gate[ABSOLUTE_POS] = of_gate;
        up[ABSOLUTE_POS] = of_up;
    }
}

impl GatedOps for CubeBackend {
    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let [gate, up] = [gate, up].map(into_contiguous);
        let (client, dtype, shape) = (gate.client.clone(), gate.dtype, gate.shape());
        let out = empty(&gate, shape.clone(), dtype);
        let len = shape.num_elements();
        let vector = vector_size(&client, dtype, len);
        let count = len / vector;
        if count == 0 {
            return out;
        }
        let cube_dim = CubeDim::new_1d(UNITS);
        // SAFETY: the buffers are of one length; the kernel stays below `count`.
        unsafe {
            forward_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, count, cube_dim),
                cube_dim,
                vector,
                buffer(&client, &gate, dtype, len, vector),
                buffer(&client, &up, dtype, len, vector),
                buffer(&client, &out, dtype, len, vector),
                count,
                activation,
                elem(dtype),
            );
        }
        out
    }

    fn gated_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let grad = into_contiguous(grad);
        // The gradients reuse their memory unless it is shared: they are the largest tensors of a
        // layer.
        let [gate, up] = [gate, up].map(own);
        let (client, dtype, shape) = (gate.client.clone(), gate.dtype, gate.shape());
        let len = shape.num_elements();
        let vector = vector_size(&client, dtype, len);
        let count = len / vector;
        if count == 0 {
            return (gate, up);
        }
        let cube_dim = CubeDim::new_1d(UNITS);
        // SAFETY: as above.
        unsafe {
            backward_kernel::launch_unchecked(
                &client,
                calculate_cube_count_elemwise(&client, count, cube_dim),
                cube_dim,
                vector,
                buffer(&client, &grad, dtype, len, vector),
                buffer(&client, &gate, dtype, len, vector),
                buffer(&client, &up, dtype, len, vector),
                count,
                activation,
                elem(dtype),
            );
        }
        (gate, up)
    }
}
