//! Memory of what lives long.

use crate::common::*;
use burn::{
    module::{Module, Param, ParamId},
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use burn_lora_kernels::{persist, persistent};

#[derive(Module, Debug)]
struct Parts {
    trained: Param<Tensor<2>>,
    frozen: Param<Tensor<1>>,
    codes: Param<Tensor<1, Int>>,
}

/// A dtype of 16 bits, if the device has it.
fn half(device: &Device) -> DType {
    if device.supports_dtype(DType::F16) { DType::F16 } else { DType::F32 }
}

fn parts(device: &Device) -> Parts {
    let codes = TensorData::new(vec![7u32, u32::MAX, 0], [3]);
    let codes = Tensor::from_data(codes, (device, DType::U32));
    Parts {
        trained: Param::from_tensor(float(random(12, 1), [3, 4], device)),
        frozen: Param::from_tensor(float(random(5, 2), [5], device).cast(half(device)))
            .set_require_grad(false),
        codes: Param::initialized(ParamId::new(), codes),
    }
}

#[test]
fn values_ids_dtypes_and_what_is_trained_stay() {
    for device in [device(), device().autodiff()] {
        let before = parts(&device);
        let after = persist(before.clone());
        let all = |parts: &Parts| {
            let Parts { trained, frozen, codes } = parts;
            let data =
                (trained.val().into_data(), frozen.val().into_data(), codes.val().into_data());
            let ids = (trained.id, frozen.id, codes.id);
            (data, ids, trained.is_require_grad(), frozen.is_require_grad())
        };
        assert_eq!(all(&after), all(&before));
        assert_eq!(after.trained.val().is_autodiff(), before.trained.val().is_autodiff());
    }
}

#[test]
fn views_are_copied_as_they_look() {
    let device = device();
    let view = float(random(24, 3), [4, 6], &device).transpose().narrow(0, 1, 4);
    assert_eq!(persistent(view.clone()).into_data(), view.into_data());
    assert_eq!(persistent(Tensor::<2>::zeros([0, 4], &device)).dims(), [0, 4]);
}

#[test]
fn gradients_are_those_of_the_copy() {
    let before = parts(&device().autodiff());
    let after = persist(before);
    let grads = (after.trained.val() * 3.0).sum().backward();
    assert_eq!(vec(after.trained.val().grad(&grads).unwrap()), [3.0; 12]);
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn a_shared_parameter_is_copied_once_and_out_of_the_pages() {
    use burn::module::ModuleMapper;
    use burn_lora_kernels::{Persist, cube::client};

    let device = device();
    let Some(client) = client(&device) else { return };
    let in_use = || -> u64 {
        device.sync().unwrap();
        let report = client.memory_report(cubecl::MemoryScope::Device);
        report.streams.iter().map(|stream| stream.pools.persistent.usage.bytes_in_use).sum()
    };
    let before = in_use();
    let values: Tensor<1> = Tensor::zeros([1 << 16], &device);
    let param = Param::from_tensor(values);
    let mut mapper = Persist::default();
    let copies = [param.clone(), param].map(|param| mapper.map_float(param));
    drop(mapper);
    let added = in_use() - before;
    assert!((4 << 16..8 << 16).contains(&added), "{added} bytes");
    drop(copies);
}
