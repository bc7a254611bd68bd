//! Real tokenizers, got by scripts/fetch-tokenizers.sh.

use crate::common::models;
use burn_lora_io::gguf::{Gguf, GgufWriter};
use burn_lora_text::{ChatOptions, Message, Tokenizer};
use std::fs;

/// llama.cpp's texts, and their tokens.
fn cases(vocabulary: &str) -> Vec<(String, Vec<u32>)> {
    let path = models().join(format!("ggml-vocab-{vocabulary}.gguf"));
    let read = |end: &str| fs::read_to_string(format!("{}.{end}", path.display())).unwrap();
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let (texts, tokens) = (read("inp"), read("out"));
    let texts: Vec<_> = texts.split_terminator("\n__ggml_vocab_test__\n").collect();
    let tokens: Vec<_> = tokens.lines().map(ids).collect();
    assert!(texts.len() >= 46 && texts.len() == tokens.len(), "{vocabulary}");
    texts.into_iter().map(str::to_owned).zip(tokens).collect()
}

fn agree(tokenizer: &Tokenizer, vocabulary: &str) {
    for (text, expected) in cases(vocabulary) {
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(ids, expected, "{vocabulary}: {text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{vocabulary}");
        let mut stream = tokenizer.decode_stream(false);
        let mut streamed: String = ids.iter().filter_map(|id| stream.push(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, text, "{vocabulary}");
    }
}

#[test]
#[ignore = "needs BURN_LORA_MODELS"]
fn vocabularies_agree_with_llama_cpp() {
    let (folder, out) = (models(), tempfile::tempdir().unwrap());
    for vocabulary in [
        "llama-bpe",
        "llama-spm",
        "phi-3",
        "qwen2",
        "gpt-2",
        "refact",
        "deepseek-coder",
        "deepseek-llm",
    ] {
        let path = folder.join(format!("ggml-vocab-{vocabulary}.gguf"));
        let tokenizer = Tokenizer::from_pretrained(path).unwrap();
        agree(&tokenizer, vocabulary);
        // Written again, it has a name of the same meaning.
        let mut file = GgufWriter::new("llama");
        tokenizer.write_gguf(tokenizer.vocab_size(), &mut file).unwrap();
        let path = out.path().join("model.gguf");
        file.write::<std::io::Error>(&path, |_, _| Ok(()), |_| Ok(())).unwrap();
        let written = Gguf::open(&path).unwrap();
        let name = written.get("tokenizer.ggml.pre").and_then(|name| name.as_str()).unwrap();
        let expected = match vocabulary {
            "llama-spm" | "phi-3" => "default",
            "refact" => "smollm",
            other => other,
        };
        assert_eq!(name, expected);
        agree(&Tokenizer::from_pretrained(&path).unwrap(), vocabulary);
    }
}

#[test]
#[ignore = "needs BURN_LORA_MODELS"]
fn llama3_agrees_with_llama_cpp() {
    let folder = models();
    let tokenizer = Tokenizer::from_pretrained(folder.join("llama3_1")).unwrap();
    agree(&tokenizer, "llama-bpe");
    assert_eq!(tokenizer.vocab_size(), 128_256);
    assert_eq!(tokenizer.encode("Hello", true).unwrap(), [128_000, 9906]);
    assert_eq!(tokenizer.eos_token_ids(), [128_009]);
    // This package has the names of Llama 3, which has no token for padding.
    assert_eq!(tokenizer.pad_token_id(), Some(128_009));

    let messages = [Message::user("Hi"), Message::assistant(" Hello! ")];
    let chat = tokenizer.encode_chat(&messages, &ChatOptions::new()).unwrap();
    let text = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
                <|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>";
    assert_eq!(tokenizer.decode(&chat.ids, false).unwrap(), text);
    let (message, tokens) = chat.turns[0].clone();
    assert_eq!((message, &chat.ids[tokens]), (1, &[9906, 0, 128_009][..]));
}

#[test]
#[ignore = "needs BURN_LORA_MODELS"]
fn smollm2_comes_from_its_file() {
    let folder = models();
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let tokenizer = Tokenizer::from_pretrained(path).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_ids()), (Some(1), &[2][..]));
    let ids = tokenizer.encode("Hello world 123", true).unwrap();
    let tokens: Vec<_> = ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap()).collect();
    assert_eq!(tokens, ["Hello", "Ġworld", "Ġ", "1", "2", "3"]);

    let messages = [Message::user("Hi"), Message::assistant("Hello!")];
    let chat = tokenizer.encode_chat(&messages, &ChatOptions::new()).unwrap();
    let text = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging \
                Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!\
                <|im_end|>\n";
    assert_eq!(tokenizer.decode(&chat.ids, false).unwrap(), text);
    let (_, tokens) = chat.turns[0].clone();
    assert_eq!(tokenizer.decode(&chat.ids[tokens], false).unwrap(), "Hello!<|im_end|>");
}
