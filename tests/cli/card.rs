//! Model cards: what they say, that an edited one stays, and `sppo card`.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::Place;
use super::train::{TRAIN, place};

const CARD: &str = "out/model/README.md";

fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("tests/fixtures/winrate").join(name);
    path.display().to_string()
}

/// The metadata of a card, and what stands behind it.
fn parts(card: &str) -> (&str, &str) {
    let inner = card.strip_prefix("---\n").expect("it begins with metadata");
    inner.split_once("\n---\n").expect("which ends")
}

#[track_caller]
fn holds(text: &str, expected: &[&str]) {
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn a_card_says_what_was_trained_and_how() {
    let place = place();
    // The base's own card has its licence and language.
    place.write(
        "llama/README.md",
        "---\nlicense: llama3\nlanguage:\n- en\n- de\n---\n# Base\n",
    );
    place.ok(&format!("{TRAIN} --set train.checkpoint_every=3"));
    let card = place.read(CARD);
    let (metadata, text) = parts(&card);
    let expected = [
        "library_name: transformers\n",
        "license: llama3\n",
        "language:\n- en\n- de\n",
        "pipeline_tag: text-generation\n",
        "tags:\n- sppo\n- alignment",
    ];
    holds(&format!("{metadata}\n"), &expected);
    // A folder is no name of the Hub.
    assert!(!metadata.contains("base_model"), "{metadata}");
    assert!(!metadata.contains("model-index"), "{metadata}");
    let expected = [
        "# llama-SPPO\n",
        "16 pairs with the sppo loss (eta 1000)",
        "| learning_rate | `0.0001` |",
        "| eta | `1000 (1/beta)` |",
        "| optimizer | `rmsprop` |",
        "8 optimizer steps",
        "Program: sppo 0.1.0",
        "Hardware: ",
        "Peak memory: ",
        "AutoModelForCausalLM.from_pretrained(\"out/model\"",
        "vllm serve out/model",
        "sppo serve --model out/model",
        "@article{wu2024self,",
    ];
    holds(text, &expected);
    // Settings that are not in effect are no hyperparameters.
    assert!(!text.contains("beta2"), "{text}");
    holds(
        &place.read("out/checkpoints/step-00000006/README.md"),
        &["6 optimizer steps", "16 pairs"],
    );
    // From the disk alone the same card comes.
    place.ok("card --model out/model");
    assert_eq!(place.read(CARD), card);
}

#[test]
fn an_edited_card_stays() {
    let place = place();
    place.ok(&format!("{TRAIN} --set train.stop_at_epoch=1"));
    let mine = "# Mine\n\nAll my own words.\n";
    place.write(CARD, mine);
    let message = ["README.md was edited", "--overwrite"];
    place.refused("card --model out/model", &message);
    assert_eq!(place.read(CARD), mine);
    // The model that takes its place keeps it, and so does a training with nothing to do.
    for _ in 0..2 {
        place.ok(TRAIN);
        assert_eq!(place.read(CARD), mine);
    }
    let line = place.ok_json("card --model out/model --overwrite");
    assert_eq!(line["path"], CARD);
    let card = place.read(CARD);
    holds(&card, &["8 optimizer steps"]);
    // So does one of ours in which somebody changed a word.
    let edited = card.replacen("# llama-SPPO", "# My model", 1);
    place.write(CARD, &edited);
    place.refused("card --model out/model", &message);
    assert_eq!(place.read(CARD), edited);
}

#[test]
fn results_become_the_model_index() {
    let place = place();
    place.ok(TRAIN);
    fs::create_dir(place.path("lm")).unwrap();
    let results = json!({
        "results": {
            "arc_challenge": {"acc_norm,none": 0.6519, "acc_norm_stderr,none": 0.0139},
            "gsm8k": {"exact_match,strict-match": 0.7536, "exact_match_stderr,strict-match": "N/A"},
            "hellaswag": {"acc_norm,none": 0.8}
        },
        "n-shot": {"arc_challenge": 25, "gsm8k": 5, "hellaswag": 3},
        "lm_eval_version": "0.4.13"
    });
    place.write("lm/results.json", results.to_string());
    let (rows, gamed) = (fixture("plain_120.json"), fixture("df_gamed.csv"));
    place.ok(&format!(
        "card --model out/model --results lm --winrate {rows} --gamed {gamed} --name my-org/my-model"
    ));
    let card = place.read(CARD);
    let (metadata, text) = parts(&card);
    let expected = [
        "model-index:\n- name: my-model\n  results:\n",
        "      name: \"ARC-c (25-shot)\"\n      type: allenai/ai2_arc\n      config: ARC-Challenge\n",
        "    - type: acc_norm\n      value: 65.19\n",
        "    - type: exact_match\n      value: 75.36\n",
        "    - type: lc_win_rate\n      value: 54.",
        "    - type: win_rate\n      value: 57.6",
    ];
    holds(metadata, &expected);
    // It was made with other shots than the table asks for.
    assert!(!metadata.contains("HellaSwag"), "{metadata}");
    let expected = [
        "# my-model\n",
        "65.19 ± 1.39",
        "HellaSwag: hellaswag has 3 shots, not 10",
        "| 54.50 ± 0.36 | 57.62 ± 2.44 |",
        "from_pretrained(\"my-org/my-model\"",
        "vllm serve my-org/my-model",
    ];
    holds(text, &expected);
}

#[test]
fn without_the_gamed_file_no_length_controlled_number_is_given() {
    let place = place();
    place.ok(TRAIN);
    let rows = fixture("plain_120.json");
    let ran = place.sppo(&format!("card --model out/model --winrate {rows}"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    holds(&ran.stderr, &["df_gamed.csv"]);
    let card = place.read(CARD);
    let (metadata, text) = parts(&card);
    assert!(!metadata.contains("lc_win_rate"), "{metadata}");
    holds(text, &["| – | 57.62 ± 2.44 |"]);
}

#[test]
fn what_is_no_model_of_ours_is_refused() {
    let place = Place::with_model();
    place.refused("card --model llama", &["llama is no model that sppo"]);
    assert!(!place.path("llama/README.md").exists());
    place.refused("card --model none", &["none is no model"]);
    let place = super::train::place();
    place.ok(TRAIN);
    let before = place.read(CARD);
    place.refused("card --model out/model --results none", &["none"]);
    place.refused(
        "card --model out/model --winrate pairs.jsonl",
        &["pairs.jsonl"],
    );
    place.refused("card --model out/model --name mine", &["my-org/my-model"]);
    assert_eq!(place.read(CARD), before);
}

/// A base in the cache of the Hub, and a model that was trained on one that was trained on it.
#[test]
fn the_base_is_the_model_that_all_began_with() {
    let place = place();
    let snapshot = "hub/models--meta-llama--Llama-3.2-1B/snapshots/abc";
    fs::create_dir_all(place.path(snapshot)).unwrap();
    for entry in fs::read_dir(place.path("llama")).unwrap() {
        let path = entry.unwrap().path();
        let copy = place.path(snapshot).join(path.file_name().unwrap());
        fs::copy(&path, copy).unwrap();
    }
    place.ok(&format!(
        "{TRAIN} --set model.path={snapshot} --set output_dir=one"
    ));
    place.ok(&format!(
        "{TRAIN} --set model.path=one/model --set output_dir=out --set train.loss=dpo"
    ));
    let card = place.read(CARD);
    let (metadata, text) = parts(&card);
    let expected = [
        "base_model: meta-llama/Llama-3.2-1B\n",
        "license: llama3.2\n",
        "- dpo",
    ];
    holds(metadata, &expected);
    let expected = [
        "# Llama-3.2-1B-DPO\n",
        "[meta-llama/Llama-3.2-1B](https://huggingface.co/meta-llama/Llama-3.2-1B)",
        "started from `one/model`",
    ];
    holds(text, &expected);
}
