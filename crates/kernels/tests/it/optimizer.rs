//! The norm of gradients. The updates are tested by the optimizers, in the crate for training.

use crate::common::*;
use burn::tensor::{DType, Device, Tensor};
use burn_lora_kernels::optimizer::sum_of_squares;

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    float(values, shape, device)
}

#[test]
fn the_norm_is_that_of_float64() {
    let device = device();
    // One value, less than a vector, some cubes, more than all partial sums take at once.
    // More vectors than a launch takes.
    let many = (0..130).map(|i| [3, 0, 8192, 9001, 260][i % 5]).collect();
    for lens in [vec![1], vec![7, 4099, 16], vec![300_000, 0, 1 << 20], vec![5 << 20], many] {
        let values: Vec<_> =
            lens.iter().enumerate().map(|(i, len)| random(*len, i as u64)).collect();
        let all = values.iter().flatten().map(|value| f64::from(*value).powi(2));
        let expected: f64 = all.sum();
        let sum = || {
            let vectors = values.iter().map(|values| vector(values.clone(), &device));
            vec(sum_of_squares(vectors, &device))
        };
        let found = sum();
        let error = (f64::from(found[0]) / expected - 1.0).abs();
        assert!(error < 1e-6, "{lens:?}: {} is {error} off", found[0]);
        assert_eq!(sum(), found, "{lens:?}: the same again");
    }
}

#[test]
fn views_count_as_their_copies() {
    let device = device();
    let values = random(5000, 3);
    let longer = [vec![9.0; 64], values.clone(), vec![7.0; 64]].concat();
    let view = vector(longer, &device).narrow(0, 64, values.len());
    let copy = vector(values, &device);
    assert_eq!(vec(sum_of_squares([view], &device)), vec(sum_of_squares([copy], &device)));
}

#[test]
fn other_dtypes_are_refused() {
    let half = vector(vec![1.0], &device()).cast(DType::F16);
    panics("the dtype of a vector", || sum_of_squares([half], &device()));
}

#[cfg(feature = "cpu")]
#[test]
fn the_norm_does_not_depend_on_threads() {
    let device = Device::flex();
    let sum = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let vectors = [vector(random(3 << 20, 1), &device), vector(random(1027, 2), &device)];
            vec(sum_of_squares(vectors, &device))
        })
    };
    assert_eq!(sum(1), sum(2));
    assert_eq!(sum(1), sum(7));
}
