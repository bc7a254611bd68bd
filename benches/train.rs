//! What training costs: tokens a second, memory, and where the time goes.
//!
//! `cargo bench --features cuda --bench train -- cuda MODEL ROWSxLENGTH..`
//!
//! MODEL is a folder or a GGUF file, loaded in NF4 with double quantization. After a shape:
//! `,steps=N`, `,recompute=none|N`, `,allbut=N`, `,budget=GIB`, `,offload`,
//! `,keep=outputs|attention|all|LAYERS`, `,adamw8bit`, `,chunk=TOKENS`, `,mlpchunk=TOKENS`, `,peak` to
//! look at the memory in use every millisecond, `,parts` for a table of
//! times; `,dpo` for pairs, ROWS of them, whose answers are the second half of each of the two rows, compared with the base
//! (its log-probabilities are computed before, and not timed), with `,apart` without sharing the prompt. With `HOST_EMBEDDINGS` set the embeddings stay on the host, with `FP8` set products with packed
//! weights are in FP8, with `DENSE` set weights stay as they are; `RANK` is the adapter's (32). Tokens are random, every one is a target.

#[path = "support/device.rs"]
mod support;

use burn::{
    module::Module,
    tensor::{DType, Device, Int, Tensor, TensorData},
};
use burn_lora_adapter::{AdaptableExt, AdaptedLinear, LoraConfig};
use burn_lora_kernels::{
    Activation, AttentionSpec, attention, cross_entropy, gated, pull_back, rms_norm, rotate,
};
use burn_lora_llama::{Keep, Llama, Segments, layers::DecoderLayer};
use burn_lora_quant::QuantConfig;
use burn_lora_train::{
    BatchConfig, CausalLm, Dataset, MemoryPlan, Observer, OptimizerConfig, Recompute, Schedule,
    TrainConfig, TrainError, Trainer, data::Sample, objective::Dpo, watch::StepMetrics,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use support::device;

const GIB: f64 = (1u64 << 30) as f64;

fn main() {
    burn_lora_kernels::keep_host_memory();
    burn_lora_kernels::compute_here();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [name, model, shapes @ ..] = &arguments[..] else {
        println!("train DEVICE MODEL ROWSxLENGTH.. (nothing to do)");
        return;
    };
    let (device, dtype) = device(name);
    let start = Instant::now();
    let loader = Llama::from_pretrained(model);
    let loader = match std::env::var_os("DENSE") {
        Some(_) => loader,
        None => loader.quantize(QuantConfig::nf4().double_quant(true)),
    };
    let mut model = loader
        .dtype(dtype)
        .host_embeddings(host_embeddings())
        .fp8(fp8())
        .load(&device)
        .expect("the model loads")
        .with_adapter(&lora())
        .expect("it has linear layers");
    device.sync().expect("the device works");
    println!("{device:?}, {dtype:?}: loaded in {:.1} s", start.elapsed().as_secs_f64());
    println!("{}", model.summary());
    println!("{}", memory(&device));
    for shape in shapes {
        measure(&mut model, &device, shape);
    }
}

fn lora() -> LoraConfig {
    let rank: u32 = std::env::var("RANK").map_or(32, |rank| rank.parse().expect("a number"));
    LoraConfig::new(rank as usize, 2.0 * f64::from(rank)).all_linear()
}

fn host_embeddings() -> bool {
    std::env::var_os("HOST_EMBEDDINGS").is_some()
}

fn fp8() -> bool {
    std::env::var_os("FP8").is_some()
}

fn memory(device: &Device) -> String {
    device.memory_pool_usage().map_or("no memory pool".into(), |usage| {
        let [used, reserved] = [usage.bytes_in_use, usage.bytes_reserved].map(|b| b as f64 / GIB);
        format!("{used:.2} GiB in use, {reserved:.2} GiB reserved")
    })
}

struct Print(Device);

impl Observer for Print {
    fn step(&mut self, at: &StepMetrics) -> Result<(), TrainError> {
        println!(
            "step {}: loss {:.4}, norm {:.4}, {:.0} ms, {:.0} tokens/s, {}",
            at.step,
            at.loss,
            at.grad_norm,
            at.step_seconds * 1e3,
            at.tokens_per_second,
            memory(&self.0),
        );
        Ok(())
    }
}

/// Looks at the memory in use again and again.
struct Watch {
    done: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    fn start(device: &Device) -> Self {
        let (device, done) = (device.clone(), Arc::new(AtomicBool::new(false)));
        let end = done.clone();
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !end.load(Ordering::Relaxed) {
                most = device.memory_pool_usage().map_or(0, |u| u.bytes_in_use).max(most);
                std::thread::sleep(Duration::from_millis(1));
            }
            most
        });
        Self { done, thread }
    }

    fn end(self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("it only looks")
    }
}

