//! Generation, against forward passes over the whole text.

use crate::common::*;
use burn::{module::Module, tensor::FloatDType};
use burn_lora_adapter::{AdaptableExt, BASE, Init, LoraConfig, Selection};
use burn_lora_llama::{
    GenerateConfig, GenerateExt, Generated, Llama, Segments, Stopped, Tokenizer,
};
use burn_lora_quant::QuantConfig;
use std::ops::ControlFlow;

fn model(variant: &str) -> Llama {
    let loader = Llama::from_pretrained(golden(variant)).dtype(FloatDType::F32);
    loader.load(&device()).unwrap()
}

fn run(model: &Llama, prompts: &[Vec<u32>], config: &GenerateConfig) -> Vec<Generated> {
    model.generate(prompts, config, |_, _| ControlFlow::Continue(())).unwrap()
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![5, 9, 33, 71, 4, 18], vec![40, 7], vec![11, 60, 61, 62]]
}

/// The likeliest tokens, each from a forward pass over all before it.
fn without_cache(model: &Llama, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<i32> = prompt.iter().map(|token| *token as i32).collect();
    for _ in 0..count {
        let length = tokens.len();
        let all = int(tokens.clone(), [1, length], &device());
        let logits = vec(model.forward(all, &Segments::whole(1, length)));
        let last = &logits[logits.len() - model.config.vocab_size..];
        let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
        tokens.push(best as i32);
    }
    tokens[prompt.len()..].iter().map(|token| *token as u32).collect()
}

#[test]
fn a_cache_and_padding_change_nothing() {
    for variant in VARIANTS {
        let mut model = model(variant);
        // Not the end-of-text token of the goldens' configuration.
        model.config.raw["eos_token_id"] = serde_json::Value::Null;
        model.load_adapter("default", golden(variant).join("lora_all")).unwrap();
        let together = run(&model, &prompts(), &GenerateConfig::new(6));
        for (prompt, found) in prompts().iter().zip(&together) {
            assert_eq!(found.stopped, Stopped::Length);
            assert_eq!(found.tokens, without_cache(&model, prompt, 6), "{variant} {prompt:?}");
            let alone = run(&model, std::slice::from_ref(prompt), &GenerateConfig::new(6));
            assert_eq!(alone[0], *found);
        }
    }
}

/// LongRoPE changes its frequencies after 16 tokens: keys from before are those of another table
/// (testdata/decoders/generate.py).
#[test]
fn a_cache_is_filled_anew_when_frequencies_change() {
    let folder = golden("decoders").join("phi4_mini");
    let model = Llama::from_pretrained(&folder).dtype(FloatDType::F32).load(&device()).unwrap();
    let text = std::fs::read_to_string(folder.join("generated.json")).unwrap();
    let found: std::collections::HashMap<String, Vec<Vec<u32>>> =
        serde_json::from_str(&text).unwrap();
    let config = GenerateConfig::new(12);
    for (prompt, expected) in found["prompts"].iter().zip(&found["alone"]) {
        assert_eq!(without_cache(&model, prompt, 12), *expected);
        let alone = run(&model, std::slice::from_ref(prompt), &config);
        assert_eq!(alone[0].tokens, *expected, "{prompt:?}");
    }
    let together = run(&model, &found["uneven"], &config);
    let together: Vec<_> = together.into_iter().map(|row| row.tokens).collect();
    assert_eq!(together, found["together"]);
}

/// Several requests use one model, each with adapters of its own.
#[test]
fn adapters_come_with_the_request() {
    let mut model = model("gqa");
    model.config.raw["eos_token_id"] = serde_json::Value::Null;
    model.load_adapter("all", golden("gqa").join("lora_all")).unwrap();
    let lora = LoraConfig::new(4, 64).targets(["q_proj", "down_proj", "lm_head"]);
    model.add_adapter("other", &lora.init(Init::Random)).unwrap();
    let requests = [
        Selection::base(),
        Selection::adapters(["all"]),
        Selection::adapters(["other"]),
        Selection::rows(["other", BASE, "all"]),
    ];
    let expected = requests.clone().map(|selection| {
        model.select(selection).unwrap();
        run(&model, &prompts(), &GenerateConfig::new(6))
    });
    assert_ne!(expected[1], expected[2]);
    for row in 0..3 {
        assert_eq!(expected[3][row], expected[[2, 0, 1][row]][row]);
    }
    model.select(Selection::base()).unwrap();
    let model = &model;
    std::thread::scope(|scope| {
        let threads = requests.map(|selection| {
            let config = GenerateConfig::new(6).adapters(model.activate(selection).unwrap());
            scope.spawn(move || run(model, &prompts(), &config))
        });
        for (thread, expected) in threads.into_iter().zip(expected) {
            assert_eq!(thread.join().unwrap(), expected);
        }
    });
}

