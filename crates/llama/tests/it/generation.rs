//! Texts that join a generation at any token, against each alone.

use crate::common::*;
use burn::{
    module::Module,
    tensor::{DType, FloatDType},
};
use burn_lora_adapter::{AdaptableExt, BASE, Init, LoraConfig, Selection};
use burn_lora_llama::{
    GenerateConfig, GenerateExt, Generation, Llama, LlamaConfig, LlamaError, SaveOptions, Stopped,
};
use burn_lora_quant::QuantConfig;
use std::{collections::BTreeMap, ops::ControlFlow};

fn model() -> Llama {
    let loader = Llama::from_pretrained(golden("gqa")).dtype(FloatDType::F32);
    let mut model = loader.load(&device()).unwrap();
    model.config.raw["eos_token_id"] = serde_json::Value::Null;
    let lora = LoraConfig::new(4, 64).all_linear().init(Init::Random);
    model.add_adapter("first", &lora.clone().seed(1)).unwrap();
    model.add_adapter("second", &lora.seed(2)).unwrap();
    model.valid()
}

/// Prompts and settings, some with adapters and sampling of their own, for so many more tokens than a few.
fn texts(model: &Llama, more: usize) -> Vec<(Vec<u32>, GenerateConfig)> {
    let active = |names: &[&str]| model.activate(Selection::adapters(names.to_vec())).unwrap();
    let (base, first, second) = (active(&[]), active(&["first"]), active(&["second"]));
    let config = |count| GenerateConfig::new(count + more);
    vec![
        (vec![5, 9, 33, 71, 4, 18], config(9).adapters(first.clone())),
        (vec![40, 7], config(4).adapters(base.clone())),
        (vec![11, 60, 61, 62], config(12).adapters(second.clone()).temperature(0.9).seed(5)),
        (vec![3], config(1).adapters(first.clone())),
        ((0..40).map(|at| at * 3 % 128).collect(), config(6).adapters(second)),
        (vec![90, 91], config(7).adapters(base).repetition_penalty(1.3)),
        (vec![17, 5, 44], config(5).adapters(first)),
    ]
}

fn alone(model: &Llama, prompt: &[u32], config: &GenerateConfig) -> Vec<u32> {
    let found = model.generate(&[prompt.to_vec()], config, |_, _| ControlFlow::Continue(()));
    found.unwrap().remove(0).tokens
}

#[test]
fn texts_join_and_end_at_any_token() {
    let model = model();
    let texts = texts(&model, 0);
    for rows in [1, 2, 3, 8] {
        for pause in [0, 1, 3] {
            let mut generation = Generation::new(&model, rows);
            let mut found: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
            let (mut ended, mut steps) = (vec![], 0);
            let mut coming = texts.iter().enumerate().peekable();
            while coming.peek().is_some() || !generation.is_empty() {
                if steps % (pause + 1) == 0
                    && let Some((number, (prompt, config))) = coming.next()
                {
                    generation.push(number as u64, prompt.clone(), config.clone()).unwrap();
                }
                assert!(generation.running() <= rows);
                for next in generation.step().unwrap() {
                    found.entry(next.id).or_default().extend(next.token);
                    ended.extend(next.stopped.map(|_| next.id));
                }
                steps += 1;
            }
            ended.sort_unstable();
            assert_eq!(ended, (0..texts.len() as u64).collect::<Vec<_>>());
            for (number, (prompt, config)) in texts.iter().enumerate() {
                let expected = alone(&model, prompt, config);
                assert_eq!(found[&(number as u64)], expected, "{number}, {rows} rows, {pause}");
            }
        }
    }
}

#[test]
fn a_text_can_be_stopped() {
    let model = model();
    let texts = texts(&model, 0);
    let mut generation = Generation::new(&model, 2);
    for (number, (prompt, config)) in texts[..3].iter().enumerate() {
        generation.push(number as u64, prompt.clone(), config.clone()).unwrap();
    }
    assert_eq!((generation.running(), generation.waiting()), (0, 3));
    generation.step().unwrap();
    assert_eq!((generation.running(), generation.waiting()), (2, 1));
    generation.stop(0);
    generation.stop(7); // It is not there.
    let mut found = vec![];
    while !generation.is_empty() {
        found.extend(generation.step().unwrap());
    }
    assert!(found.iter().all(|next| next.id != 0));
    let of_third = found.iter().filter(|next| next.id == 2).filter_map(|next| next.token);
    assert_eq!(of_third.collect::<Vec<_>>(), alone(&model, &texts[2].0, &texts[2].1));
    assert_eq!(found.last().unwrap().stopped, Some(Stopped::Length));
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let model = model();
    let mut generation = Generation::new(&model, 2);
    let mut refused = |prompt: Vec<u32>, config: GenerateConfig| {
        let error = generation.push(1, prompt, config).unwrap_err();
        let LlamaError::Generate { field, .. } = error else { panic!("{error}") };
        assert!(generation.is_empty());
        field
    };
    assert_eq!(refused(vec![], GenerateConfig::new(1)), "prompt");
    assert_eq!(refused(vec![1000], GenerateConfig::new(1)), "prompt");
    assert_eq!(refused(vec![1], GenerateConfig::new(0)), "max_new_tokens");
    assert_eq!(refused(vec![1], GenerateConfig::new(1).top_p(0.0)), "top_p");
    let rows = model.activate(Selection::rows(["first", "second"])).unwrap();
    assert_eq!(refused(vec![1], GenerateConfig::new(1).adapters(rows.clone())), "adapters");
    // Rows for another number of prompts.
    let config = GenerateConfig::new(1).adapters(rows);
    let error = model.generate(&[vec![1]], &config, |_, _| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("there are 1 prompts"), "{error}");
}

