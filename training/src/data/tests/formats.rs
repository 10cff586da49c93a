//! Formats that people have, and what would change a prompt unseen.

use serde_json::json;
use sppo_model::chat_template::tools_of;

use super::*;

fn one<T: Row>(row: Value) -> T {
    let mut rows: Vec<T> = read(&row.to_string()).unwrap_or_else(|e| panic!("{row}: {e}"));
    rows.remove(0)
}

fn refused<T: Row>(row: Value, parts: &[&str]) {
    let message = message::<T>(row.to_string());
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

fn system(text: &str) -> Message {
    Message::new("system", text)
}

/// r050: a `system` column, `tools` and calls of tools were dropped without a word, and ShareGPT's
/// names of roles were written into the prompt.
#[test]
fn what_a_prompt_consists_of_is_kept() {
    let row: PromptRow = one(json!({"system": "S", "prompt": "A"}));
    assert_eq!(row.prompt, Prompt::Messages(vec![system("S"), user("A")]));
    for column in ["system", "system_prompt"] {
        let row: PairRow =
            one(json!({column: "S", "question": "A", "chosen": "B", "rejected": "C"}));
        let PairContent::Text { prompt, .. } = row.content else {
            panic!("ids");
        };
        assert_eq!(prompt, [system("S"), user("A")]);
    }
    let same = json!([{"role": "system", "content": "S"}, {"role": "human", "content": "A"}]);
    let row: ResponseRow = one(json!({"prompt": same, "system": "S", "responses": ["x"]}));
    assert_eq!(row.prompt, Prompt::Messages(vec![system("S"), user("A")]));
    let row: PromptRow = one(json!({"prompt": "A", "system": "", "tools": "", "images": []}));
    assert_eq!(row.prompt, Prompt::Text("A".into()));

    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let calls = json!([{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}]);
    let turns = json!([
        {"from": "human", "value": "A", "tool_calls": null},
        {"role": "assistant", "content": null, "tool_calls": calls},
        {"role": "tool", "content": [{"type": "text", "text": "B"}, {"type": "text", "text": "C"}],
         "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "D"},
    ]);
    for tools in [
        tools.clone(),
        tools.to_string().into(),
        json!([tools[0].to_string()]),
    ] {
        let row: SftRow = one(json!({"messages": turns, "tools": tools}));
        assert_eq!(row.response, "D");
        assert_eq!(row.prompt[0].further.len(), 0);
        assert_eq!(
            (&row.prompt[1].content, &row.prompt[1].further["tool_calls"]),
            (&None, &calls)
        );
        assert_eq!(row.prompt[2].text(), "BC");
        assert_eq!(
            row.prompt[2].further,
            *json!({"tool_call_id": "1", "name": "f"})
                .as_object()
                .unwrap()
        );
    }
    // The last turn of a tool belongs to the prompt, and tools tell prompts apart.
    let with: PromptRow = one(json!({"messages": turns, "tools": tools}));
    let without: PromptRow = one(json!({"messages": turns}));
    assert_eq!(with.prompt.messages().len(), 3);
    assert_eq!(tools_of(&with.prompt.messages()), Some(&tools));
    assert_ne!(with.prompt_id, without.prompt_id);
}

/// r050: and all of it comes through the files in between.
#[test]
fn tools_travel_through_files() {
    let folder = folder();
    let tools =
        json!([{"type": "function", "function": {"name": "f", "parameters": {"default": null}}}]);
    let prompt = json!([
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "B", "tool_call_id": "1"},
    ]);
    let response: ResponseRow =
        one(json!({"prompt": prompt, "tools": tools, "responses": ["x", "y"]}));
    let mut judged: JudgedRow = judged("a", &[1.0, 2.0]);
    judged.responses.prompt = response.prompt.clone();
    let pair: PairRow =
        one(json!({"prompt": prompt, "tools": tools, "chosen": "B", "rejected": "C"}));
    for name in ["x.jsonl", "x.parquet"] {
        let path = folder.path().join(name);
        write_one(&path, &response);
        assert_eq!(
            read_rows::<ResponseRow>(&path).unwrap(),
            std::slice::from_ref(&response)
        );
        write_one(&path, &judged);
        assert_eq!(
            read_rows::<JudgedRow>(&path).unwrap(),
            std::slice::from_ref(&judged)
        );
        write_one(&path, &pair);
        assert_eq!(
            read_rows::<PairRow>(&path).unwrap(),
            std::slice::from_ref(&pair)
        );
    }
}

/// r051: what would change a prompt or an answer and cannot be followed was read past.
#[test]
fn what_cannot_be_shown_is_refused() {
    let turn = |more: Value| {
        let mut turn = json!({"role": "user", "content": "A"});
        turn.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"prompt": [turn]})
    };
    for (row, parts) in [
        (
            turn(json!({"role": "observation"})),
            [
                "key `prompt[0].role` must be one of system, user",
                "found \"observation\"",
            ],
        ),
        (
            turn(json!({"content": [{"type": "image_url", "image_url": "x"}]})),
            [
                "key `prompt[0].content[0]` holds a part of type \"image_url\"",
                "only text",
            ],
        ),
        (
            turn(json!({"content": [{"type": "text"}]})),
            ["key `prompt[0].content[0]` must be a part", "text"],
        ),
        (
            turn(json!({"content": null})),
            ["key `prompt[0].content` must be a string", "found nothing"],
        ),
        (
            turn(json!({"images": ["a.png"]})),
            ["key `prompt[0].images` holds a list of 1", "only text"],
        ),
        (
            turn(json!({"function_call": {"name": "f"}})),
            [
                "key `prompt[0].function_call` holds an object",
                "`tool_calls`",
            ],
        ),
        (
            turn(json!({"tool_calls": "f()"})),
            [
                "key `prompt[0].tool_calls` must be a list of calls",
                "\"f()\"",
            ],
        ),
        (
            turn(json!({"from": "gpt"})),
            ["key `prompt[0].from` holds", "has `role` too"],
        ),
        (
            json!({"prompt": "A", "tools": "f"}),
            ["key `tools` must be a list of tools", "not JSON"],
        ),
        (
            json!({"prompt": "A", "tools": [3]}),
            ["key `tools[0]` must be an object", "the number 3"],
        ),
        (
            json!({"prompt": "A", "documents": [{"text": "x"}]}),
            ["key `documents` holds a list of 1", "into the prompt"],
        ),
        (
            json!({"prompt": "A", "image": "a.png"}),
            ["key `image` holds", "only text"],
        ),
        (
            json!({"prompt": "A", "chat_template_kwargs": {"x": 1}}),
            ["key `chat_template_kwargs`", "template"],
        ),
        (
            json!({"instruction": "A", "context": "x"}),
            ["key `context` holds", "`input`"],
        ),
        (
            json!({"prompt": [{"role": "system", "content": "S"}], "system": "T"}),
            ["key `system` holds the string \"T\"", "another system turn"],
        ),
        (
            json!({"prompt": "A", "system": "S", "system_prompt": "T"}),
            ["key `system_prompt` holds", "keep one"],
        ),
        (
            json!({"prompt": "A", "system": 3}),
            ["key `system` must be a string", "the number 3"],
        ),
    ] {
        refused::<PromptRow>(row, &parts);
    }
    let answer =
        json!({"role": "assistant", "content": "B", "tool_calls": [{"function": {"name": "f"}}]});
    let user = json!({"role": "user", "content": "A"});
    refused::<SftRow>(
        json!({"messages": [user, answer]}),
        &["key `messages` holds an answer with `tool_calls`"],
    );
    refused::<PairRow>(
        json!({"prompt": "A", "chosen": [answer], "rejected": "C"}),
        &[
            "key `chosen` holds an answer with `tool_calls`",
            "only the text",
        ],
    );
}

