//! Gradients of products that are not computed against those of products that are, in every storage.

use crate::common::{devices, floats, relative_error};
use burn::{
    module::Module,
    tensor::{Device, Distribution, FloatDType, Tensor},
};
use burn_lora_kernels::pull_back;
use burn_lora_quant::{
    DenseWeight, EightBitConfig, Frozen, PackedWeight, Pulled, QuantConfig, QuantError, Storage,
    StorageBytes, StorageFormat, Update, matmul_all, pull_back_all,
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
                            let update = Update { a: a.clone(), b: b.clone(), scale: 2.5 };
                            let product = Pulled { weight: &weight, update: Some(update), grad };
                            pull_back_all(rows, vec![product], None)
                        }
                    };
                    let grads = zero.backward();
                    [x, a, b].map(|part| part.grad(&grads).map(floats))
                };
                let (found, expected) = (run(false), run(true));
                if weight.downcast_ref::<PackedWeight>().is_some() {
                    assert!(found == expected, "{device:?} {} {update}", weight.settings());
                }
                assert_eq!(found.each_ref().map(Option::is_some), [true, update, update]);
                // (Other storages may add the two gradients of the input in another order.)
                for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                    let error = relative_error(found, expected);
                    assert!(error < 3e-6, "{device:?} {} {error:e}", weight.settings());
                }
            }
        }
    }
}

/// Products with one input are those of each weight alone; what they give for the updates can be used again, in
/// their next pass and in their backward pass.
#[test]
fn products_with_one_input() {
    let width = 64;
    for device in devices() {
        let random =
            |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device.clone());
        let weight = |out| random([out, width]);
        let packed = |out| QuantConfig::nf4().store(weight(out)).unwrap();
        let own = Frozen::new(Own { weight: DenseWeight::new(weight(40)) });
        let eight = EightBitConfig::int8().store(weight(40)).unwrap();
        let dense = Frozen::new(DenseWeight::new(weight(16)));
        // The second is wide: on a GPU its update is a part of the product.
        for weights in [vec![packed(48), packed(192)], vec![own, eight, dense, packed(24)]] {
            for rows in [3, 288] {
                let x = random([rows, width]);
                let updates = weights.iter().zip([Some(8), None, Some(16), Some(3)]);
                let updates: Vec<_> = updates
                    .map(|(weight, rank)| {
                        let (a, b) = (random([rank?, width]), random([weight.shape()[0], rank?]));
                        Some(Update { a, b, scale: 1.5 })
                    })
                    .collect();
                let products = || weights.iter().zip(updates.clone()).collect::<Vec<_>>();
                let x3 = x.clone().reshape([3, rows / 3, width]);
                let (found, h) = matmul_all(x3.clone(), products(), None);
                for ((weight, update), found) in products().into_iter().zip(&found) {
                    let expected = match update {
                        Some(Update { a, b, scale }) => {
                            weight.matmul_low_rank(x3.clone(), a, b, scale)
                        }
                        None => weight.matmul(x3.clone()),
                    };
                    assert_eq!(found.dims(), expected.dims());
                    let [found, expected] = [found.clone(), expected].map(floats);
                    let error = relative_error(&found, &expected);
                    assert!(error < 3e-6, "{device:?} {} {error:e}", weight.settings());
                }
                let (again, _) = matmul_all(x3.clone(), products(), h.clone());
                assert_eq!(again.into_iter().map(floats).collect::<Vec<_>>(), {
                    found.into_iter().map(floats).collect::<Vec<_>>()
                });

                let grads = weights.iter().map(|weight| random([rows, weight.shape()[0]]));
                let grads: Vec<_> = grads.collect();
                let run = |h| {
                    let x = x.clone().autodiff().require_grad();
                    let mut leaves = vec![];
                    let mut leaf = |part: Tensor<2>| {
                        leaves.push(part.autodiff().require_grad());
                        leaves.last().unwrap().clone()
                    };
                    let products = products().into_iter().zip(&grads);
                    let products = products.map(|((weight, update), grad)| {
                        let update = update.map(|Update { a, b, scale }| {
                            let (a, b) = (leaf(a), leaf(b));
                            Update { a, b, scale }
                        });
                        Pulled { weight, update, grad: grad.clone() }
                    });
                    let products = products.collect();
                    let grads = pull_back_all(x.clone(), products, h).backward();
                    leaves.push(x);
                    let grads = leaves.into_iter().map(|leaf| floats(leaf.grad(&grads).unwrap()));
                    grads.collect::<Vec<_>>()
                };
                assert_eq!(run(h), run(None));
            }
        }
    }
}

