//! Gated activations on the CPU: on all cores, in float32 for every dtype.

use super::{Activation, CUBIC, GELU, GatedOps, QUICK};
use crate::flex::{TASK, from_f32, to_f32};
use burn::backend::{Flex, TensorMetadata, tensor::FloatTensor};
use rayon::prelude::*;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Activation {
    /// The sigmoid that it multiplies its input by.
    fn factor(self, x: f32) -> f32 {
        match self {
            Self::Silu => sigmoid(x),
            Self::GeluTanh => sigmoid(GELU * (x + CUBIC * x * x * x)),
            Self::QuickGelu => sigmoid(QUICK * x),
        }
    }

    /// Derivative of the sigmoid's argument.
    fn inner(self, x: f32) -> f32 {
        match self {
            Self::Silu => 1.0,
            Self::GeluTanh => GELU * (1.0 + 3.0 * CUBIC * x * x),
            Self::QuickGelu => QUICK,
        }
    }
}

impl GatedOps for Flex {
    fn gated(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (shape, dtype) = (gate.shape(), gate.dtype());
        let [gate, up] = [gate, up].map(to_f32);
        let (gate, up): (&[f32], &[f32]) = (gate.storage(), up.storage());
        let mut out = vec![0.0; gate.len()];
        out.par_iter_mut().zip(gate).zip(up).with_min_len(TASK).for_each(|((out, gate), up)| {
            *out = gate * activation.factor(*gate) * up;
        });
        from_f32(out, shape, dtype)
    }

    fn gated_grad(
        grad: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (shape, dtype) = (gate.shape(), gate.dtype());
        let [grad, gate, up] = [grad, gate, up].map(to_f32);
        let (grad, gate, up): (&[f32], &[f32], &[f32]) =
            (grad.storage(), gate.storage(), up.storage());
        let (mut gate_grad, mut up_grad) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
        let outputs = gate_grad.par_iter_mut().zip(&mut up_grad);
        let inputs = grad.par_iter().zip(gate).zip(up);
        outputs.zip(inputs).with_min_len(TASK).for_each(
            |((gate_grad, up_grad), ((grad, gate), up))| {
                let sigmoid = activation.factor(*gate);
                let inside = gate * (1.0 - sigmoid) * activation.inner(*gate);
                *up_grad = grad * gate * sigmoid;
                *gate_grad = grad * up * sigmoid * (1.0 + inside);
            },
        );
        (from_f32(gate_grad, shape.clone(), dtype), from_f32(up_grad, shape, dtype))
    }
}
