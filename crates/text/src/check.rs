//! Rejects steps of a `tokenizer.json` on which the tokenizers crate runs out of memory or never
//! ends. Panics of other steps are caught where the steps run.

use serde_json::Value;

/// Maximal growth of a text's length, as a factor. Real models triple it, or write some characters
/// as a word.
const GROWTH: usize = 1024;

/// Checks for steps that no real model has; returns the maximal growth of a text's length, as a
/// factor.
pub fn steps(tokenizer: &Value) -> Result<usize, String> {
    let growth = self::growth(&tokenizer["normalizer"], "normalizer")?;
    self::growth(&tokenizer["decoder"], "decoder")?;
    pieces(&tokenizer["pre_tokenizer"])?;
    Ok(growth)
}

/// Returns the steps of a sequence, or the single step.
fn each<'a>(step: &'a Value, lists: &str) -> Vec<&'a Value> {
    match step[lists].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![step],
    }
}

fn growth(step: &Value, name: &str) -> Result<usize, String> {
    let lists = if name == "normalizer" { "normalizers" } else { "decoders" };
    let mut growth: usize = 1;
    for inner in each(step, lists) {
        let own = match inner["type"].as_str() {
            Some("Sequence") if inner[lists].is_array() => self::growth(inner, name)?,
            Some("Replace") => replaced(inner, name)?,
            Some("Precompiled") => precompiled(inner)?,
            _ => 1,
        };
        growth = growth.saturating_mul(own);
        if growth > GROWTH {
            return Err(format!(
                "its `{name}` makes a text more than {GROWTH} times as long: no model's does"
            ));
        }
    }
    Ok(growth)
}

fn replaced(step: &Value, name: &str) -> Result<usize, String> {
    let content = step["content"].as_str().unwrap_or_default().len();
    let pattern = &step["pattern"];
    match (pattern["String"].as_str(), pattern["Regex"].as_str()) {
        (Some(""), _) | (_, Some("")) => {
            Err(format!("its `{name}` has a step `Replace` with an empty pattern"))
        }
        (Some(pattern), _) => Ok(content.div_ceil(pattern.len()).max(1)),
        // A match may be empty.
        _ => Ok(content + 1),
    }
}

/// Maximal length of a replacement in the character map, whose size is checked.
fn precompiled(step: &Value) -> Result<usize, String> {
    let wrong: fn() -> String =
        || "its `normalizer` has a step `Precompiled` whose map contradicts its size".into();
    let map = base64::decode(step["precompiled_charsmap"].as_str().unwrap_or_default());
    let map = map.map_err(|error| {
        format!("its `normalizer` has a step `Precompiled` whose map is no base64: {error}")
    })?;
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(wrong)?;
    let texts = rest.get(u32::from_le_bytes(*size) as usize..).ok_or_else(wrong)?;
    Ok(texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

fn pieces(step: &Value) -> Result<(), String> {
    for inner in each(step, "pretokenizers") {
        match inner["type"].as_str() {
            Some("Sequence") if inner["pretokenizers"].is_array() => pieces(inner)?,
            Some("FixedLength") if inner["length"] == 0 => {
                return Err("its `pre_tokenizer` splits text into pieces of length 0".into());
            }
            _ => (),
        }
    }
    Ok(())
}
