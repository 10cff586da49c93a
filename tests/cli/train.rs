//! `sppo train`: the golden runs, equal results by every road, and kills at any moment.

use std::fs;

use serde_json::{Value, json};

use super::{Place, golden_pairs, weight_difference};
use crate::close::assert_close;
use crate::golden;

pub const TRAIN: &str = "train --config train.toml";

/// The golden checkpoint and pairs, and the configuration of the golden runs.
pub fn place() -> Place {
    let place = Place::with_model();
    place.write_rows("pairs.jsonl", &golden_pairs());
    place.write(
        "train.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\n\
         learning_rate = 1e-4\nwarmup_steps = 1\nepochs = 2\nbatch_size = 4\nshuffle = false\n",
    );
    place
}

/// metrics.jsonl without what depends on the clock and the machine.
fn metrics(place: &Place, folder: &str) -> Vec<Value> {
    let mut rows = place.rows(&format!("{folder}/metrics.jsonl"));
    for row in &mut rows {
        for key in ["tokens_per_second", "step_seconds", "peak_memory_bytes"] {
            assert!(row.as_object_mut().unwrap().remove(key).is_some());
        }
    }
    rows
}

fn mean(value: &Value) -> f64 {
    let numbers = golden::numbers(value);
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

#[track_caller]
fn near(found: &Value, expected: f64, tolerance: f64, what: &str) {
    assert_close(found.as_f64().unwrap(), expected, tolerance, what);
}

fn golden_run(index: usize) {
    let place = place();
    let run = &golden::json("training_runs.json")["runs"][index];
    let beta = run["beta"].as_f64().unwrap();
    let mut args = format!(
        "{TRAIN} --set train.loss={} --set train.beta={beta}",
        run["loss_type"].as_str().unwrap()
    );
    if let Some(bound) = run["max_grad_norm"].as_f64() {
        args += &format!(" --set train.max_grad_norm={bound}");
    }
    place.ok(&args);
    let rows = place.rows("out/metrics.jsonl");
    let steps = run["steps"].as_array().unwrap();
    assert_eq!(rows.len(), steps.len());
    for (i, (row, step)) in rows.iter().zip(steps).enumerate() {
        let at = |what: &str| format!("step {} {what}", i + 1);
        assert_eq!(row["step"], i + 1);
        assert_eq!(row["epoch"], (i + 1) as f64 / 4.0);
        let loss = step["loss"].as_f64().unwrap();
        near(&row["loss"], loss, 2e-3 * loss, &at("loss"));
        let rate = step["lr"].as_f64().unwrap();
        near(&row["learning_rate"], rate, 1e-15, &at("learning rate"));
        let norm = step["grad_norm"].as_f64().unwrap();
        near(&row["grad_norm"], norm, 2e-2 * norm, &at("gradient norm"));
        let mut rewards = [0.0; 2];
        for (side, reward) in ["chosen", "rejected"].into_iter().zip(&mut rewards) {
            let logp = mean(&step[format!("{side}_logps")]);
            let tolerance = 2e-3 * logp.abs() + 0.05;
            near(&row[format!("logps/{side}")], logp, tolerance, &at("logps"));
            *reward = mean(&step[format!("{side}_rewards")]);
            near(
                &row[format!("rewards/{side}")],
                *reward,
                beta * tolerance,
                &at("rewards"),
            );
        }
        near(
            &row["rewards/margins"],
            rewards[0] - rewards[1],
            beta * 0.5,
            &at("margins"),
        );
        if i == 0 {
            // The reference pass and the learner agree to the bit.
            for key in ["rewards/chosen", "rewards/rejected", "rewards/accuracies"] {
                assert_eq!(row[key], 0.0, "{key}");
            }
        }
        let accuracy = row["rewards/accuracies"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy));
        for key in [
            "tokens",
            "tokens_per_second",
            "step_seconds",
            "peak_memory_bytes",
        ] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key}");
        }
        let window = golden_pairs();
        let window = &window[i % 4 * 4..][..4];
        let length = |row: &Value, key: &str| row[key].as_array().unwrap().len();
        let tokens = window.iter().map(|row| {
            2 * length(row, "prompt_ids") + length(row, "chosen_ids") + length(row, "rejected_ids")
        });
        assert_eq!(row["tokens"], tokens.sum::<usize>());
    }
}

