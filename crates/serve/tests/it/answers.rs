//! Answers are those of the model alone, whole or as they come.

use super::*;
use burn_lora_llama::Stopped;

const QUESTIONS: [&str; 3] = ["What does geom_point draw?", "scale", "How are colours chosen?"];

#[test]
fn chats_are_those_of_the_model_alone() {
    let folder = tempfile::tempdir().unwrap();
    let adapters = [adapter(1, folder.path()), adapter(2, folder.path())];
    let server =
        Running::start(ServeConfig::default(), &[("one", &adapters[0]), ("two", &adapters[1])]);
    let mut different = std::collections::BTreeSet::new();
    for (name, folder) in [("base", None), ("one", Some(&adapters[0])), ("two", Some(&adapters[1]))]
    {
        for question in QUESTIONS {
            let expected = alone(folder.map(PathBuf::as_path), question, 12);
            let found = server.ask("/v1/chat/completions", &chat(name, question, 12));
            let choice = &found["choices"][0];
            assert_eq!(choice["message"]["content"], expected.text, "{name}: {question}");
            let reason = if expected.stopped == Stopped::Length { "length" } else { "stop" };
            assert_eq!(choice["finish_reason"], reason);
            assert_eq!(found["usage"]["completion_tokens"], expected.tokens.len());
            assert_eq!(
                (&found["model"], &found["object"]),
                (&name.into(), &"chat.completion".into())
            );
            different.insert(expected.text);

            let body = with(
                chat(name, question, 12),
                json!({ "stream": true, "stream_options": { "include_usage": true } }),
            );
            let events: Vec<_> = server.stream("/v1/chat/completions", &body).collect();
            let (last, events) = events.split_last().unwrap();
            assert_eq!(last, "[DONE]");
            let events: Vec<Value> =
                events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
            let text =
                |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
            let streamed: String = events.iter().filter_map(text).collect();
            assert_eq!(streamed, choice["message"]["content"].as_str().unwrap());
            assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
            let reasons = events.iter().filter_map(|e| e["choices"][0]["finish_reason"].as_str());
            assert_eq!(reasons.collect::<Vec<_>>(), [reason]);
            let usage = events.last().unwrap();
            assert_eq!((&usage["usage"], &usage["choices"]), (&found["usage"], &json!([])));
            assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null()));
        }
    }
    assert!(different.len() > 6, "the adapters make a difference");
    server.end().unwrap();
}

#[test]
fn texts_of_several_prompts() {
    let server = Running::start(ServeConfig::default(), &[]);
    let (model, tokenizer) = (model(), tokenizer());
    let go_on = |_: usize, _: &str| ControlFlow::Continue(());
    let config = GenerateConfig::new(10);
    let expected = model.generate_text(&tokenizer, &QUESTIONS, &config, go_on).unwrap();
    let body = json!({ "model": "base", "prompt": QUESTIONS, "temperature": 0, "max_tokens": 10 });
    let found = server.ask("/v1/completions", &body);
    let tokens: Vec<_> =
        QUESTIONS.iter().map(|text| tokenizer.encode(text, true).unwrap()).collect();
    for (number, expected) in expected.iter().enumerate() {
        assert_eq!(found["choices"][number]["text"], expected.text);
        assert_eq!(found["choices"][number]["index"], number);
    }
    let same = server.ask("/v1/completions", &with(body.clone(), json!({ "prompt": tokens })));
    assert_eq!(same["choices"], found["choices"]);
    assert_eq!(same["usage"], found["usage"]);
    let one = server.ask("/v1/completions", &with(body, json!({ "prompt": tokens[1] })));
    assert_eq!(one["choices"][0]["text"], expected[1].text);
    // OpenAI's default.
    let found = server.ask("/v1/completions", &json!({ "model": "base", "prompt": "a" }));
    assert!(found["usage"]["completion_tokens"].as_u64().unwrap() <= 16);
}