#[test]
fn a_packed_model_in_training_generates() {
    let model = Llama::from_pretrained(golden("gqa"))
        .quantize(QuantConfig::nf4().double_quant(true))
        .dtype(FloatDType::F32)
        .load(&device())
        .unwrap();
    let expected = without_cache(&model, &prompts()[0], 4);
    let model = model.with_adapter(&LoraConfig::new(4, 8).all_linear()).unwrap().train();
    let found = run(&model, &prompts()[..1], &GenerateConfig::new(4));
    assert_eq!(found[0].tokens, expected);
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let model = model("gqa");
    let config = GenerateConfig::new(12).temperature(1.5).top_k(40).top_p(0.95).min_p(0.01);
    let config = config.repetition_penalty(1.1);
    let of = |seed: u64| run(&model, &prompts(), &config.clone().seed(seed));
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    // Whatever the other rows are.
    let alone = run(&model, &prompts()[..1], &config.clone().seed(1));
    assert_eq!(alone[0], of(1)[0]);
}

#[test]
fn settings_narrow_down() {
    let model = model("gqa");
    let greedy = run(&model, &prompts(), &GenerateConfig::new(5));
    let hot = GenerateConfig::new(5).temperature(2.0);
    for config in [hot.clone().top_k(1), hot.clone().top_p(1e-6), hot.clone().min_p(1.0)] {
        assert_eq!(run(&model, &prompts(), &config), greedy, "{config:?}");
    }
    assert_ne!(run(&model, &prompts(), &hot), greedy);
    // A penalty without end leaves no token twice.
    let penalty = GenerateConfig::new(20).repetition_penalty(1e30);
    let tokens = &run(&model, &prompts()[..1], &penalty)[0].tokens;
    let distinct: std::collections::HashSet<_> = tokens.iter().collect();
    assert_eq!(distinct.len(), tokens.len());
}

#[test]
fn rows_end_each_for_itself() {
    let model = model("gqa");
    let free = run(&model, &prompts(), &GenerateConfig::new(8));
    let stop = free[0].tokens[2];
    let first = free[0].tokens.iter().position(|token| *token == stop).unwrap();
    let found = run(&model, &prompts(), &GenerateConfig::new(8).stop_token(stop));
    assert_eq!((found[0].tokens.len(), found[0].stopped), (first, Stopped::Token));
    for (free, found) in free.iter().zip(&found) {
        assert!(free.tokens.starts_with(&found.tokens));
    }
    let config = GenerateConfig::new(8);
    let mut seen = vec![];
    let found = model.generate(&prompts(), &config, |row, token| {
        seen.push((row, token));
        if row == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let found = found.unwrap();
    assert_eq!((found[1].tokens.len(), found[1].stopped), (1, Stopped::Callback));
    assert_eq!(found[0], free[0]);
    assert_eq!(seen.len(), found.iter().map(|row| row.tokens.len()).sum::<usize>());
}

#[test]
fn what_cannot_be_generated_is_named() {
    let model = model("gqa");
    let error = |prompts: &[Vec<u32>], config: &GenerateConfig| {
        let found = model.generate(prompts, config, |_, _| ControlFlow::Continue(()));
        found.unwrap_err().to_string()
    };
    let good = GenerateConfig::new(2);
    assert!(error(&[vec![1], vec![]], &good).contains("number 1, empty"));
    assert!(error(&[vec![128]], &good).contains("vocabulary has 128"));
    let cases = [
        (good.clone().temperature(-1.0), "temperature is -1"),
        (good.clone().top_p(0.0), "top_p is 0"),
        (good.clone().min_p(2.0), "min_p is 2"),
        (good.clone().repetition_penalty(f32::NAN), "repetition_penalty is NaN"),
        (good.clone().stop(""), "stop is"),
    ];
    for (config, expected) in cases {
        let found = error(&[vec![1]], &config);
        assert!(found.contains(expected), "{found}");
    }
    assert!(run(&model, &[], &good).is_empty());
    assert!(run(&model, &[vec![1]], &GenerateConfig::new(0))[0].tokens.is_empty());
}

#[test]
#[ignore = "needs BURN_LORA_MODELS"]
fn text_stops_at_strings() {
    let path = models().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let tokenizer = Tokenizer::from_pretrained(&path).unwrap();
    let model = Llama::from_pretrained(&path).load(&device()).unwrap();
    let prompt = ["The capital of France is"];
    let go = |_: usize, _: &str| ControlFlow::Continue(());
    let free = model.generate_text(&tokenizer, &prompt, &GenerateConfig::new(12), go).unwrap();
    assert!(free[0].text.starts_with(" Paris"), "{}", free[0].text);
    let mut streamed = String::new();
    let config = GenerateConfig::new(12).stop("aris");
    let stopped = model.generate_text(&tokenizer, &prompt, &config, |_, text| {
        streamed += text;
        ControlFlow::Continue(())
    });
    let stopped = &stopped.unwrap()[0];
    assert_eq!((stopped.text.as_str(), stopped.stopped), (" P", Stopped::Text));
    assert_eq!(streamed, stopped.text);
}
