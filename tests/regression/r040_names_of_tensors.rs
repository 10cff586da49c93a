//! A checkpoint whose tensors are named without `model.`, or with the prefix of torch.compile, FSDP
//! or DDP, was refused, and so were a value head and weights in f64.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};

use crate::cli::Place;

/// A tensor of a file: name, dtype, shape, bytes.
pub(super) type Named = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes the golden weights anew, as one file, after `change`.
pub(super) fn rewrite(place: &Place, change: impl FnOnce(&mut Vec<Named>)) {
    let mut tensors: Vec<Named> = Vec::new();
    for part in [1, 2] {
        let shard = format!("llama/model-0000{part}-of-00002.safetensors");
        let bytes = place.bytes(&shard);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        tensors.extend(file.iter().map(|(name, tensor)| {
            let (shape, data) = (tensor.shape().to_vec(), tensor.data().to_vec());
            (name.to_string(), tensor.dtype(), shape, data)
        }));
        fs::remove_file(place.path(&shard)).unwrap();
    }
    fs::remove_file(place.path("llama/model.safetensors.index.json")).unwrap();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    place.write("llama/model.safetensors", serialize(views, None).unwrap());
}

/// What the golden pairs score, after `change` of the weights.
pub(super) fn scores(change: impl FnOnce(&mut Vec<Named>)) -> String {
    let place = Place::with_model();
    rewrite(&place, change);
    scored(&place)
}

/// What pairs of text score.
pub(super) fn scored(place: &Place) -> String {
    let row = serde_json::json!({"prompt": "Who are you?", "chosen": "A bird.", "rejected": "No."});
    place.write_rows("pairs.jsonl", &[row]);
    place.ok("score --model llama --data pairs.jsonl --out scores.jsonl");
    place.read("scores.jsonl")
}

fn renamed(name: impl Fn(&str) -> String) -> String {
    scores(|tensors| tensors.iter_mut().for_each(|t| t.0 = name(&t.0)))
}

#[test]
fn prefixes_change_nothing() {
    let plain = renamed(str::to_string);
    let without = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    assert_eq!(renamed(without), plain);
    for prefix in [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "model.",
    ] {
        assert_eq!(renamed(|name| format!("{prefix}{name}")), plain, "{prefix}");
    }
    let layers = |name: &str| name.replace(".mlp.", "._checkpoint_wrapped_module.mlp.");
    assert_eq!(renamed(layers), plain);
    let inner = |name: &str| name.replace("model.", "model._orig_mod.");
    assert_eq!(renamed(inner), plain);
}

#[test]
fn tensors_that_nothing_depends_on_change_nothing() {
    let plain = renamed(str::to_string);
    let more = scores(|tensors| {
        for name in [
            "v_head.summary.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
        ] {
            tensors.push((name.into(), Dtype::F32, vec![1], vec![0; 4]));
        }
    });
    assert_eq!(more, plain);
    // A bf16 value is the upper half of an f32, which f64 holds exactly.
    let wide = scores(|tensors| {
        for (_, dtype, _, data) in tensors {
            assert_eq!(*dtype, Dtype::BF16);
            let values = data
                .chunks_exact(2)
                .map(|b| f32::from_le_bytes([0, 0, b[0], b[1]]));
            *data = values.flat_map(|x| f64::from(x).to_le_bytes()).collect();
            *dtype = Dtype::F64;
        }
    });
    assert_eq!(wide, plain);
}

#[test]
fn what_would_change_the_result_is_refused() {
    let place = Place::with_model();
    rewrite(&place, |tensors| {
        let twice = tensors[0].clone();
        tensors.push((format!("_orig_mod.{}", twice.0), twice.1, twice.2, twice.3));
    });
    let row = serde_json::json!({"prompt": "a", "chosen": "b", "rejected": "c"});
    place.write_rows("pairs.jsonl", &[row]);
    let score = "score --model llama --data pairs.jsonl --out scores.jsonl";
    place.refused(score, &["_orig_mod.", "are both", "remove one of them"]);
    let place = Place::with_model();
    let bias = "model.layers.0.self_attn.q_proj.bias";
    rewrite(&place, |tensors| {
        tensors.push((bias.into(), Dtype::F32, vec![64], vec![0; 256]));
    });
    let row = serde_json::json!({"prompt": "a", "chosen": "b", "rejected": "c"});
    place.write_rows("pairs.jsonl", &[row]);
    place.refused(score, &[&format!("unexpected: {bias}")]);
}
