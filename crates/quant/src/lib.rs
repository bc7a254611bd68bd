//! Quantized weights that stay packed: on a CPU, on CUDA and on GPUs through wgpu.
//!
//! This is the storage layer of QLoRA (arXiv:2305.14314) for Burn, the counterpart of bitsandbytes
//! for PEFT. Codes, scales and decoded values are bitsandbytes' own for NF4 and FP4; MXFP4 (OCP)
//! and NVFP4 (NVIDIA) run through the same kernels.
//!
//! | what | where |
//! |---|---|
//! | settings of 4-bit quantization | [`QuantConfig`] |
//! | a 4-bit weight on a device | [`PackedWeight`] |
//! | a linear layer with it | [`PackedLinear`] |
//! | 8-bit weights | [`EightBitConfig`], [`EightBitWeight`] |
//! | storage formats by name | [`WeightFormat`] |
//! | a frozen weight in any storage, and custom storages | [`Frozen`], [`Storage`] |
//! | bitsandbytes' tensors | [`codec::Packed::from_bitsandbytes`], [`codec::Packed::to_bitsandbytes`] |
//! | the scalar reference, without tensors | [`codec`] |
//! | matrix product | [`Gemm`] |
//! | backend operations | [`PackedOps`], [`GemmOps`], [`LowRankOps`] |
//!
//! # A frozen 4-bit layer with a gradient
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use burn_lora_quant::{PackedLinear, PackedWeight, QuantConfig};
//!
//! let device = Device::default();
//! let dense = Tensor::<2>::random([256, 128], Distribution::Normal(0.0, 0.02), &device);
//! let weight = PackedWeight::quantize(dense, &QuantConfig::nf4().double_quant(true))?;
//! let linear = PackedLinear::new(weight, None);
//!
//! let x = Tensor::<2>::ones([4, 128], &device).autodiff().require_grad();
//! let grads = linear.forward(x.clone()).sum().backward();
//! assert_eq!(x.grad(&grads).unwrap().dims(), [4, 128]); // dy · W, from the codes
//! # Ok::<_, burn_lora_quant::QuantError>(())
//! ```
//!
//! # Devices
//!
//! A `Device` value chooses the backend at run time. The features `cpu`, `wgpu`, `vulkan`, `metal`
//! and `cuda` select the backends to compile; `fusion` lets Burn fuse elementwise operations.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

mod bitsandbytes;
pub mod codec;
mod config;
mod eight_bit;
#[doc(hidden)]
pub mod erased;
mod error;
mod few;
mod format;
mod fp8;
mod joined;
mod layout;
mod linear;
mod lowrank;
mod mxfp4;
mod named;
mod ops;
mod packed;
mod scale;
mod storage;

pub use burn_lora_kernels::{Gemm, GemmOps};
pub use config::QuantConfig;
pub use eight_bit::{EightBitConfig, EightBitFormat, EightBitLayout, EightBitOps, EightBitWeight};
pub use error::QuantError;
pub use few::{FewOps, FewProducts, FewWeight, matmul_few, takes_few};
pub use format::Format;
pub use joined::{Pulled, Update, matmul_all, pull_back_all};
pub use layout::Layout;
pub use linear::PackedLinear;
pub use lowrank::{LowRankOps, joins_update};
pub use named::WeightFormat;
pub use ops::{PackedOps, PackedTensors};
pub use packed::PackedWeight;
pub use scale::ScaleRule;
pub use storage::{
    DenseWeight, DynStorage, ErasedStorage, Frozen, Storage, StorageBytes, StorageFormat,
};
