//! A checkpoint whose config ties the vocabulary projection to the embeddings and that holds another
//! `lm_head.weight` was read without it; transformers uses it.

use super::r040_names_of_tensors::{Named, rewrite, scored};
use crate::cli::Place;

const HEAD: &str = "lm_head.weight";
const EMBEDDINGS: &str = "model.embed_tokens.weight";

fn tied(place: &Place) {
    place.edit("llama/config.json", |c| {
        c["tie_word_embeddings"] = true.into()
    });
}

/// The scores with and without tied weights in the config.
fn scores(config_ties: bool, change: impl FnOnce(&mut Vec<Named>)) -> String {
    let place = Place::with_model();
    rewrite(&place, change);
    if config_ties {
        tied(&place);
    }
    scored(&place)
}

fn without(name: &'static str) -> impl Fn(&mut Vec<Named>) {
    move |tensors| tensors.retain(|t| t.0 != name)
}

#[test]
fn a_head_that_differs_is_used() {
    let plain = scores(false, |_| {});
    assert_eq!(scores(true, |_| {}), plain);
    let tied_scores = scores(true, without(HEAD));
    assert_ne!(tied_scores, plain);
    let copy = |tensors: &mut Vec<Named>| {
        let embeddings = tensors
            .iter()
            .find(|t| t.0 == EMBEDDINGS)
            .unwrap()
            .3
            .clone();
        tensors.iter_mut().find(|t| t.0 == HEAD).unwrap().3 = embeddings;
    };
    assert_eq!(scores(true, copy), tied_scores);
    // The only one of the two serves for both, whatever its name.
    let under_the_other_name = |tensors: &mut Vec<Named>| {
        without(HEAD)(tensors);
        tensors.iter_mut().find(|t| t.0 == EMBEDDINGS).unwrap().0 = HEAD.into();
    };
    assert_eq!(scores(true, under_the_other_name), tied_scores);
}

#[test]
fn it_is_said_and_kept() {
    let place = Place::with_model();
    tied(&place);
    let row = serde_json::json!({"prompt": "Who are you?", "response": "A bird."});
    place.write_rows("sft.jsonl", &[row]);
    place.write(
        "sft.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[sft]\ndata = \"sft.jsonl\"\n",
    );
    let ran = place.sppo("sft --config sft.toml");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stderr.contains("lm_head.weight is not the embeddings"),
        "{}",
        ran.stderr
    );
    let config = place.json("out/model/config.json");
    assert_eq!(config["tie_word_embeddings"], false);
}

#[test]
fn an_untied_model_without_a_head_is_refused() {
    let place = Place::with_model();
    rewrite(&place, without(HEAD));
    place.write_rows("p.jsonl", &[serde_json::json!({"prompt": "a"})]);
    place.refused(
        "generate --model llama --prompts p.jsonl --out r.jsonl",
        &["missing: lm_head.weight"],
    );
}
