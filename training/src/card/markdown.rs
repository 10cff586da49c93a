//! What comes from outside, as Markdown that shows it as it is.

/// Text as code within a line.
pub(super) fn code(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    match longest {
        0 => format!("`{text}`"),
        _ => format!("{fence} {text} {fence}"),
    }
}

/// A repository of the Hub as a link; any other name as code.
pub(super) fn link(name: &str, repository: bool) -> String {
    match repository {
        true => format!("[{name}](https://huggingface.co/{name})"),
        false => code(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_within_its_fence() {
        assert_eq!(code("a/b"), "`a/b`");
        assert_eq!(code("a`b``c"), "``` a`b``c ```");
        assert_eq!(code("a\nb|c"), "`a b|c`");
    }
}
