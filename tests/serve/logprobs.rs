//! Log-probabilities of completions, as lm-evaluation-harness reads them.

use serde_json::{Value, json};

use super::Server;
use crate::golden;

/// What `local-completions` sends.
fn scored(prompt: Value) -> Value {
    json!({"prompt": prompt, "echo": true, "max_tokens": 1, "logprobs": 1, "temperature": 0, "seed": 1234, "model": "x"})
}

fn list<'a>(choice: &'a Value, key: &str) -> &'a Vec<Value> {
    choice["logprobs"][key].as_array().unwrap()
}

/// Greedy as the harness decides it.
fn greedy(choice: &Value, at: usize) -> bool {
    let top = list(choice, "top_logprobs")[at].as_object().unwrap();
    let most = top
        .values()
        .map(|x| x.as_f64().unwrap())
        .fold(f64::MIN, f64::max);
    list(choice, "token_logprobs")[at].as_f64() == Some(most)
}

/// `ln p` of the logits of a place.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max) as f64;
    let sum: f64 = logits.iter().map(|&x| (x as f64 - most).exp()).sum();
    logits.iter().map(|&x| x as f64 - most - sum.ln()).collect()
}

#[test]
fn prompts_are_scored_as_the_reference_does() {
    let server = Server::start("");
    let cases = golden::llama::cases();
    let prompts: Vec<_> = cases.iter().map(|(ids, _)| ids).collect();
    let answer = server.completion(scored(json!(prompts)));
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), cases.len());
    let (mut ranks, mut places) = (0, 0);
    for (choice, (ids, logits)) in choices.iter().zip(&cases) {
        let found = list(choice, "token_logprobs");
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(choice, key).len(), ids.len() + 1, "{key}");
        }
        assert_eq!(
            (&found[0], &list(choice, "top_logprobs")[0]),
            (&Value::Null, &Value::Null)
        );
        let rows: Vec<_> = logits.chunks_exact(426).map(log_softmax).collect();
        for at in 1..ids.len() {
            let row = &rows[at - 1];
            let expected = row[ids[at] as usize];
            let found = found[at].as_f64().unwrap();
            assert!((found - expected).abs() < 2e-4, "{at}: {found} {expected}");
            let best = row.iter().copied().fold(f64::MIN, f64::max);
            if best - expected > 1e-3 || best == expected {
                assert_eq!(greedy(choice, at), best == expected, "{at}");
                ranks += usize::from(best == expected);
                places += 1;
            }
        }
        // What was drawn is greedy.
        assert!(greedy(choice, ids.len()));
    }
    assert!(places > 50, "{places} places, {ranks} greedy");
}

/// The model's own continuation is greedy throughout, and the lists end with one token more.
#[test]
fn its_own_words_are_greedy() {
    let server = Server::start("");
    let (ids, _) = &golden::llama::cases()[0];
    let expected = golden::json("llama/expected.json");
    let own = golden::ids(&expected["greedy_24"][0]);
    let whole = [&ids[..], &own[..]].concat();
    let answer = server.completion(scored(json!(whole)));
    let choice = &answer["choices"][0];
    assert!((ids.len()..whole.len()).all(|at| greedy(choice, at)));
    // One at a time or with others: the same numbers.
    let many = server.completion(scored(json!([[1, 2, 3], whole, [4, 5]])));
    assert_eq!(many["choices"][1]["logprobs"], choice["logprobs"]);
}

