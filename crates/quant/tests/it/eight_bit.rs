//! 8-bit weights against bitsandbytes (LLM.int8) and torch (E4M3 in blocks), on every device.

use crate::common::{devices, panics, relative_error};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{DType, Device, FloatDType, Int, Tensor, TensorData},
};
use burn_lora_quant::{
    EightBitConfig, EightBitFormat, EightBitLayout, EightBitWeight, Frozen, Storage, StorageFormat,
};
use std::path::PathBuf;

/// One file of `testdata/eight_bit`.
struct Golden {
    name: String,
    layout: EightBitLayout,
    bytes: Vec<u8>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let mut all = vec![];
        for shape in [[48, 320], [33, 37]] {
            for (name, format, block) in [
                ("int8", EightBitFormat::Int8, [1, 0]),
                ("fp8_block", EightBitFormat::Fp8, [16, 32]),
                ("fp8_row", EightBitFormat::Fp8, [1, 0]),
                ("fp8_tensor", EightBitFormat::Fp8, [0, 0]),
            ] {
                let name = format!("{name}_{}x{}", shape[0], shape[1]);
                let path = PathBuf::from("../../testdata/eight_bit").join(&name);
                let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
                let layout = EightBitConfig { format, block }.layout(shape);
                all.push(Self { name, layout, bytes });
            }
        }
        all
    }

    fn bytes(&self, tensor: &str) -> Vec<u8> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(tensor).unwrap().data().to_vec()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.bytes(tensor))
    }

    fn tensor(&self, tensor: &str, device: &Device) -> Tensor<2> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let shape = file.tensor(tensor).unwrap().shape().to_vec();
        Tensor::from_data(TensorData::new(self.floats(tensor), [shape[0], shape[1]]), device)
    }

    fn stored(&self, device: &Device) -> EightBitWeight {
        let (codes, scales) = (self.bytes("codes"), self.floats("scales"));
        EightBitWeight::from_bytes(&codes, &scales, self.layout, device).unwrap()
    }
}

fn vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(FloatDType::F32).into_data().try_into_vec().unwrap()
}

#[test]
fn decodes_goldens() {
    for golden in Golden::all() {
        for device in devices() {
            let found = vec(golden.stored(&device).dequantize(FloatDType::F32));
            // To the last bit.
            assert_eq!(found, golden.floats("decoded"), "{} {device:?}", golden.name);
        }
    }
}

#[test]
fn quantizes_as_the_reference() {
    for golden in Golden::all() {
        for device in devices() {
            let EightBitLayout { format, block, .. } = golden.layout;
            let weight = golden.tensor("weight", &device);
            let stored =
                EightBitWeight::quantize(weight, &EightBitConfig { format, block }).unwrap();
            let found = vec(stored.dequantize(FloatDType::F32));
            // bitsandbytes quantizes float16, in which the product with 127 / absmax is rounded once more.
            let scales = golden.floats("scales").into_iter().fold(0.0, f32::max);
            let step = if format == EightBitFormat::Int8 { scales / 127.0 } else { 0.0 };
            let decoded = golden.floats("decoded");
            let worst = found.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1.01 * step, "{} {device:?}: {worst}", golden.name);
            let others = found.iter().zip(&decoded).filter(|(a, b)| a != b).count();
            assert!(others * 200 <= found.len(), "{}: {others} others", golden.name);
        }
    }
}

#[test]
fn products_and_gradients_agree() {
    // Each shape is kernels to be compiled on a GPU: one shape of each format is enough.
    let names = ["int8_48x320", "fp8_block_33x37"];
    for golden in Golden::all().into_iter().filter(|golden| names.contains(&golden.name.as_str())) {
        for device in devices() {
            let stored = Frozen::new(golden.stored(&device));
            let x = golden.tensor("x", &device).autodiff().require_grad();
            let y = stored.matmul(x.clone());
            let g = golden.tensor("g", &device).autodiff();
            let grads = (y.clone() * g).sum().backward();
            let name = format!("{} {device:?}", golden.name);
            assert!(relative_error(&vec(y.inner()), &golden.floats("y")) < 1e-6, "{name}");
            let dx = vec(x.grad(&grads).unwrap());
            assert!(relative_error(&dx, &golden.floats("dx")) < 1e-6, "{name}");

            // The same with leading dimensions, in half precision, and with a low-rank update.
            let dense =
                Frozen::new(burn_lora_quant::DenseWeight::new(stored.dequantize(FloatDType::F32)));
            let [out, width] = stored.shape();
            let x = golden.tensor("x", &device).unsqueeze::<3>();
            let values = |rows, columns| {
                let all = Tensor::<1, Int>::arange(0..(rows * columns) as i64, &device).float();
                (all.reshape([rows, columns]) * 0.7).sin()
            };
            let (a, b) = (values(3, width), values(out, 3));
            let product =
                |weight: &Frozen| vec(weight.matmul_low_rank(x.clone(), a.clone(), b.clone(), 0.5));
            assert!(relative_error(&product(&stored), &product(&dense)) < 1e-6, "{name}");
            let half = FloatDType::BF16;
            if device.supports_dtype(DType::BF16) {
                let y = vec(stored.matmul(x.clone().cast(half)));
                assert!(relative_error(&y, &vec(dense.matmul(x.clone()))) < 1e-2, "{name}");
            }
            let rows = golden.tensor("x", &device);
            assert!(
                relative_error(&vec(stored.few_rows(rows.clone())), &golden.floats("y")) < 1e-6
            );
            let up = golden.tensor("g", &device);
            let back = golden.stored(&device).matmul_transposed(up);
            assert!(relative_error(&vec(back), &golden.floats("dx")) < 1e-6, "{name}");
        }
    }
}

