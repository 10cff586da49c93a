//! A token that was added to the tokenizer and never got an embedding, as a pad token often is,
//! kept the model from being loaded.

use serde_json::json;

use super::r040_names_of_tensors::scored;
use crate::cli::Place;

/// A model whose tokenizer has one more token than the model has embeddings.
fn with_pad() -> Place {
    let place = Place::with_model();
    place.edit("llama/tokenizer.json", |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut pad = added.last().unwrap().clone();
        pad["id"] = 426.into();
        pad["content"] = "[PAD]".into();
        added.push(pad);
    });
    place.edit("llama/tokenizer_config.json", |config| {
        config["pad_token"] = "[PAD]".into()
    });
    place
}

#[test]
fn they_are_refused_where_they_come_up() {
    assert_eq!(scored(&with_pad()), scored(&Place::with_model()));
    let place = with_pad();
    let generate = "generate --model llama --prompts p.jsonl --max-new-tokens 4 --out r.jsonl";
    place.write_rows(
        "p.jsonl",
        &[json!({"prompt_id": "a", "prompt": "fill [PAD]"})],
    );
    place.refused(generate, &["prompt a holds token 426"]);
    place.write_rows("p.jsonl", &[json!({"prompt_id": "a", "prompt": "fill"})]);
    let ran = place.sppo(generate);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let said = "no embedding for the tokenizer's [PAD] (426)";
    assert!(ran.stderr.contains(said), "{}", ran.stderr);
}
