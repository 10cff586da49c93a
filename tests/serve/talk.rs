//! `sppo chat`: with a model of its own, with a server, and with two at once.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use super::Server;
use crate::cli::Place;

const SAME: &str = "--set temperature=0 --set max_tokens=8 --message hello";

/// What comes of lines through a pipe.
fn piped(place: &Place, args: &str, lines: &str) -> (Option<i32>, String, String) {
    let mut command = place.command(&format!("chat {args}"));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn one_answer_is_the_same_from_the_model_and_from_its_server() {
    let server = Server::start("");
    let url = format!("http://{}", server.address);
    let own = server.place.ok(&format!("chat --model llama {SAME}"));
    let served = server.place.ok(&format!("chat --url {url} {SAME}"));
    assert_eq!(own, served);
    let both = server
        .place
        .ok_json(&format!("chat --model llama --url {url} {SAME}"));
    let answers = both["answers"].as_array().unwrap();
    let text = |i: usize| answers[i]["text"].as_str().unwrap();
    assert_eq!((text(0), text(0)), (text(1), own.trim_end_matches('\n')));
    assert_eq!(answers[0]["tokens"], answers[1]["tokens"]);
    assert!(matches!(
        answers[0]["finish_reason"].as_str(),
        Some("stop" | "length")
    ));
}

#[test]
fn lines_through_a_pipe_are_a_conversation() {
    let place = Place::with_model();
    let lines = "hello\n/set seed=3\n/sve x\nagain\n/save talk.jsonl\n/undo\n/save talk.jsonl\n/quit\nnever\n";
    let (code, stdout, stderr) = piped(
        &place,
        "--model llama --set temperature=0 --set max_tokens=6 --system Brief.",
        lines,
    );
    assert_eq!(code, Some(0), "{stderr}");
    for part in [
        "temperature=0 max_tokens=6 seed=3",
        "did you mean /save?",
        "written to talk.jsonl",
        "forgotten: again",
    ] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
    // The second time without what was undone.
    let talk: Value = serde_json::from_str(&place.read("talk.jsonl")).unwrap();
    let messages = talk["messages"].as_array().unwrap();
    let roles: Vec<_> = messages
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant"]);
    // A conversation is a row to train on.
    let (code, stdout, _) = piped(
        &place,
        "--model llama --set max_tokens=4",
        "/load talk.jsonl\nmore\n",
    );
    assert_eq!(code, Some(0));
    assert!(
        stdout.contains("1 questions and answers from talk.jsonl"),
        "{stdout}"
    );
}

#[test]
fn two_models_answer_the_same_question() {
    let place = Place::with_model();
    let (code, stdout, stderr) = piped(
        &place,
        "--model llama --model llama --set temperature=0 --set max_tokens=4",
        "hello\n",
    );
    assert_eq!(code, Some(0), "{stderr}");
    let (_, rest) = stdout.split_once("[llama (1)]\n").unwrap();
    let (first, second) = rest.split_once("[llama (2)]\n").unwrap();
    assert!(second.starts_with(first.trim_end()), "{stdout}");
}

#[test]
fn what_cannot_be_talked_to_is_said() {
    let place = Place::with_model();
    place.refused("chat --model absent", &["\"absent\" is not a folder"]);
    place.refused("chat --model a --model b --url http://c", &["3 models"]);
    place.refused(
        "chat --model llama --set temprature=1",
        &["did you mean temperature?"],
    );
    place.refused("chat --model llama --json", &["--message"]);
    place.refused("chat --url localhost:8000", &["http://localhost:8000/v1"]);
    let failed = place.fails("chat --url http://127.0.0.1:9 --message hi");
    assert!(failed.contains("http://127.0.0.1:9/v1"), "{failed}");
    std::fs::remove_file(place.path("llama/chat_template.jinja")).ok();
    place.edit("llama/tokenizer_config.json", |config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    place.refused("chat --model llama --message hi", &["chat template"]);
}
