//! Adam on the CPU, on all cores.

use super::AdamWOps;
use crate::{
    flex::TASK,
    optimizer::{
        Batch,
        step::{Step, advance},
    },
};
use burn::backend::{Flex, tensor::FloatTensor};
use rayon::prelude::*;

impl AdamWOps for Flex {
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
        _batch: Batch,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [mut param, grad, factor, mut m, mut v] =
            [param, grad, factor, m, v].map(|tensor| tensor.to_contiguous());
        let (factor, grad) = (factor.storage::<f32>()[0], grad.storage::<f32>());
        let moments = m.storage_mut::<f32>().par_iter_mut().zip(v.storage_mut::<f32>());
        let all = param.storage_mut::<f32>().par_iter_mut().zip(grad).zip(moments);
        all.with_min_len(TASK).for_each(|((param, grad), (m, v))| {
            (*param, *m, *v) = advance(&step, *param, grad * factor, *m, *v);
        });
        (param, m, v)
    }
}
