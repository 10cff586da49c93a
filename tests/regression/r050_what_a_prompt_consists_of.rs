//! A `system` or `tools` column was ignored, so models answered and learnt other prompts than the
//! rows said.

use serde_json::json;

use crate::cli::Place;

const GENERATE: &str =
    "generate --model llama --samples 1 --max-new-tokens 2 --prompts prompts.jsonl --out";

#[test]
fn system_columns_are_the_first_message() {
    let place = Place::with_model();
    let (system, user) = (
        json!({"role": "system", "content": "be brief"}),
        json!({"role": "user", "content": "a river"}),
    );
    let pair = |prompt, more| {
        let mut row = json!({"prompt": prompt, "chosen": "rain", "rejected": "play"});
        row.as_object_mut()
            .unwrap()
            .extend(serde_json::Map::clone(more));
        row
    };
    let (with, none) = (json!({"system": "be brief"}), json!({}));
    let (with, none) = (with.as_object().unwrap(), none.as_object().unwrap());
    place.write_rows(
        "pairs.jsonl",
        &[
            pair(json!("a river"), with),
            pair(json!([{"from": "human", "value": "a river"}]), with),
            pair(json!([system, user]), none),
            pair(json!("a river"), none),
        ],
    );
    place.ok("score --model llama --data pairs.jsonl --out scores.jsonl");
    let rows = place.rows("scores.jsonl");
    assert_eq!(rows[0], rows[2]);
    assert_eq!(rows[1], rows[2]);
    assert_ne!(rows[3], rows[2]);
}

#[test]
fn tools_reach_the_template_and_the_responses() {
    let place = Place::with_model();
    let tools = json!([{"type": "function", "function": {"name": "add"}}]);
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt": "a river", "tools": tools})],
    );
    // The golden template writes no tools, which is said.
    let ran = place.sppo(&format!("{GENERATE} plain.jsonl"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("conversations have `tools`"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.rows("plain.jsonl")[0]["tools"], tools.to_string());

    let template = "{{ bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}\
        {% for m in messages %}{{ m.role }}{{ m.content }}<|eot_id|>{% endfor %}";
    place.write("llama/chat_template.jinja", template);
    let ran = place.sppo(&format!("{GENERATE} tools.jsonl"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(!ran.stderr.contains("tools"), "{}", ran.stderr);
    let long = format!("{template}{{{{ raise_exception(tools | tojson) if tools }}}}");
    place.write("llama/chat_template.jinja", long);
    place.refused(&format!("{GENERATE} refused.jsonl"), &["\"name\": \"add\""]);
}

#[test]
fn the_rest_is_refused_by_row_key_and_value() {
    let place = Place::with_model();
    for (row, parts) in [
        (
            json!({"prompt": [{"role": "narrator", "content": "x"}]}),
            [
                "prompts.jsonl, line 1: key `prompt[0].role`",
                "found \"narrator\"",
            ],
        ),
        (
            json!({"prompt": "x", "images": ["a.png"]}),
            [
                "prompts.jsonl, line 1: key `images` holds a list of 1",
                "only text",
            ],
        ),
        (
            json!({"prompt": "x", "documents": [{"text": "y"}]}),
            ["line 1: key `documents` holds", "into the prompt"],
        ),
    ] {
        place.write_rows("prompts.jsonl", &[row]);
        place.refused(&format!("{GENERATE} out.jsonl"), &parts);
    }
}
