//! What an adapter costs on top of its packed layer.
//!
//! `cargo bench --features cuda --bench adapter -- cuda [ROWS [ROW OF THE TABLE]]`
//!
//! Forward and backward of a packed layer [4096, 4096], alone and with adapters. The two are run in
//! turn, ten calls each, so that a change of the clock meets both; the median of the rounds counts.
//! One row of the table alone (`rank 16`) runs 20 steps and says what memory the pool has reserved.
//!
//! At last a step of generation, eight rows of one token: with one adapter, and with one for each row.

#[path = "support/device.rs"]
mod support;

use burn::{
    module::Module,
    tensor::{Distribution, Tensor},
};
use burn_lora_adapter::{AdaptableExt, AdaptedLinear, Init, LoraConfig, Selection, adaptable};
use burn_lora_quant::{PackedWeight, QuantConfig, codec::Packed};
use std::time::Instant;
use support::device;

#[derive(Module, Debug)]
struct Model {
    linear: AdaptedLinear,
}
adaptable!(Model { linear });

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let name = arguments.first().map_or("cpu", String::as_str);
    let (device, dtype) = device(name);
    let small = name == "cpu";
    let rows = arguments.get(1).map_or(if small { 64 } else { 4096 }, |a| a.parse().expect("ROWS"));
    let size = if small { 512 } else { 4096 };
    println!("{device:?}, {dtype:?}, [{size}, {size}] x {rows} rows");

    let random =
        |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device).cast(dtype);
    let config = QuantConfig::nf4().double_quant(true);
    // From the host, so that nothing dense was ever on the device.
    let values: Vec<f32> = (0..size * size)
        .map(|i| (((i * 2_654_435_761) >> 8) & 0xffff) as f32 / 18_918.0 - 1.732)
        .collect();
    let weight = Packed::quantize(&values, [size, size], &config).expect("valid settings");
    let weight = PackedWeight::from_packed(weight, &device);
    let base = Model { linear: AdaptedLinear::packed(weight, None) };
    let with = |lora: LoraConfig| {
        let lora = lora.targets(["linear"]).init(Init::Random);
        base.clone().with_adapter(&lora).expect("valid settings").train()
    };
    let models = [
        // The loss and its gradient, which every row below has too.
        ("no layer", None),
        ("packed layer alone", Some(base.clone())),
        ("rank 16", Some(with(LoraConfig::new(16, 32)))),
        ("rank 64", Some(with(LoraConfig::new(64, 32)))),
        ("rank 16, DoRA", Some(with(LoraConfig::new(16, 32).dora(true)))),
        ("rank 16, dropout", Some(with(LoraConfig::new(16, 32).dropout(0.05)))),
    ];
    let x = random([rows, size]);
    let step = |model: &Option<Model>| {
        let x = x.clone().autodiff().require_grad();
        let y = model.as_ref().map_or(x.clone(), |model| model.linear.forward(x.clone()));
        drop(x.grad(&y.sum().backward()));
    };
    if let Some(name) = arguments.get(2) {
        // For a profiler, and for the memory.
        let (_, model) = models.iter().find(|(n, _)| n == name).expect("a row of the table");
        (0..20).for_each(|_| step(model));
        device.sync().expect("the device failed");
        if let Some(usage) = device.memory_pool_usage() {
            let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            let (used, held) = (mib(usage.bytes_in_use), mib(usage.bytes_reserved));
            println!("{name}: {used:.1} MiB in use, {held:.1} MiB reserved");
        }
        return;
    }
    let sync = || device.sync().expect("the device failed");
    let (rounds, calls) = if small { (3, 2) } else { (21, 10) };
    let mut times = vec![vec![]; models.len()];
    for round in 0..rounds + 2 {
        for ((_, model), times) in models.iter().zip(&mut times) {
            sync();
            let start = Instant::now();
            (0..calls).for_each(|_| step(model));
            sync();
            if round >= 2 {
                times.push(start.elapsed().as_secs_f64() / calls as f64);
            }
        }
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let times: Vec<f64> = times.iter_mut().map(median).collect();
    for ((name, _), time) in models.iter().zip(&times) {
        let more = 100.0 * ((time - times[0]) / (times[1] - times[0]) - 1.0);
        println!("{name}: {:.4} ms, {more:+.1} % without the loss", time * 1e3);
    }
    generation(base, random([8, size]).reshape([8, 1, size]));
}

/// Times a forward pass of eight rows with one adapter and with several: on the host, until the call
/// returns, and with the device.
fn generation(mut model: Model, x: Tensor<3>) {
    let names: Vec<String> = (0..8).map(|number| number.to_string()).collect();
    for name in &names {
        let lora = LoraConfig::new(16, 32).targets(["linear"]).init(Init::Random);
        model.add_adapter(name, &lora).expect("valid settings");
    }
    let rows = |count: usize| Selection::rows((0..8).map(|row| &names[row % count]));
    let selections = [
        ("one adapter", Selection::adapters(&names[..1])),
        ("rows of 2 adapters", rows(2)),
        ("rows of 8 adapters", rows(8)),
    ];
    let active = selections.map(|(name, of)| (name, model.activate(of).expect("known adapters")));
    let device = x.device();
    let calls = 100;
    let mut times = [const { vec![] }; 3];
    for round in 0..13 {
        for ((_, active), times) in active.iter().zip(&mut times) {
            device.sync().expect("the device failed");
            let start = Instant::now();
            for _ in 0..calls {
                model.linear.forward_with(x.clone(), Some(active));
            }
            let host = start.elapsed().as_secs_f64();
            device.sync().expect("the device failed");
            if round >= 2 {
                times.push((host, start.elapsed().as_secs_f64()));
            }
        }
    }
    for ((name, _), times) in active.iter().zip(&mut times) {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut times: Vec<f64> = times.iter().map(of).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2] / calls as f64 * 1e6
        };
        println!("{name}: {:.1} us on the host, {:.1} in all", median(|t| t.0), median(|t| t.1));
    }
}
