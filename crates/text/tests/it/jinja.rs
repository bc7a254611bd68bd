//! Snippets of chat templates are what Jinja2 makes of them, or refused as it refuses them. The cases
//! are written by `testdata/jinja/make.py`.

use burn_lora_text::{ChatOptions, ChatTemplate, ChatValue};
use serde::Deserialize;
use std::collections::BTreeMap;

const CASES: &str = "../../testdata/jinja/cases.json";

#[derive(Deserialize)]
struct Cases {
    variables: BTreeMap<String, ChatValue>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    of: String,
    source: String,
    /// None where the template is refused.
    text: Option<String>,
}

fn render(source: &str, options: &ChatOptions) -> Result<String, String> {
    let text = ChatTemplate::new(source).and_then(|template| template.render(&[], options));
    text.map_err(|error| error.to_string())
}

#[test]
fn templates_are_what_jinja2_makes_of_them() {
    let cases: Cases = serde_json::from_str(&std::fs::read_to_string(CASES).unwrap()).unwrap();
    let mut options = ChatOptions::new();
    for (name, value) in cases.variables {
        options = options.variable(name, value);
    }
    let mut wrong = vec![];
    for case in &cases.cases {
        let found = render(&case.source, &options);
        let right = match &case.text {
            Some(text) => found.as_ref() == Ok(text),
            None => found.is_err(),
        };
        if !right {
            let expected = case.text.as_deref().unwrap_or("an error");
            wrong.push(format!("{}: {:?}\n  {found:?}\n  {expected:?}", case.of, case.source));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
