//! Operations of optimizers: one launch updates a parameter (CUDA: many), and its moments in place unless their
//! buffers are shared. Tensors are contiguous vectors of float32 without a graph.

mod adamw;
mod batch;
mod coded;
mod step;
mod sum_of_squares;

pub use adamw::{AdamW, AdamWOps, adamw};
pub use batch::Batch;
pub use coded::{AdamWCoded, AdamWCodedOps, adamw_coded};
pub use step::Step;
pub use sum_of_squares::{SumOfSquaresOps, sum_of_squares};

use burn::tensor::{DType, Tensor};

/// Checks lengths and dtypes of vectors for an update.
///
/// # Panics
/// If a vector has another length, or is not in float32.
pub fn check(tensors: &[(&Tensor<1>, usize)]) {
    for (tensor, len) in tensors {
        assert_eq!(tensor.dims()[0], *len, "optimizer: the length of a vector");
        assert_eq!(tensor.dtype(), DType::F32, "optimizer: the dtype of a vector");
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::*;
    use burn::{backend::Flex, tensor::TensorData};
    use burn_flex::FlexTensor;

    fn vector(value: f32, len: usize) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(vec![value; len], [len]))
    }

    const STEP: Step = Step {
        beta1: 0.9,
        rest1: 0.1,
        beta2: 0.99,
        rest2: 0.01,
        keep: 0.9,
        size: 0.1,
        root: 1.0,
        eps: 1e-8,
    };

    #[test]
    fn an_update_is_in_place_unless_something_else_holds_the_buffers() {
        let address = |tensor: &FlexTensor| tensor.bytes().as_ptr();
        let [param, m, v] = [1.0, 0.0, 0.0].map(|value| vector(value, 9));
        let (before, held) = ([&param, &m, &v].map(address), m.clone());
        let (param, m, v) =
            Flex::adamw(param, vector(1.0, 9), vector(1.0, 1), m, v, STEP, Batch::new(1));
        let after = [&param, &m, &v].map(address);
        assert_eq!([after[0], after[2]], [before[0], before[2]]);
        assert_ne!(after[1], before[1]);
        assert_eq!(held.storage::<f32>(), [0.0; 9]);

        let words = || FlexTensor::from_data(TensorData::new(vec![0u32; 6], [6]));
        let (codes, absmax) = (words(), vector(0.0, 2));
        let before = [&param, &codes, &absmax].map(address);
        let maps = vector(0.0, 512);
        let (grad, factor) = (vector(1.0, 9), vector(1.0, 1));
        let (param, codes, absmax) =
            Flex::adamw_coded(param, grad, factor, codes, absmax, maps, STEP, Batch::new(1));
        assert_eq!([&param, &codes, &absmax].map(address), before);
    }
}
