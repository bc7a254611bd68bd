//! What packed weights and the matrix product cost on one device.
//!
//! `cargo bench --features cuda --bench quant -- cuda [SECTION..]`
//!
//! The first argument names the device (`cpu`, `cuda`, `vulkan`, `wgpu`); sections are `overhead`, `copy`,
//! `dequantize`, `quantize`, `gemv`, `gemm`, `linear`, `memory`; all of them without one.
//! Each time is the median of seven, each of which is a run of many calls and one wait.

#[path = "support/device.rs"]
mod support;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use burn_lora_kernels::Gemm;
use burn_lora_quant::{PackedWeight, QuantConfig, codec::Packed};
use std::time::Instant;
use support::device;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let name = arguments.first().map_or("cpu", String::as_str);
    let (device, dtype) = device(name);
    let bench = Bench {
        small: name == "cpu",
        calls: std::env::var("BENCH_CALLS").map_or(40, |calls| calls.parse().expect("a number")),
        dtype,
        device,
    };
    type Section = (&'static str, fn(&Bench));
    let sections: [Section; 8] = [
        ("overhead", Bench::overhead),
        ("copy", Bench::copy),
        ("dequantize", Bench::dequantize),
        ("quantize", Bench::quantize),
        ("gemv", Bench::gemv),
        ("gemm", Bench::gemm),
        ("linear", Bench::linear),
        ("memory", Bench::memory),
    ];
    println!("{:?}, {:?}", bench.device, bench.dtype);
    for (section, run) in sections {
        if arguments.len() < 2 || arguments[1..].iter().any(|a| a == section) {
            run(&bench);
        }
    }
}

struct Bench {
    device: Device,
    dtype: FloatDType,
    /// A CPU gets fewer rows and fewer calls.
    small: bool,
    /// Calls between two waits: `BENCH_CALLS`, 40 without it.
    calls: usize,
}