fn measure(model: &mut Llama, device: &Device, what: &str) {
    let mut words = what.split(',');
    let (rows, length) = words.next().and_then(|s| s.split_once('x')).expect("ROWSxLENGTH");
    let [rows, length] = [rows, length].map(|n| n.parse::<usize>().expect("a number"));
    let mut config = TrainConfig::new(1e-4).schedule(Schedule::Constant).max_grad_norm(1.0);
    let (mut steps, mut parts, mut peak, mut budget, mut dpo) = (6, false, false, None, false);
    let mut apart = false;
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("steps", n) => steps = n.parse().expect("a number"),
            ("recompute", "none") => config.recompute = Recompute::None,
            ("allbut", n) => config.recompute = Recompute::AllBut(n.parse().expect("a number")),
            ("recompute", n) => config.recompute = Recompute::Every(n.parse().expect("a number")),
            ("budget", gib) => budget = Some(gib.parse::<u64>().expect("a number") << 30),
            ("chunk", n) => config.loss_chunk = Some(n.parse().expect("a number")),
            ("mlpchunk", n) => config.mlp_chunk = Some(n.parse().expect("a number")),
            ("keep", "outputs") => config.keep = Keep::Outputs,
            ("keep", "attention") => config.keep = Keep::Attention,
            ("keep", "all") => config.keep = Keep::All,
            ("keep", n) => config.keep_attention_of = n.parse().expect("a number"),
            ("offload", "") => config.offload = true,
            ("adamw8bit", "") => config.optimizer = OptimizerConfig::adamw_8bit(),
            ("parts", "") => parts = true,
            ("dpo", "") => dpo = true,
            ("apart", "") => apart = true,
            ("peak", "") => peak = true,
            _ => panic!("no setting `{word}`"),
        }
    }
    let vocabulary = model.config.vocab_size as u64;
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state >> 33) % vocabulary) as u32
    };
    let mut sample = |prompt: &[u32]| {
        let answer = (prompt.len()..length).map(|_| random());
        let ids: Vec<u32> = prompt.iter().copied().chain(answer).collect();
        let loss_mask = (0..length).map(|place| place >= prompt.len()).collect();
        Sample { ids, loss_mask }
    };
    let data = if dpo {
        let pairs = (0..rows).map(|_| {
            let chosen = sample(&[]);
            let prompt = &chosen.ids[..length / 2];
            let loss_mask = (0..length).map(|place| place >= length / 2).collect();
            let rejected = sample(prompt);
            [Sample { loss_mask, ..chosen.clone() }, rejected]
        });
        Dataset::from_pairs(pairs.collect::<Vec<_>>())
    } else {
        Dataset::from_samples((0..rows).map(|_| sample(&[])).collect::<Vec<_>>())
    };
    let data = data.expect("samples");
    let rows = data.len();
    config.batches = BatchConfig {
        size: rows / data.samples_per_example(),
        shuffle: false,
        share_prompts: !apart,
        ..BatchConfig::default()
    };
    config.epochs = f64::from(steps);
    config.log_steps = 2;
    device.memory_cleanup();
    println!("\n{what}: {}", memory(device));
    let plan = MemoryPlan::new(&model.config)
        .on(device)
        .quantize(QuantConfig::nf4().double_quant(true))
        .dtype(model.dtype)
        .host_embeddings(host_embeddings())
        .fp8(fp8())
        .adapter(&lora())
        .expect("it was attached")
        .train(&config)
        // Both answers of a pair in a row, and their prompt once.
        .rows(if dpo && !apart { rows / 2 } else { rows })
        .length(if dpo && !apart { length + length / 2 } else { length });
    let plan = match budget {
        None => plan,
        Some(bytes) => {
            config = plan.train_within(bytes).expect("a step fits");
            plan.train(&config)
        }
    };
    let TrainConfig { recompute, keep, keep_attention_of, .. } = &config;
    println!("{recompute:?}, {keep:?}, attention of {keep_attention_of}, planned: {plan}");
    let watch = peak.then(|| Watch::start(device));
    let trainer = Trainer::new(config).observe(Print(device.clone()));
    let report = match dpo {
        true => trainer.fit_with(Dpo::new(0.1), model, &data, None),
        false => trainer.fit(model, &data, None),
    };
    if let Some(watch) = watch {
        let [peak, planned] = [watch.end(), plan.total()].map(|bytes| bytes as f64 / GIB);
        println!("PEAK {what}: {peak:.2} GiB in use, planned {planned:.2}");
    }
    let report = match report {
        Ok(report) => report,
        Err(error) => return println!("{what}: {error}"),
    };
    let mut seconds: Vec<f64> = report.log.iter().skip(1).map(|line| line.step_seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    println!(
        "RESULT {what}: {:.0} tokens/s, {:.0} ms a step, {}",
        (rows * length) as f64 / median,
        median * 1e3,
        memory(device),
    );
    if parts {
        *model = model.clone().train();
        Parts { model, device, rows, length }.print();
        *model = model.valid();
    }
}

