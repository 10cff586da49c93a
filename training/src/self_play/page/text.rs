//! Text of others as the page shows it. The template escapes what HTML would read; here goes what
//! nobody sees, or what turns a line around.

use std::fmt::Write as _;

use serde::Serialize;

use crate::shown::is_hidden;

/// Characters of a text that are shown.
const MOST: usize = 6000;
/// Characters from which a text gets a box that scrolls.
const LONG: usize = 900;
/// Characters of a summary.
const SUMMARY: usize = 140;

/// A text, as much of it as is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Text {
    pub text: String,
    pub is_long: bool,
    /// Characters that are not shown.
    pub left_out: usize,
}

impl Text {
    pub fn new(text: &str) -> Self {
        let count = text.chars().count();
        let head: String = text.chars().take(MOST).collect();
        Self {
            text: visible(&head),
            is_long: count > LONG,
            left_out: count.saturating_sub(MOST),
        }
    }
}

/// A text in one line; and whether that is all of it.
pub(super) fn summary(text: &str) -> (String, bool) {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_whole = words == text && words.chars().count() <= SUMMARY;
    let head: String = words.chars().take(SUMMARY).collect();
    let end = if words.chars().count() > SUMMARY {
        "…"
    } else {
        ""
    };
    (format!("{}{end}", visible(&head)), is_whole)
}

/// The same text with control and direction characters as `\u{202e}`.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_hidden(letter) {
            true => {
                let _ = write!(shown, "{}", letter.escape_default());
            }
            false => shown.push(letter),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_characters_are_seen() {
        assert_eq!(visible("a\u{202e}b\0\r\n\té"), "a\\u{202e}b\\u{0}\\r\n\té");
    }

    #[test]
    fn long_texts_are_cut_and_say_so() {
        let text = Text::new(&"é".repeat(MOST + 7));
        assert_eq!((text.left_out, text.is_long), (7, true));
        assert_eq!(text.text.chars().count(), MOST);
        assert_eq!(summary("a b"), ("a b".into(), true));
        assert_eq!(summary("a\n b"), ("a b".into(), false));
        assert!(summary(&"a".repeat(SUMMARY + 1)).0.ends_with('…'));
    }
}
