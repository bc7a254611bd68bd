//! What does not fit is refused before a kernel sees it, and what lies in memory in another way, or is
//! empty, counts as it is. On every device.

use crate::common::{copied, devices, floats, panics, relative_error, tensor, values, views};
use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Device, FloatDType, Int, Tensor},
};
use burn_lora_quant::{
    Format, PackedWeight, QuantConfig, ScaleRule,
    codec::{Packed, PackedView},
};

fn weight(shape: [usize; 2], device: &Device) -> PackedWeight {
    let config = QuantConfig::nf4().double_quant(true);
    PackedWeight::quantize(tensor(shape, 1, device), &config).unwrap()
}

#[test]
fn views_count_as_their_copies() {
    for device in devices() {
        let packed = weight([48, 64], &device);
        let (a, b) = (tensor([4, 64], 2, &device), tensor([48, 4], 3, &device));
        for rows in [3, 20] {
            for (name, x) in views([rows, 64], &device) {
                let name = format!("{rows} rows, {name}, {device:?}");
                let copy = copied(&x);
                let dense = |x| {
                    let packed = PackedWeight::quantize(x, &QuantConfig::nf4());
                    packed.unwrap().to_packed().unwrap()
                };
                assert_eq!(dense(x.clone()), dense(copy.clone()), "quantize {name}");
                let run = |x: Tensor<2>| {
                    [
                        floats(packed.matmul(x.clone())),
                        floats(packed.matmul_low_rank(x.clone(), a.clone(), b.clone(), 0.5)),
                    ]
                };
                for (found, expected) in run(x).iter().zip(&run(copy)) {
                    assert!(relative_error(found, expected) < 1e-6, "{name}");
                }
            }
        }
        // Parts of the update that are views, and the gradient of one.
        let x = tensor([20, 64], 4, &device);
        for (name, a) in views([4, 64], &device) {
            let run = |a: Tensor<2>| {
                let x = x.clone().autodiff().require_grad();
                let y = packed.matmul_low_rank(x.clone(), a, b.clone(), 0.5);
                // A gradient that is one number again and again.
                let grads = y.clone().sum().backward();
                [floats(y.inner()), floats(x.grad(&grads).unwrap())]
            };
            for (found, expected) in run(a.clone()).iter().zip(&run(copied(&a))) {
                assert!(relative_error(found, expected) < 1e-6, "{name} {device:?}");
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    for device in devices() {
        let packed = weight([16, 64], &device);
        let x = |shape: [usize; 2]| tensor(shape, 1, &device);
        for rows in [1, 20] {
            panics("the weight is [16, 64]", || packed.matmul(x([rows, 65])));
            panics("the weight is [16, 64]", || packed.matmul_transposed(x([rows, 64])));
            let low = |a, b| packed.matmul_low_rank(x([rows, 64]), x(a), x(b), 1.0);
            panics("A of the weight [16, 64]", || low([4, 63], [16, 4]));
            panics("B of the weight [16, 64]", || low([4, 64], [16, 5]));
            panics("B of the weight [16, 64]", || low([4, 64], [15, 4]));
        }
        let half = || x([4, 64]).cast(FloatDType::F16);
        if device.supports_dtype(burn::tensor::DType::F16) {
            panics("dtypes", || packed.matmul_low_rank(x([3, 64]), half(), x([16, 4]), 1.0));
        }
    }
}

/// Sums of nothing are zeros, and nothing stays nothing: with gradients.
#[test]
fn what_is_empty() {
    for device in devices() {
        let zeros =
            |shape: [usize; 2]| Tensor::<2>::zeros(shape, &device).autodiff().require_grad();
        let ones = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device).autodiff().require_grad();
        // Weights of no rows and of no columns, and an update of rank 0.
        for [out, width] in [[0, 64], [16, 0]] {
            let packed = weight([out, width], &device);
            assert_eq!(packed.dequantize(FloatDType::F32).dims(), [out, width]);
            for rows in [0, 5] {
                let x = ones([rows, width]);
                let y = packed.matmul(x.clone());
                assert_eq!((y.dims(), floats(y.inner())), ([rows, out], vec![0.0; rows * out]));
                let y = packed.matmul_transposed(ones([rows, out]));
                assert_eq!(floats(y.inner()), vec![0.0; rows * width], "{device:?}");
                let y = packed.matmul_low_rank(x.clone(), zeros([4, width]), ones([out, 4]), 1.0);
                let grads = y.clone().sum().backward();
                assert_eq!(floats(y.inner()), vec![0.0; rows * out], "{device:?}");
                assert_eq!(floats(x.grad(&grads).unwrap()), vec![0.0; rows * width]);
            }
        }
        let packed = weight([16, 64], &device);
        let x = tensor([20, 64], 2, &device);
        let y =
            packed.matmul_low_rank(x.clone(), zeros([0, 64]).inner(), zeros([16, 0]).inner(), 1.0);
        assert!(relative_error(&floats(y), &floats(packed.matmul(x))) < 1e-6, "{device:?}");
    }
}

/// Takes words away, as a record of another weight does.
struct Shorten(usize);

impl ModuleMapper for Shorten {
    fn map_int<const D: usize>(&mut self, param: Param<Tensor<D, Int>>) -> Param<Tensor<D, Int>> {
        let (id, words, mapper) = param.consume();
        let keep = words.dims()[0] - std::mem::take(&mut self.0);
        Param::from_mapped_value(id, words.narrow(0, 0, keep), mapper)
    }
}

#[test]
fn words_of_another_weight_are_refused() {
    for device in devices() {
        let short = weight([16, 64], &device).map(&mut Shorten(1));
        let x = |shape: [usize; 2]| tensor(shape, 1, &device);
        let expected = "the codes of a weight [16, 64]";
        panics(expected, || short.dequantize(FloatDType::F32));
        for rows in [1, 20] {
            panics(expected, || short.matmul(x([rows, 64])));
            panics(expected, || short.matmul_transposed(x([rows, 16])));
            panics(expected, || short.matmul_low_rank(x([rows, 64]), x([4, 64]), x([16, 4]), 1.0));
        }
    }
}

#[test]
fn a_record_of_another_weight_does_not_pass_for_this_one() {
    let folder = std::env::temp_dir().join(format!("burn-lora-borders-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (i, device) in devices().into_iter().enumerate() {
        let path = folder.join(format!("{i}.bpk"));
        weight([16, 64], &device).save_file(&path).unwrap();
        let loaded = std::panic::catch_unwind(|| weight([32, 64], &device).load_file(&path));
        if let Ok(loaded) = loaded {
            panics("of a weight [32, 64]", || loaded.dequantize(FloatDType::F32));
        }
        // A GPU's thread reads the file when it gets to it.
        device.sync().unwrap();
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn layouts_that_no_setting_has_are_refused() {
    let good = Packed::quantize(&values(1024, 1), [16, 64], &QuantConfig::nf4()).unwrap();
    for device in devices() {
        let with = |change: &dyn Fn(&mut Packed)| {
            let mut packed = good.clone();
            change(&mut packed);
            PackedWeight::from_packed(packed, &device)
        };
        for block_size in [1, 8, 12, 48, 1 << 20] {
            panics("no setting has", || with(&|packed| packed.layout.block_size = block_size));
        }
        panics("no setting has", || with(&|packed| packed.layout.format = Format::Mxfp4));
        panics("no setting has", || with(&|packed| packed.layout.scales = ScaleRule::E4m3));
        panics("the elements of a weight", || {
            with(&|packed| packed.layout.shape = [usize::MAX / 2, 4])
        });
        panics("words of codes", || with(&|packed| packed.layout.shape = [16, 72]));
        panics("words of codes", || with(&|packed| packed.codes.truncate(127)));
        panics("words of codes", || with(&|packed| packed.scales.truncate(15)));
        panics("words of codes", || with(&|packed| packed.tables.truncate(15)));
    }
    let view: PackedView<'_> = good.view();
    panics("elements 1020 to 1028 of a weight of 1024", || view.decode(1020, &mut [0.0; 8]));
    panics("block 16", || view.scale(16));
    let mut short = good.clone();
    short.codes.pop();
    panics("words of codes", || short.to_bitsandbytes("w", FloatDType::F32));
}

/// The operations of backends are public, too.
#[cfg(not(feature = "fusion"))]
#[test]
fn backends_refuse_what_does_not_fit() {
    use burn::{backend::Dispatch, tensor::TensorData};
    use burn_lora_quant::{PackedOps, PackedTensors};
    for device in devices() {
        let words = |count: usize| {
            let words = TensorData::new(vec![0u32; count], [count]);
            Tensor::<1, Int>::from_data(words, (&device, burn::tensor::DType::U32)).into_dispatch()
        };
        let layout = QuantConfig::nf4().layout([16, 64]);
        let parts = |codes, scales, tables| PackedTensors::<Dispatch> {
            codes: words(codes),
            scales: words(scales),
            tables: words(tables),
        };
        for [codes, scales, tables] in [[127, 16, 16], [128, 15, 16], [128, 16, 15]] {
            panics("", || Dispatch::unpack(parts(codes, scales, tables), layout, FloatDType::F32));
            for rows in [1, 20] {
                let x = tensor::<2>([rows, 64], 1, &device).into_dispatch();
                panics("", || {
                    Dispatch::packed_matmul(x, parts(codes, scales, tables), layout, false)
                });
            }
        }
        let x = || tensor::<2>([3, 60], 1, &device).into_dispatch();
        panics("the weight is [16, 64]", || {
            Dispatch::packed_matmul(x(), parts(128, 16, 16), layout, false)
        });
        panics("", || Dispatch::pack(x(), layout));
    }
}
