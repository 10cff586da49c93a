//! Conversations written as one text, as Anthropic's HH-RLHF has them.

use sppo_model::chat_template::Message;

const SPEAKERS: [(&str, &str); 2] = [("Human:", "user"), ("Assistant:", "assistant")];

/// The turns of a text like `"\n\nHuman: Hi\n\nAssistant: Hello"`; none where it is not one.
pub(super) fn turns(text: &str) -> Option<Vec<Message>> {
    let text = text.trim_start();
    if !text.starts_with(SPEAKERS[0].0) {
        return None;
    }
    let mut turns: Vec<(&str, String)> = Vec::new();
    for paragraph in text.split("\n\n") {
        let spoken = SPEAKERS.iter().find_map(|(mark, role)| {
            let said = paragraph.strip_prefix(mark)?;
            Some((*role, said.to_string()))
        });
        match (spoken, turns.last_mut()) {
            (Some(turn), _) => turns.push(turn),
            (None, Some((_, said))) => {
                said.push_str("\n\n");
                said.push_str(paragraph);
            }
            (None, None) => return None,
        }
    }
    let message = |(role, said): (&str, String)| Message::new(role, said.trim());
    Some(turns.into_iter().map(message).collect())
}

/// The turns of such a text that ends where an answer begins.
pub(super) fn prompt(text: &str) -> Option<Vec<Message>> {
    let mut turns = turns(text)?;
    let last = turns.pop()?;
    let open = last.role == "assistant" && last.text().is_empty();
    (open && !turns.is_empty()).then_some(turns)
}
