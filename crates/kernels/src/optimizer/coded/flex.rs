//! Adam with 8-bit moments on the CPU, on all cores.

use super::AdamWCodedOps;
use crate::{
    dynamic::{BLOCK, Block, CODES},
    flex::TASK,
    optimizer::{
        Batch,
        step::{Step, advance},
    },
};
use burn::backend::{
    Flex,
    tensor::{FloatTensor, IntTensor},
};
use rayon::prelude::*;

impl AdamWCodedOps for Flex {
    fn adamw_coded(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        codes: IntTensor<Self>,
        absmax: FloatTensor<Self>,
        maps: FloatTensor<Self>,
        step: Step,
        _batch: Batch,
    ) -> (FloatTensor<Self>, IntTensor<Self>, FloatTensor<Self>) {
        let [mut param, grad, factor] = [param, grad, factor].map(|tensor| tensor.to_contiguous());
        let [mut codes, mut absmax, maps] =
            [codes, absmax, maps].map(|tensor| tensor.to_contiguous());
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
}

/// Returns the blocks of `m`, and those of `v`.
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