#[test]
fn golden_run_sppo() {
    golden_run(0);
}

#[test]
fn golden_run_sppo_clipped() {
    golden_run(1);
}

#[test]
fn golden_run_dpo() {
    golden_run(2);
}

#[test]
fn the_trained_folder_is_a_model() {
    let place = place();
    let line = place.ok_json(TRAIN);
    assert_eq!(line["path"], "out/model");
    let card = place.read("out/model/README.md");
    assert!(card.contains("16 pairs with the sppo loss"), "{card}");
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        let original = format!("llama/{name}");
        assert_eq!(
            place.bytes(&format!("out/model/{name}")),
            place.bytes(&original),
            "{name}"
        );
    }
    place.ok("score --model out/model --data pairs.jsonl --out scores.jsonl");
    assert_eq!(place.rows("scores.jsonl").len(), 16);
    place.write_rows("prompts.jsonl", &[json!({"prompt": "hello"})]);
    place.ok("generate --model out/model --prompts prompts.jsonl --out responses.jsonl --samples 2 --max-new-tokens 4");
    assert_eq!(place.rows("responses.jsonl").len(), 1);
}

#[test]
fn a_finished_training_is_not_repeated() {
    let place = place();
    place.ok(TRAIN);
    let made = fs::metadata(place.path("out/model/model.safetensors")).unwrap();
    let lines = place.read("out/metrics.jsonl");
    place.ok(TRAIN);
    let again = fs::metadata(place.path("out/model/model.safetensors")).unwrap();
    assert_eq!(made.modified().unwrap(), again.modified().unwrap());
    assert_eq!(place.read("out/metrics.jsonl"), lines);
    // Other settings are other work.
    place.ok(&format!("{TRAIN} --set train.epochs=1"));
    assert_eq!(place.rows("out/metrics.jsonl").len(), 4);
}

#[test]
fn overrides_reach_the_training() {
    let place = place();
    place.ok(&format!(
        "{TRAIN} --set train.epochs=1 --set train.schedule=constant --set train.warmup_steps=0 \
         --set train.learning_rate=3e-5 --set output_dir=other"
    ));
    let rows = place.rows("other/metrics.jsonl");
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row["learning_rate"] == 3e-5));
    assert!(!place.path("out").exists());
}

#[test]
fn a_batch_may_be_taken_in_parts() {
    let place = place();
    // Plain descent: RMSProp's first steps make signs of rounding errors. Shuffled, so that the
    // windows are drawn alike too.
    let base = format!(
        "{TRAIN} --set train.optimizer=sgd --set train.learning_rate=0.02 --set train.max_grad_norm=1.0 \
         --set train.shuffle=true"
    );
    for loss in ["sppo", "kto_pair"] {
        for (batch, parts) in [(4, 1), (2, 2), (1, 4)] {
            place.ok(&format!(
                "{base} --set train.loss={loss} --set output_dir={loss}{batch} \
                 --set train.batch_size={batch} --set train.gradient_accumulation={parts}"
            ));
        }
        let whole = place.path(&format!("{loss}4/model"));
        for batch in [2, 1] {
            let apart = weight_difference(&whole, &place.path(&format!("{loss}{batch}/model")));
            assert_close(apart.into(), 0.0, 1e-6, &format!("{loss}, batch {batch}"));
        }
    }
    // The training must have moved the weights by far more than that.
    place.ok(&format!(
        "{base} --set output_dir=short --set train.epochs=1"
    ));
    let moved = weight_difference(&place.path("sppo4/model"), &place.path("short/model"));
    assert!(moved > 1e-4, "{moved}");
}

