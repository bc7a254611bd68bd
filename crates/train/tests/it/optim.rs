//! The optimizers against PyTorch and bitsandbytes (`testdata/optim.py`), and their checkpoints.

use crate::common::{device, panics};
use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_lora_train::{
    OptimizerConfig, TrainError,
    optim::{Optimizer, State, Update},
};
use safetensors::SafeTensors;
use std::{collections::BTreeMap, path::Path};

const STEPS: usize = 10;
const DECAY: f64 = 0.1;
const FACTOR: f32 = 0.5;

fn rate(step: usize) -> f64 {
    1e-2 / step as f64
}

/// What `optim.py` calls by this name: exact in float32, with some blocks of zeros.
fn noise(len: usize, step: usize) -> Vec<f32> {
    let value = |i: usize| {
        let x = (i as u32).wrapping_mul(2654435761).wrapping_add(step as u32 * 40503 + 12345);
        let x = (x ^ (x >> 15)).wrapping_mul(2246822519);
        let x = (x ^ (x >> 13)).wrapping_mul(3266489917);
        let bits = ((x ^ (x >> 16)) >> 8) as i32 - (1 << 23);
        let zero = i / 256 % 7 == 2;
        if zero { 0.0 } else { bits as f32 / (1 << 23) as f32 * 2f32.powi(-((i % 11) as i32)) }
    };
    (0..len).map(value).collect()
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.try_to_vec().unwrap()
}

/// One step on a parameter `p`.
fn step(running: &mut dyn Optimizer, param: Tensor<1>, step: usize, device: &Device) -> Tensor<1> {
    let grad = vector(noise(param.dims()[0], step), device);
    let factor = vector(vec![FACTOR], device);
    update(running, Update { path: "p", param, grad, rate: rate(step), decay: DECAY }, factor)
}

/// A step of one parameter.
fn update(running: &mut dyn Optimizer, update: Update<'_>, factor: Tensor<1>) -> Tensor<1> {
    running.begin();
    running.update(vec![update], &factor).remove(0)
}

/// The parameter and the state after all steps.
fn train(optimizer: OptimizerConfig, len: usize, device: &Device) -> (Vec<f32>, State) {
    let mut running = optimizer.init();
    let param = vector(noise(len, 1000), device);
    let param = (1..=STEPS).fold(param, |param, number| step(&mut *running, param, number, device));
    (floats(&param.into_data()), running.state())
}

fn golden() -> Vec<u8> {
    std::fs::read("../../testdata/optim.safetensors").unwrap()
}

fn golden_floats(file: &[u8], name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    bytemuck::pod_collect_to_vec(tensors.tensor(name).unwrap().data())
}

fn golden_bytes(file: &[u8], name: &str) -> Vec<u8> {
    SafeTensors::deserialize(file).unwrap().tensor(name).unwrap().data().to_vec()
}

/// The values are within `relative` of the expected ones, or of a tenth of the largest of them: sums
/// in which much cancelled out.
fn assert_close(found: &[f32], expected: &[f32], relative: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let most = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let allowed = relative * (expected.abs() + 0.1 * most);
        assert!((found - expected).abs() <= allowed, "{what}[{i}]: {found}, not {expected}");
    }
}

#[test]
fn adamw_is_that_of_pytorch() {
    let (file, device) = (golden(), device());
    for len in [1, 7, 256, 1000, 1027] {
        let (param, state) = train(OptimizerConfig::adamw(), len, &device);
        let expected = |name| golden_floats(&file, &format!("adamw.{len}.{name}"));
        assert_close(&param, &expected("param"), 2e-6, &format!("{len}.param"));
        for name in ["m", "v"] {
            let found = floats(&state[&format!("p.{name}")]);
            assert_close(&found, &expected(name), 2e-6, &format!("{len}.{name}"));
        }
    }
}