impl Bench {
    fn random(&self, shape: [usize; 2]) -> Tensor<2> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<2>::random(shape, normal, &self.device).cast(self.dtype)
    }

    fn packed(&self, shape: [usize; 2], config: &QuantConfig) -> PackedWeight {
        PackedWeight::quantize(self.random(shape), config).expect("valid settings")
    }

    /// Seconds a call, and seconds that the host needs for one.
    fn time(&self, mut call: impl FnMut()) -> (f64, f64) {
        let sync = || self.device.sync().expect("the device failed");
        let (warm, calls) = if self.small { (1, 2) } else { (5, self.calls) };
        (0..warm).for_each(|_| call());
        sync();
        let mut samples: Vec<(f64, f64)> = (0..7)
            .map(|_| {
                let start = Instant::now();
                (0..calls).for_each(|_| call());
                let host = start.elapsed().as_secs_f64() / calls as f64;
                sync();
                (start.elapsed().as_secs_f64() / calls as f64, host)
            })
            .collect();
        samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        samples[3]
    }

    /// Time and rate of a call that moves `bytes`.
    fn rate(&self, name: &str, bytes: usize, call: impl FnMut()) {
        let (seconds, host) = self.time(call);
        let rate = bytes as f64 / seconds / 1e9;
        println!("{name}: {:.1} us (host {:.1}), {rate:.0} GB/s", seconds * 1e6, host * 1e6);
    }

    /// Time and rate of a call of `flop` operations.
    fn flops(&self, name: &str, flop: f64, call: impl FnMut()) {
        let (seconds, host) = self.time(call);
        let rate = flop / seconds / 1e12;
        println!("{name}: {:.4} ms (host {:.1} us), {rate:.2} TFLOP/s", seconds * 1e3, host * 1e6);
    }

    fn size(&self) -> usize {
        DType::from(self.dtype).size()
    }

    /// What a call costs that computes next to nothing.
    fn overhead(&self) {
        let (x, w) = (self.random([64, 64]), self.random([64, 64]));
        let packed = self.packed([64, 64], &QuantConfig::nf4());
        let mut y = self.random([64, 64]);
        self.flops("tiny x * 1 in place", 0.0, || {
            y = std::mem::replace(&mut y, Tensor::empty([1, 1], &self.device)) * 1.0;
        });
        self.flops("tiny gemm", 0.0, || drop(Gemm::new().run(x.clone(), w.clone())));
        self.flops("tiny dequantize", 0.0, || drop(packed.dequantize(self.dtype)));
        self.flops("tiny packed product", 0.0, || drop(packed.matmul(x.clone())));
        let x = self.random([1, 64]);
        self.flops("tiny gemv", 0.0, || drop(packed.matmul(x.clone())));
    }

    /// One read and one write of every byte. It waits after each call, so that fusion does not make
    /// one pass of several.
    fn copy(&self) {
        let len = match self.dtype {
            _ if self.small => 1 << 24,
            FloatDType::BF16 => 1 << 30,
            _ => 1 << 28,
        };
        let mut x = Tensor::<1>::ones([len], &self.device).cast(self.dtype);
        self.rate("copy (x * 1 in place)", 2 * len * self.size(), || {
            x = std::mem::replace(&mut x, Tensor::empty([1], &self.device)) * 1.0;
            self.device.sync().expect("the device failed");
        });
    }

    fn dequantize(&self) {
        for config in [
            QuantConfig::nf4().double_quant(true),
            QuantConfig::nf4(),
            QuantConfig::fp4().double_quant(true),
            QuantConfig::mxfp4(),
            QuantConfig::nvfp4(),
        ] {
            for shape in [[14336, 4096], [4096, 4096], [128256, 4096]] {
                if shape[0] > 1 << 16 && config != QuantConfig::nf4().double_quant(true) {
                    continue;
                }
                let weight = self.packed(shape, &config);
                let bytes = weight.bytes() + shape[0] * shape[1] * self.size();
                let name = format!("dequantize {} {:?} {shape:?}", name(&config), self.dtype);
                self.rate(&name, bytes, || drop(weight.dequantize(self.dtype)));
            }
        }
    }

    fn quantize(&self) {
        for config in [QuantConfig::nf4().double_quant(true), QuantConfig::mxfp4()] {
            let shape = [14336, 4096];
            let dense = self.random(shape);
            let bytes = shape[0] * shape[1] * self.size();
            let name = format!(
                "quantize {} {:?} {shape:?} (bytes of the input)",
                name(&config),
                self.dtype
            );
            self.rate(&name, bytes, || drop(PackedWeight::quantize(dense.clone(), &config)));
        }
    }

    /// Rotates among weights that together do not fit a cache.
    fn gemv(&self) {
        let config = QuantConfig::nf4().double_quant(true);
        for shape in [[14336, 4096], [4096, 14336], [4096, 4096]] {
            let count = if self.small { 1 } else { 600_000_000 / (shape[0] * shape[1] / 2) };
            let weights: Vec<_> = (0..count).map(|_| self.packed(shape, &config)).collect();
            for rows in [1, 2, 4, 8] {
                let x = self.random([rows, shape[1]]);
                let mut at = 0;
                let name = format!("gemv {} rows of {shape:?}, {:?}", rows, self.dtype);
                self.rate(&name, weights[0].bytes(), || {
                    at = (at + 1) % weights.len();
                    drop(weights[at].matmul(x.clone()));
                });
            }
        }
    }

    fn gemm(&self) {
        // [m, k, n] and whether the right side is transposed
        let shapes: &[([usize; 3], bool)] = if self.small {
            &[([256, 4096, 4096], true)]
        } else {
            &[
                ([4096, 4096, 4096], true),
                ([4096, 4096, 4096], false),
                ([8192, 4096, 14336], true),
                ([8192, 14336, 4096], false),
                ([8192, 14336, 4096], true),
                ([8192, 4096, 14336], false),
                ([8192, 4096, 1024], true),
                ([8192, 4096, 32], true),
                ([8192, 32, 4096], false),
                ([8192, 32, 4096], true),
                ([8192, 4096, 32], false),
            ]
        };
        for &([m, k, n], trans) in shapes {
            let (x, w) = (self.random([m, k]), self.random(if trans { [n, k] } else { [k, n] }));
            let gemm = if trans { Gemm::new().trans_rhs() } else { Gemm::new() };
            let name = format!("gemm [{m}x{k}] x [{k}x{n}]{}", if trans { "^T" } else { "" });
            let flop = 2.0 * (m * k * n) as f64;
            self.flops(&name, flop, || drop(gemm.run(x.clone(), w.clone())));
        }
        if self.small {
            return;
        }
        // Gradients of LoRA's factors, and a sum in place.
        for (m, k, n) in [(32, 8192, 4096), (4096, 8192, 32)] {
            let (a, b) = (self.random([k, m]), self.random([k, n]));
            let flop = 2.0 * (m * k * n) as f64;
            let gemm = Gemm::new().trans_lhs();
            self.flops(&format!("gemm [{k}x{m}]^T x [{k}x{n}]"), flop, || {
                drop(gemm.run(a.clone(), b.clone()));
            });
        }
        let (h, b) = (self.random([8192, 32]), self.random([4096, 32]));
        let mut y = self.random([8192, 4096]);
        let flop = 2.0 * (8192 * 32 * 4096) as f64;
        self.flops("gemm y += [8192x32] x [32x4096]^T", flop, || {
            let out = std::mem::replace(&mut y, Tensor::empty([1, 1], &self.device));
            y = Gemm::new().trans_rhs().alpha(0.001).run_add(h.clone(), b.clone(), out);
        });
        for (batch, m, k, n) in [(128, 2048, 128, 2048), (128, 2048, 2048, 128)] {
            let random = |shape: [usize; 3]| {
                Tensor::<3>::random(shape, Distribution::Default, &self.device).cast(self.dtype)
            };
            let (a, b) = (random([batch, m, k]), random([batch, k, n]));
            let flop = 2.0 * (batch * m * k * n) as f64;
            self.flops(&format!("gemm {batch} x [{m}x{k}] x [{k}x{n}]"), flop, || {
                drop(Gemm::new().run(a.clone(), b.clone()));
            });
        }
        if self.dtype == FloatDType::BF16 {
            let random = || Tensor::<2>::random([4096, 4096], Distribution::Default, &self.device);
            let (a, b) = (random(), random());
            for tf32 in [false, true] {
                let gemm = Gemm::new().tf32(tf32);
                self.flops(
                    &format!("gemm f32 [4096]^3, tf32 = {tf32}"),
                    2.0 * 4096f64.powi(3),
                    || {
                        drop(gemm.run(a.clone(), b.clone()));
                    },
                );
            }
        }
    }

    /// The packed product next to the same product of a dense weight.
    fn linear(&self) {
        let (rows, [out, width]) = (if self.small { 256 } else { 8192 }, [14336, 4096]);
        let dense = self.random([out, width]);
        let packed = self.packed([out, width], &QuantConfig::nf4().double_quant(true));
        let (x, dy) = (self.random([rows, width]), self.random([rows, out]));
        let flop = 2.0 * (rows * out * width) as f64;
        let trans = Gemm::new().trans_rhs();
        self.flops("linear dense forward", flop, || drop(trans.run(x.clone(), dense.clone())));
        self.flops("linear packed forward", flop, || drop(packed.matmul(x.clone())));
        self.flops("linear dense dX", flop, || drop(Gemm::new().run(dy.clone(), dense.clone())));
        self.flops("linear packed dX", flop, || drop(packed.matmul_transposed(dy.clone())));
    }

    /// The memory peak of a chain of 32 packed linears, forward and backward.
    fn memory(&self) {
        let usage = |when: &str| match self.device.memory_pool_usage() {
            Some(usage) => {
                let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
                let (used, held) = (mib(usage.bytes_in_use), mib(usage.bytes_reserved));
                println!("memory {when}: {used:.1} MiB in use, {held:.1} MiB reserved");
            }
            None => println!("memory {when}: this device does not say"),
        };
        let (layers, side, rows) = if self.small { (4, 512, 16) } else { (32, 4096, 256) };
        let config = QuantConfig::nf4().double_quant(true);
        // From the host, so that nothing dense was ever on the device.
        let weight: Vec<f32> = (0..side * side)
            .map(|i| (((i * 2_654_435_761) >> 8) & 0xffff) as f32 / 18_918.0 - 1.732)
            .collect();
        let weight = Packed::quantize(&weight, [side, side], &config).expect("valid settings");
        let upload = || PackedWeight::from_packed(weight.clone(), &self.device);
        let chain: Vec<_> = (0..layers).map(|_| upload()).collect();
        let step = || {
            let x = Tensor::<2>::ones([rows, side], &self.device).cast(self.dtype);
            let x = x.autodiff().require_grad();
            let y = chain.iter().fold(x.clone(), |h, weight| weight.matmul(h) * 0.016);
            let grads = y.sum().backward();
            x.grad(&grads).expect("tracked").abs().mean().into_scalar::<f32>()
        };
        self.device.sync().expect("the device failed");
        self.device.memory_cleanup();
        usage("before the chain");
        let gradient = [step(), step()];
        usage("after the chain (what is reserved is the peak)");
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        println!(
            "memory: {layers} packed [{side}, {side}] hold {:.1} MiB, one dense {:?} {:.1} MiB, {rows} rows {:.1} MiB; mean |dx| {gradient:?}",
            mib(chain.iter().map(PackedWeight::bytes).sum()),
            self.dtype,
            mib(side * side * self.size()),
            mib(rows * side * self.size()),
        );
    }
}

fn name(config: &QuantConfig) -> String {
    let double = if config.is_double_quant() { "+dq" } else { "" };
    format!("{}{double}", config.format().name())
}
