//! A GGUF file: its header, the model and the tokenizer in it.

use crate::folder;
use burn_lora::prelude::*;

pub(crate) fn run(data: &[u8]) {
    let folder = folder("gguf", &[("model.gguf", data)]);
    let path = folder.join("model.gguf");
    if let Ok(tokenizer) = Tokenizer::from_pretrained(&path) {
        let text = "hello  world Zürich 東京 🙂";
        let _ = tokenizer.encode(text, true).and_then(|ids| tokenizer.decode(&ids, false));
        let _ = tokenizer.apply_chat_template(&[Message::user(text)], &ChatOptions::new());
    }
    let _ = Llama::from_pretrained(&path).load(&Device::flex());
}

/// A value of the metadata: the number of its kind, and its bytes.
type Value = (u32, Vec<u8>);

fn bytes(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn text(text: &str) -> Value {
    (8, bytes(text))
}

fn int(value: u32) -> Value {
    (4, value.to_le_bytes().into())
}

fn float(value: f32) -> Value {
    (6, value.to_le_bytes().into())
}

fn list<T>(kind: u32, items: &[T], item: impl Fn(&T) -> Vec<u8>) -> Value {
    let head = [&kind.to_le_bytes()[..], &(items.len() as u64).to_le_bytes()].concat();
    (9, [head, items.iter().flat_map(item).collect()].concat())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let spm = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "h", "e", "he", "▁he"];
    let bpe = ["<s>", "</s>", "h", "e", "Ġ", "he", "Ġhe", "!"];
    let seed = |architecture: &str, kind: u32, block: (usize, usize), tokens: &[&str]| {
        let mut metadata = vec![("general.architecture".to_owned(), text(architecture))];
        let sizes = [
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 32),
            ("feed_forward_length", 32),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", 16),
            ("vocab_size", tokens.len() as u32),
        ];
        let own = |name: &str| format!("{architecture}.{name}");
        metadata.extend(sizes.map(|(name, size)| (own(name), int(size))));
        metadata.push((own("attention.layer_norm_rms_epsilon"), float(1e-5)));
        metadata.push((own("rope.freq_base"), float(1e4)));
        let model = if tokens[0] == "<unk>" { "llama" } else { "gpt2" };
        let pre = if model == "llama" { "default" } else { "llama-bpe" };
        let scores: Vec<f32> = (0..tokens.len()).map(|number| -(number as f32)).collect();
        let kinds = tokens.iter().map(|token| match *token {
            "<unk>" => 2,
            token if token.starts_with("<0x") => 6,
            token if token.starts_with('<') => 3,
            _ => 1i32,
        });
        let kinds: Vec<i32> = kinds.collect();
        let tokenizer = [
            ("model", text(model)),
            ("pre", text(pre)),
            ("tokens", list(8, tokens, |token| bytes(token))),
            ("scores", list(6, &scores, |score| score.to_le_bytes().into())),
            ("token_type", list(5, &kinds, |kind| kind.to_le_bytes().into())),
            ("merges", list(8, &["h e", "Ġ he"], |merge| bytes(merge))),
            ("bos_token_id", int(0)),
            ("eos_token_id", int(1)),
            ("add_bos_token", (7, vec![1])),
        ];
        let named = |(name, value): (&str, Value)| (format!("tokenizer.ggml.{name}"), value);
        metadata.extend(tokenizer.map(named));
        let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
        metadata.push(("tokenizer.chat_template".into(), text(template)));

        let words = tokens.len() as u64;
        let mut tensors = vec![("token_embd", vec![32, words]), ("output_norm", vec![32])];
        let of_layer: [(&str, &[u64]); 9] = [
            ("blk.0.attn_norm", &[32]),
            ("blk.0.attn_q", &[32, 32]),
            ("blk.0.attn_k", &[32, 16]),
            ("blk.0.attn_v", &[32, 16]),
            ("blk.0.attn_output", &[32, 32]),
            ("blk.0.ffn_norm", &[32]),
            ("blk.0.ffn_gate", &[32, 32]),
            ("blk.0.ffn_up", &[32, 32]),
            ("blk.0.ffn_down", &[32, 32]),
        ];
        tensors.extend(of_layer.map(|(name, dims)| (name, dims.to_vec())));
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((metadata.len() as u64).to_le_bytes());
        for (key, (kind, value)) in &metadata {
            out.extend([bytes(key), kind.to_le_bytes().into(), value.clone()].concat());
        }
        let mut size = 0u64;
        for (name, dims) in &tensors {
            out.extend(bytes(&format!("{name}.weight")));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            let ((kind, (elements, length)), count) = match dims.len() {
                1 => ((0, (1, 4)), dims[0]),
                _ => ((kind, block), dims[0] * dims[1]),
            };
            out.extend(kind.to_le_bytes());
            out.extend(size.to_le_bytes());
            size += (count / elements as u64 * length as u64).next_multiple_of(32);
        }
        let begin = out.len().next_multiple_of(32);
        out.resize(begin + size as usize, 0);
        out
    };
    // The types by their numbers, with elements and bytes of a block.
    vec![
        seed("llama", 0, (1, 4), &spm),
        seed("llama", 8, (32, 34), &bpe),
        seed("qwen2", 2, (32, 18), &bpe),
        seed("llama", 1, (1, 2), &spm),
        seed("llama", 3, (32, 20), &bpe),
    ]
}