/// More prompts than are answered at the same time, and room that grows.
#[test]
fn many_prompts_wait_for_their_turn() {
    let model = model();
    let prompts: Vec<Vec<u32>> =
        (0..70u32).map(|row| (0..1 + row % 5).map(|at| (row * 7 + at) % 128).collect()).collect();
    let config = GenerateConfig::new(3).temperature(1.0).seed(3).seed_by_row(true);
    let found = model.generate(&prompts, &config, |_, _| ControlFlow::Continue(())).unwrap();
    for (row, (prompt, found)) in prompts.iter().zip(&found).enumerate().step_by(9) {
        let config = GenerateConfig::new(3).temperature(1.0).seed(3 + row as u64);
        assert_eq!(found.tokens, alone(&model, prompt, &config), "{row}");
    }
}

/// Texts that keep coming do not stop those that are there.
#[test]
fn texts_that_keep_coming_stop_no_other() {
    let model = model();
    let mut generation = Generation::new(&model, 2);
    generation.push(0, vec![5, 9, 33], GenerateConfig::new(100)).unwrap();
    let mut found = 0;
    for id in 1..=20 {
        generation.push(id, vec![7, 8], GenerateConfig::new(1)).unwrap();
        let step = generation.step().unwrap();
        found += step.iter().filter(|next| next.id == 0).count();
    }
    assert!(found >= 9, "{found} of 20");
}

/// A text that joins and is longer than the model's first frequencies are for: those that are there are read again, and go on
/// as they would in one batch with it.
#[test]
fn a_text_that_changes_frequencies_joins() {
    let folder = golden("decoders").join("phi4_mini");
    let model = Llama::from_pretrained(&folder).dtype(FloatDType::F32).load(&device()).unwrap();
    let text = std::fs::read_to_string(folder.join("generated.json")).unwrap();
    let golden: BTreeMap<String, Vec<Vec<u32>>> = serde_json::from_str(&text).unwrap();
    let mut prompts = golden["prompts"].clone();
    prompts.sort_by_key(Vec::len);
    let (mut short, long) = (prompts.remove(0), prompts.pop().unwrap());
    let long: Vec<u32> = long.iter().copied().cycle().take(200).collect();
    let mut generation = Generation::new(&model, 2);
    generation.push(0, short.clone(), GenerateConfig::new(14)).unwrap();
    let mut after = vec![];
    for step in 0.. {
        if step == 4 {
            generation.push(1, long.clone(), GenerateConfig::new(10)).unwrap();
        }
        for next in generation.step().unwrap().into_iter().filter(|next| next.id == 0) {
            if step < 4 { short.extend(next.token) } else { after.extend(next.token) }
        }
        if generation.is_empty() {
            break;
        }
    }
    let go_on = |_: usize, _: u32| ControlFlow::Continue(());
    let together = model.generate(&[short, long], &GenerateConfig::new(10), go_on).unwrap();
    assert_eq!(after, together[0].tokens);
}

/// A model that CUDA's kernels for few rows take, in 4 bits or in 16.
fn of_kernels(quantize: bool) -> Llama {
    let config = r#"{
        "architectures": ["LlamaForCausalLM"], "vocab_size": 512, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": false, "max_position_embeddings": 512
    }"#;
    let config = LlamaConfig::from_json(config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let random = Llama::random(&config, 3, &device());
    random.save_pretrained(&folder, &SaveOptions::default()).unwrap();
    let dtypes = [FloatDType::BF16, FloatDType::F16];
    let dtype = dtypes.into_iter().find(|dtype| device().supports_dtype(DType::from(*dtype)));
    let loader = Llama::from_pretrained(folder.path()).dtype(dtype.unwrap_or(FloatDType::F32));
    let loader = if quantize { loader.quantize(QuantConfig::nf4()) } else { loader };
    let mut model = loader.load(&device()).unwrap();
    let lora = LoraConfig::new(8, 32).all_linear().init(Init::Random);
    for (seed, name) in (1..).zip(["a", "b", "c"]) {
        model.add_adapter(name, &lora.clone().seed(seed)).unwrap();
    }
    model.valid()
}