#[test]
fn small_parameters_keep_float_moments_under_adamw_8bit() {
    let (file, device) = (golden(), device());
    let (param, state) = train(OptimizerConfig::adamw_8bit(), 1000, &device);
    assert_close(&param, &golden_floats(&file, "adamw8bit.1000.param"), 2e-6, "param");
    for name in ["m", "v"] {
        let expected = golden_floats(&file, &format!("adamw8bit.1000.{name}"));
        assert_close(&floats(&state[&format!("p.{name}")]), &expected, 2e-6, name);
    }
}

/// Codes and absmax of `m` and `v`, as bitsandbytes has them.
struct Coded {
    codes: [Vec<u8>; 2],
    absmax: [Vec<f32>; 2],
}

impl Coded {
    fn golden(file: &[u8], prefix: &str) -> Self {
        let codes = ["m", "v"].map(|name| golden_bytes(file, &format!("{prefix}.{name}")));
        let absmax = ["m", "v"].map(|n| golden_floats(file, &format!("{prefix}.{n}_absmax")));
        Self { codes, absmax }
    }

    fn of(state: &State, len: usize) -> Self {
        let (words, absmax) =
            (state["p.codes"].try_to_vec::<u32>().unwrap(), floats(&state["p.absmax"]));
        let (m, v) = words.split_at(words.len() / 2);
        let codes = [m, v]
            .map(|words| words.iter().flat_map(|word| word.to_le_bytes()).take(len).collect());
        let (m, v) = absmax.split_at(absmax.len() / 2);
        Self { codes, absmax: [m, v].map(<[f32]>::to_vec) }
    }

    fn state(&self) -> State {
        let words = self.codes.iter().flat_map(|codes| codes.chunks(4)).map(|codes| {
            let mut bytes = [0; 4];
            bytes[..codes.len()].copy_from_slice(codes);
            u32::from_le_bytes(bytes)
        });
        let (words, absmax) = (words.collect::<Vec<_>>(), self.absmax.concat());
        let (count, blocks) = ([words.len()], [absmax.len()]);
        State::from([
            ("p.codes".to_owned(), TensorData::new(words, count)),
            ("p.absmax".to_owned(), TensorData::new(absmax, blocks)),
        ])
    }

    /// How far each code is from that of `other`. In a block of zeros a code says nothing.
    fn distances(&self, other: &Self) -> Vec<u8> {
        let distances = self.codes.iter().zip(&other.codes).flat_map(|(a, b)| {
            let codes = a.iter().zip(b).enumerate();
            codes.filter(|(i, _)| i / 256 % 7 != 2).map(|(_, (a, b))| a.abs_diff(*b))
        });
        distances.collect()
    }
}

#[test]
fn adamw_8bit_is_that_of_bitsandbytes() {
    let (file, device) = (golden(), device());
    for len in [4099, 4352] {
        let prefix = format!("adamw8bit.{len}");
        let expected = Coded::golden(&file, &prefix);

        // The last step, from their state before it.
        let mut running = OptimizerConfig::adamw_8bit().init();
        let before = Coded::golden(&file, &format!("{prefix}.before")).state();
        running.load(STEPS - 1, before, &lengths(len), Path::new("golden"), &device).unwrap();
        let param = vector(golden_floats(&file, &format!("{prefix}.before.param")), &device);
        let param = floats(&step(&mut *running, param, STEPS, &device).into_data());
        assert_close(&param, &golden_floats(&file, &format!("{prefix}.param")), 1e-6, "param");
        let found = Coded::of(&running.state(), len);
        for i in 0..2 {
            assert_close(&found.absmax[i], &expected.absmax[i], 1e-6, "absmax");
        }
        let distances = found.distances(&expected);
        let differ = distances.iter().filter(|distance| **distance > 0).count();
        println!("{len}: {differ} codes of {} differ after one step", distances.len());
        assert!(distances.iter().all(|distance| *distance <= 1) && differ <= 2, "{differ} differ");

        // All steps.
        let (param, state) = train(OptimizerConfig::adamw_8bit(), len, &device);
        let distances = Coded::of(&state, len).distances(&expected);
        let differ = distances.iter().filter(|distance| **distance > 0).count();
        println!("{len}: {differ} codes of {} differ after all steps", distances.len());
        assert!(differ <= distances.len() / 1000, "{differ} codes differ");
        assert_close(&param, &golden_floats(&file, &format!("{prefix}.param")), 1e-2, "param");
    }
}

