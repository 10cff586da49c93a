//! `judge.http.cache` took any file for a cache of answers and appended to it, cut a last line
//! without an end off from the next, and passed over damaged lines in silence.

use std::sync::atomic::Ordering;

use super::server::{JUDGE, VERDICT, judge, place, start};

#[test]
fn only_a_cache_is_used_as_one() {
    let (port, asked) = start(|_, _| ("200 OK".into(), VERDICT.into()));
    let place = place(&format!("http://127.0.0.1:{port}/v1"), "");
    place.write("notes.txt", "no end of line");
    for file in ["notes.txt", "judge.toml"] {
        let before = place.bytes(file);
        let command = format!("{JUDGE} --set judge.http.cache={file}");
        place.refused(&command, &[file, "is not a cache of answers", "line 1"]);
        assert_eq!(place.bytes(file), before);
    }
    let before = place.bytes("responses.jsonl");
    let command = format!("{JUDGE} --set judge.http.cache=./responses.jsonl");
    place.refused(&command, &["judge.http.cache and --responses are both"]);
    let command = format!("{JUDGE} --set judge.http.cache=judged.jsonl");
    place.refused(&command, &["judge.http.cache and --out are both"]);
    place.write("copy.jsonl", &before);
    let command = format!("{JUDGE} --set judge.http.cache=copy.jsonl");
    place.refused(&command, &["is not a cache of answers"]);
    assert_eq!(place.bytes("copy.jsonl"), before);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_torn_end_is_dropped_and_damage_is_said() {
    let (port, asked) = start(|_, _| ("200 OK".into(), VERDICT.into()));
    let place = place(&format!("http://127.0.0.1:{port}/v1"), "");
    let cache = "judged.jsonl.cache.jsonl";
    assert_eq!(judge(&place, "").0, Some(0));
    let whole = place.read(cache);
    let again = || {
        std::fs::remove_file(place.path("judged.jsonl")).unwrap();
        let (code, text) = judge(&place, "");
        (code, text, asked.load(Ordering::SeqCst))
    };
    place.write(cache, format!("{whole}{}", &whole[..20]));
    let (code, text, requests) = again();
    assert_eq!((code, requests), (Some(0), 2), "{text}");
    assert!(
        text.contains("line 3: half an answer, of a process"),
        "{text}"
    );
    assert_eq!(place.read(cache), whole);
    let damaged = whole
        .replacen("\"logit\"", "\"l0git\"", 2)
        .replacen("l0git", "logit", 1);
    place.write(cache, &damaged);
    std::fs::remove_file(place.path("judged.jsonl")).unwrap();
    place.refused(JUDGE, &[cache, "line 2: not an answer", "remove the line"]);
    assert_eq!(place.read(cache), damaged);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}
