//! Products in FP8 against torch, on every device that has them.

use crate::common::{devices, floats, relative_error};
use burn::tensor::{Device, Distribution, FloatDType, Tensor, TensorData};
use burn_lora_quant::{
    Frozen, PackedWeight, Pulled, QuantConfig, QuantError, StorageFormat, Update, pull_back_all,
};

/// A file of `testdata/fp8`.
struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str) -> Self {
        Self(std::fs::read(format!("../../testdata/fp8/{name}.safetensors")).unwrap())
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data())
    }

    fn tensor(&self, name: &str, device: &Device) -> Tensor<2> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let shape = file.tensor(name).unwrap().shape().to_vec();
        Tensor::from_data(TensorData::new(self.values(name), [shape[0], shape[1]]), device)
    }
}

/// Devices with products in FP8, each with the relative error of its sums.
fn devices_with_fp8() -> Vec<(Device, f64)> {
    let has = |device: &Device| {
        let weight = PackedWeight::quantize(Tensor::ones([16, 64], device), &QuantConfig::nf4());
        match weight.unwrap().with_fp8() {
            Ok(_) => true,
            Err(QuantError::Fp8 { reason }) => {
                assert!(reason.contains("8.9"), "{reason}");
                false
            }
            Err(error) => panic!("{error}"),
        }
    };
    let cpu = |device: &Device| format!("{device:?}").to_lowercase().contains("flex");
    let found = devices().into_iter().filter(has);
    found.map(|device| (device.clone(), if cpu(&device) { 1e-6 } else { 2e-3 })).collect()
}

#[test]
fn products_and_gradients_are_those_of_torch() {
    for (device, limit) in devices_with_fp8() {
        for (name, config) in
            [("nf4_nested", QuantConfig::nf4().double_quant(true)), ("fp4", QuantConfig::fp4())]
        {
            let golden = Golden::read(name);
            let part = |name: &str| golden.tensor(name, &device);
            let weight = PackedWeight::quantize(part("weight"), &config).unwrap();
            let weight = Frozen::new(weight.with_fp8().unwrap());
            let [x, a, b] = ["x", "a", "b"].map(|name| part(name).autodiff().require_grad());
            let y = weight.matmul_low_rank(x.clone(), a.clone(), b.clone(), 2.5);
            let update = Some(Update { a: a.clone(), b: b.clone(), scale: 2.5 });
            let product = Pulled { weight: &weight, update, grad: part("g") };
            let zero = pull_back_all(x.clone(), vec![product], None);
            for (way, loss) in [
                ("forward", (y.clone() * part("g").autodiff()).sum()),
                ("without the product", zero),
            ] {
                let grads = loss.backward();
                let found = [
                    ("y", y.clone().inner()),
                    ("dx", x.grad(&grads).unwrap()),
                    ("da", a.grad(&grads).unwrap()),
                    ("db", b.grad(&grads).unwrap()),
                ];
                for (what, found) in found {
                    let error = relative_error(&floats(found), &golden.values(what));
                    assert!(error < limit, "{device:?}, {name}, {way}, {what}: {error:e}");
                }
            }
            // Without an update, and with leading dimensions.
            let x = part("x").reshape([2, 12, x.dims()[1]]);
            let y = weight.matmul(x.clone());
            let zeros = [a, b].map(|part| part.inner() * 0.0);
            let expected = weight.matmul_low_rank(x, zeros[0].clone(), zeros[1].clone(), 1.0);
            let error = relative_error(&floats(y), &floats(expected));
            assert!(error < limit, "{device:?}, {name}: {error:e}");
        }
    }
}

