//! Gradients of products that are not computed against those of products that are, in every storage.

use crate::common::{devices, floats};
use burn::{
    module::Module,
    tensor::{Device, Distribution, FloatDType, Tensor},
};
use burn_lora_kernels::pull_back;
use burn_lora_quant::{
    DenseWeight, EightBitConfig, Frozen, QuantConfig, QuantError, Storage, StorageBytes,
    StorageFormat,
};

/// A storage of one's own, with nothing but what has to be there.
#[derive(Module, Debug)]
struct Own {
    weight: DenseWeight,
}

impl Storage for Own {
    fn shape(&self) -> [usize; 2] {
        self.weight.shape()
    }

    fn device(&self) -> Device {
        self.weight.device()
    }

    fn bytes(&self) -> StorageBytes {
        self.weight.bytes()
    }

    fn settings(&self) -> serde_json::Value {
        "own".into()
    }

    fn dequantize(&self, dtype: FloatDType) -> Tensor<2> {
        self.weight.dequantize(dtype)
    }

    fn matmul<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.weight.matmul(x)
    }

    fn store(&self, weight: Tensor<2>) -> Result<Self, QuantError> {
        Ok(Self { weight: self.weight.store(weight)? })
    }
}

#[test]
fn gradients_are_those_of_the_product() {
    let [out, width, rank] = [48, 64, 4];
    for device in devices() {
        let random =
            |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device.clone());
        let weight = random([out, width]);
        let storages = [
            Frozen::new(DenseWeight::new(weight.clone())),
            Frozen::new(Own { weight: DenseWeight::new(weight.clone()) }),
            QuantConfig::nf4().double_quant(true).store(weight.clone()).unwrap(),
            EightBitConfig::int8().store(weight.clone()).unwrap(),
            EightBitConfig::fp8().store(weight).unwrap(),
        ];
        let (parts, grad) =
            ([random([33, width]), random([rank, width]), random([out, rank])], random([33, out]));
        for weight in storages {
            for update in [false, true] {
                let run = |whole: bool| {
                    let [x, a, b] = parts.clone().map(|part| part.autodiff().require_grad());
                    // (A gradient of one's input, too, which adds up with that of the product.)
                    let (rows, grad) = (x.clone() * 2.0, grad.clone().reshape([3, 11, out]));
                    let rows = rows.reshape([3, 11, width]);
                    let zero = match (update, whole) {
                        (false, true) => pull_back(weight.matmul(rows), grad),
                        (false, false) => weight.pull_back(rows, grad),
                        (true, true) => {
                            let y = weight.matmul_low_rank(rows, a.clone(), b.clone(), 2.5);
                            pull_back(y, grad)
                        }
                        (true, false) => {
                            weight.pull_back_low_rank(rows, a.clone(), b.clone(), 2.5, grad)
                        }
                    };
                    let grads = zero.backward();
                    [x, a, b].map(|part| part.grad(&grads).map(floats))
                };
                let (found, expected) = (run(false), run(true));
                assert!(found == expected, "{device:?} {} {update}", weight.settings());
                assert_eq!(expected.map(|grad| grad.is_some()), [true, update, update]);
            }
        }
    }
}