/// The parts of a step, each alone.
struct Parts<'a> {
    model: &'a Llama,
    device: &'a Device,
    rows: usize,
    length: usize,
}

impl Parts<'_> {
    fn time<T>(&self, mut call: impl FnMut() -> T) -> f64 {
        drop((0..2).map(|_| call()).collect::<Vec<T>>());
        let mut times: Vec<f64> = (0..5)
            .map(|_| {
                self.device.sync().expect("the device works");
                let start = Instant::now();
                let kept = call();
                self.device.sync().expect("the device works");
                drop(kept);
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[2]
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let normal = burn::tensor::Distribution::Normal(0.0, 1.0);
        Tensor::<D>::random(shape, normal, self.device).cast(self.model.dtype)
    }

    /// Forward, and forward with backward, of a function of one tensor; prints both and their
    /// difference, `count` times a step.
    fn row<const D: usize, const E: usize>(
        &self,
        name: &str,
        count: usize,
        x: Tensor<D>,
        plain: impl Fn(Tensor<D>) -> Tensor<E>,
        tracked: impl Fn(Tensor<D>) -> Tensor<E>,
    ) {
        let forward = self.time(|| plain(x.clone()));
        let grad = plain(x.clone()).ones_like();
        let both = self.time(|| {
            let x = x.clone().autodiff().require_grad();
            let mut found = pull_back(tracked(x.clone()), grad.clone()).backward();
            let dx = x.grad_remove(&mut found);
            (dx, found)
        });
        println!(
            "| {name} | {count} | {:.2} | {:.2} | {:.0} |",
            forward * 1e3,
            both * 1e3,
            (forward + both) * count as f64 * 1e3,
        );
    }

    fn print(&self) {
        let Self { model, device, rows, length } = *self;
        let config = &model.config;
        let plain = model.valid();
        let segments = Segments::whole(rows, length);
        let context = plain.context(&segments);
        let hidden = self.random([rows, length, config.hidden_size]);
        let layers = model.model.layers.len();
        println!("| part | a step | forward ms | forward + backward ms | of a step ms |");
        println!("|---|---|---|---|---|");
        self.row(
            "layer",
            layers,
            hidden.clone(),
            |x| CausalLm::layer(&plain, 1, x, &context),
            |x| CausalLm::layer(model, 1, x, &context),
        );
        let (layer, layer_plain) = (&model.model.layers[1], &plain.model.layers[1]);
        for ((name, linear), (_, plain)) in linears(layer).into_iter().zip(linears(layer_plain)) {
            let x = self.random([rows, length, linear.base.shape()[1]]);
            self.row(name, layers, x, |x| plain.forward(x), |x| linear.forward(x));
        }
        let attention_spec = &layer.self_attn.spec;
        let inner = config.layers[1].feed_forward.mlp().intermediate_size;
        let heads = |count| self.random([rows, count, length, attention_spec.head_dim]);
        let (k, v) = (heads(attention_spec.num_kv_heads), heads(attention_spec.num_kv_heads));
        let (k_grad, v_grad) =
            (k.clone().autodiff().require_grad(), v.clone().autodiff().require_grad());
        let spec = AttentionSpec { scale: attention_spec.scale, window: None };
        self.row(
            "attention",
            layers,
            heads(attention_spec.num_heads),
            |q| attention(q, k.clone(), v.clone(), context.spans.clone(), spec),
            |q| attention(q, k_grad.clone(), v_grad.clone(), context.spans.clone(), spec),
        );
        let norm = plain.model.norm.weight.val();
        let rms = |x| rms_norm(x, norm.clone(), config.norm);
        self.row("rms_norm", 2 * layers, hidden.clone(), rms, rms);
        let up = self.random([rows, length, inner]);
        let up_grad = up.clone().autodiff().require_grad();
        self.row(
            "swiglu",
            layers,
            self.random([rows, length, inner]),
            |gate| gated(gate, up.clone(), Activation::Silu),
            |gate| gated(gate, up_grad.clone(), Activation::Silu),
        );
        let turn = |x| rotate(x, context.positions.clone(), context.tables[0].clone());
        let shape = [rows, length, attention_spec.num_heads, attention_spec.head_dim];
        self.row("rotate q", layers, self.random(shape), turn, turn);
        let add = |x: Tensor<3>| x + hidden.clone();
        self.row("residual", 2 * layers, hidden.clone(), add, add);
        let tokens = 1024.min(rows * length);
        let targets = TensorData::new(vec![1i32; tokens], [tokens]);
        let targets = Tensor::<1, Int>::from_data(targets, (device, DType::I32));
        let head = self.time(|| {
            let x = self.random([tokens, config.hidden_size]).autodiff().require_grad();
            let logits = CausalLm::head(model, x.clone(), &context);
            let found = cross_entropy(logits.clone().inner(), targets.clone(), 0.0);
            let mut grads = pull_back(logits, found.grad).backward();
            (x.grad_remove(&mut grads), found.loss)
        });
        let count = (rows * length).div_ceil(tokens);
        let all = head * count as f64 * 1e3;
        println!("| head and loss of {tokens} tokens | {count} | | {:.2} | {all:.0} |", head * 1e3);
    }
}

/// Linear layers of a decoder layer.
fn linears(layer: &DecoderLayer) -> Vec<(&'static str, AdaptedLinear)> {
    let (attention, mlp) = (&layer.self_attn, layer.mlp.as_ref());
    let all = [
        ("qkv_proj", attention.qkv_proj.as_ref()),
        ("q_proj", attention.q_proj.as_ref()),
        ("k_proj", attention.k_proj.as_ref()),
        ("v_proj", attention.v_proj.as_ref()),
        ("o_proj", Some(&attention.o_proj)),
        ("gate_up_proj", mlp.and_then(|mlp| mlp.gate_up_proj.as_ref())),
        ("gate_proj", mlp.and_then(|mlp| mlp.gate_proj.as_ref())),
        ("up_proj", mlp.and_then(|mlp| mlp.up_proj.as_ref())),
        ("down_proj", mlp.map(|mlp| &mlp.down_proj)),
    ];
    all.into_iter().filter_map(|(name, linear)| Some((name, linear?.clone()))).collect()
}
