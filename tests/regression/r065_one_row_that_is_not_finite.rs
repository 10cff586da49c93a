//! One prompt whose logits are not finite ended the generation of all others.

use std::fs;

use serde_json::{Value, json};

use crate::cli::Place;

/// Sets element `at` of a matrix that is stored in bf16.
fn set(place: &Place, name: &str, at: [usize; 2], value: f32) {
    let index = place.json("llama/model.safetensors.index.json");
    let shard = index["weight_map"][name].as_str().unwrap();
    let path = place.path("llama").join(shard);
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let table = &header[name];
    assert_eq!(table["dtype"], "BF16");
    let begin = table["data_offsets"][0].as_u64().unwrap() as usize;
    let width = table["shape"][1].as_u64().unwrap() as usize;
    let place = 8 + length + begin + 2 * (at[0] * width + at[1]);
    bytes[place..place + 2].copy_from_slice(&value.to_le_bytes()[2..]);
    fs::write(path, bytes).unwrap();
}

/// Makes the values of one token overflow; weights that are not finite would be refused.
fn poison(place: &Place, token: usize) {
    set(place, "model.embed_tokens.weight", [token, 0], 1e4);
    set(
        place,
        "model.layers.0.self_attn.v_proj.weight",
        [0, 0],
        7e37,
    );
}

#[test]
fn the_others_are_answered() {
    let place = Place::with_model();
    let token = place.json("llama/tokenizer.json")["model"]["vocab"]["Z"]
        .as_u64()
        .unwrap();
    poison(&place, token as usize);
    let text = |i: usize| match i % 4 {
        1 => format!("ZZ {i}"),
        _ => format!("a river {i}"),
    };
    let rows: Vec<Value> = (0..12)
        .map(|i| json!({"prompt_id": format!("p{i}"), "prompt": text(i)}))
        .collect();
    place.write_rows("prompts.jsonl", &rows);
    let command = "generate --model llama --prompts prompts.jsonl --samples 2 --temperature 0 \
                   --max-new-tokens 5 --batch 3 --out out.jsonl";
    let stderr = place.fails(command);
    for part in [
        "3 rows",
        "prompt p1",
        "prompt p5",
        "prompt p9",
        "not finite",
        "out.jsonl",
    ] {
        assert!(stderr.contains(part), "{part} is not in: {stderr}");
    }
    let ids = |name: &str| -> Vec<String> {
        let rows = place.rows(name);
        rows.iter()
            .map(|row| row["prompt_id"].as_str().unwrap().into())
            .collect()
    };
    let expected = ["p0", "p2", "p3", "p4", "p6", "p7", "p8", "p10", "p11"];
    assert_eq!(ids("out.jsonl"), expected);
    // They are what they are without the bad ones.
    place.write_rows(
        "prompts.jsonl",
        &rows
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % 4 != 1)
            .map(|(_, row)| row)
            .collect::<Vec<_>>(),
    );
    place.ok(&command.replace("out.jsonl", "good.jsonl"));
    assert_eq!(place.rows("good.jsonl"), place.rows("out.jsonl"));
}
