//! With `--overwrite` the old output was gone before it was known whether the new inputs can be
//! used at all.

use serde_json::json;

use crate::cli::Place;

/// Asserts that a command is refused and changes nothing.
fn keeps(place: &Place, args: &str, parts: &[&str]) {
    let before = place.tree();
    place.refused(args, parts);
    assert!(place.tree() == before, "sppo {args} changed something");
}

#[test]
fn whose_model_or_rows_cannot_be_used() {
    let place = crate::cli::train::place();
    place.write_rows("prompts.jsonl", &[json!({"prompt": "hi"})]);
    place.copy_model("cut");
    const LAST: &str = "model-00002-of-00002.safetensors";
    let weights = place.bytes(&format!("cut/{LAST}"));
    place.write(&format!("cut/{LAST}"), &weights[..weights.len() - 100]);
    place.copy_model("other");
    place.edit("other/config.json", |config| {
        config["num_hidden_layers"] = 7.into();
    });
    let train = "train --config train.toml --overwrite";
    place.ok(train);
    let generate =
        "generate --prompts prompts.jsonl --out out.jsonl --max-new-tokens 4 --overwrite";
    place.ok(&format!("{generate} --model llama"));
    for (model, part) in [("cut", LAST), ("other", "model.layers.")] {
        keeps(
            &place,
            &format!("{train} --set model.path={model}"),
            &[part],
        );
        keeps(&place, &format!("{generate} --model {model}"), &[part]);
    }
    // Nor sequences that have no room.
    place.edit("llama/config.json", |config| {
        config["max_position_embeddings"] = 1_000_000.into();
    });
    let long = format!("{generate} --model llama --max-new-tokens 900000 --cache-memory-mib 1");
    let long = long.replacen(" --max-new-tokens 4", "", 1);
    keeps(&place, &long, &["MiB"]);
    place.write_rows("pairs.jsonl", &[json!({"prompt": "hi"})]);
    keeps(
        &place,
        &format!("{train} --set train.beta=0.2"),
        &["line 1"],
    );
}