/// Weights of any storages with one input, some of them with updates, some of these frozen.
#[test]
fn gradients_of_products_with_one_input() {
    let width = 64;
    for device in devices() {
        let random =
            |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device.clone());
        let weight = |out| random([out, width]);
        let packed = |out| QuantConfig::nf4().store(weight(out)).unwrap();
        let dense = |out| Frozen::new(DenseWeight::new(weight(out)));
        let own = Frozen::new(Own { weight: DenseWeight::new(weight(40)) });
        let eight = EightBitConfig::int8().store(weight(40)).unwrap();
        let groups = [
            vec![packed(48), packed(16), packed(24)],
            vec![dense(48), packed(8)],
            vec![own, eight, dense(16)],
            vec![packed(32), packed(8)],
        ];
        for weights in groups {
            // Rank of the update, and whether A and B are trained.
            for ranks in [[(4, [true; 2]); 3], [(0, [true; 2]), (3, [false, true]), (2, [true; 2])]]
            {
                let updates: Vec<_> = weights.iter().zip(ranks).collect();
                let parts = updates.iter().map(|(weight, (rank, _))| {
                    let out = weight.shape()[0];
                    [random([*rank, width]), random([out, *rank]), random([33, out])]
                });
                let (parts, x) = (parts.collect::<Vec<_>>(), random([33, width]));
                for tracked in [true, false] {
                    let run = |joined: bool| {
                        let rows = match tracked {
                            true => x.clone().autodiff().require_grad(),
                            false => x.clone(),
                        };
                        let x = rows.clone().reshape([3, 11, width]);
                        let leaves: Vec<[Tensor<2>; 2]> = updates
                            .iter()
                            .zip(&parts)
                            .map(|((_, (_, trained)), [a, b, _])| {
                                let leaf = |(part, trained): (&Tensor<2>, bool)| match trained {
                                    true => part.clone().autodiff().require_grad(),
                                    false => part.clone(),
                                };
                                [leaf((a, trained[0])), leaf((b, trained[1]))]
                            })
                            .collect();
                        let products = updates.iter().zip(&parts).zip(&leaves).map(
                            |(((weight, (rank, _)), [.., grad]), [a, b])| {
                                let (a, b) = (a.clone(), b.clone());
                                let update = (*rank > 0).then_some(Update { a, b, scale: 1.5 });
                                let grad = grad.clone().reshape([3, 11, weight.shape()[0]]);
                                Pulled { weight, update, grad }
                            },
                        );
                        let zero = if joined {
                            pull_back_all(x, products.collect(), None)
                        } else {
                            let zeros =
                                products.map(|one| pull_back_all(x.clone(), vec![one], None));
                            zeros.reduce(|sum, zero| sum + zero).unwrap()
                        };
                        let grads = zero.backward();
                        let leaves = leaves.into_iter().flatten().chain([rows]);
                        leaves.map(|leaf| leaf.grad(&grads).map(floats)).collect::<Vec<_>>()
                    };
                    let (found, expected) = (run(true), run(false));
                    for (found, expected) in found.iter().zip(&expected) {
                        assert_eq!(found.is_some(), expected.is_some());
                        let (Some(found), Some(expected)) = (found, expected) else { continue };
                        let error = relative_error(found, expected);
                        assert!(error < 3e-6, "{device:?} {error:e}");
                    }
                }
            }
        }
    }
}
