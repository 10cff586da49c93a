//! Addresses: their parts, and where a redirect leads.

/// Scheme, host and port.
pub fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']);
    end.map_or(url, |end| &url[..start + end])
}

/// Whether the address has a scheme.
pub fn is_absolute(location: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| location.starts_with(scheme))
}

/// Where a redirect from `url` to `location` leads; nowhere from https to http.
pub fn follow(url: &str, location: &str) -> Option<String> {
    let target = if is_absolute(location) {
        location.to_string()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{}://{rest}", url.split_once("://")?.0)
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url))
    } else {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        format!("{}/{location}", path.rsplit_once('/')?.0)
    };
    let weaker = url.starts_with("https://") && !target.starts_with("https://");
    (!weaker).then_some(target)
}

/// One part of a path, or with slashes several of them, as an address has it.
pub fn escaped(path: &str, slashes: bool) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                text.push(byte.into());
            }
            b'/' if slashes => text.push('/'),
            _ => text += &format!("%{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects() {
        let from = "https://h:1/a/b?c=d";
        assert_eq!(origin(from), "https://h:1");
        assert_eq!(origin("http://h"), "http://h");
        for (location, expected) in [
            ("https://o/x", Some("https://o/x")),
            ("//o/x", Some("https://o/x")),
            ("/x?y", Some("https://h:1/x?y")),
            ("x", Some("https://h:1/a/x")),
            ("http://h:1/x", None),
        ] {
            assert_eq!(follow(from, location).as_deref(), expected, "{location}");
        }
        assert_eq!(follow("http://h/a", "https://h/b").unwrap(), "https://h/b");
    }

    #[test]
    fn escapes() {
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(escaped("a b/ü.x", true), "a%20b/%C3%BC.x");
    }
}
