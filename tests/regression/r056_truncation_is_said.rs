//! Rows longer than `max_length` were cut without a word.

use serde_json::json;

use crate::cli::Place;

#[test]
fn scoring_and_fine_tuning_warn_with_counts() {
    let place = Place::with_model();
    let long = "play ".repeat(100);
    place.write_rows(
        "pairs.jsonl",
        &[
            json!({"prompt": "a river", "chosen": long, "rejected": "rain"}),
            json!({"prompt": "a river", "chosen": "rain", "rejected": "play"}),
        ],
    );
    let score = "score --model llama --data pairs.jsonl --out";
    let ran = place.sppo(&format!(
        "{score} cut.jsonl --max-length 40 --max-prompt-length 20"
    ));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for part in [
        "WARN",
        "1 of 2 rows are cut:",
        "1 responses without their end",
        "train.max_length",
    ] {
        assert!(ran.stderr.contains(part), "{part} is not in {}", ran.stderr);
    }
    let ran = place.sppo(&format!("{score} whole.jsonl"));
    assert!(!ran.stderr.contains("are cut"), "{}", ran.stderr);

    place.write_rows(
        "sft.jsonl",
        &[json!({"prompt": "a river", "completion": long})],
    );
    place.write(
        "sft.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[sft]\ndata = \"sft.jsonl\"\nmax_length = 40\nepochs = 1\n",
    );
    let ran = place.sppo("sft --config sft.toml");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for part in ["1 of 1 rows are cut:", "sft.max_length lets 40"] {
        assert!(ran.stderr.contains(part), "{part} is not in {}", ran.stderr);
    }
    // With a warmup of one step the only step has a rate of 0.
    assert!(ran.stderr.contains("nothing is learnt"), "{}", ran.stderr);

    place.write(
        "train.toml",
        "output_dir = \"trained\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\nloss = \"dpo\"\nbeta = 0.1\n\
         max_length = 40\nmax_prompt_length = 20\nbatch_size = 2\nwarmup_steps = 0\n",
    );
    place.ok("train --config train.toml");
    let step = &place.rows("trained/metrics.jsonl")[0];
    assert_eq!(step["rows_cut"], 1);
    assert_eq!(step["responses_without_end"], 1);
    assert!(step["tokens_cut"].as_u64().unwrap() > 50, "{step}");
}
