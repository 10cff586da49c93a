//! The metadata at the head of a card: YAML, of which little is needed here.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A string as YAML reads it back: as it is where nothing in it means anything to YAML, else quoted.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic());
    // Words that YAML 1.1 takes for values.
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let a_word = words.contains(&text.to_lowercase().as_str());
    match begins && text.chars().all(plain) && !a_word {
        true => text.into(),
        // JSON's strings are YAML's in double quotes.
        false => {
            let quoted = serde_json::Value::from(text).to_string();
            // Control characters that JSON leaves as they are and YAML forbids.
            let escaped = quoted.chars().map(|c| match c {
                '\u{7f}'..='\u{9f}' => format!("\\u{:04x}", c as u32),
                c => c.into(),
            });
            escaped.collect()
        }
    }
}

/// A list under a key; nothing where it is empty.
pub(super) fn list(out: &mut String, key: &str, values: &[String]) {
    if values.is_empty() {
        return;
    }
    let _ = writeln!(out, "{key}:");
    for value in values {
        let _ = writeln!(out, "- {}", quoted(value));
    }
}

/// The strings, and lists of strings, at the top level of a card's metadata.
pub(super) fn read(card: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return found;
    }
    let mut last: Option<String> = None;
    for line in lines.map(str::trim_end) {
        if line == "---" {
            return found;
        }
        let item = line.trim_start().strip_prefix("- ");
        if let (Some(item), Some(key)) = (item, &last) {
            found.entry(key.clone()).or_default().push(unquoted(item));
        } else if line.starts_with([' ', '\t', '#']) {
            // What belongs to a structure, or a comment.
        } else if let Some((key, value)) = line.split_once(':') {
            let value = value.trim();
            let values = match value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
                Some(inner) => inner.split(',').map(unquoted).collect(),
                None if value.is_empty() => Vec::new(),
                None => vec![unquoted(value)],
            };
            last = value.is_empty().then(|| key.to_string());
            found.insert(key.into(), values);
        }
    }
    // It never ends, so it was none.
    BTreeMap::new()
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
    inner.unwrap_or(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_other_cards_is_read() {
        let card = "---\nlicense: llama3\nlanguage:\n- en\n- \"de\"\ntags: [a, 'b']\nwidget:\n  - text: hi\n# no\nextra_gated_prompt: >-\n  license: other\n---\nlicense: mit\n";
        let found = read(card);
        assert_eq!(found["license"], ["llama3"]);
        assert_eq!(found["language"], ["en", "de"]);
        assert_eq!(found["tags"], ["a", "b"]);
        assert!(read("# A model\nlicense: mit\n").is_empty());
        assert!(read("---\nlicense: mit\n").is_empty());
        assert!(read("").is_empty());
    }

    #[test]
    fn strings_are_quoted_where_yaml_would_take_them_for_something_else() {
        assert_eq!(
            quoted("meta-llama/Meta-Llama-3-8B"),
            "meta-llama/Meta-Llama-3-8B"
        );
        for text in [
            "no", "12", "a: b", "", "[x]", "ü", "a\nb", "# a", "1e5", "-",
        ] {
            assert!(quoted(text).starts_with('"'), "{text}");
        }
        // PyYAML refuses a card that holds them as they are.
        assert_eq!(quoted("a\u{7f}b\u{85}"), "\"a\\u007fb\\u0085\"");
        assert_eq!(quoted("a\n\"b"), "\"a\\n\\\"b\"");
    }
}