#[test]
fn recomputing_layers_changes_nothing() {
    let place = place();
    place.ok(&format!("{TRAIN} --set output_dir=kept"));
    place.ok(&format!(
        "{TRAIN} --set output_dir=again --set train.recompute=layer"
    ));
    let weights = |folder: &str| place.bytes(&format!("{folder}/model/model.safetensors"));
    assert!(weights("kept") == weights("again"));
}

#[test]
#[cfg(feature = "flex")]
fn bf16_trains() {
    let place = place();
    place.ok(&format!("{TRAIN} --device flex --set train.precision=bf16"));
    let rows = place.rows("out/metrics.jsonl");
    assert_eq!(rows.len(), 8);
    let first = &golden::json("training_runs.json")["runs"][0]["steps"][0];
    let loss = first["loss"].as_f64().unwrap();
    near(&rows[0]["loss"], loss, 0.02 * loss, "first loss");
    let bytes = place.bytes("out/model/model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert!(
        file.tensors()
            .iter()
            .all(|(_, t)| t.dtype() == safetensors::Dtype::BF16)
    );
    assert_eq!(
        place.json("out/model/config.json")["torch_dtype"],
        "bfloat16"
    );
    place.ok("score --model out/model --data pairs.jsonl --out scores.jsonl");
}

/// Judged rows of text: what `sppo pairs` makes pairs of.
fn judged() -> Vec<Value> {
    let cases = golden::json("probabilities.json");
    let row = |(i, case): (usize, &Value)| {
        let words = [
            "we will",
            "winter leaves",
            "two plus three",
            "slow rust",
            "yes, Paris",
        ];
        let responses: Vec<String> = words.iter().map(|w| format!("{w} {i}.")).collect();
        json!({
            "prompt_id": format!("t{i}"), "prompt": format!("explain {i}"), "responses": responses,
            "rm_scores": case["rm_scores"], "probability": case["probability"],
        })
    };
    cases
        .as_array()
        .unwrap()
        .iter()
        .take(8)
        .enumerate()
        .map(row)
        .collect()
}

#[test]
fn parquet_pairs_train_as_lines_do() {
    let place = place();
    place.write_rows("judged.jsonl", &judged());
    for kind in ["jsonl", "parquet"] {
        place.ok(&format!("pairs --judged judged.jsonl --out text.{kind}"));
        place.ok(&format!(
            "{TRAIN} --set train.data=text.{kind} --set output_dir={kind}"
        ));
    }
    assert_eq!(place.bytes("text.parquet")[..4], *b"PAR1");
    let weights = |kind: &str| place.bytes(&format!("{kind}/model/model.safetensors"));
    assert!(weights("jsonl") == weights("parquet"));
    assert_eq!(metrics(&place, "jsonl"), metrics(&place, "parquet"));
}

#[test]
fn every_layout_of_text_pairs_trains_alike() {
    let place = place();
    place.write_rows("judged.jsonl", &judged());
    place.ok("pairs --judged judged.jsonl --out own.jsonl");
    let own = place.rows("own.jsonl");
    let probabilities = |from: &Value, mut row: Value| {
        for key in [
            "prompt_id",
            "chosen_probs",
            "chosen_probs_win",
            "chosen_probs_lose",
        ] {
            row[key] = from[key].clone();
        }
        row
    };
    let official = own.iter().map(|row| {
        let whole = |key: &str| json!([row["prompt"][0], row[key][0]]);
        let prompt = &row["prompt"][0]["content"];
        probabilities(
            row,
            json!({"prompt": prompt, "chosen": whole("chosen"), "rejected": whole("rejected")}),
        )
    });
    place.write_rows("official.jsonl", &official.collect::<Vec<_>>());
    let strings = own.iter().map(|row| {
        let text = |key: &str| row[key][0]["content"].clone();
        probabilities(row, json!({"prompt": text("prompt"), "chosen": text("chosen"), "rejected": text("rejected")}))
    });
    place.write_rows("strings.jsonl", &strings.collect::<Vec<_>>());
    let weights = |layout: &str, rows: &str| {
        place.ok(&format!(
            "{TRAIN} --set train.data={layout}.jsonl --set output_dir={layout}-{rows} --set train.rows={rows}"
        ));
        place.bytes(&format!("{layout}-{rows}/model/model.safetensors"))
    };
    for rows in ["clean", "official"] {
        let expected = weights("own", rows);
        assert!(weights("official", rows) == expected, "{rows}");
        assert!(weights("strings", rows) == expected, "{rows}");
    }
    assert!(weights("own", "clean") != weights("own", "official"));
}

