//! Responses travelled as text: encoded again, 4 % of them became other tokens (22 nats apart), and
//! those that ended by length were trained on an end of turn that they never sampled (10 nats).

use serde_json::{Value, json};

use crate::cli::Place;
use crate::close::assert_close;

const SAMPLE: &str = "generate --prompts prompts.jsonl --samples 4 --temperature 1 --top-p 1 \
                      --max-new-tokens 12 --logprobs --out responses.jsonl --model";

/// Both responses of every pair that can be made of a row's responses.
fn pairs(rows: &[Value]) -> Vec<Value> {
    let mut pairs = Vec::new();
    for row in rows {
        for i in [0, 2] {
            let text = |i: usize| json!([{"role": "assistant", "content": row["responses"][i]}]);
            pairs.push(json!({
                "prompt_id": format!("{}-{i}", row["prompt_id"].as_str().unwrap()),
                "prompt": row["prompt"], "chosen": text(i), "rejected": text(i + 1),
                "prompt_ids": row["prompt_ids"], "chosen_ids": row["response_ids"][i],
                "rejected_ids": row["response_ids"][i + 1],
                "chosen_probs": 0.5, "chosen_probs_win": 0.5, "chosen_probs_lose": 0.5,
            }));
        }
    }
    pairs
}

/// The largest gap between the sampler's log-probabilities and those of a file of scores.
fn gap(rows: &[Value], scores: &[Value]) -> f64 {
    let sampled = rows
        .iter()
        .flat_map(|row| row["logprobs"].as_array().unwrap());
    let scored = scores
        .iter()
        .flat_map(|row| [&row["chosen_logps"], &row["rejected_logps"]]);
    let gaps = sampled
        .zip(scored)
        .map(|(a, b)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs());
    gaps.fold(0.0, f64::max)
}

fn place() -> Place {
    let place = Place::with_model();
    let rows: Vec<Value> = (0..250)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": format!("Say {i}.")}))
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    place
}

/// Of 1000 responses, ended or not, whatever their text is encoded to.
#[test]
fn the_sampler_the_scorer_and_the_reference_agree() {
    let place = place();
    place.ok(&format!("{SAMPLE} llama"));
    let rows = place.rows("responses.jsonl");
    let ends = rows
        .iter()
        .flat_map(|row| row["finish_reasons"].as_array().unwrap());
    let ended = ends.filter(|reason| *reason == "stop").count();
    assert!(
        (10..990).contains(&ended),
        "{ended} of 1000 ended by themselves"
    );
    place.write_rows("pairs.jsonl", &pairs(&rows));
    place.ok("score --model llama --data pairs.jsonl --out scores.jsonl");
    let most = gap(&rows, &place.rows("scores.jsonl"));
    assert!(most < 1e-4, "{most} nats apart");
    // As text some are other tokens, or end otherwise.
    place.ok("score --model llama --data pairs.jsonl --out clean.jsonl --rows clean");
    assert!(gap(&rows, &place.rows("clean.jsonl")) > 1.0);

    place.write(
        "train.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\nbeta = 0.1\n\
         learning_rate = 1e-4\nwarmup_steps = 0\nbatch_size = 50\nshuffle = false\n",
    );
    place.ok("train --config train.toml");
    let step = &place.rows("out/metrics.jsonl")[0];
    let first: Vec<f64> = rows[..25]
        .iter()
        .flat_map(|row| [&row["logprobs"][0], &row["logprobs"][2]])
        .map(|x| x.as_f64().unwrap())
        .collect();
    let mean = first.iter().sum::<f64>() / 50.0;
    assert_close(
        step["logps/chosen"].as_f64().unwrap(),
        mean,
        1e-4,
        "first step",
    );
    assert_eq!(step["rewards/chosen"], 0.0, "the reference is the policy");

    // And of the trained model.
    let again = SAMPLE.replace("responses.jsonl", "again.jsonl");
    place.ok(&format!("{again} out/model"));
    let rows = place.rows("again.jsonl");
    place.write_rows("pairs2.jsonl", &pairs(&rows));
    place.ok("score --model out/model --data pairs2.jsonl --out again-scores.jsonl");
    let most = gap(&rows, &place.rows("again-scores.jsonl"));
    assert!(most < 1e-4, "{most} nats apart");
}

#[test]
fn ids_travel_from_the_sampler_to_the_pairs() {
    let place = place();
    place.ok(&format!("{SAMPLE} llama"));
    place.ok("judge --responses responses.jsonl --judge rubric --out judged.parquet");
    place.ok("pairs --judged judged.parquet --out pairs.jsonl");
    let rows = place.rows("responses.jsonl");
    for pair in place.rows("pairs.jsonl") {
        let row = rows
            .iter()
            .find(|row| row["prompt_id"] == pair["prompt_id"])
            .unwrap();
        assert_eq!(pair["prompt_ids"], row["prompt_ids"]);
        for side in ["chosen", "rejected"] {
            let text = &pair[side][0]["content"];
            let found = (0..4).find(|&i| {
                row["responses"][i] == *text
                    && row["response_ids"][i] == pair[format!("{side}_ids")]
            });
            let i = found.expect("a sampled response");
            let ended = row["finish_reasons"][i] == "stop";
            assert_eq!(pair[format!("{side}_ended")], ended);
            let ids = row["response_ids"][i].as_array().unwrap();
            assert_eq!(row["tokens"][i], ids.len());
        }
    }
    // Ids that are other words under this tokenizer are refused.
    let mut pairs = place.rows("pairs.jsonl");
    pairs[3]["chosen_ids"] = json!([1, 2, 3]);
    place.write_rows("other.jsonl", &pairs);
    place.refused(
        "score --model llama --data other.jsonl --out s.jsonl",
        &[
            "row 4, ",
            "`chosen_ids` are not the `chosen` text",
            "--rows",
        ],
    );
    place.ok("score --model llama --data other.jsonl --out s.jsonl --rows clean");
}