#[test]
fn offsets_and_texts() {
    let server = Server::start("");
    let text = "short 🙂 memory";
    let mut body = scored(json!(text));
    body["max_tokens"] = 3.into();
    body["logprobs"] = 4.into();
    let choice = server.completion(body.clone())["choices"][0].clone();
    let whole = choice["text"].as_str().unwrap();
    assert!(whole.starts_with(text));
    let tokens: Vec<_> = list(&choice, "tokens")
        .iter()
        .map(|t| t.as_str().unwrap())
        .collect();
    let offsets: Vec<_> = list(&choice, "text_offset")
        .iter()
        .map(|o| o.as_u64().unwrap() as usize)
        .collect();
    let letters: Vec<char> = whole.chars().collect();
    assert_eq!((tokens[0], offsets[0]), ("<|begin_of_text|>", 0));
    assert_eq!(offsets[1], 0);
    let mut seen = 0;
    for (token, &offset) in tokens.iter().zip(&offsets).skip(1) {
        let special = token.starts_with("<|") || token.starts_with("bytes:");
        if !special {
            let there: String = letters[offset..]
                .iter()
                .take(token.chars().count())
                .collect();
            assert_eq!(&there, token);
            seen += 1;
        }
    }
    assert!(seen > 4);
    assert!(
        tokens.iter().any(|token| token.starts_with("bytes:\\x")),
        "{tokens:?}"
    );
    let tops = list(&choice, "top_logprobs");
    assert!(
        tops[1..]
            .iter()
            .all(|top| (4..=5).contains(&top.as_object().unwrap().len()))
    );
    // Without echo the prompt is not there; 0 gives the token alone; true is 1.
    body["echo"] = false.into();
    for (logprobs, entries) in [(json!(0), 1), (json!(true), 1), (json!(1), 1)] {
        body["logprobs"] = logprobs;
        let choice = server.completion(body.clone())["choices"][0].clone();
        assert_eq!(list(&choice, "tokens").len(), 3);
        assert_eq!(
            list(&choice, "top_logprobs")[0].as_object().unwrap().len(),
            entries
        );
        assert_eq!(list(&choice, "text_offset")[0], 0);
    }
}

/// The end token has its entry, too: lists are never one short.
#[test]
fn an_end_token_is_counted() {
    let server = Server::start("");
    let mut body = scored(json!([1, 2, 3]));
    body["logit_bias"] = json!({"424": 100});
    let choice = server.completion(body)["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "stop");
    let tokens = list(&choice, "tokens");
    assert_eq!((tokens.len(), &tokens[3]), (4, &json!("<|eot_id|>")));
    // The value is that of the model, not of the bias.
    assert!(list(&choice, "token_logprobs")[3].as_f64().unwrap() < -1.0);
    assert!(!greedy(&choice, 3));
}

#[test]
fn scores_alone() {
    let server = Server::start("");
    let mut body = scored(json!([1, 2, 3]));
    body["max_tokens"] = 0.into();
    let choice = server.completion(body)["choices"][0].clone();
    assert_eq!(list(&choice, "tokens").len(), 3);
    let with = server.completion(scored(json!([1, 2, 3])))["choices"][0].clone();
    assert_eq!(
        list(&with, "token_logprobs")[..3],
        list(&choice, "token_logprobs")[..]
    );
}

#[test]
fn prompt_logprobs_in_vllms_form() {
    let server = Server::start("");
    let body =
        json!({"prompt": [1, 2, 3], "max_tokens": 1, "temperature": 0, "prompt_logprobs": 2});
    let answer = server.completion(body);
    let places = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!((places.len(), &places[0]), (3, &Value::Null));
    let scored = server.completion(scored(json!([1, 2, 3])))["choices"][0].clone();
    for (at, id) in [(1, "2"), (2, "3")] {
        let own = &places[at][id];
        assert_eq!(own["logprob"], list(&scored, "token_logprobs")[at]);
        let ranks = places[at].as_object().unwrap().values();
        let mut ranks: Vec<_> = ranks.filter_map(|entry| entry["rank"].as_u64()).collect();
        ranks.sort();
        assert!(ranks.starts_with(&[1, 2]), "{places:?}");
    }
    let chat = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "prompt_logprobs": 0});
    assert_eq!(server.chat(chat)["prompt_logprobs"][0], Value::Null);
    let streamed = json!({"prompt": [1, 2, 3], "stream": true, "prompt_logprobs": 2});
    server.refused("/v1/completions", &streamed, 400, "prompt_logprobs");
}