/// Texts come and go, and rows change hands between adapters, while steps are recorded: each goes on as alone. (Kernels for
/// other numbers of rows round otherwise, so that tokens that are about as likely may change places; what comes after that is
/// another text.)
#[test]
fn rows_change_hands_between_adapters() {
    for quantize in [true, false] {
        let model = of_kernels(quantize);
        let active = |name: &str| {
            model.activate(Selection::adapters(Some(name).filter(|name| *name != BASE))).unwrap()
        };
        let texts: Vec<_> = (0..24u32)
            .map(|number| {
                let prompt: Vec<u32> = (0..3 + number % 4).map(|at| number * 17 + at).collect();
                let name = ["a", "b", BASE, "c", "b"][number as usize % 5];
                let config = GenerateConfig::new(12 + number as usize % 7 * 6);
                (prompt, config.adapters(active(name)))
            })
            .collect();
        let mut generation = Generation::new(&model, 12);
        let mut found: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut coming = texts.iter().enumerate().peekable();
        let mut step = 0;
        while coming.peek().is_some() || !generation.is_empty() {
            // Some at first, then one in every fourth step.
            while let Some((number, (prompt, config))) =
                coming.next_if(|(number, _)| *number < 6 + step / 4)
            {
                generation.push(number as u64, prompt.clone(), config.clone()).unwrap();
            }
            for next in generation.step().unwrap() {
                found.entry(next.id).or_default().extend(next.token);
            }
            step += 1;
        }
        let (mut same, mut all) = (0, 0);
        for (number, (prompt, config)) in texts.iter().enumerate() {
            let mut alone = Generation::new(&model, 1);
            alone.push(0, prompt.clone(), config.clone().log_probs(16)).unwrap();
            let found = &found[&(number as u64)];
            for at in 0.. {
                if alone.is_empty() {
                    assert_eq!(found.len(), at, "{number}");
                    break;
                }
                let next = alone.step().unwrap().remove(0);
                all += 1;
                if next.token == Some(found[at]) {
                    same += 1;
                    continue;
                }
                let likeliest = next.log_probs.unwrap().likeliest;
                let own = likeliest.iter().find(|(token, _)| *token == found[at]);
                assert!(
                    own.is_some_and(|own| own.1 > likeliest[0].1 - 0.05),
                    "{number}, token {at}: {} instead of {likeliest:?}",
                    found[at]
                );
                break;
            }
        }
        assert!(same * 10 > all * 9, "{same} of {all} tokens are compared");
    }
}

/// What is looked up and checked is what would have been generated, in fewer steps.
#[test]
fn looking_up_changes_nothing() {
    let model = model();
    for rows in [1, 3] {
        let mut generation = Generation::new(&model, rows);
        let texts: Vec<_> = texts(&model, 30)
            .into_iter()
            .enumerate()
            .map(|(number, (prompt, mut config))| {
                // What repeats itself, and ends at any place of a draft.
                let prompt: Vec<u32> = prompt.iter().copied().cycle().take(14 + number).collect();
                if number % 3 == 1 {
                    config = config.log_probs(2);
                }
                (prompt, config)
            })
            .collect();
        for (number, (prompt, config)) in texts.iter().enumerate() {
            let lookup = [4, 0, 7][number % 3];
            let config = config.clone().prompt_lookup(lookup);
            generation.push(number as u64, prompt.clone(), config).unwrap();
        }
        let mut found: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        while !generation.is_empty() {
            for next in generation.step().unwrap() {
                assert_eq!(next.log_probs.is_some(), next.id % 3 == 1);
                found.entry(next.id).or_default().extend(next.token);
            }
        }
        for (number, (prompt, config)) in texts.iter().enumerate() {
            assert_eq!(found[&(number as u64)], alone(&model, prompt, config), "{number}, {rows}");
        }
    }
    // A small model goes round in circles in the end.
    let config = GenerateConfig::new(200).adapters(model.activate(Selection::base()).unwrap());
    let (prompt, mut steps, mut found) = (vec![5, 9, 33], 0, vec![]);
    let mut generation = Generation::new(&model, 1);
    generation.push(0, prompt.clone(), config.clone().prompt_lookup(6)).unwrap();
    while !generation.is_empty() {
        found.extend(generation.step().unwrap().into_iter().filter_map(|next| next.token));
        steps += 1;
    }
    assert_eq!(found, alone(&model, &prompt, &config));
    assert!(steps * 3 < found.len() * 2, "{steps} steps for {} tokens: {found:?}", found.len());
    // Nor does a callback that ends a text see what came after.
    let prompt = vec![vec![3, 4, 3, 4, 3, 4, 3, 4]];
    for most in 1..12 {
        let mut seen = 0;
        let found = model.generate(&prompt, &GenerateConfig::new(30).prompt_lookup(5), |_, _| {
            seen += 1;
            if seen == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let found = found.unwrap().remove(0);
        assert_eq!((found.tokens.len(), seen), (most, most));
        assert_eq!(found.stopped, Stopped::Callback);
    }
}
