//! Counts of Markdown's elements, as arena-hard-auto takes them for its style control.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value, json};

/// Headings by level, list items and bold texts outside blocks of code.
pub(super) fn markdown_counts(text: &str) -> Value {
    let text = without_code(text);
    let count = |pattern: &Regex| pattern.find_iter(&text).count();
    let headings = PATTERNS.headings.iter().enumerate();
    let headings =
        headings.map(|(level, pattern)| (format!("h{}", level + 1), count(pattern).into()));
    json!({
        "header_count": headings.collect::<Map<String, Value>>(),
        "list_count": {"ordered": count(&PATTERNS.ordered), "unordered": count(&PATTERNS.unordered)},
        "bold_count": {"**": count(&PATTERNS.stars), "__": count(&PATTERNS.underscores)},
    })
}

/// Takes what stands between fences away, wherever else the same text stands too: so arena-hard-auto
/// does it.
fn without_code(text: &str) -> String {
    let blocks: Vec<&str> = PATTERNS
        .code
        .captures_iter(text)
        .filter_map(|found| Some(found.get(1)?.as_str()))
        .collect();
    let filled = blocks.into_iter().filter(|block| !block.is_empty());
    filled.fold(text.to_string(), |text, block| text.replace(block, ""))
}

struct Patterns {
    code: Regex,
    headings: Vec<Regex>,
    ordered: Regex,
    unordered: Regex,
    stars: Regex,
    underscores: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    // The patterns are constants, which the tests compile.
    let pattern = |text: &str| Regex::new(text).expect("a pattern of ours is one");
    Patterns {
        code: pattern("```([^`]*)```"),
        headings: (1..=6)
            .map(|level| pattern(&format!(r"(?m)^#{{{level}}}\s")))
            .collect(),
        ordered: pattern(r"(?m)^\s*\d+\.\s"),
        unordered: pattern(r"(?m)^\s*[-*+]\s"),
        stars: pattern(r"\*\*[^*\n]+\*\*"),
        underscores: pattern(r"__[^_\n]+__"),
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of arena-hard-auto's own functions on this text.
    #[test]
    fn counts_are_those_of_arena_hard_auto() {
        let text = "# One\n## Two\n ## no\n###### Six\n1. a\n 2. b\n- c\n\n* d\n+ e\n**bold** __bold__ ** no\n```\n# code\n- x\n```\n**a*b** __c__\n#none\n";
        assert_eq!(
            markdown_counts(text),
            json!({
                "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 1},
                "list_count": {"ordered": 2, "unordered": 3},
                "bold_count": {"**": 1, "__": 2},
            })
        );
        assert_eq!(markdown_counts("``````")["header_count"]["h1"], 0);
    }
}