/// r052: data sets in one JSON array were refused by the file's name.
#[test]
fn json_arrays_are_read() {
    let folder = folder();
    let path = |text: &str| write(&folder, "rows.json", text);
    let array = "\u{feff}\n[\n  {\"prompt\": \"A\", \"tags\": [1, {\"x\": \"]},\\\"\"}]},\n{\"prompt\": \"B\"}\n]\n";
    for text in [
        array,
        "[{\"prompt\":\"A\"},{\"prompt\":\"B\",\"score\":NaN}]",
        "{\"prompt\": \"A\"}\n{\"prompt\": \"B\"}\n",
    ] {
        let rows: Vec<PromptRow> = read_rows(&path(text)).unwrap();
        let prompts: Vec<&Prompt> = rows.iter().map(|row| &row.prompt).collect();
        assert_eq!(
            prompts,
            [&Prompt::Text("A".into()), &Prompt::Text("B".into())],
            "{text}"
        );
    }
    let rows: Vec<PromptRow> = read_rows(&path("{\n \"prompt\": \"A\"\n}\n")).unwrap();
    assert_eq!(rows.len(), 1);
    for (text, part) in [
        ("[]", "holds no rows"),
        (
            "[\n{\"prompt\": \"A\"},\n{\"prompt\": 3}\n]",
            "row 2 (line 3): key `prompt` must be",
        ),
        (
            "[\n{\"prompt\": \"A\"},\n{\"prompt\": \"B\"",
            "line 3: the array does not end",
        ),
        ("[{\"prompt\": \"A\"}\n", "line 2: the array does not end"),
        (
            "[\n{\"prompt\": \"A\" \"B\"}]",
            "row 1 (line 2): not a JSON object",
        ),
        (
            "[1]",
            "row 1 (line 1): not a JSON object: found a bare value",
        ),
        (
            "[{\"prompt\": \"A\"}] x",
            "something follows behind the array's end",
        ),
        ("{\"data\": [{\"prompt\": \"A\"}]}", "jq -c '.[\"data\"][]'"),
    ] {
        let error = read_rows::<PromptRow>(&path(text)).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let Err(error) = RowWriter::<PromptRow>::open(&folder.path().join("new.json")) else {
        panic!("opened");
    };
    assert!(error.to_string().contains("can only be read"), "{error}");
}

/// r053: ShareGPT, MT-Bench, HH-RLHF and TRL's `completion` were not read.
#[test]
fn common_layouts_are_read() {
    let turns = json!([{"from": "system", "value": "S"}, {"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]);
    let asked = vec![system("S"), user("A")];
    let row: PromptRow = one(json!({"conversations": turns}));
    assert_eq!(row.prompt, Prompt::Messages(asked.clone()));
    let row: SftRow = one(json!({"conversations": turns}));
    assert_eq!((row.prompt, row.response.as_str()), (asked.clone(), "B"));
    for row in [
        json!({"question": "A", "question_id": 81}),
        json!({"turns": ["A"], "question_id": 81}),
    ] {
        let row: PromptRow = one(row);
        assert_eq!(row.prompt, Prompt::Text("A".into()));
    }
    for row in [
        json!({"prompt": "A", "completion": "B"}),
        json!({"prompt": [{"role": "user", "content": "A"}], "completion": [{"role": "assistant", "content": "B"}]}),
        json!({"question": "A", "answer": "B"}),
        json!({"question": "A", "response": "B"}),
        json!({"instruction": "A", "response": "B"}),
        json!({"prompt": "\n\nHuman: A\n\nAssistant:", "completion": "B"}),
    ] {
        let row: SftRow = one(row);
        assert_eq!((row.prompt, row.response.as_str()), (vec![user("A")], "B"));
    }
    let hh = |answer: &str| {
        format!("\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nfor me\n\nAssistant: {answer}")
    };
    for (row, prompt) in [
        (
            json!({"chosen": hh("D\n\n1. E"), "rejected": hh("F")}),
            vec![user("A"), assistant("B"), user("C\n\nfor me")],
        ),
        (
            json!({"prompt": "\n\nHuman: A\n\nAssistant:", "chosen": "\n\nHuman: A\n\nAssistant: D\n\n1. E",
                "rejected": "\n\nHuman: A\n\nAssistant: F"}),
            vec![user("A")],
        ),
        (
            json!({"prompt": "\n\nHuman: A\n\nAssistant:", "chosen": " D\n\n1. E", "rejected": " F"}),
            vec![user("A")],
        ),
        (
            json!({"conversations": [{"from": "human", "value": "A"}],
                "chosen": {"from": "gpt", "value": "D\n\n1. E"}, "rejected": {"from": "gpt", "value": "F"}}),
            vec![user("A")],
        ),
        (
            json!({"instruction": "A", "input": "x", "chosen": "D\n\n1. E", "rejected": "F"}),
            vec![user("A\n\nx")],
        ),
    ] {
        let row: PairRow = one(row);
        let expected = PairContent::Text {
            prompt,
            chosen: "D\n\n1. E".into(),
            rejected: "F".into(),
        };
        assert_eq!(row.content, expected);
    }
    refused::<PromptRow>(
        json!({"turns": ["A", "B"]}),
        &["key `turns` holds 2 user turns", "jq -c", ".turns[0]"],
    );
    refused::<PromptRow>(json!({"turns": "A"}), &["key `turns` must be a list"]);
    refused::<PairRow>(
        json!({"chosen": hh("D"), "rejected": hh("F").replace("Human: A", "Human: Z")}),
        &["key `rejected` must be a conversation that begins with the same turns"],
    );
    refused::<PairRow>(
        json!({"conversations": turns, "chosen": "C", "rejected": "D"}),
        &["key `conversations` must be the turns before the answers"],
    );
    refused::<PairRow>(
        json!({"text_a": "x", "winner": 1}),
        &[
            "key `chosen` is missing",
            "the row has `text_a`, `winner`",
            "jq -c",
        ],
    );
    refused::<SftRow>(
        json!({"prompt": "A", "completion": [{"role": "user", "content": "B"}]}),
        &["key `completion` must be a string or one assistant turn"],
    );
}

/// r054: NaN in a column that nobody reads ended the job, and half a surrogate pair named no key.
#[test]
fn pythons_json_is_read() {
    let rows: Vec<PromptRow> = read(concat!(
        r#"{"prompt": "A NaN \"-Infinity\" 😀 \\ud800", "score": NaN, "more": [1, -Infinity, {"x": Infinity}], "big": 1e999}"#,
        "\n",
        r#"{"prompt": "B", "raw": "\ud800", "\udc00": 1}"#,
    ))
    .unwrap();
    assert_eq!(
        rows[0].prompt,
        Prompt::Text("A NaN \"-Infinity\" 😀 \\ud800".into())
    );
    assert_eq!(rows[1].prompt, Prompt::Text("B".into()));
    for (row, parts) in [
        (
            r#"{"prompt": "\ud83d"}"#,
            ["line 1: key `prompt` holds `\\ud83d`", "surrogatepass"],
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "a\udE00b"}]}"#,
            [
                "line 1: key `prompt[0].content` holds `\\udE00`",
                "remove it",
            ],
        ),
        (
            r#"{"prompt": [{"role": "user", "content": "a", "x\ud800": 1}]}"#,
            ["key `prompt[0].x", "`\\ud800`"],
        ),
        (
            r#"{"prompt": "A", "prompt_id": NaN}"#,
            [
                "line 1: not a JSON object: key `prompt_id` must be",
                "found NaN (JSON has no NaN or Infinity)",
            ],
        ),
        (
            r#"{"prompt": "A", "tools": [{"x": -Infinity}]}"#,
            ["key `tools[0].x` must be", "found -Infinity"],
        ),
        (
            r#"{"prompt": "A", "tools": [1e999]}"#,
            ["key `tools[0]` must be", "found 1e999"],
        ),
        (
            r#"{"prompt": "A", "x": NaNa}"#,
            ["not a JSON object", "JSON has no NaN"],
        ),
        (
            r#"{"prompt": "A", "x": "\ud80"}"#,
            ["line 1: not a JSON object", "escape"],
        ),
    ] {
        let message = message::<PromptRow>(format!("{row}\n"));
        for part in parts {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
    let rows: Vec<LogpRow> =
        read("{\"chosen_logps\": 1, \"rejected_logps\": 2, \"x\": NaN}").unwrap();
    assert_eq!(rows.len(), 1, "a last line without its newline is a row");
}

/// r055: of many bad rows only the first was named.
#[test]
fn all_bad_rows_are_named() {
    let mut text =
        String::from("{\"prompt\": \"A\", \"prompt_id\": \"a\"}\n{\"prompt\": \"\"}\n[1]\n");
    text.push_str("{\"prompt\": \"B\", \"prompt_id\": \"a\"}\n");
    let short = message::<PromptRow>(&text);
    let expected = "rows.jsonl: 3 rows cannot be used:\n  \
        line 2: key `prompt` must be a prompt that is not empty, found an empty string\n  \
        line 3: not a JSON object: found a list\n  \
        prompt_id `a` stands at line 1 and again at line 4; ids must be unique";
    assert_eq!(short, expected);
    text.push_str(&"{\"prompt\": 3}\n".repeat(20));
    let long = message::<PromptRow>(&text);
    assert!(
        long.starts_with("rows.jsonl: 23 rows cannot be used:\n  line 2"),
        "{long}"
    );
    assert!(
        long.contains("line 11: ") && !long.contains("line 12: "),
        "{long}"
    );
    assert!(long.ends_with("\n  and 13 more"), "{long}");
    // Of the same kind: pairs that lack what the loss needs, and rows of a table.
    let pair = "{\"prompt\": \"A\", \"chosen\": \"B\", \"rejected\": \"C\"}\n".repeat(12);
    let rows: Vec<PairRow> = read(&pair).unwrap();
    let mut file = RowFile::of(Path::new("pairs.jsonl"), rows);
    let keys = [ProbabilityKey::Win, ProbabilityKey::Lose];
    let error = check_probabilities(&mut file, "sppo", &keys)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("pairs.jsonl: 12 rows cannot be used:\n  row 1: key"),
        "{error}"
    );
    assert!(error.ends_with("and 2 more"), "{error}");
}
