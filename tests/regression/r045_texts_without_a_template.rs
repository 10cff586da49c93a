//! A base model, which has no chat template, could not be used at all.

use std::fs;

use serde_json::json;
use sppo_model::tokenizer::Tokenizer;

use crate::cli::Place;

const GENERATE: &str =
    "generate --model llama --prompts p.jsonl --samples 1 --temperature 0 --max-new-tokens 8 --out";
const TEMPLATE: &str =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>";

/// A model without a chat template; `template.jinja` is one.
fn base() -> Place {
    let place = Place::with_model();
    place.edit("llama/tokenizer_config.json", |c| {
        c.as_object_mut().unwrap().remove("chat_template");
    });
    place.write("template.jinja", TEMPLATE);
    place.write_rows("p.jsonl", &[json!({"prompt": "Once upon a time"})]);
    place
}

#[test]
fn raw_prompts_are_their_text() {
    let place = base();
    place.ok(&format!("{GENERATE} raw.jsonl --raw --logprobs"));
    let row = &place.rows("raw.jsonl")[0];
    assert_eq!(row["prompt"], "Once upon a time");
    // The same as through a template that writes the text and what the tokenizer adds.
    let adds = Tokenizer::from_dir(&place.path("llama"))
        .unwrap()
        .encode("", true)
        .unwrap();
    let bos = match adds.is_empty() {
        true => "",
        false => "{{ bos_token }}",
    };
    place.write("plain.jinja", format!("{bos}{{{{ messages[0].content }}}}"));
    place.ok(&format!(
        "{GENERATE} plain.jsonl --chat-template plain.jinja --logprobs"
    ));
    let plain = &place.rows("plain.jsonl")[0];
    for key in ["responses", "logprobs", "tokens"] {
        assert_eq!(row[key], plain[key], "{key}");
    }
}

#[test]
fn raw_prompts_are_strings() {
    let place = base();
    let turns = json!([{"role": "user", "content": "x"}]);
    let rows: Vec<_> = (0..13)
        .map(|i| match i {
            0 => json!({"prompt_id": "text", "prompt": "x"}),
            _ => json!({"prompt_id": format!("p{i}"), "prompt": turns}),
        })
        .collect();
    place.write_rows("p.jsonl", &rows);
    place.refused(
        &format!("{GENERATE} r.jsonl --raw"),
        &[
            "--raw takes prompts that are strings",
            "12 rows:",
            "row 2, prompt p1 is a list of messages",
            "row 11, prompt p10 is a list of messages",
            "and 2 more; --raw",
        ],
    );
    assert!(!place.path("r.jsonl").exists());
    let both = format!("{GENERATE} r.jsonl --raw --chat-template template.jinja");
    place.refused(&both, &["--raw", "--chat-template"]);
}

#[test]
fn a_template_from_a_file_is_used_everywhere() {
    let place = base();
    // The same model with the same template in its folder.
    place.copy_model("own");
    fs::write(place.path("own/chat_template.jinja"), TEMPLATE).unwrap();
    let file = "--chat-template template.jinja";
    let own = |args: &str| args.replace("llama", "own");
    place.ok(&format!("{GENERATE} a.jsonl {file}"));
    place.ok(&format!("{} b.jsonl", own(GENERATE)));
    assert_eq!(place.read("a.jsonl"), place.read("b.jsonl"));
    // It goes before the folder's own.
    place.copy_model("llama3");
    place.ok(&format!(
        "{} c.jsonl {file}",
        GENERATE.replace("llama", "llama3")
    ));
    assert_eq!(place.read("c.jsonl"), place.read("b.jsonl"));

    let pair = json!({"prompt": "a", "chosen": "b", "rejected": "c", "chosen_probs": 0.9,
        "chosen_probs_win": 0.8, "chosen_probs_lose": 0.2});
    place.write_rows("pairs.jsonl", &[pair]);
    let score = "score --model llama --data pairs.jsonl --out";
    place.ok(&format!("{score} sa.jsonl {file}"));
    place.ok(&own(&format!("{score} sb.jsonl")));
    assert_eq!(place.read("sa.jsonl"), place.read("sb.jsonl"));

    place.write("t.toml", "output_dir = \"out\"\n[model]\npath = \"llama\"\nchat_template = \"template.jinja\"\n[train]\ndata = \"pairs.jsonl\"\n");
    place.ok("train --config t.toml");
    place.ok("train --config t.toml --set model.path=own --set output_dir=out2");
    let metrics =
        |dir: &str| place.rows(&format!("{dir}/metrics.jsonl"))[0]["logps/chosen"].clone();
    assert_eq!(metrics("out"), metrics("out2"));
    assert_eq!(place.read("out/model/chat_template.jinja"), TEMPLATE);
    // Another text of the same file is another training.
    place.write("template.jinja", format!("{TEMPLATE} "));
    place.ok("train --config t.toml");
    assert_eq!(
        place.read("out/model/chat_template.jinja"),
        format!("{TEMPLATE} ")
    );
    place.refused(
        "train --config t.toml --set model.chat_template=absent.jinja",
        &["absent.jinja"],
    );
}

/// An empty template made every prompt empty, and only that was said.
#[test]
fn an_empty_template_is_named() {
    let place = Place::with_model();
    place.write_rows("prompts.jsonl", &[json!({"prompt": "a river"})]);
    place.write("llama/chat_template.jinja", "\n");
    place.refused(
        "generate --model llama --prompts prompts.jsonl --out out.jsonl",
        &["llama/chat_template.jinja", "it is empty"],
    );
}