#[test]
fn the_factor_multiplies_the_gradient() {
    let device = device();
    let update = |grad: f32, factor: f32| {
        let mut running = OptimizerConfig::AdamW { beta1: 0.9, beta2: 0.999, eps: 1.0 }.init();
        let [param, grad, factor] = [1.0, grad, factor].map(|value| vector(vec![value], &device));
        let input = Update { path: "p", param, grad, rate: 0.1, decay: 0.0 };
        (floats(&update(&mut *running, input, factor).into_data())[0], running.state())
    };
    let (with, without) = (update(3.0, 0.25), update(0.75, 1.0));
    assert_eq!(with, without);
    // rate · g / (|g| + eps)
    assert!((with.0 - (1.0 - 0.1 * 0.75 / 1.75)).abs() < 1e-6, "{}", with.0);
}

/// More parameters than one launch takes, of all kinds of lengths, and with two learning rates.
#[test]
fn parameters_in_one_call_are_updated_as_one_by_one() {
    let device = device();
    let lens: Vec<usize> =
        (0..70).map(|i| [0, 1, 7, 64, 1027, 4096, 5001, 9000][i % 8] + i / 8).collect();
    let exact = |optimizer: &_| is_ours(*optimizer) || std::env::var_os("BURN_LORA_GPU").is_none();
    for optimizer in ALL.into_iter().filter(exact) {
        let paths: Vec<_> = (0..lens.len()).map(|i| format!("p{i}")).collect();
        let run = |together: bool| {
            let mut running = optimizer.init();
            let params = lens.iter().enumerate().map(|(i, len)| noise(*len, 1000 + i));
            let mut params: Vec<_> = params.map(|values| vector(values, &device)).collect();
            for number in 1..=2 {
                let mut updates = vec![];
                for (i, param) in params.into_iter().enumerate() {
                    let grad = vector(noise(lens[i], 100 * number + i), &device);
                    let rate = if i % 3 == 0 { 0.01 } else { 0.1 };
                    updates.push(Update { path: &paths[i], param, grad, rate, decay: DECAY });
                }
                let factor = vector(vec![FACTOR], &device);
                running.begin();
                params = if together {
                    running.update(updates, &factor)
                } else {
                    let one = |one| running.update(vec![one], &factor).remove(0);
                    updates.into_iter().map(one).collect()
                };
            }
            let values: Vec<_> =
                params.into_iter().map(|param| floats(&param.into_data())).collect();
            (values, running.state())
        };
        let (together, alone) = (run(true), run(false));
        assert_eq!(together.0, alone.0, "{optimizer:?}");
        assert!(together.1 == alone.1, "{optimizer:?}: another state");
    }
}

/// Vectors that are views of others, as a factor from a row of numbers is.
#[test]
fn views_count_as_their_copies() {
    let device = device();
    for (optimizer, len) in ALL.into_iter().flat_map(|o| [(o, 100), (o, 5000)]) {
        let run = |view: bool| {
            let make = |values: Vec<f32>| {
                if !view {
                    return vector(values, &device);
                }
                let len = values.len();
                let longer = [vec![9.0; 64], values, vec![7.0; 64]].concat();
                vector(longer, &device).narrow(0, 64, len)
            };
            let mut running = optimizer.init();
            let mut param = make(noise(len, 1000));
            for step in 1..=2 {
                let (grad, factor) = (make(noise(len, step)), make(vec![FACTOR]));
                let input = Update { path: "p", param, grad, rate: 0.1, decay: DECAY };
                param = update(&mut *running, input, factor);
            }
            (floats(&param.into_data()), running.state())
        };
        assert_eq!(run(true), run(false), "{optimizer:?} {len}");
    }
}

