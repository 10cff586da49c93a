//! `[train.lora]` and `sppo merge`: adapters trained, stopped, merged, used, and refused.

use std::fs;

use serde_json::{Value, json};

use super::{Place, golden_pairs, weight_difference, weights};
const TRAIN: &str = "train --config train.toml";
const MERGE: &str = "merge --model llama --adapter out/model --out merged";

/// The golden checkpoint and pairs, and the adapter that PEFT wrote as `peft`.
fn place() -> Place {
    let place = Place::with_model();
    place.copy_golden_as("../lora", "peft");
    place.write_rows("pairs.jsonl", &golden_pairs());
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    place.write(
        "train.toml",
        "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\n\
         learning_rate = 2e-3\nwarmup_steps = 1\nepochs = 2\nbatch_size = 4\n\
         [train.lora]\nrank = 4\nalpha = 8\n",
    );
    place
}

fn adapter(place: &Place, folder: &str) -> Vec<u8> {
    place.bytes(&format!("{folder}/adapter_model.safetensors"))
}

#[test]
fn train_merge_and_use() {
    let place = place();
    assert_eq!(place.ok_json(TRAIN)["path"], "out/model");
    let metrics = place.rows("out/metrics.jsonl");
    assert_eq!(metrics.len(), 8);
    // The reference is the base with the adapter off, which a new one does not change.
    for key in ["rewards/chosen", "rewards/rejected"] {
        assert_eq!(metrics[0][key], 0.0, "{key}");
    }
    assert!(metrics[7]["rewards/chosen"] != 0.0);
    let settings = place.json("out/model/adapter_config.json");
    assert_eq!(settings["peft_type"], "LORA");
    assert_eq!(
        (&settings["r"], &settings["lora_alpha"]),
        (&json!(4), &json!(8))
    );
    let base = settings["base_model_name_or_path"].as_str().unwrap();
    assert_eq!(
        fs::canonicalize(base).unwrap(),
        fs::canonicalize(place.path("llama")).unwrap()
    );
    assert_eq!(names(&place, "out/model"), names(&place, "peft"));
    assert_eq!(
        place.bytes("out/model/tokenizer.json"),
        place.bytes("llama/tokenizer.json")
    );
    let card = place.read("out/model/README.md");
    for part in [
        "library_name: peft\n",
        "- lora\n",
        "PeftModel.from_pretrained(base, \"out/model\")",
        "sppo merge --model llama --adapter out/model",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(!place.path("out/model/config.json").exists());

    let line = place.ok_json(&format!("{MERGE} --precision f32"));
    assert_eq!(line["path"], "merged");
    assert!(
        (line["kept"].as_f64().unwrap() - 1.0).abs() < 1e-4,
        "{line}"
    );
    let card = place.read("merged/README.md");
    for part in [
        "library_name: transformers\n",
        "16 pairs with the sppo loss",
        "`sppo merge` added them to its weights",
        "8 optimizer steps",
        "sppo serve --model merged",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    place.ok("generate --model merged --prompts prompts.jsonl --out answers.jsonl --samples 1 --max-new-tokens 4");
    assert_eq!(place.rows("answers.jsonl").len(), 1);
    place.ok("score --model merged --data pairs.jsonl --out merged.jsonl");
    place.ok("score --model llama --data pairs.jsonl --out base.jsonl");
    let sum = |name: &str, key: &str| -> f64 {
        place
            .rows(name)
            .iter()
            .map(|r| r[key].as_f64().unwrap())
            .sum()
    };
    let moved = sum("merged.jsonl", "chosen_logps") - sum("base.jsonl", "chosen_logps");
    assert!(
        moved > 1.0,
        "training raised the chosen responses by {moved}"
    );

    // The base's own format unless told otherwise; what rounding kept is counted.
    let line = place.ok_json(&MERGE.replace("merged", "rounded"));
    assert_eq!(place.json("rounded/config.json")["torch_dtype"], "bfloat16");
    let kept = line["kept"].as_f64().unwrap();
    assert!(kept != 1.0 && (kept - 1.0).abs() < 0.05, "{kept}");
    place.ok("score --model rounded --data pairs.jsonl --out rounded.jsonl");
}

/// Updates that bf16 cannot hold are lost in a merge, and it says so.
#[test]
fn changes_too_small_to_merge() {
    let place = place();
    place.ok(&format!("{TRAIN} --set train.learning_rate=1e-6"));
    let ran = place.sppo(&format!("{MERGE} --json"));
    assert!(
        ran.stderr.contains("rounding to bf16 lost much"),
        "{}",
        ran.stderr
    );
    let line: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(line["kept"].as_f64().unwrap() < 0.5, "{line}");
    let line = place.ok_json("merge --model llama --adapter out/model --out whole --precision f32");
    assert!(
        (line["kept"].as_f64().unwrap() - 1.0).abs() < 1e-2,
        "{line}"
    );
}

/// Names and shapes of an adapter's tensors.
fn names(place: &Place, folder: &str) -> Vec<(String, Vec<usize>)> {
    let bytes = adapter(place, folder);
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<_> = file
        .iter()
        .map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
            (name.to_string(), tensor.shape().to_vec())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn only_the_targets_have_adapters() {
    let place = place();
    place.ok(&format!(
        "{TRAIN} --set train.lora.targets=[\"v_proj\",\"down_proj\"] --set train.epochs=1"
    ));
    let names = names(&place, "out/model");
    assert_eq!(names.len(), 3 * 2 * 2);
    assert!(
        names
            .iter()
            .all(|(name, _)| name.contains("v_proj") || name.contains("down_proj"))
    );
    place.ok(&format!("{MERGE} --precision f32"));
    place.ok("merge --model llama --adapter peft --out all --precision f32");
    let base = weights(&place.path("merged"));
    let all = weights(&place.path("all"));
    let moved: Vec<&str> = base
        .iter()
        .zip(&all)
        .filter(|(one, other)| one.1 == other.1)
        .map(|(one, _)| one.0.as_str())
        .collect();
    // What both leave alone is what has no adapter in either.
    assert!(
        moved.iter().all(|name| !name.contains("_proj")),
        "{moved:?}"
    );
    assert_eq!(moved.len(), base.len() - 7 * 3);
}

#[test]
fn recomputing_layers_changes_nothing() {
    let place = place();
    place.ok(&format!("{TRAIN} --set output_dir=kept"));
    place.ok(&format!(
        "{TRAIN} --set output_dir=again --set train.recompute=layer"
    ));
    assert!(adapter(&place, "kept/model") == adapter(&place, "again/model"));
}

#[test]
fn the_seed_draws_the_adapters() {
    let place = place();
    for (seed, folder) in [(1, "one"), (1, "same"), (2, "other")] {
        place.ok(&format!(
            "{TRAIN} --set train.seed={seed} --set train.shuffle=false --set train.epochs=1 --set output_dir={folder}"
        ));
    }
    assert!(adapter(&place, "one/model") == adapter(&place, "same/model"));
    assert!(adapter(&place, "one/model") != adapter(&place, "other/model"));
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
    fn stopped_anywhere_it_ends_the_same() {
        let place = place();
        place.ok(&format!("{TRAIN} --set output_dir=whole"));
        let args = format!("{TRAIN} --set train.checkpoint_every=2 --set output_dir=parts");
        let mut moments = Moments(3);
        let mut kills = 0;
        for target in [1, 3, 5] {
            let mut child = place.start(&args);
            wait_until(&mut child, || lines(&place, "parts") >= target);
            std::thread::sleep(moments.pause(Duration::from_millis(10)));
            kills += usize::from(kill(child));
        }
        assert!(kills >= 1, "no kill hit");
        place.ok(&args);
        assert!(adapter(&place, "parts/model") == adapter(&place, "whole/model"));
        // Checkpoints hold adapters and their state only, and can be merged.
        let checkpoint = "parts/checkpoints/step-00000006";
        assert!(!place.path(checkpoint).join("model.safetensors").exists());
        let state = place.bytes(&format!(
            "{checkpoint}/trainer/optimizer-0-of-1.safetensors"
        ));
        let state = safetensors::SafeTensors::deserialize(&state).unwrap();
        assert_eq!(state.len(), names(&place, checkpoint).len());
        place.ok(&format!(
            "merge --model llama --adapter {checkpoint} --out merged"
        ));
        place.refused(
            &format!("score --model {checkpoint} --data pairs.jsonl --out s.jsonl"),
            &["this is a LoRA adapter", "sppo merge --model"],
        );
    }

    #[test]
    fn ctrl_c_saves_and_the_next_run_finishes() {
        let place = place();
        let long = format!("{TRAIN} --set train.epochs=8");
        place.ok(&format!("{long} --set output_dir=whole"));
        let args = format!("{long} --set output_dir=halves");
        let mut child = place.start(&args);
        assert!(wait_until(&mut child, || lines(&place, "halves") >= 2));
        assert_eq!(interrupt(child), Some(130));
        assert!(!place.path("halves/model").exists());
        place.ok(&args);
        assert!(adapter(&place, "halves/model") == adapter(&place, "whole/model"));
    }
}

#[test]
#[cfg(feature = "flex")]
fn beside_bf16_weights_adapters_are_f32() {
    let place = place();
    for recompute in ["none", "layer"] {
        place.ok(&format!(
            "{TRAIN} --device flex --set train.precision=bf16 --set train.recompute={recompute} \
             --set output_dir={recompute}"
        ));
        // f32 in the file.
        assert_eq!(names(&place, &format!("{recompute}/model")).len(), 42);
        let metrics = place.rows(&format!("{recompute}/metrics.jsonl"));
        assert_eq!(metrics[0]["rewards/chosen"], 0.0);
    }
    assert!(adapter(&place, "none/model") == adapter(&place, "layer/model"));
}

/// Two iterations of self-play: each merges its adapters, and the next starts from that.
#[test]
#[cfg(unix)]
fn the_loop_merges_after_each_iteration() {
    let place = super::run::place();
    let args = "run --config run.toml --set train.lora.rank=2 --set train.learning_rate=1e-3";
    let line = place.ok_json(&format!("{args} --set output_dir=out"));
    for (i, entry) in line["iterations"].as_array().unwrap().iter().enumerate() {
        let folder = format!("out/iteration-{}", i + 1);
        assert_eq!(entry["checkpoint"], format!("{folder}/merged"));
        assert!(
            place
                .path(&folder)
                .join("model/adapter_config.json")
                .is_file()
        );
        let base = place.json(&format!("{folder}/model/adapter_config.json"));
        let base = base["base_model_name_or_path"]
            .as_str()
            .unwrap()
            .to_string();
        let starts = ["sft/model", "iteration-1/merged"][i];
        assert!(base.ends_with(starts), "{base}");
        // By hand it is the same.
        place.ok(&format!(
            "merge --model {base} --adapter {folder}/model --out again{i} --precision f32"
        ));
        let merged = place.path(&format!("{folder}/merged"));
        assert_eq!(
            weight_difference(&merged, &place.path(&format!("again{i}"))),
            0.0
        );
        assert!(weight_difference(&merged, std::path::Path::new(&base)) > 0.0);
    }
    // Done again, it finds everything done.
    let model = place.path("out/iteration-2/merged/model.safetensors");
    let made = fs::metadata(&model).unwrap().modified().unwrap();
    assert_eq!(place.ok_json(&format!("{args} --set output_dir=out")), line);
    assert_eq!(fs::metadata(&model).unwrap().modified().unwrap(), made);
}

#[test]
fn adapters_are_no_models() {
    let place = place();
    let parts = [
        "peft: this is a LoRA adapter, not a whole model",
        "sppo merge --model llama --adapter peft --out MERGED",
    ];
    for command in [
        "generate --model peft --prompts prompts.jsonl --out o.jsonl",
        "score --model peft --data pairs.jsonl --out o.jsonl",
        "eval --config train.toml --model peft --against llama --prompts prompts.jsonl",
        "eval --config train.toml --model llama --against peft --prompts prompts.jsonl",
        "bench --model peft",
        "train --config train.toml --set model.path=peft",
        "merge --model peft --adapter peft --out o",
    ] {
        place.refused(command, &parts);
    }
    let responses = json!({"prompt_id": "a", "prompt": "hi", "responses": ["x", "y"]});
    place.write_rows("responses.jsonl", &[responses]);
    place.refused(
        "judge --responses responses.jsonl --judge reward --model peft --out j.jsonl",
        &parts,
    );
}

#[test]
fn folders_that_are_no_adapters() {
    let place = place();
    let merge = |adapter: &str| format!("merge --model llama --adapter {adapter} --out out");
    place.refused(&merge("llama"), &["llama holds no adapter_config.json"]);
    place.refused(&merge("absent"), &["\"absent\" is not a folder"]);
    place.refused(
        "merge --model llama --adapter peft --out llama",
        &["llama is there and is not this program's"],
    );
    fs::rename(
        place.path("peft/adapter_model.safetensors"),
        place.path("peft/adapter_model.bin"),
    )
    .unwrap();
    place.refused(&merge("peft"), &["peft holds no adapter_model.safetensors"]);
    place.write("peft/adapter_config.json", "[]");
    place.refused(
        &merge("peft"),
        &["peft/adapter_config.json is no JSON object"],
    );
    assert!(!place.path("out").exists());
}

#[test]
fn settings_that_are_not_computed() {
    for (key, value, part) in [
        (
            "peft_type",
            json!("LOHA"),
            "peft_type is \"LOHA\"; only \"LORA\" can be read",
        ),
        ("use_dora", json!(true), "use_dora = true is not supported"),
        (
            "modules_to_save",
            json!(["lm_head"]),
            "modules_to_save = [\"lm_head\"] is not",
        ),
        ("bias", json!("all"), "bias = \"all\" is not supported"),
        (
            "rank_pattern",
            json!({"q_proj": 8}),
            "rank_pattern = {\"q_proj\":8} is not",
        ),
        ("alpha_pattern", json!({"q_proj": 8}), "alpha_pattern = "),
        (
            "layers_to_transform",
            json!([0]),
            "layers_to_transform = [0] is not supported",
        ),
        (
            "init_lora_weights",
            json!("pissa"),
            "init_lora_weights = \"pissa\" is not",
        ),
        ("r", json!(0), "r is 0; expected a rank of 1 or more"),
        (
            "lora_alpha",
            Value::Null,
            "lora_alpha is null; expected a number",
        ),
        (
            "target_modules",
            json!(["q_proj", "lm_head"]),
            "expected layers out of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
    ] {
        let place = place();
        place.edit("peft/adapter_config.json", |settings| settings[key] = value);
        let parts = ["peft/adapter_config.json: ", part];
        place.refused("merge --model llama --adapter peft --out out", &parts);
        assert!(!place.path("out").exists());
    }
}

#[test]
fn tensors_that_do_not_fit() {
    let place = place();
    let merge = "merge --model llama --adapter peft --out out";
    place.edit("peft/adapter_config.json", |settings| {
        settings["r"] = json!(5)
    });
    let parts = [
        "does not fit the base model llama",
        "wrong shape: base_model.model.model.layers.0.mlp.down_proj.lora_A.weight is [4, 160], expected [5, 160]",
    ];
    place.refused(merge, &parts);
    place.edit("peft/adapter_config.json", |settings| {
        settings["r"] = json!(4);
        settings["target_modules"] = json!(["q_proj"]);
    });
    let parts = ["unexpected: base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"];
    place.refused(merge, &parts);
    // A base of another shape.
    place.copy_golden_as("../reward", "reward");
    place.refused("merge --model reward --adapter peft --out out", &["reward"]);
    assert!(!place.path("out").exists());
}

/// Weights of the same shape that the adapters were not trained on.
#[test]
fn another_base_is_refused() {
    let place = place();
    place.ok(&format!("{TRAIN} --set train.epochs=1"));
    place.ok("merge --model llama --adapter peft --out other --precision f32");
    let parts = ["out/model was trained on other weights than those in other"];
    place.refused(
        "merge --model other --adapter out/model --out merged",
        &parts,
    );
    assert!(!place.path("merged").exists());
    // Other files of the base may change.
    place.edit("llama/tokenizer_config.json", |config| {
        config["x"] = json!(1)
    });
    place.ok(MERGE);
}
