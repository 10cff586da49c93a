//! Control characters of servers' answers, settings and file names went to the terminal as they are.

use super::server::{JUDGE, judge, place, start};

fn assert_tame(text: &str) {
    let wild = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!text.contains(wild), "{text:?}");
}

#[test]
fn nothing_from_outside_reaches_the_terminal_raw() {
    const WILD: &str = "\u{1b}[2J\u{1b}]0;t\u{7}\rok\u{8}\u{9b}1m\u{202e}gpj";
    for status in ["401 No", "500 Oh", "200 OK"] {
        let (port, _) = start(move |_, _| (status.into(), WILD.into()));
        let place = place(&format!("http://127.0.0.1:{port}/v1"), "retries = 1");
        let (_, text) = judge(&place, "-vv");
        assert_tame(&text);
    }
    // A tie is a warning of the log.
    let body = serde_json::json!({"choices": [{"message": {"content": WILD}}]}).to_string();
    let (port, _) = start(move |_, _| ("200 OK".into(), body.clone()));
    let place = place(
        &format!("http://127.0.0.1:{port}/v1"),
        "retries = 0\non_invalid = \"tie\"",
    );
    let (code, text) = judge(&place, "");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("taken as a tie"), "{text}");
    assert_tame(&text);

    let words = JUDGE.split(' ').map(str::to_string).collect::<Vec<_>>();
    for more in [
        vec!["--set", "train.loss=\u{1b}[31m\u{202e}"],
        vec!["--set", "no\u{1b}[31m=\u{202e}"],
        vec!["--shard", "\u{1b}[31m\u{202e}"],
        vec!["--\u{1b}[31m\u{202e}"],
        vec!["--config", "no\u{1b}[31m\u{202e}.toml"],
        vec!["--responses", "no\u{1b}[31m\u{202e}\nerror: forged.jsonl"],
    ] {
        let replaced = |word: &String| more.len() == 2 && word == more[0];
        let mut command = place.command("");
        let mut kept = words.iter();
        while let Some(word) = kept.next() {
            match replaced(word) {
                true => drop(kept.next()),
                false => drop(command.arg(word)),
            }
        }
        let output = command.args(&more).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert_tame(&text);
        assert!(
            !text.lines().any(|line| line.starts_with("error: forged")),
            "{text}"
        );
    }
}
