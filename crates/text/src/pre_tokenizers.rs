//! llama.cpp's pre-tokenizers: what its names stand for, and which of them a `tokenizer.json` has.
//!
//! Source: llama.cpp, `src/llama-vocab.cpp`, which has the patterns of the files that its names were made
//! for, and `convert_hf_to_gguf.py`, which says what files those are.

use serde_json::{Value, json};

/// Pre-tokenizer by llama.cpp's names.
pub struct PreTokenizer {
    /// The first is the one that is written.
    names: &'static [&'static str],
    /// Patterns by which a text is split, one after the other.
    splits: &'static [&'static str],
    /// `true` if words that are tokens are taken whole, whatever the merges are.
    pub ignore_merges: bool,
    /// `true` if files without `add_bos_token` have the first token.
    pub add_bos: bool,
    /// `true` if the files it was made for normalize text to NFC, which llama.cpp does not.
    pub nfc: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const CJK: &str = "[一-龥ࠀ-一가-퟿]+";
/// Letters of alphabets with two cases.
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEFAULT: &[&str] = &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

const fn known(names: &'static [&'static str], splits: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, splits, ignore_merges: false, add_bos: false, nfc: false }
}

/// All that are known.
const KNOWN: [PreTokenizer; 12] = [
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        ..known(
            &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"],
            &[LLAMA3],
        )
    },
    // Phi-4, OLMo 2.
    known(&["dbrx", "smaug-bpe"], &[LLAMA3]),
    PreTokenizer {
        nfc: true,
        ..known(&["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"], &[QWEN2])
    },
    PreTokenizer { nfc: true, ..known(&["qwen35"], &[QWEN35]) },
    PreTokenizer { ignore_merges: true, add_bos: true, ..known(&["tekken"], &[TEKKEN]) },
    // gpt-oss, Phi-4-mini.
    known(&["gpt-4o", "llama4", "kanana2"], &[GPT4O]),
    known(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        &[r"\p{N}", GPT2],
    ),
    known(
        &["gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion", "granite-docling", "exaone4"],
        &[GPT2],
    ),
    known(&["seed-coder"], &[SEED_CODER]),
    known(
        &["deepseek-llm"],
        &[r"[\r\n]", DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", CJK, r"\p{N}+"],
    ),
    known(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"]),
    known(&["default"], DEFAULT),
];

/// Names that are written, for messages.
pub fn names() -> String {
    KNOWN.map(|known| known.names[0]).join(", ")
}

impl PreTokenizer {
    /// Returns the pre-tokenizer of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        KNOWN.iter().find(|known| known.names.contains(&name))
    }

    /// Returns the one that splits as a `pre_tokenizer` of `tokenizer.json` does; of several, the one with the
    /// same `ignore_merges`.
    ///
    /// # Errors
    /// What no known one does.
    pub fn of(json: &Value, ignore_merges: bool) -> Result<&'static Self, String> {
        let steps = steps(json);
        let same = |known: &&Self| same(known, &steps);
        let exact = KNOWN.iter().find(|known| same(known) && known.ignore_merges == ignore_merges);
        exact.or_else(|| KNOWN.iter().find(same)).ok_or_else(|| {
            let is_known = |step: &&String| {
                **step == BYTES || KNOWN.iter().any(|known| own_steps(known).contains(*step))
            };
            match steps.iter().find(|step| !is_known(step)) {
                Some(step) => format!("none of those known here ({}) has the step {step}", names()),
                None => format!("none of those known here ({}) has these steps together", names()),
            }
        })
    }

    /// llama.cpp's name.
    pub fn name(&self) -> &'static str {
        self.names[0]
    }

    /// The same as in `tokenizer.json`.
    pub fn json(&self) -> Value {
        let split = |regex: &&str| {
            json!({
                "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated",
                "invert": false,
            })
        };
        let steps = self.splits.iter().map(split).chain([bytes(false)]);
        json!({ "type": "Sequence", "pretokenizers": steps.collect::<Vec<_>>() })
    }
}

/// The step that writes bytes as characters.
pub fn bytes(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": use_regex,
    })
}

/// Returns `true` if a pre-tokenizer of `tokenizer.json` writes bytes as characters.
pub fn is_byte_level(json: &Value) -> bool {
    steps(json).iter().any(|step| step.starts_with(BYTES))
}

/// The last step of all known ones.
const BYTES: &str = "ByteLevel";

fn own_steps(known: &PreTokenizer) -> Vec<String> {
    known.splits.iter().map(|regex| pattern(regex)).collect()
}

fn same(known: &PreTokenizer, steps: &[String]) -> bool {
    steps.split_last().is_some_and(|(last, splits)| last == BYTES && own_steps(known) == splits)
}

/// What splits a text, written alike where it makes no difference to tokens.
fn steps(json: &Value) -> Vec<String> {
    let isolated = |step: &Value| {
        // What matches is kept, and nothing else is there: these patterns match all of a text.
        let kept = step["behavior"] == "Removed" && step["invert"] == true;
        kept || step["behavior"] == "Isolated" && step["invert"] != true
    };
    match json["type"].as_str() {
        None => vec![],
        Some("Sequence") => {
            json["pretokenizers"].as_array().into_iter().flatten().flat_map(steps).collect()
        }
        Some("Split") if isolated(json) && json["pattern"]["Regex"].is_string() => {
            vec![pattern(json["pattern"]["Regex"].as_str().unwrap_or_default())]
        }
        Some("Digits") => {
            vec![if json["individual_digits"] == true { r"\p{N}" } else { r"\p{N}+" }.to_owned()]
        }
        Some("ByteLevel") => {
            let regex = (json["use_regex"] != false).then(|| pattern(GPT2));
            let prefix = if json["add_prefix_space"] == true { " with a space before" } else { "" };
            regex.into_iter().chain([format!("{BYTES}{prefix}")]).collect()
        }
        Some(_) => vec![json.to_string()],
    }
}

/// A pattern of which several ways to write are one: endings of English words, line ends, and spaces, which
/// are split off whether or not the pattern has them.
fn pattern(regex: &str) -> String {
    const CASES: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
    let regex = regex.replace('\r', r"\r").replace('\n', r"\n");
    let regex = regex
        .replace(CASES, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")
        .replace("'(?i:[sdmt]|ll|ve|re)", "(?i:'s|'t|'re|'ve|'m|'ll|'d)");
    match regex.strip_suffix(r"|\s+(?!\S)|\s+") {
        Some(start) => format!(r"{start}|\s+(?!\S)"),
        None => regex,
    }
}