/// Each scale rule, block size and dtype, at the borders of the kernels' tiles, against the values
/// of this weight rounded one by one.
#[test]
fn every_format_and_dtype() {
    for (device, limit) in devices_with_fp8() {
        for (config, [out, width]) in [
            (QuantConfig::nf4().double_quant(true), [272, 208]),
            (QuantConfig::nf4().block_size(256), [128, 64]),
            (QuantConfig::fp4().double_quant(true).block_size(128), [16, 1040]),
            (QuantConfig::mxfp4(), [144, 96]),
            (QuantConfig::nvfp4(), [400, 16]),
        ] {
            let random =
                |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 0.05), &device);
            let plain = PackedWeight::quantize(random([out, width]), &config).unwrap();
            let weight = plain.clone().with_fp8().unwrap();
            assert_eq!(
                floats(plain.dequantize(FloatDType::F32)),
                floats(weight.dequantize(FloatDType::F32)),
            );
            let cpu = Device::flex();
            let on_cpu = PackedWeight::from_packed(plain.to_packed().unwrap(), &cpu);
            let on_cpu = on_cpu.with_fp8().unwrap();
            for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
                // More rows than a block of either kernel, and values that the dtype holds.
                let (x, g) = (random([37, width]).cast(dtype), random([37, out]).cast(dtype));
                let to_cpu = |x: &Tensor<2>| {
                    Tensor::<2>::from_data(x.clone().cast(FloatDType::F32).into_data(), &cpu)
                };
                let pairs = [
                    (weight.matmul(x.clone()), on_cpu.matmul(to_cpu(&x))),
                    (weight.matmul_transposed(g.clone()), on_cpu.matmul_transposed(to_cpu(&g))),
                ];
                let limit = limit + if dtype == FloatDType::F32 { 0.0 } else { 4e-3 };
                for (found, expected) in pairs {
                    assert_eq!(found.dtype(), dtype.into());
                    let error = relative_error(&floats(found), &floats(expected));
                    assert!(error < limit, "{device:?}, {config:?}, {dtype:?}: {error:e}");
                }
                // What the documentation says of it; MXFP4's weights are exact.
                let error =
                    relative_error(&floats(weight.matmul(x.clone())), &floats(plain.matmul(x)));
                assert!((0.02..0.045).contains(&error), "{config:?}, {dtype:?}: {error}");
            }
            // Few rows are computed from the codes.
            let x = random([8, width]);
            let error = relative_error(&floats(weight.matmul(x.clone())), &floats(plain.matmul(x)));
            assert!(error < 1e-5, "{device:?}, {config:?}: {error:e}");
        }
    }
}

/// The same input gives the same bits, and what is not finite stays in its row.
#[test]
fn rows_are_computed_alone() {
    for (device, _) in devices_with_fp8() {
        let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let weight = PackedWeight::quantize(random([64, 128]), &QuantConfig::nf4()).unwrap();
        let weight = weight.with_fp8().unwrap();
        let x = random([16, 128]);
        let expected = floats(weight.matmul(x.clone()));
        assert_eq!(floats(weight.matmul(x.clone())), expected);
        for bad in [f32::NAN, f32::INFINITY] {
            let x = x.clone().slice_fill([3..4, 7..8], bad);
            for (row, (found, expected)) in
                floats(weight.matmul(x)).chunks(64).zip(expected.chunks(64)).enumerate()
            {
                let fits = if row == 3 {
                    found.iter().all(|value| !value.is_finite())
                } else {
                    found == expected
                };
                assert!(fits, "{device:?}, {bad}, row {row}");
            }
        }
    }
}

#[test]
fn the_mode_stays_with_the_weight() {
    let device = Device::flex();
    let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let plain = QuantConfig::nf4().double_quant(true).store(random([64, 128])).unwrap();
    let weight = plain.with_fp8().unwrap().unwrap();
    assert_ne!(plain.settings(), weight.settings());
    let other = weight.store(random([64, 128])).unwrap();
    assert_eq!(other.settings(), weight.settings());
    let packed = weight.downcast_ref::<PackedWeight>().unwrap();
    let saved = packed.to_packed().unwrap();
    assert!(PackedWeight::from_packed(saved.clone(), &device).layout().fp8);
    let names = |packed: &burn_lora_quant::codec::Packed| {
        packed.to_bitsandbytes("w", FloatDType::BF16).unwrap()
    };
    let plain = plain.downcast_ref::<PackedWeight>().unwrap();
    assert_eq!(names(&saved), names(&plain.to_packed().unwrap()), "files know nothing of it");
    let dense = Frozen::new(burn_lora_quant::DenseWeight::new(random([16, 16])));
    assert!(dense.with_fp8().unwrap().is_none());
}
