//! The largest element of each row on the CPU.

use super::ArgmaxOps;
use crate::flex::to_f32;
use burn::{
    backend::{
        Flex, TensorMetadata,
        tensor::{FloatTensor, IntTensor},
    },
    tensor::TensorData,
};
use burn_flex::FlexTensor;

impl ArgmaxOps for Flex {
    fn argmax_rows(x: FloatTensor<Self>) -> IntTensor<Self> {
        let (x, [rows, width]) = (to_f32(x.clone()), x.shape().dims());
        let x: &[f32] = x.storage();
        let better =
            |best: (usize, f32), next: (usize, f32)| if next.1 > best.1 { next } else { best };
        let largest = |row: &[f32]| {
            row.iter().copied().enumerate().fold((0, f32::NEG_INFINITY), better).0 as i32
        };
        let found: Vec<i32> = x.chunks(width).map(largest).collect();
        FlexTensor::from_data(TensorData::new(found, [rows]))
    }
}
