//! The largest element of each row on the CPU.

use super::{ArgmaxOps, argmax};
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
        let found: Vec<i32> = x.chunks(width).map(|row| argmax(row) as i32).collect();
        FlexTensor::from_data(TensorData::new(found, [rows]))
    }
}
