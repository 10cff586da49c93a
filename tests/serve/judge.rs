//! The program's own server as the judge of its own `sppo judge --judge http`.

use serde_json::json;

use super::Server;

#[test]
fn the_server_is_a_judge_with_graded_verdicts() {
    let server = Server::start("--served-name judge");
    let question = |first: &str, second: &str| format!("q: {first} or {second}?");
    // Random weights say neither A nor B: two of their likeliest answers stand for them.
    let answer = server.chat(json!({
        "messages": [{"role": "user", "content": question("yes", "no")}],
        "max_tokens": 1, "temperature": 0, "logprobs": true, "top_logprobs": 20,
    }));
    let top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"].clone();
    let tokens = top.as_array().unwrap().iter();
    let mut words = tokens
        .filter_map(|token| token["token"].as_str())
        .filter(|token| token.chars().all(|c| c.is_ascii_alphabetic()) && !token.is_empty());
    let (first, second) = (words.next().unwrap(), words.next().unwrap());
    let place = &server.place;
    place.write(
        "judge.toml",
        format!(
            "[judge.http]\nbase_url = \"http://{}/v1\"\nmodel = \"judge\"\ntemplate = \"{{prompt}}: {{response_a}} or {{response_b}}?\"\n\
             first = {first:?}\nsecond = {second:?}\non_invalid = \"tie\"\nretries = 0\n",
            server.address
        ),
    );
    place.write_rows(
        "responses.jsonl",
        &[json!({"prompt_id": "a", "prompt": "q", "responses": ["yes", "no"]})],
    );
    place.ok(
        "judge --responses responses.jsonl --judge http --config judge.toml --out judged.jsonl",
    );
    let judged = &place.rows("judged.jsonl")[0];
    let logits = &judged["comparison_logits"];
    assert_ne!(logits[0][1].as_f64().unwrap(), 0.0, "{judged}");
    assert_eq!(server.metric("sppo:requests_accepted_total"), 3.0);
}
