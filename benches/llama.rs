//! What the operations of a decoder cost on one device.
//!
//! `cargo bench --features cuda --bench llama -- cuda SECTION..`
//!
//! The first argument names the device (`cpu`, `cuda`, `vulkan`, `wgpu`). Sections: `ops`,
//! `attention`, `long`. Each time is the median of seven, each of which is a run of many calls and one wait.

#[path = "support/device.rs"]
mod support;

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData};
use burn_lora_kernels::{Activation, AttentionSpec, attention, gated, rms_norm, rotate};
use std::time::Instant;
use support::device;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let name = arguments.first().map_or("cpu", String::as_str);
    let (device, dtype) = device(name);
    let bench = Bench { small: name == "cpu", dtype, device };
    println!("{:?}, {:?}", bench.device, bench.dtype);
    let default = ["ops".to_owned(), "attention".to_owned()];
    let sections = if arguments.len() > 1 { &arguments[1..] } else { &default[..] };
    for section in sections {
        match &**section {
            "ops" => bench.ops(),
            "attention" => bench.attention(),
            "long" => bench.long(),
            _ => panic!("no section `{section}`"),
        }
    }
}

struct Bench {
    device: Device,
    dtype: FloatDType,
    /// A CPU gets smaller shapes and fewer calls.
    small: bool,
}