#[test]
fn held_out_pairs_are_evaluated() {
    let place = place();
    place.write_rows("held.jsonl", &golden_pairs()[..4]);
    place.ok(&format!(
        "{TRAIN} --set train.eval_every=3 --set train.eval_data=held.jsonl"
    ));
    let rows = place.rows("out/metrics.jsonl");
    let due: Vec<usize> = (0..8).filter(|&i| rows[i].get("eval").is_some()).collect();
    assert_eq!(due, [2, 5]);
    assert!(rows[2]["eval"]["loss"].as_f64().unwrap() > 0.0);
    assert!(rows[2]["eval"]["logps/chosen"].as_f64().unwrap() < 0.0);
    // Looking changes nothing.
    place.ok(&format!("{TRAIN} --set output_dir=blind"));
    assert!(
        place.bytes("out/model/model.safetensors") == place.bytes("blind/model/model.safetensors")
    );
}

#[cfg(unix)]
mod stops {
    use std::time::Duration;

    use super::super::signals::{Moments, interrupt, kill, wait_until};
    use super::*;

    fn lines(place: &Place, folder: &str) -> usize {
        let text = fs::read_to_string(place.path(&format!("{folder}/metrics.jsonl")));
        text.unwrap_or_default().lines().count()
    }

    #[test]
    fn killed_anywhere_it_ends_the_same() {
        let place = place();
        // Steps enough for a processor that takes four in the 20 ms that a kill may come late.
        let long = format!("{TRAIN} --set train.shuffle=true --set train.epochs=6");
        place.ok(&format!("{long} --set output_dir=whole"));
        let mut moments = Moments(7);
        for every in 1..=3 {
            let folder = format!("every{every}");
            let args =
                format!("{long} --set train.checkpoint_every={every} --set output_dir={folder}");
            let mut kills = 0;
            // In the reference pass or before, then around steps and checkpoints.
            let child = place.start(&args);
            std::thread::sleep(moments.pause(Duration::from_millis(60)));
            kills += usize::from(kill(child));
            for target in [1, 7, 13, 19] {
                let mut child = place.start(&args);
                wait_until(&mut child, || lines(&place, &folder) >= target);
                std::thread::sleep(moments.pause(Duration::from_millis(20)));
                kills += usize::from(kill(child));
            }
            assert!(kills >= 3, "only {kills} kills hit");
            place.ok(&args);
            let model = |folder: &str| place.bytes(&format!("{folder}/model/model.safetensors"));
            assert!(model(&folder) == model("whole"), "checkpoint_every {every}");
            assert_eq!(metrics(&place, &folder), metrics(&place, "whole"));
            let folders = [folder.clone(), format!("{folder}/checkpoints")];
            let left = folders
                .iter()
                .flat_map(|f| fs::read_dir(place.path(f)).unwrap());
            let names = left.map(|e| e.unwrap().file_name().into_string().unwrap());
            let partial: Vec<String> = names.filter(|n| n.starts_with('.')).collect();
            assert!(partial.is_empty(), "{partial:?}");
        }
    }

