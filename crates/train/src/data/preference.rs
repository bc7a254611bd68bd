//! Pairs of a better and a worse answer.

use super::{
    conversation::Roles,
    example::{Chat, Example, answer, column, list, text, tools},
    read::Record,
};
use burn_lora_text::{ChatValue as Value, Message};

/// Parses a pair. A prompt is a column, or what both answers begin with, as for TRL.
pub(super) fn example(record: &Record, roles: &Roles, chat: bool) -> Result<Example, String> {
    let lists = matches!(
        (column(record, "chosen")?, column(record, "rejected")?),
        (Value::List(_), Value::List(_))
    );
    let pair = if lists { messages(record, roles)? } else { texts(record, chat)? };
    Ok(Example::Pair(pair.into()))
}

fn texts(record: &Record, chat: bool) -> Result<[Example; 2], String> {
    let same = "; both answers are text, or both are lists of messages";
    let text = |name| text(record, name).map_err(|reason| reason + same);
    let (chosen, rejected) = (text("chosen")?, text("rejected")?);
    let (prompt, chosen, rejected) = match record.get("prompt") {
        None | Some(Value::Null) => {
            let prompt = common(chosen, rejected);
            (prompt, &chosen[prompt.len()..], &rejected[prompt.len()..])
        }
        Some(_) => (text("prompt")?, chosen, rejected),
    };
    let example = |completion: &str| answer(record, prompt.into(), completion.into(), chat);
    Ok([example(chosen)?, example(rejected)?])
}

/// What both texts begin with, without a space at its end: that belongs to the answers' first words.
fn common<'a>(a: &'a str, b: &str) -> &'a str {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    let end: usize = same.map(|(a, _)| a.len_utf8()).sum();
    let prompt = &a[..end];
    prompt.strip_suffix(' ').unwrap_or(prompt)
}

fn messages(record: &Record, roles: &Roles) -> Result<[Example; 2], String> {
    let (chosen, rejected) = (list(record, "chosen", roles)?, list(record, "rejected", roles)?);
    let mut prompt = match record.get("prompt") {
        None | Some(Value::Null) => (vec![], vec![]),
        Some(Value::List(_)) => list(record, "prompt", roles)?,
        Some(_) => {
            let prompt = text(record, "prompt")?;
            let begins = |(messages, _): &(Vec<Message>, _)| {
                messages.iter().any(|message| message.text().as_deref() == Some(prompt))
            };
            // Some data sets have the prompt in both places.
            match begins(&chosen) && begins(&rejected) {
                true => (vec![], vec![]),
                false => (vec![Message::user(prompt)], vec![None]),
            }
        }
    };
    let mut shared = 0;
    if prompt.0.is_empty() {
        let same = |at: &usize| chosen.0.get(*at) == rejected.0.get(*at);
        shared = (0..chosen.0.len().min(rejected.0.len())).take_while(same).count();
        prompt = (chosen.0[..shared].to_vec(), vec![None; shared]);
    }
    let tools = tools(record)?;
    let example = |(messages, train): &(Vec<Message>, Vec<Option<bool>>)| {
        let (mut all, mut trained) = prompt.clone();
        all.extend_from_slice(&messages[shared..]);
        trained.extend_from_slice(&train[shared..]);
        let prompt = Some(prompt.0.len());
        let chat = Chat { messages: all, train: trained, prompt, tools: tools.clone() };
        chat.instructed(record).map(Example::Chat)
    };
    Ok([example(&chosen)?, example(&rejected)?])
}
