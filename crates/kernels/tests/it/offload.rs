//! Tensors that wait in host memory.

use crate::common::*;
use burn::tensor::{DType, Tensor, TensorData};
use burn_lora_kernels::{offload, settle_copies, upload};

#[test]
fn tensors_come_back_as_they_were() {
    let device = device();
    let waiting: Vec<_> = (0..6)
        .map(|i| {
            let x = float(random(3 * 257 * 8, i), [3, 257, 8], &device);
            let is_half = i % 2 == 0 && device.supports_dtype(DType::F16);
            let x = if is_half { x.cast(DType::F16) } else { x };
            (x.clone().into_data(), offload(x))
        })
        .collect();
    // The last first, each on its way while the one before is used.
    let mut coming = None;
    for (data, x) in waiting.into_iter().rev() {
        let next = Some((data, x.bring_back()));
        let Some((data, x)) = std::mem::replace(&mut coming, next) else { continue };
        assert_eq!(x.arrived().into_data(), data);
    }
    let (data, x) = coming.unwrap();
    assert_eq!(x.arrived().into_data(), data);
}

#[test]
fn memory_that_is_used_again_is_not_copied_too_late() {
    let device = device();
    // Freed and written again at once, many times.
    let shape = [1 << 20];
    let waiting: Vec<_> = (0..16)
        .map(|i| {
            let x = Tensor::<1>::full(shape, f64::from(i), (&device, DType::F32));
            let waiting = offload(x.clone());
            if i % 3 == 0 {
                drop(settle_copies(x));
            }
            waiting
        })
        .collect();
    for (i, x) in waiting.into_iter().enumerate().rev() {
        let on_the_way = x.bring_back();
        let other = Tensor::<1>::full(shape, -1.0, (&device, DType::F32)) * 2.0;
        let x = on_the_way.arrived();
        drop(other);
        let [least, most] = [x.clone().min(), x.max()].map(|value| value.into_scalar::<f32>());
        assert_eq!((least, most), (i as f32, i as f32));
    }
}

#[test]
fn what_does_not_come_back_is_forgotten() {
    let device = device();
    for length in [0, 5, 1 << 16] {
        drop(offload(Tensor::<1>::zeros([length], &device)));
        drop(offload(Tensor::<1>::zeros([length], &device)).bring_back());
        let x = offload(Tensor::<1>::ones([length], &device)).bring_back().arrived();
        assert_eq!(vec(x), vec![1.0; length]);
    }
}

#[test]
fn memory_of_another_length_is_taken() {
    let device = device();
    // Batches of many lengths, some longer than all before.
    for length in [70, 3, 64, 1000, 999, 1, 1 << 16, 70, 3] {
        let all: Vec<_> = (0..3).map(|i| random(length + i, i as u64)).collect();
        let waiting: Vec<_> =
            all.iter().map(|x| offload(float(x.clone(), [x.len()], &device))).collect();
        for (x, found) in all.into_iter().zip(waiting).rev() {
            assert_eq!(vec(found.bring_back().arrived()), x);
        }
    }
}

#[test]
fn uploads_follow_each_other() {
    let device = device();
    let lengths = [1 << 18, 5, 1 << 18, 0, (1 << 23) + 3, 1 << 20, 7, 1 << 18];
    let all: Vec<_> = lengths.into_iter().zip(0..).map(|(len, i)| random(len, i)).collect();
    let uploaded: Vec<_> = all
        .iter()
        .map(|x| {
            let x: Tensor<2> = upload(TensorData::new(x.clone(), [x.len(), 1]), &device);
            // Read by a kernel before the next one is sent.
            x.clone() * 2.0 - x
        })
        .collect();
    for (x, found) in all.into_iter().zip(uploaded) {
        assert_eq!(vec(found), x);
    }
}