#[test]
fn vectors_that_do_not_fit_are_refused() {
    let device = device();
    for (optimizer, len) in ALL.into_iter().map(|optimizer| (optimizer, 5000)) {
        let step = |param: usize, grad: usize, factor: usize, running: &mut dyn Optimizer| {
            let [param, grad, factor] =
                [param, grad, factor].map(|len| vector(vec![1.0; len], &device));
            update(running, Update { path: "p", param, grad, rate: 0.1, decay: 0.0 }, factor)
        };
        let text = "the length of a vector";
        panics(text, || step(len, len + 1, 1, &mut *optimizer.init()));
        panics(text, || step(len, 1, 1, &mut *optimizer.init()));
        panics(text, || step(len, len, 2, &mut *optimizer.init()));
        panics(text, || step(len, len, 0, &mut *optimizer.init()));
        let mut running = optimizer.init();
        step(len, len, 1, &mut *running);
        // Its state is as long as the parameter was.
        panics("", || step(len + 300, len + 300, 1, &mut *running));
        assert_eq!(step(0, 0, 1, &mut *optimizer.init()).dims(), [0]);
    }
}

/// What else holds a parameter, its gradient or a saved state keeps its values: updates in place are
/// not seen there.
#[test]
fn nothing_else_changes() {
    let device = device();
    for (optimizer, len) in
        [(OptimizerConfig::adamw(), 1000), (OptimizerConfig::adamw_8bit(), 5000)]
    {
        let mut running = optimizer.init();
        let param = vector(noise(len, 1000), &device);
        let (held, grad) = (param.clone(), vector(noise(len, 1), &device));
        let held_grad = grad.clone();
        let factor = vector(vec![FACTOR], &device);
        let input = Update { path: "p", param, grad, rate: 0.1, decay: 0.1 };
        let new = update(&mut *running, input, factor);
        let before = running.state();
        let values = floats(&new.clone().into_data());
        let newer = step(&mut *running, new.clone(), 2, &device);
        assert_eq!(floats(&held.into_data()), noise(len, 1000));
        assert_eq!(floats(&held_grad.into_data()), noise(len, 1));
        assert_eq!(floats(&new.into_data()), values);
        assert_ne!(floats(&newer.into_data()), values);
        assert_ne!(running.state(), before);
    }
}

fn lengths(len: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([("p".to_owned(), len)])
}

const ALL: [OptimizerConfig; 5] = [
    OptimizerConfig::lora_fa(),
    OptimizerConfig::adamw(),
    OptimizerConfig::adamw_8bit(),
    OptimizerConfig::Lion { beta1: 0.9, beta2: 0.99 },
    OptimizerConfig::Sgd { momentum: 0.9 },
];

/// Whether the step is a kernel of this project's. (Burn's own are fused in another way in each call.)
fn is_ours(optimizer: OptimizerConfig) -> bool {
    use OptimizerConfig::{AdamW, AdamW8bit, LoraFa};
    matches!(optimizer, AdamW { .. } | AdamW8bit { .. } | LoraFa { .. })
}