    #[test]
    fn checkpoints_are_kept_as_told() {
        let place = place();
        place.ok(&format!(
            "{TRAIN} --set train.checkpoint_every=1 --set train.keep_checkpoints=3"
        ));
        let folders = fs::read_dir(place.path("out/checkpoints")).unwrap();
        let mut names: Vec<_> = folders.map(|f| f.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["step-00000005", "step-00000006", "step-00000007"]);
        place.ok("score --model out/checkpoints/step-00000006 --data pairs.jsonl --out s.jsonl");
    }

    #[test]
    fn ctrl_c_saves_and_the_next_run_finishes() {
        let place = place();
        let long = format!("{TRAIN} --set train.epochs=6");
        place.ok(&format!("{long} --set output_dir=whole"));
        let args = format!("{long} --set output_dir=halves");
        let mut child = place.start(&args);
        assert!(wait_until(&mut child, || lines(&place, "halves") >= 2));
        assert_eq!(interrupt(child), Some(130));
        assert!(!place.path("halves/model").exists());
        let done = lines(&place, "halves");
        assert!((2..24).contains(&done), "{done} steps");
        let saved = format!("halves/checkpoints/step-{done:08}/trainer/state.json");
        assert_eq!(place.json(&saved)["step"], done);
        place.ok(&args);
        let model = |folder: &str| place.bytes(&format!("{folder}/model/model.safetensors"));
        assert!(model("halves") == model("whole"));
        assert_eq!(metrics(&place, "halves"), metrics(&place, "whole"));
    }
}

/// Checkpoints of other settings would outlive the new ones when the oldest are pruned.
#[test]
fn other_settings_start_anew() {
    let place = place();
    let every = "--set train.keep_checkpoints=1 --set train.checkpoint_every";
    place.ok(&format!("{TRAIN} {every}=7"));
    assert!(place.path("out/checkpoints/step-00000007").is_dir());
    place.ok(&format!("{TRAIN} {every}=3 --set train.learning_rate=1e-5"));
    let names: Vec<_> = fs::read_dir(place.path("out/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["step-00000006"]);
}

/// A step that is skipped leaves the optimizer alone, and weights that overflow are never saved.
#[test]
fn weights_that_are_not_finite_are_not_saved() {
    let place = place();
    let broken = "--set train.optimizer=sgd --set train.learning_rate=1e38";
    let stderr = place.fails(&format!("{TRAIN} {broken} --set train.warmup_steps=0"));
    assert!(stderr.contains("not finite"), "{stderr}");
    assert!(!place.path("out/model").exists());
}

#[test]
fn a_training_does_not_replace_the_model_it_starts_from() {
    let place = place();
    place.ok(TRAIN);
    place.refused(
        &format!("{TRAIN} --set model.path=out/model"),
        &["out/model", "choose another output_dir"],
    );
}

#[test]
fn cublaslt_is_refused_on_a_cpu() {
    let place = place();
    place.refused(
        &format!("{TRAIN} --set train.matmul=cublaslt"),
        &["matmul \"cublaslt\": cuBLASLt is for CUDA cards; use --device cuda"],
    );
    assert!(!place.path("out/model").exists());
}

/// Settings that do not change the result do not train again.
#[test]
fn what_leaves_the_result_as_it_is_is_no_part_of_the_key() {
    let place = place();
    let made = || {
        let metrics = fs::metadata(place.path("out/metrics.jsonl")).unwrap();
        metrics.modified().unwrap()
    };
    place.ok(TRAIN);
    let before = made();
    for same in [
        "train.checkpoint_every=3",
        "train.recompute=layer",
        "train.beta2=0.5",
        "train.weight_decay=0",
    ] {
        place.ok(&format!("{TRAIN} --set {same}"));
        assert_eq!(before, made(), "{same}");
    }
    place.ok(&format!("{TRAIN} --set train.alpha=0.5"));
    assert_ne!(before, made());
}
