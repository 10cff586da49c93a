//! `[logging]`: event files for TensorBoard, and what the logits tell of the tokens.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::Place;
use super::train::{TRAIN, place};

/// Scalars by tag and step, of all event files of a folder in their order; f32, as they stand there.
/// A step that comes twice is refused.
fn scalars(place: &Place, folder: &str) -> BTreeMap<(String, u64), f32> {
    let entries = fs::read_dir(place.path(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut found = BTreeMap::new();
    for path in paths {
        assert!(
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("events.out.tfevents.")
        );
        let bytes = fs::read(&path).unwrap();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            event(&rest[12..12 + length], &mut found);
            rest = &rest[16 + length..];
        }
    }
    found
}

fn event(bytes: &[u8], found: &mut BTreeMap<(String, u64), f32>) {
    let mut step = 0;
    for (field, value, bytes) in fields(bytes) {
        match field {
            2 => step = value,
            5 => {
                for (_, _, value) in fields(bytes) {
                    let (mut tag, mut number) = (String::new(), None);
                    for (field, value, bytes) in fields(value) {
                        match field {
                            1 => tag = String::from_utf8(bytes.to_vec()).unwrap(),
                            2 => number = Some(f32::from_bits(value as u32)),
                            _ => {}
                        }
                    }
                    if let Some(number) = number {
                        let before = found.insert((tag.clone(), step), number);
                        assert_eq!(before, None, "{tag} of step {step} comes twice");
                    }
                }
            }
            _ => {}
        }
    }
}

/// The fields of a message: number, value, bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (value, length) = match key & 7 {
            0 => (varint(&mut bytes), 0),
            1 => (u64::from_le_bytes(bytes[..8].try_into().unwrap()), 8),
            2 => (0, varint(&mut bytes) as usize),
            _ => (u32::from_le_bytes(bytes[..4].try_into().unwrap()).into(), 4),
        };
        found.push((key >> 3, value, &bytes[..length]));
        bytes = &bytes[length..];
    }
    found
}

/// The same of metrics.jsonl.
fn metrics(place: &Place) -> BTreeMap<(String, u64), f32> {
    let mut found = BTreeMap::new();
    for row in place.rows("out/metrics.jsonl") {
        let step = row["step"].as_u64().unwrap();
        let mut add = |prefix: &str, fields: &Value| {
            for (key, value) in fields.as_object().into_iter().flatten() {
                if let Some(number) = value.as_f64().filter(|_| key != "step") {
                    found.insert((format!("{prefix}/{key}"), step), number as f32);
                }
            }
        };
        add("train", &row);
        add("eval", &row["eval"]);
    }
    found
}

#[test]
fn event_files_hold_metrics_jsonl_also_of_a_training_that_was_resumed() {
    let place = place();
    let args = format!(
        "{TRAIN} --set logging.tensorboard=true --set train.eval_every=2 \
         --set train.eval_data=pairs.jsonl"
    );
    place.ok(&format!("{args} --set train.stop_at_epoch=1"));
    let found = scalars(&place, "out/tensorboard");
    assert_eq!(found, metrics(&place));
    assert!(found.contains_key(&("train/rewards/chosen".into(), 4)));
    assert!(found.contains_key(&("eval/loss".into(), 2)));
    // What a kill leaves: steps behind the checkpoint, and half a record.
    let folder = place.path("out/tensorboard");
    let file = fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = fs::read(&file).unwrap();
    let torn = bytes[bytes.len() - 40..].to_vec();
    bytes.extend(&torn[..30]);
    fs::write(&file, &bytes).unwrap();
    place.ok(&args);
    let found = scalars(&place, "out/tensorboard");
    assert_eq!(found, metrics(&place));
    assert_eq!(place.rows("out/metrics.jsonl").len(), 8);
    // With other settings it goes aside with the rest.
    place.ok(&format!("{args} --set train.epochs=1"));
    assert_eq!(scalars(&place, "out/tensorboard"), metrics(&place));
}

#[test]
fn event_files_of_others_are_left_alone() {
    let place = place();
    fs::create_dir_all(place.path("out/tensorboard")).unwrap();
    place.write("out/tensorboard/mine", "mine");
    place.refused(TRAIN, &["out/tensorboard", "is not this program's"]);
    assert_eq!(place.read("out/tensorboard/mine"), "mine");
}

#[test]
fn token_metrics_are_logged_where_they_are_asked_for_and_change_nothing_else() {
    let place = place();
    // RMSProp makes signs of rounding in its first steps, and weights of whole and parts part by it.
    let sgd = "--set train.optimizer=sgd --set train.learning_rate=1e-7";
    place.ok(&format!("{TRAIN} {sgd}"));
    let args = format!("{sgd} --set logging.token_metrics=true --set output_dir=with");
    place.ok(&format!("{TRAIN} {args}"));
    // Cut into parts they are the same but for rounding.
    let parts = "--set train.batch_size=1 --set train.gradient_accumulation=4";
    place.ok(&format!("{TRAIN} {args}/parts {parts}"));
    let keys = [
        "entropy",
        "mean_token_accuracy",
        "logits/chosen",
        "logits/rejected",
    ];
    let rows = place.rows("out/metrics.jsonl");
    let with = place.rows("with/metrics.jsonl");
    let parts = place.rows("with/parts/metrics.jsonl");
    assert_eq!(
        place.bytes("out/model/model.safetensors"),
        place.bytes("with/model/model.safetensors")
    );
    let vocab = place.json("llama/config.json")["vocab_size"]
        .as_f64()
        .unwrap();
    let mut tokens = 0;
    for ((row, with), parts) in rows.iter().zip(&with).zip(&parts) {
        for key in keys {
            assert!(row.get(key).is_none(), "{key}");
            let (one, other) = (with[key].as_f64().unwrap(), parts[key].as_f64().unwrap());
            // One of 81 tokens or more may have two likeliest that rounding parts.
            let bound = if key == "mean_token_accuracy" {
                1.5 / 81.0
            } else {
                1e-3
            };
            assert!((one - other).abs() < bound, "{key}: {one} {other}");
        }
        let entropy = with["entropy"].as_f64().unwrap();
        assert!(entropy > 0.0 && entropy <= vocab.ln(), "{entropy}");
        let accuracy = with["mean_token_accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{accuracy}");
        for key in ["loss", "logps/chosen", "grad_norm"] {
            assert_eq!(row[key], with[key], "{key}");
        }
        tokens += row["tokens"].as_u64().unwrap();
        assert_eq!(row["num_tokens"], tokens);
    }
}

/// At the start Δ is 0, so the distance is the target's size, η|p − ½|.
#[test]
fn the_distance_from_the_targets_is_logged() {
    let place = place();
    place.ok(&format!("{TRAIN} --set train.epochs=1"));
    let first = &place.rows("out/metrics.jsonl")[0];
    let pairs = super::golden_pairs();
    for (key, probability) in [
        ("target_distance/chosen", "chosen_probs_win"),
        ("target_distance/rejected", "chosen_probs_lose"),
    ] {
        let of_row = |row: &Value| 1000.0 * (row[probability].as_f64().unwrap() - 0.5).abs();
        let expected = pairs[..4].iter().map(of_row).sum::<f64>() / 4.0;
        let found = first[key].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 1e-6 * expected,
            "{key}: {found} {expected}"
        );
    }
    place.ok(&format!(
        "{TRAIN} --set train.loss=dpo --set output_dir=dpo"
    ));
    assert!(
        place.rows("dpo/metrics.jsonl")[0]
            .get("target_distance/chosen")
            .is_none()
    );
}
