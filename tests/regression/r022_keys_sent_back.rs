//! The key was hidden only where a server sent the whole of it back unchanged, and one in the query
//! of `base_url` was printed, written into rows and into the saved configuration.

use std::fs;

use super::server::{JUDGE, KEY, VERDICT, judge, place, start};
use crate::cli::Place;

/// No six characters of a secret in what was printed or written.
fn assert_hidden(secret: &str, text: &str, place: &Place) {
    let pieces: Vec<&str> = (0..secret.len() - 5)
        .map(|at| &secret[at..at + 6])
        .collect();
    let shows = |text: &str| pieces.iter().find(|piece| text.contains(**piece)).copied();
    assert_eq!(shows(text), None, "{text}");
    for entry in fs::read_dir(place.path(".")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with("judge.toml") {
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(shows(&text), None, "{}", path.display());
        }
    }
}

#[test]
fn an_echo_in_any_form_is_hidden() {
    let escaped: String = KEY.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let percent: String = KEY.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let hex: String = KEY.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Of `Bearer sk-test-Zx9Qw7rTyu2LmNpV`.
    let base64 = "QmVhcmVyIHNrLXRlc3QtWng5UXc3clR5dTJMbU5wVg==";
    for (echo, forbidden) in [
        (KEY[..14].to_string(), &KEY[8..14]),
        (format!("sk-...{}", &KEY[20..]), &KEY[20..]),
        (escaped.clone(), &escaped[60..90]),
        (percent.clone(), &percent[30..48]),
        (hex.clone(), &hex[20..32]),
        (base64.to_string(), &base64[16..28]),
    ] {
        for status in ["401 No", "500 Oh", "200 OK"] {
            let body = format!("{{\"error\": \"the key {echo} is wrong\"}}");
            let (port, _) = start(move |_, _| (status.into(), body.clone()));
            let place = place(&format!("http://127.0.0.1:{port}/v1"), "retries = 1");
            let (code, text) = judge(&place, "-vv");
            assert!(matches!(code, Some(1 | 2)), "{text}");
            assert_hidden(KEY, &text, &place);
            assert!(!text.contains(forbidden), "{text}");
        }
    }
}

#[test]
fn a_key_in_the_query_is_used_and_not_shown() {
    const SECRET: &str = "q7Wz-secret-0xYt";
    let (port, _) = start(|_, request| {
        let line = request.lines().next().unwrap_or_default();
        let expected = format!("POST /v1/chat/completions?api-version=7&key={SECRET} HTTP/1.1");
        match line == expected {
            true => ("200 OK".into(), VERDICT.into()),
            false => ("404 Not Found".into(), line.into()),
        }
    });
    let address = format!("http://127.0.0.1:{port}/v1?api-version=7&key={SECRET}");
    let good = place(&address, "");
    let (code, text) = judge(&good, "--dry-run");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("key=[hidden]"), "{text}");
    assert_hidden(SECRET, &text, &good);
    let (code, text) = judge(&good, "");
    assert_eq!(code, Some(0), "{text}");
    assert_hidden(SECRET, &text, &good);
    assert!(good.read("judged.jsonl").contains("key=[hidden]"));

    let printed = good.ok("config --config judge.toml --set judge.kind=http");
    assert_hidden(SECRET, &printed, &good);
    good.write("printed.toml", printed);
    let again = JUDGE.replace("judge.toml", "printed.toml");
    good.refused(&again, &["judge.http.base_url", "hidden", "put them back"]);

    let bad = place(&address.replace("/v1", "/v2"), "");
    let (code, text) = judge(&bad, "-vv");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("status 404"), "{text}");
    assert_hidden(SECRET, &text, &bad);
}
