//! Templates that write today's date made yesterday's output go on with today's prompts.

use serde_json::json;

use crate::cli::Place;

#[test]
fn it_stays_that_of_its_beginning() {
    let place = Place::with_model();
    place.write(
        "llama/chat_template.jinja",
        "{{ bos_token }}Today is {{ strftime_now('%d %b %Y') }}.{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}",
    );
    place.copy_model("plain");
    let rows: Vec<_> = (0..6)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": format!("Say {i}.")}))
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    let args = "generate --model llama --prompts prompts.jsonl --samples 2 --max-new-tokens 6 --out out.jsonl";
    place.ok(&format!("{args} --date 2024-02-29"));
    let whole = place.read("out.jsonl");
    // Today, the same command goes on with the prompts of that day.
    let two: String = whole.split_inclusive('\n').take(2).collect();
    place.cut("out.jsonl", &two);
    place.ok(args);
    assert_eq!(place.read("out.jsonl"), whole);
    let parts = ["date: was 2024-02-29, is 2024-03-01"];
    place.refused(&format!("{args} --date 2024-03-01"), &parts);

    // A training and its reference values too.
    place.ok("judge --responses out.jsonl --judge rubric --out judged.jsonl");
    place.ok("pairs --judged judged.jsonl --out pairs.jsonl");
    place.write(
        "train.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\nrows = \"clean\"\nbeta = 0.1\n",
    );
    place.ok("train --config train.toml --date 2024-02-29");
    let ran = place.sppo("train --config train.toml");
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    let ran = place.sppo("train --config train.toml --date 2024-03-01");
    assert!(
        ran.stderr.contains("date: was 2024-02-29, is 2024-03-01"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("out.before-"), "{}", ran.stderr);

    // Where the template does not use it, it is no part of anything.
    let plain = args
        .replace("llama", "plain")
        .replace("out.jsonl", "plain.jsonl");
    place.ok(&format!("{plain} --date 2024-02-29"));
    let ran = place.sppo(&format!("{plain} --date 2024-03-01"));
    assert!(ran.stderr.contains("nothing to do"), "{}", ran.stderr);
    assert!(ran.stderr.contains("changes nothing"), "{}", ran.stderr);
}