impl Bench {
    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<D>::random(shape, normal, &self.device).cast(self.dtype)
    }

    fn int<const D: usize>(&self, values: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::I32))
    }

    fn sync(&self) {
        self.device.sync().expect("the device failed");
    }

    /// Seconds a call. What it gives is kept until the wait: fusion leaves out what nobody holds.
    fn time<T>(&self, mut call: impl FnMut() -> T) -> f64 {
        let (warm, calls) = if self.small { (1, 2) } else { (3, 20) };
        drop((0..warm).map(|_| call()).collect::<Vec<T>>());
        self.sync();
        let mut samples: Vec<f64> = (0..7)
            .map(|_| {
                let start = Instant::now();
                let kept: Vec<T> = (0..calls).map(|_| call()).collect();
                self.sync();
                drop(kept);
                start.elapsed().as_secs_f64() / calls as f64
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        samples[3]
    }

    /// Time and rate of a call that moves `elements` of the dtype.
    fn rate<T>(&self, name: &str, elements: usize, call: impl FnMut() -> T) {
        let bytes = elements * DType::from(self.dtype).size();
        let seconds = self.time(call);
        println!("{name}: {:.1} us, {:.0} GB/s", seconds * 1e6, bytes as f64 / seconds / 1e9);
    }

    fn mib(&self) -> [f64; 2] {
        self.device.memory_pool_usage().map_or([0.0; 2], |usage| {
            [usage.bytes_in_use, usage.bytes_reserved].map(|bytes| bytes as f64 / (1 << 20) as f64)
        })
    }

    /// The operations between linear layers at the 8B shape; what Burn makes of the same formulas.
    fn ops(&self) {
        let (rows, hidden, inner) = if self.small { (64, 512, 1024) } else { (8192, 4096, 14336) };
        let (n, m) = (rows * hidden, rows * inner);
        let copied = self.random([rows, inner]);
        self.rate("copy (x * 1.0001)", 2 * m, || copied.clone() * 1.0001);
        drop(copied);

        let (x, w) = (self.random([rows, hidden]), self.random([hidden]));
        let burn_norm = |x: Tensor<2>, w: Tensor<1>| {
            let x = x.cast(FloatDType::F32);
            let rms = (x.clone().square().mean_dim(1) + 1e-5).sqrt();
            (x / rms).cast(self.dtype) * w.unsqueeze()
        };
        self.rate("rms_norm", 2 * n, || rms_norm(x.clone(), w.clone(), 1e-5));
        self.rate("rms_norm, Burn's operations", 2 * n, || burn_norm(x.clone(), w.clone()));
        let back = |f: &dyn Fn(Tensor<2>) -> Tensor<2>| {
            let x = x.clone().autodiff().require_grad();
            let grads = f(x.clone()).backward();
            x.grad(&grads)
        };
        // `backward` of a tensor that is no scalar starts from ones.
        self.rate("rms_norm, both ways", 6 * n, || back(&|x| rms_norm(x, w.clone(), 1e-5)));
        self.rate("rms_norm, both ways, Burn's", 6 * n, || back(&|x| burn_norm(x, w.clone())));

        let (gate, up) = (self.random([rows, inner]), self.random([rows, inner]));
        let burn_swiglu =
            |gate: Tensor<2>, up: Tensor<2>| burn::tensor::activation::silu(gate) * up;
        self.rate("swiglu", 3 * m, || gated(gate.clone(), up.clone(), Activation::Silu));
        self.rate("swiglu, Burn's operations", 3 * m, || {
            drop(burn_swiglu(gate.clone(), up.clone()))
        });
        let both = |f: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            let [gate, up] = [&gate, &up].map(|t| t.clone().autodiff().require_grad());
            let grads = f(gate.clone(), up.clone()).backward();
            (gate.grad(&grads), up.grad(&grads))
        };
        self.rate("swiglu, both ways", 9 * m, || {
            both(&|gate, up| gated(gate, up, Activation::Silu))
        });
        self.rate("swiglu, both ways, Burn's", 9 * m, || both(&burn_swiglu));

        let dim = 128.min(hidden / 4);
        let q = self.random([4, rows / 4, hidden / dim, dim]);
        let positions = self.int((0..rows as i32 / 4).collect(), [1, rows / 4]);
        let table = self.random([rows / 4, dim]).cast(FloatDType::F32);
        let turn = |q| rotate(q, positions.clone(), table.clone());
        self.rate("rotate", 2 * n, || turn(q.clone()));
        self.rate("rotate, both ways", 5 * n, || {
            let q = q.clone().autodiff().require_grad();
            let grads = turn(q.clone()).backward();
            q.grad(&grads)
        });
    }

    fn attention(&self) {
        let (batch, length, dim) = if self.small { (1, 256, 64) } else { (4, 2048, 128) };
        let heads = if self.small { 4 } else { 32 };
        for kv_heads in [heads, heads / 4] {
            let [forward, both] = self.attend(batch, heads, kv_heads, length, dim);
            println!(
                "attention B {batch}, H {heads}/{kv_heads}, S {length}, D {dim}: forward {:.3} ms, \
                 both ways {:.3} ms",
                forward * 1e3,
                both * 1e3
            );
        }
    }

    /// Seconds of the forward pass and of both.
    fn attend(&self, batch: usize, heads: usize, kv: usize, length: usize, dim: usize) -> [f64; 2] {
        let q = self.random([batch, heads, length, dim]);
        let [k, v] = [0; 2].map(|_| self.random([batch, kv, length, dim]));
        let mut spans = vec![0; length];
        spans.resize(2 * length, length as i32);
        let spans = self.int(spans, [2, 1, length]);
        let spec = AttentionSpec { scale: (dim as f32).sqrt().recip(), window: None };
        let run = |q, k, v| attention(q, k, v, spans.clone(), spec);
        let forward = self.time(|| run(q.clone(), k.clone(), v.clone()));
        let both = self.time(|| {
            let [q, k, v] = [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
            let grads = run(q.clone(), k.clone(), v.clone()).backward();
            [q.grad(&grads), k.grad(&grads), v.grad(&grads)]
        });
        [forward, both]
    }

    /// Memory of one row of an attention, by its length.
    fn long(&self) {
        for length in [4096, 8192, 16384, 32768] {
            self.device.memory_cleanup();
            let [before, _] = self.mib();
            let q = self.random([1, 32, length, 128]).autodiff().require_grad();
            let [k, v] = [0; 2].map(|_| self.random([1, 8, length, 128]).autodiff().require_grad());
            let mut spans = vec![0; length];
            spans.resize(2 * length, length as i32);
            let spans = self.int(spans, [2, 1, length]);
            let spec = AttentionSpec { scale: 128f32.sqrt().recip(), window: None };
            self.sync();
            let start = Instant::now();
            let out = attention(q.clone(), k.clone(), v.clone(), spans, spec);
            self.sync();
            let [kept, _] = self.mib();
            let grads = out.backward();
            drop((q.grad(&grads), k.grad(&grads), v.grad(&grads)));
            self.sync();
            let [_, reserved] = self.mib();
            println!(
                "attention B 1, H 32/8, S {length}, D 128: {:.1} ms both ways (first call), kept for \
                 backward with inputs {:.0} MiB, pool's peak {reserved:.0} MiB",
                start.elapsed().as_secs_f64() * 1e3,
                kept - before
            );
        }
    }
}
