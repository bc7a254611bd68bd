//! The operations on the CPU: all cores.

use super::{OptimOps, PARTIALS, Step, advance};
use crate::optim::dynamic::{BLOCK, Block, CODES};
use burn::{
    backend::{
        Flex,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::TensorData,
};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Elements a task: below that, sharing costs more than it brings.
const TASK: usize = 16 << 10;

impl OptimOps for Flex {
    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [mut param, grad, factor, mut m, mut v] = [param, grad, factor, m, v].map(contiguous);
        let (factor, grad) = (factor.storage::<f32>()[0], grad.storage::<f32>());
        let moments = m.storage_mut::<f32>().par_iter_mut().zip(v.storage_mut::<f32>());
        let all = param.storage_mut::<f32>().par_iter_mut().zip(grad).zip(moments);
        all.with_min_len(TASK).for_each(|((param, grad), (m, v))| {
            (*param, *m, *v) = advance(&step, *param, grad * factor, *m, *v);
        });
        (param, m, v)
    }

    fn adamw_coded(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        maps: FloatTensor<Self>,
        step: Step,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let [mut param, grad, factor] = [param, grad, factor].map(contiguous);
        let [mut codes, mut absmax, maps] = [codes, absmax, maps].map(contiguous);
        let (factor, grad) = (factor.storage::<f32>()[0], grad.storage::<f32>());
        let values = param.storage_mut::<f32>();
        let (m, v) = moments(codes.storage_mut(), absmax.storage_mut(), maps.storage());
        let all = values.par_chunks_mut(BLOCK).zip(grad.par_chunks(BLOCK)).zip(m.zip(v));
        all.with_min_len(TASK / BLOCK).for_each(|((param, grad), (mut m, mut v))| {
            let (mut ms, mut vs) = (m.decode(), v.decode());
            for (i, (param, grad)) in param.iter_mut().zip(grad).enumerate() {
                (*param, ms[i], vs[i]) = advance(&step, *param, grad * factor, ms[i], vs[i]);
            }
            m.encode(&ms[..grad.len()]);
            v.encode(&vs[..grad.len()]);
        });
        (param, codes, absmax)
    }

    fn add_squares(x: FloatTensor<Self>, partials: FloatTensor<Self>) -> FloatTensor<Self> {
        let [x, mut partials] = [x, partials].map(contiguous);
        let x = x.storage::<f32>();
        let used = x.len().div_ceil(TASK).min(PARTIALS);
        let sums = &mut partials.storage_mut::<f32>()[..used];
        sums.par_iter_mut().enumerate().for_each(|(i, sum)| {
            let chunks = x.chunks(TASK).skip(i).step_by(PARTIALS);
            *sum += chunks.map(squares).sum::<f64>() as f32;
        });
        partials
    }

    fn sum_partials(partials: FloatTensor<Self>) -> FloatTensor<Self> {
        let partials = contiguous(partials);
        let sum: f64 = partials.storage::<f32>().iter().copied().map(f64::from).sum();
        FlexTensor::from_data(TensorData::new(vec![sum as f32], [1]))
    }
}

/// The tensor with nothing before, between and after its values; itself where it is so.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    tensor.to_contiguous()
}

/// The blocks of `m`, and those of `v`.
fn moments<'a>(
    codes: &'a mut [u32],
    absmax: &'a mut [f32],
    maps: &'a [f32],
) -> (impl IndexedParallelIterator<Item = Block<'a>>, impl IndexedParallelIterator<Item = Block<'a>>)
{
    let (m_codes, v_codes) = codes.split_at_mut(codes.len() / 2);
    let (m_absmax, v_absmax) = absmax.split_at_mut(absmax.len() / 2);
    let (signed, unsigned) = maps.split_at(maps.len() / 2);
    let blocks = |codes: &'a mut [u32], absmax: &'a mut [f32], map| {
        let words = codes.par_chunks_mut(BLOCK / CODES);
        words.zip(absmax).map(move |(words, absmax)| Block { words, absmax, map })
    };
    (blocks(m_codes, m_absmax, signed), blocks(v_codes, v_absmax, unsigned))
}

/// The sum of squares, in lanes that the compiler keeps in vector registers.
fn squares(x: &[f32]) -> f64 {
    let (vectors, rest) = x.as_chunks::<8>();
    let mut lanes = [0.0; 8];
    for vector in vectors {
        for (lane, x) in lanes.iter_mut().zip(vector) {
            *lane += f64::from(*x).powi(2);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let (param, m, v) = Flex::adamw(param, vector(1.0, 9), vector(1.0, 1), m, v, STEP);
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
            Flex::adamw_coded(param, grad, factor, codes, absmax, maps, STEP);
        assert_eq!([&param, &codes, &absmax].map(address), before);
    }
}