#[test]
fn a_resumed_run_is_the_unbroken_one() {
    let device = device();
    for optimizer in ALL {
        for len in [1027, 5001] {
            let mut running = optimizer.init();
            let mut param = vector(noise(len, 1000), &device);
            for number in 1..=STEPS {
                if number == 5 {
                    let state = running.state();
                    running = optimizer.init();
                    let file = Path::new("state");
                    running.load(number - 1, state, &lengths(len), file, &device).unwrap();
                    param = vector(floats(&param.into_data()), &device);
                }
                param = step(&mut *running, param, number, &device);
            }
            let (expected, state) = train(optimizer, len, &device);
            let ours = is_ours(optimizer);
            if ours || std::env::var_os("BURN_LORA_GPU").is_none() {
                assert_eq!(floats(&param.into_data()), expected, "{optimizer:?}");
                assert!(running.state() == state, "{optimizer:?}: another state");
            } else {
                // Burn's fusion cuts kernels elsewhere after a stop, and compilers contract
                // multiplications with sums.
                assert_close(&floats(&param.into_data()), &expected, 1e-5, "resumed");
            }
        }
    }
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let device = device();
    let file = Path::new("optimizer.safetensors");
    for optimizer in ALL {
        let (_, state) = train(optimizer, 5000, &device);
        let load = |state: State, len| {
            let result = optimizer.init().load(STEPS, state, &lengths(len), file, &device);
            let error = result.expect_err("it does not fit");
            assert!(matches!(error, TrainError::Format { .. }), "{error}");
            error.to_string()
        };
        let message = load(state.clone(), 5300);
        assert!(message.contains("`p."), "{message}");
        let mut more = state.clone();
        more.insert("q.m".to_owned(), TensorData::from([0.0f32]));
        let message = load(more, 5000);
        assert!(message.contains("`q.m`"), "{message}");
        for name in state.keys() {
            let mut state = state.clone();
            state.remove(name);
            let message = load(state, 5000);
            assert!(message.contains(file.to_str().unwrap()), "{message}");
        }
    }
}

#[test]
fn burns_optimizers_follow_their_formulas() {
    let device = device();
    let (rate, decay) = (0.01, 0.1);
    let (beta1, beta2, momentum) = (0.9, 0.99, 0.8);
    let mut lion = OptimizerConfig::Lion { beta1, beta2 }.init();
    let mut sgd = OptimizerConfig::Sgd { momentum }.init();
    let len = 40;
    let mut params = [(); 2].map(|()| vector(noise(len, 1000), &device));
    let mut expected =
        [(); 2].map(|()| noise(len, 1000).into_iter().map(f64::from).collect::<Vec<_>>());
    let mut m = [(); 2].map(|()| vec![0.0; len]);
    for number in 1..=3 {
        let grad = noise(len, number);
        for (running, param) in [&mut lion, &mut sgd].into_iter().zip(&mut params) {
            let factor = vector(vec![FACTOR], &device);
            let (value, grad) = (param.clone(), vector(grad.clone(), &device));
            let input = Update { path: "p", param: value, grad, rate, decay };
            *param = update(&mut **running, input, factor);
        }
        for (i, g) in grad.iter().map(|g| f64::from(g * FACTOR)).enumerate() {
            let direction = beta1 * m[0][i] + (1.0 - beta1) * g;
            m[0][i] = beta2 * m[0][i] + (1.0 - beta2) * g;
            m[1][i] = momentum * m[1][i] + g;
            expected[0][i] = expected[0][i] * (1.0 - rate * decay) - rate * direction.signum();
            expected[1][i] = expected[1][i] * (1.0 - rate * decay) - rate * m[1][i];
        }
    }
    for (param, expected) in params.into_iter().zip(expected) {
        for (found, expected) in floats(&param.into_data()).into_iter().zip(expected) {
            assert!((f64::from(found) - expected).abs() < 1e-6, "{found}, not {expected}");
        }
    }
}

#[test]
fn settings_are_written_as_they_are_read() {
    let read = |text: &str| serde_json::from_str::<OptimizerConfig>(text).unwrap();
    assert_eq!(read(r#"{"name": "adamw8bit"}"#), OptimizerConfig::adamw_8bit());
    assert_eq!(read(r#"{"name": "lorafa"}"#), OptimizerConfig::lora_fa());
    assert_eq!(read(r#"{"name": "lion"}"#), OptimizerConfig::Lion { beta1: 0.9, beta2: 0.99 });
    assert_eq!(read(r#"{"name": "sgd"}"#), OptimizerConfig::Sgd { momentum: 0.0 });
    for optimizer in ALL {
        assert_eq!(read(&serde_json::to_string(&optimizer).unwrap()), optimizer);
    }
}
