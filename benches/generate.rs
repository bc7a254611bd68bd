//! What generation costs: the first token, tokens a second, memory.
//!
//! `cargo bench --features cuda --bench generate -- cuda MODEL BATCHxPROMPT..`
//!
//! MODEL is a folder or a GGUF file. It is loaded in NF4 with double quantization, with an adapter of rank 32 at all linear
//! layers. After a shape: `,new=TOKENS` (128), `,rows` with the adapter in every other row alone, `,sample` for a temperature
//! of 0.8. With `DENSE` set weights stay as they are, with `BASE` set there is no adapter.

#[path = "support/device.rs"]
mod support;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Tensor},
};
use burn_lora_adapter::{AdaptableExt, BASE, Init, LoraConfig, Selection};
use burn_lora_llama::{GenerateConfig, GenerateExt, Llama};
use burn_lora_quant::QuantConfig;
use std::{cell::Cell, ops::ControlFlow, time::Instant};
use support::device;

fn main() {
    burn_lora_kernels::keep_host_memory();
    burn_lora_kernels::compute_here();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [name, model, shapes @ ..] = &arguments[..] else {
        println!("generate DEVICE MODEL BATCHxPROMPT.. (nothing to do)");
        return;
    };
    let set = |name: &str| std::env::var_os(name).is_some();
    let (device, dtype) = device(name);
    let start = Instant::now();
    let loader = Llama::from_pretrained(model).dtype(dtype);
    let quant = QuantConfig::nf4().double_quant(true);
    let loader = if set("DENSE") { loader } else { loader.quantize(quant) };
    let mut model = loader.load(&device).expect("the model loads");
    if !set("BASE") {
        let lora = LoraConfig::new(32, 64).all_linear().init(Init::Random);
        model = model.with_adapter(&lora).expect("it has linear layers");
    }
    let model = model.valid();
    // (Adapters from a file are there when they are loaded.)
    model.visit(&mut Initialize);
    device.sync().expect("the device works");
    println!("{device:?}: loaded in {:.1} s\n{}", start.elapsed().as_secs_f64(), model.summary());
    for shape in shapes {
        measure(&model, &device, shape);
    }
}

/// Makes parameters that are random.
struct Initialize;

impl ModuleVisitor for Initialize {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        param.val();
    }
}

fn measure(model: &Llama, device: &Device, what: &str) {
    let mut words = what.split(',');
    let (rows, length) = words.next().and_then(|s| s.split_once('x')).expect("BATCHxPROMPT");
    let [rows, length] = [rows, length].map(|n| n.parse::<usize>().expect("a number"));
    let (mut new, mut by_rows, mut temperature) = (128, false, 0.0);
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("new", count) => new = count.parse().expect("a number"),
            ("rows", _) => by_rows = true,
            ("sample", _) => temperature = 0.8,
            _ => panic!("no setting `{word}`"),
        }
    }
    let mut config = GenerateConfig::new(new).temperature(temperature);
    if by_rows {
        let names = (0..rows).map(|row| if row % 2 == 0 { "default" } else { BASE });
        let active = model.activate(Selection::rows(names)).expect("an adapter");
        config = config.adapters(active);
    }
    let vocabulary = model.config.vocab_size;
    let token = |row: usize, at: usize| ((row * 131 + at) * 7919 % vocabulary) as u32;
    let prompts: Vec<Vec<u32>> =
        (0..rows).map(|row| (0..length).map(|at| token(row, at)).collect()).collect();
    for round in 0..3 {
        let (start, first) = (Instant::now(), Cell::new(0.0));
        let found = model.generate(&prompts, &config, |_, _| {
            if first.get() == 0.0 {
                first.set(start.elapsed().as_secs_f64());
            }
            ControlFlow::Continue(())
        });
        let found = found.expect("valid settings");
        let rest = start.elapsed().as_secs_f64() - first.get();
        let count: usize = found.iter().map(|row| row.tokens.len()).sum();
        let memory = device.memory_pool_usage().map_or(0, |usage| usage.bytes_in_use);
        println!(
            "{what}, round {round}: first token after {:.3} s ({:.0} tokens/s of the prompt), then {:.1} tokens/s \
             ({count} tokens); {:.2} GiB in use",
            first.get(),
            (rows * length) as f64 / first.get(),
            count.saturating_sub(rows) as f64 / rest,
            memory as f64 / (1u64 << 30) as f64,
        );
    }
}
