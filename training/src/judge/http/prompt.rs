//! What the chat model is asked.

use sppo_model::chat_template::tools_of;

use crate::data::{Prompt, ResponseRow};

/// Asks for one of the three answer words and nothing else.
pub const DEFAULT_TEMPLATE: &str = "\
You are comparing two responses to the same request. Decide which response serves the one who asked \
better: correctness first, then helpfulness, then clarity. Length by itself is no merit, and the order \
of the responses means nothing.

### Request
{prompt}

### Response A
{response_a}

### Response B
{response_b}

### Verdict
Answer with a single letter: A if response A is better, B if response B is better, C if they are \
equally good.";

const PLACEHOLDERS: [&str; 3] = ["prompt", "response_a", "response_b"];

/// A template cut at its placeholders.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    /// Which of `PLACEHOLDERS`.
    Place(usize),
}

impl Template {
    /// Cuts `{prompt}`, `{response_a}` and `{response_b}` out; each must be there. Other words in
    /// braces are refused, `{{` stands for a brace.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('{') {
                plain.push('{');
                rest = after;
                continue;
            }
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            let name = end
                .filter(|&end| end > 0 && rest[end..].starts_with('}'))
                .map(|end| &rest[..end]);
            let Some(name) = name else {
                plain.push('{');
                continue;
            };
            let Some(place) = PLACEHOLDERS.iter().position(|known| *known == name) else {
                return Err(format!(
                    "unknown placeholder {{{name}}}; known are {{prompt}}, {{response_a}} and {{response_b}} (write {{{{ for a brace)"
                ));
            };
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Part::Place(place));
            rest = &rest[name.len() + 1..];
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        for (place, name) in PLACEHOLDERS.iter().enumerate() {
            if !parts.contains(&Part::Place(place)) {
                return Err(format!("the placeholder {{{name}}} is missing"));
            }
        }
        Ok(Template(parts))
    }

    /// The text with its placeholders filled; what fills them is not looked at again.
    pub fn fill(&self, prompt: &str, response_a: &str, response_b: &str) -> String {
        let values = [prompt, response_a, response_b];
        let parts = self.0.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Place(place) => values[*place],
        });
        parts.collect()
    }
}

/// The prompt as a chat model reads it: the user's turn alone, or all turns with their roles.
pub fn prompt_text(row: &ResponseRow) -> String {
    let messages = match &row.prompt {
        Prompt::Text(text) => return text.clone(),
        Prompt::Messages(messages) => messages.as_slice(),
    };
    let tools = tools_of(messages).map(|tools| format!("tools: {tools}"));
    match (messages, &tools) {
        ([only], None) => only.text(),
        (turns, _) => {
            let turns = turns
                .iter()
                .map(|turn| format!("{}: {}", turn.role, turn.text()));
            tools
                .into_iter()
                .chain(turns)
                .collect::<Vec<_>>()
                .join("\n\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_once() {
        let template =
            Template::new("{{x} {prompt}|{response_a}|{response_b} {\"v\": 1} {").unwrap();
        let filled = template.fill("{response_b}", "{prompt}", "b");
        assert_eq!(filled, "{x} {response_b}|{prompt}|b {\"v\": 1} {");
        Template::new(DEFAULT_TEMPLATE).unwrap();
    }

    #[test]
    fn templates_that_cannot_be_filled() {
        let error = Template::new("{prompt} {response_a}").unwrap_err();
        assert_eq!(error, "the placeholder {response_b} is missing");
        let error = Template::new("{promt} {response_a} {response_b}").unwrap_err();
        assert!(error.starts_with("unknown placeholder {promt}"), "{error}");
    }
}
