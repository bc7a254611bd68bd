//! Generation of tokens.

use super::{
    config::{GenerateConfig, wrong},
    generation::{Generation, Stopped, check_prompt},
};
use crate::{causal_lm::Generate, error::LlamaError};
use burn_lora_adapter::{ActiveAdapters, AdaptableExt, BASE, Selection};
use std::ops::ControlFlow;

/// Generated tokens of one prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// New tokens, without the one that ended them.
    pub tokens: Vec<u32>,
    /// Reason why the generation ended.
    pub stopped: Stopped,
}

/// Most texts at a time: further prompts wait until one of these has ended.
const ROWS: usize = 64;

/// Continues prompts of tokens until the end-of-text tokens `ends`.
pub(super) fn generate<M: Generate>(
    model: &M,
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    ends: &[u32],
    mut on_token: impl FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Generated>, LlamaError> {
    config.validate()?;
    let adapters = adapters_of_each(model, prompts.len(), config)?;
    let none = || Generated { tokens: vec![], stopped: Stopped::Length };
    let mut found: Vec<_> = prompts.iter().map(|_| none()).collect();
    if prompts.is_empty() || config.max_new_tokens == 0 {
        let mut numbers = prompts.iter().enumerate();
        numbers.try_for_each(|(at, prompt)| check_prompt(at as u64, prompt, model.vocabulary()))?;
        return Ok(found);
    }
    let mut texts = Generation::new(model, prompts.len().min(ROWS));
    let mut config = config.clone();
    config.stop_tokens.extend(ends);
    for (number, (prompt, adapters)) in prompts.iter().zip(adapters).enumerate() {
        let own = if config.seed_by_row { number as u64 } else { 0 };
        let config = config.clone().seed(config.seed.wrapping_add(own)).adapters(adapters);
        texts.push(number as u64, prompt.clone(), config)?;
    }
    while !texts.is_empty() {
        for next in texts.step()? {
            let number = next.id as usize;
            if found[number].stopped == Stopped::Callback {
                continue;
            }
            if let Some(stopped) = next.stopped {
                found[number].stopped = stopped;
            }
            let Some(token) = next.token else { continue };
            found[number].tokens.push(token);
            if on_token(number, token).is_break() {
                found[number].stopped = Stopped::Callback;
                texts.stop(next.id);
            }
        }
    }
    Ok(found)
}

/// The adapters of each prompt.
fn adapters_of_each<M: Generate>(
    model: &M,
    count: usize,
    config: &GenerateConfig,
) -> Result<Vec<ActiveAdapters>, LlamaError> {
    let all = config.adapters.clone().unwrap_or_else(|| model.active());
    let Selection::Rows(names) = all.selection() else { return Ok(vec![all; count]) };
    if names.len() != count {
        let found = format!("{} for rows", names.len());
        return Err(wrong("adapters", found, &format!("there are {count} prompts")));
    }
    let active = |name: &String| {
        let names = Some(name).filter(|name| *name != BASE);
        model.activate(Selection::adapters(names)).expect("it is active already")
    };
    Ok(names.iter().map(active).collect())
}