/// Products of few rows, which a CPU has of their own, against those of the decoded weight.
#[test]
fn products_of_few_rows_agree() {
    for block in [[1, 0], [1, 64], [1, 32], [1, 16], [2, 32]] {
        let config = EightBitConfig { format: EightBitFormat::Int8, block };
        for device in devices() {
            let random = |shape: [usize; 2]| {
                let all =
                    Tensor::<1, Int>::arange(0..(shape[0] * shape[1]) as i64, &device).float();
                (all.reshape(shape) * 0.37).sin()
            };
            let stored = EightBitWeight::quantize(random([70, 192]), &config).unwrap();
            let decoded = vec(stored.dequantize(FloatDType::F32));
            for rows in [1, 2, 3, 4, 5, 8, 15, 16, 17] {
                let x = random([rows, 192]);
                let (found, x) = (vec(stored.matmul(x.clone())), vec(x));
                let expected: Vec<f32> = x
                    .chunks(192)
                    .flat_map(|x| decoded.chunks(192).map(move |w| (x, w)))
                    .map(|(x, w)| {
                        x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                            as f32
                    })
                    .collect();
                assert!(relative_error(&found, &expected) < 1e-6, "{block:?} {rows} {device:?}");
            }
        }
    }
}

/// What was in 8 bits before is so again, and nothing else.
#[test]
#[cfg(feature = "cpu")]
fn what_eight_bits_hold() {
    let device = burn::tensor::Device::flex();
    let all = Tensor::<1, Int>::arange(0..70 * 192, &device).float();
    let weight = (all.reshape([70, 192]) * 0.37).sin();
    assert!(EightBitWeight::exact(weight.clone()).is_none());
    let config = EightBitConfig { format: EightBitFormat::Int8, block: [1, 32] };
    let before = EightBitWeight::quantize(weight, &config).unwrap().dequantize(FloatDType::F32);
    // A block of zeros, too.
    let before = before.slice_fill([3..4, 0..64], 0.0);
    let after = EightBitWeight::exact(before.clone()).expect("it holds them");
    let after = vec(after.dequantize(FloatDType::F32));
    for (before, after) in vec(before.clone()).iter().zip(&after) {
        assert!((before - after).abs() <= before.abs() * 5e-7, "{before} {after}");
    }
    // One value between two.
    let other = before.slice_fill([5..6, 7..8], 0.1234);
    assert!(EightBitWeight::exact(other).is_none());
}

/// It is a module as any other, also in the box: it moves, is saved and loaded, and no optimizer sees it.
#[test]
fn a_box_is_a_module() {
    #[derive(Default)]
    struct Floats(usize);
    impl burn::module::ModuleVisitor for Floats {
        fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
            self.0 += 1;
        }
    }
    struct Zero;
    impl ModuleMapper for Zero {
        fn map_int<const D: usize>(
            &mut self,
            param: Param<Tensor<D, Int>>,
        ) -> Param<Tensor<D, Int>> {
            param.map(|words| words.zeros_like())
        }
    }
    for device in devices() {
        let golden = &Golden::all()[0];
        let stored = Frozen::new(golden.stored(&device));
        let mut floats = Floats::default();
        stored.visit(&mut floats);
        assert_eq!(floats.0, 0);
        assert!(stored.devices().iter().all(|found| *found == device));
        assert!(format!("{stored:?}").contains("EightBitWeight"));
        let decoded = golden.floats("decoded");
        let moved = stored.clone().to_device(&device).fork(&device).train().valid();
        assert_eq!(vec(moved.dequantize(FloatDType::F32)), decoded);
        let other = EightBitConfig::int8().store(Tensor::ones([48, 320], &device)).unwrap();
        let loaded = other.load_record(stored.clone().into_record());
        assert_eq!(vec(loaded.dequantize(FloatDType::F32)), decoded);
        let zero = stored.map(&mut Zero);
        assert!(vec(zero.dequantize(FloatDType::F32)).iter().all(|value| *value == 0.0));
        assert!(zero.downcast_ref::<EightBitWeight>().is_some() && zero.dense().is_none());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = devices().remove(0);
    let layout = EightBitConfig::fp8().layout([2, 3]);
    let read = |codes: &[u8], scales: &[f32]| {
        EightBitWeight::from_bytes(codes, scales, layout, &device)
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    assert!(read(&[0; 5], &[1.0]).contains("`weight` has 5 elements, expected 6"));
    assert!(read(&[0; 6], &[1.0; 2]).contains("`scales` has 2 elements, expected 1"));
    assert!(read(&[0; 6], &[f32::NAN]).contains("a value is NaN"));
    assert!(read(&[0, 0, 0xff, 0, 0, 0], &[1.0]).contains("a value is NaN"));
    let stored = EightBitConfig::int8().store(Tensor::ones([8, 16], &device)).unwrap();
    panics("the weight is [8, 16]", || stored.matmul(Tensor::<2>::ones([2, 15], &device)));
    assert_eq!(stored.bytes().total(), 8 * 16 + 8 * 4);
    assert_eq!(EightBitConfig::int8().bytes([8, 16]), stored.bytes());
    let empty = EightBitConfig::fp8().store(Tensor::ones([0, 16], &device)).unwrap();
    assert_eq!(empty.matmul(Tensor::<2>::ones([2, 16], &device)).dims(), [2, 0]);
}