#[test]
fn sampling_by_seed() {
    let server = Running::start(ServeConfig::default(), &[]);
    let body = with(chat("base", "x", 12), json!({ "temperature": 1.5, "seed": 7, "n": 3 }));
    let text =
        |found: &Value, number: usize| found["choices"][number]["message"]["content"].clone();
    let [a, b] = [(); 2].map(|()| server.ask("/v1/chat/completions", &body));
    for number in 0..3 {
        assert_eq!(text(&a, number), text(&b, number));
        // Each has the seed after the one before.
        let body = with(body.clone(), json!({ "seed": 7 + number, "n": 1 }));
        assert_eq!(text(&server.ask("/v1/chat/completions", &body), 0), text(&a, number));
    }
    assert_ne!(text(&a, 0), text(&a, 1));
    // Without one, each request has another.
    let body = with(body, json!({ "seed": null, "n": 1 }));
    let [a, b] = [(); 2].map(|()| server.ask("/v1/chat/completions", &body));
    assert_ne!(text(&a, 0), text(&b, 0));
}

#[test]
fn penalties_change_what_was_said_before() {
    let server = Running::start(ServeConfig::default(), &[]);
    let tokens = |more: Value| {
        let body = json!({ "model": "base", "prompt": "the the the", "temperature": 0, "max_tokens": 40, "logprobs": 0 });
        let found = server.ask("/v1/completions", &with(body, more));
        let tokens = found["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
        let different = tokens.iter().collect::<std::collections::HashSet<_>>().len();
        (tokens.len(), different)
    };
    let plain = tokens(json!({}));
    let (count, different) = tokens(json!({ "frequency_penalty": 2, "presence_penalty": 2 }));
    assert!(different * plain.0 > plain.1 * count, "{different} of {count}, plain {plain:?}");
}

#[test]
fn stop_strings_end_an_answer() {
    let server = Running::start(ServeConfig::default(), &[]);
    let whole = alone(None, QUESTIONS[0], 24).text;
    let cut = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[cut..].chars().take(3).collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    for stop in [json!(stop), json!([stop, "@@@@"])] {
        let body = with(chat("base", QUESTIONS[0], 24), json!({ "stop": stop }));
        let found = server.ask("/v1/chat/completions", &body);
        assert_eq!(found["choices"][0]["message"]["content"], expected);
        assert_eq!(found["choices"][0]["finish_reason"], "stop");
    }
}

/// Log-probabilities against those of a forward pass.
#[test]
fn log_probs_are_those_of_the_model() {
    use burn::tensor::{Int, Tensor, TensorData, activation::log_softmax};
    let server = Running::start(ServeConfig::default(), &[]);
    let (model, tokenizer) = (model(), tokenizer());
    let prompt = tokenizer.encode(QUESTIONS[0], true).unwrap();
    let config = GenerateConfig::new(6);
    let go_on = |_: usize, _: u32| ControlFlow::Continue(());
    let answer = model.generate(std::slice::from_ref(&prompt), &config, go_on).unwrap();
    let answer = &answer[0].tokens;
    let all: Vec<i32> = prompt.iter().chain(answer).map(|token| *token as i32).collect();
    let count = all.len();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(all, [1, count]), &Default::default());
    let logits = model.forward(tokens, &burn_lora_llama::Segments::whole(1, count));
    let expected: Vec<f32> = log_softmax(logits, 2).try_into_vec_as().unwrap();
    let width = expected.len() / count;

    let body = json!({ "model": "base", "prompt": prompt, "temperature": 0, "max_tokens": 6, "logprobs": 3 });
    let found = server.ask("/v1/completions", &body);
    let logs = &found["choices"][0]["logprobs"];
    let close = |found: &Value, expected: f32, what: &str| {
        let off = (found.as_f64().unwrap() - f64::from(expected)).abs();
        assert!(off < 1e-4, "{what}: {found}, not {expected}");
    };
    for (at, token) in answer.iter().enumerate() {
        let row = &expected[(prompt.len() + at - 1) * width..][..width];
        close(&logs["token_logprobs"][at], row[*token as usize], "taken");
        let mut sorted = row.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let mut likeliest: Vec<_> =
            logs["top_logprobs"][at].as_object().unwrap().values().collect();
        likeliest.sort_by(|a, b| b.as_f64().unwrap().total_cmp(&a.as_f64().unwrap()));
        assert_eq!(likeliest.len(), 3);
        likeliest.iter().zip(&sorted).for_each(|(found, value)| close(found, *value, "likeliest"));
    }
    let texts = logs["tokens"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
    assert_eq!(texts.collect::<String>(), found["choices"][0]["text"].as_str().unwrap());

    let body = with(chat("base", QUESTIONS[0], 6), json!({ "logprobs": true, "top_logprobs": 2 }));
    let found = server.ask("/v1/chat/completions", &body);
    let places = found["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(places.len() as u64, found["usage"]["completion_tokens"].as_u64().unwrap());
    for place in places {
        assert_eq!(place["top_logprobs"].as_array().unwrap().len(), 2);
        // Greedy: it is the likeliest.
        assert_eq!(place["logprob"], place["top_logprobs"][0]["logprob"]);
    }
    let body = with(body, json!({ "stream": true }));
    let events: Vec<_> = server.stream("/v1/chat/completions", &body).collect();
    let streamed = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let streamed: Vec<Value> = streamed
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(&streamed, places);
}

/// What ends an answer by the tokenizer's files alone ends it here, too.
#[test]
fn answers_end_where_the_tokenizer_says() {
    let text = alone(None, QUESTIONS[0], 24).text;
    let tokens = tokenizer().encode(&text, false).unwrap();
    let end = tokens[tokens.len() / 2];
    let folder = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(testdata("quickstart/model").join(file), folder.path().join(file)).unwrap();
    }
    let config = json!({ "eos_token_id": [0, end] }).to_string();
    fs::write(folder.path().join("generation_config.json"), config).unwrap();
    let mut own = Tokenizer::from_pretrained(folder.path()).unwrap();
    own.set_chat_template(tokenizer().chat_template().unwrap().clone());
    let server = start(model(), own);
    let found = server.ask("/v1/chat/completions", &chat("base", QUESTIONS[0], 24));
    let found = &found["choices"][0];
    assert_eq!(found["finish_reason"], "stop");
    let content = found["message"]["content"].as_str().unwrap();
    assert!(text.starts_with(content) && content.len() < text.len(), "{content}");
}

/// Tools reach the template, and a template without them is an error.
#[test]
fn tools_reach_the_template() {
    let server = Running::start(ServeConfig::default(), &[]);
    let tool = json!({ "type": "function", "function": { "name": "now", "description": "the time", "parameters": {} } });
    let plain = server.ask("/v1/chat/completions", &chat("base", "x", 2));
    let body = with(chat("base", "x", 2), json!({ "tools": [tool] }));
    let found = server.ask("/v1/chat/completions", &body);
    let count = |found: &Value| found["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(count(&found) > count(&plain) + 20);
    let none = with(body.clone(), json!({ "tool_choice": "none" }));
    assert_eq!(count(&server.ask("/v1/chat/completions", &none)), count(&plain));
    // In the order in which they came.
    let (tokenizer, mut seen) = (tokenizer(), vec![]);
    for text in [
        r#"{"type": "function", "function": {"name": "now", "description": "b", "parameters": {"z": 1, "a": 2}}}"#,
        r#"{"function": {"description": "b", "parameters": {"a": 2, "z": 1}, "name": "now"}, "type": "function"}"#,
    ] {
        let tool: burn_lora_text::ChatValue = serde_json::from_str(text).unwrap();
        let options = burn_lora_text::ChatOptions::new().add_generation_prompt(true).tools([tool]);
        let prompt = tokenizer.apply_chat_template(&[Message::user("x")], &options).unwrap();
        let expected = tokenizer.encode(&prompt, false).unwrap().len();
        // As text, as a document of `serde_json` would sort them.
        let body = format!(
            r#"{{"model": "base", "messages": [{{"role": "user", "content": "x"}}], "max_tokens": 1, "tools": [{text}]}}"#
        );
        let request = agent().post(server.url("/v1/chat/completions"));
        let mut found = request.header("Content-Type", "application/json").send(body).unwrap();
        let found: Value = found.body_mut().read_json().unwrap();
        assert_eq!(count(&found), expected as u64, "{text}");
        seen.push(prompt);
    }
    assert_ne!(seen[0], seen[1]);
    // What was called before, and what it gave; the developer is the system.
    let call = json!({ "id": "call-1", "type": "function", "function": { "name": "now", "arguments": "{\"zone\": \"UTC\"}" } });
    let messages = json!([
        { "role": "developer", "content": "Be exact." },
        { "role": "user", "content": [{ "type": "text", "text": "What time is it?" }] },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call-1", "content": "12:00" },
    ]);
    server.ask("/v1/chat/completions", &with(body, json!({ "messages": messages })));
}
