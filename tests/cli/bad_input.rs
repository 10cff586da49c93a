//! Wrong input: exit code 2, and a message that names the file, line or key, what was found and
//! what to do.

use std::fs;

use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView, serialize};
use serde_json::{Value, json};

use super::{Place, golden_pairs};

const GENERATE: &str =
    "generate --samples 2 --max-new-tokens 2 --prompts prompts.jsonl --out out.jsonl --model";
const SCORE: &str = "score --model llama --data pairs.jsonl --out out.jsonl";
const JUDGE: &str = "judge --responses responses.jsonl --out out.jsonl --judge";
const TRAIN: &str = "train --config train.toml";

const TRAIN_TOML: &str =
    "output_dir = \"out\"\n[model]\npath = \"llama\"\n[train]\ndata = \"pairs.jsonl\"\n";

/// A golden checkpoint in `llama`, and one prompt.
fn with_prompt() -> Place {
    let place = Place::with_model();
    place.write_rows(
        "prompts.jsonl",
        &[json!({"prompt_id": "a", "prompt": "hello"})],
    );
    place
}

/// A golden checkpoint, golden pairs after `change`, and a configuration to train on them.
fn with_pairs(change: impl FnOnce(&mut Vec<Value>)) -> Place {
    let place = Place::with_model();
    let mut rows = golden_pairs();
    change(&mut rows);
    place.write_rows("pairs.jsonl", &rows);
    place.write("train.toml", TRAIN_TOML);
    place
}

fn with_responses() -> Place {
    let place = Place::new();
    let row = json!({"prompt_id": "a", "prompt": "hi", "responses": ["One.", "Two. Two."]});
    place.write_rows("responses.jsonl", &[row]);
    place
}

/// A configuration of one line must be refused.
fn refused_config(lines: &str, parts: &[&str]) {
    let place = Place::new();
    place.write("c.toml", lines);
    place.refused("config --config c.toml", parts);
}

type Tensor = (String, Vec<usize>, Vec<u8>);

/// Writes the golden weights anew, as one file, after `change`.
fn rewrite_weights(place: &Place, change: impl FnOnce(&mut Vec<Tensor>)) {
    let mut tensors: Vec<Tensor> = Vec::new();
    for shard in [
        "llama/model-00001-of-00002.safetensors",
        "llama/model-00002-of-00002.safetensors",
    ] {
        let bytes = place.bytes(shard);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        tensors.extend(file.iter().map(|(name, tensor)| {
            (
                name.to_string(),
                tensor.shape().to_vec(),
                tensor.data().to_vec(),
            )
        }));
        fs::remove_file(place.path(shard)).unwrap();
    }
    fs::remove_file(place.path("llama/model.safetensors.index.json")).unwrap();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name,
            TensorView::new(Dtype::BF16, shape.clone(), data).unwrap(),
        )
    });
    place.write("llama/model.safetensors", serialize(views, None).unwrap());
}

fn tensor<'t>(tensors: &'t mut [Tensor], name: &str) -> &'t mut Tensor {
    tensors.iter_mut().find(|(n, ..)| n == name).unwrap()
}

#[test]
fn a_model_that_is_nowhere() {
    let place = with_prompt();
    place.refused(
        &format!("{GENERATE} absent"),
        &[
            "model \"absent\" is not a folder",
            "give a checkpoint folder or a Hugging Face repository id",
        ],
    );
    place.refused(
        &format!("{GENERATE} org/absent"),
        &["models--org--absent", "hf download org/absent"],
    );
}

#[test]
fn a_folder_without_a_model() {
    let place = with_prompt();
    fs::create_dir(place.path("empty")).unwrap();
    let parts = ["empty/config.json", "a model folder needs a config.json"];
    place.refused(&format!("{GENERATE} empty"), &parts);
    fs::copy(
        place.path("llama/config.json"),
        place.path("empty/config.json"),
    )
    .unwrap();
    let parts = ["empty holds neither model.safetensors nor model.safetensors.index.json"];
    place.refused(&format!("{GENERATE} empty"), &parts);
}

#[test]
fn configs_of_other_models() {
    let config = "llama/config.json";
    let model = format!("{GENERATE} llama");
    let place = with_prompt();
    place.edit(config, |c| c["model_type"] = "mistral".into());
    let parts = [
        "llama: config.json: model_type = \"mistral\" is not supported",
        "only \"llama\"",
    ];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["model_type"] = "llama".into();
        c["sliding_window"] = 4096.into();
    });
    let parts = [
        "llama: config.json: sliding_window = 4096 is not supported",
        "changes what the model computes",
    ];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["sliding_window"] = Value::Null;
        c["num_key_value_heads"] = 3.into();
    });
    let parts = ["num_key_value_heads is 3; it must divide num_attention_heads = 4"];
    place.refused(&model, &parts);
    place.edit(config, |c| {
        c["num_key_value_heads"] = 2.into();
        c["hidden_size"] = 0.into();
    });
    place.refused(
        &model,
        &["hidden_size is 0; expected a whole number above 0"],
    );
    place.write(config, "{\"model_type\": ");
    place.refused(&model, &["llama/config.json is not valid JSON"]);
}

#[test]
fn truncated_weights() {
    let place = with_prompt();
    let shard = "llama/model-00002-of-00002.safetensors";
    for keep in [0, 5, 600, 100_000] {
        let bytes = place.bytes(shard);
        place.write(shard, &bytes[..bytes.len().min(keep)]);
        let parts = [shard, "no whole safetensors file", "copy it again"];
        place.refused(&format!("{GENERATE} llama"), &parts);
        fs::copy(crate::golden::path(shard), place.path(shard)).unwrap();
    }
}

#[test]
fn an_index_that_names_wrong_files() {
    let index = "llama/model.safetensors.index.json";
    for (shard, message) in [
        ("model-00009-of-00002.safetensors", "which is not there"),
        ("../x.safetensors", "lies outside its folder; refused"),
        ("/etc/passwd", "lies outside its folder; refused"),
    ] {
        let place = with_prompt();
        fs::copy(
            place.path("llama/model-00001-of-00002.safetensors"),
            place.path("x.safetensors"),
        )
        .unwrap();
        place.edit(index, |i| {
            i["weight_map"]["model.norm.weight"] = shard.into()
        });
        place.refused(&format!("{GENERATE} llama"), &[index, shard, message]);
    }
    let place = with_prompt();
    place.edit(index, |i| {
        i["weight_map"]["model.norm.wait"] = "model-00001-of-00002.safetensors".into();
    });
    let parts = [index, "model-00001-of-00002.safetensors", "model.norm.wait"];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn every_tensor_that_does_not_fit_is_listed() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        tensor(tensors, "model.norm.weight").0 = "model.norm.wait".into();
        tensor(tensors, "model.embed_tokens.weight").1 = vec![213, 128];
    });
    place.refused(
        &format!("{GENERATE} llama"),
        &[
            "llama does not fit its config.json",
            "missing: model.norm.weight [64]",
            "wrong shape: model.embed_tokens.weight is [213, 128], expected [426, 64]",
            "unexpected: model.norm.wait",
        ],
    );
}

#[test]
fn weights_that_are_nan() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        // A quiet NaN in bf16.
        tensor(tensors, "model.norm.weight").2[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let parts = [
        "llama/model.safetensors",
        "tensor model.norm.weight holds NaN or infinity",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn a_tokenizer_of_another_model() {
    let place = with_prompt();
    rewrite_weights(&place, |tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (_, shape, data) = tensor(tensors, name);
            shape[0] = 400;
            data.truncate(400 * 64 * 2);
        }
    });
    place.edit("llama/config.json", |c| c["vocab_size"] = 400.into());
    let parts = [
        "llama: the tokenizer knows 426 tokens",
        "vocab_size is 400",
        "do not belong together",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn a_model_that_cannot_read_text() {
    let place = with_prompt();
    let parts = ["llama: text needs tokenizer.json and a chat template"];
    place.edit("llama/tokenizer_config.json", |c| {
        c.as_object_mut().unwrap().remove("chat_template");
    });
    place.refused(&format!("{GENERATE} llama"), &parts);
    fs::remove_file(place.path("llama/tokenizer.json")).unwrap();
    place.refused(&format!("{GENERATE} llama"), &parts);
    let row = json!({"prompt": "p", "chosen": "c", "rejected": "r"});
    place.write_rows("pairs.jsonl", &[row]);
    place.refused(
        SCORE,
        &["the model's folder has no tokenizer with a chat template"],
    );
}

#[test]
fn tokenizer_files_that_are_damaged() {
    let place = with_prompt();
    place.write("llama/tokenizer.json", "{}");
    place.refused(
        &format!("{GENERATE} llama"),
        &["llama/tokenizer.json is not a tokenizer"],
    );
    let place = with_prompt();
    place.edit("llama/tokenizer_config.json", |c| {
        c["eos_token"] = "<|fin|>".into()
    });
    let parts = [
        "llama/tokenizer_config.json: eos_token is `<|fin|>`",
        "tokenizer.json does not have",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn templates_that_refuse_or_fail() {
    for (template, parts) in [
        (
            "{{ raise_exception('Only one system prompt, please') }}",
            [
                "prompt a: ",
                "refuses these messages: Only one system prompt, please",
            ],
        ),
        (
            "{% for m in messages %}",
            ["llama/tokenizer_config.json", "not valid Jinja"],
        ),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}",
            ["prompt a: ", "the chat template"],
        ),
    ] {
        let place = with_prompt();
        place.edit("llama/tokenizer_config.json", |c| {
            c["chat_template"] = template.into()
        });
        place.refused(&format!("{GENERATE} llama"), &parts);
    }
}

#[test]
fn prompt_files_that_are_absent_empty_or_of_another_kind() {
    let place = Place::with_model();
    let generate = format!("{GENERATE} llama");
    place.refused(&generate, &["prompts.jsonl: cannot read it: No such file"]);
    place.write("prompts.jsonl", "");
    place.refused(
        &generate,
        &["prompts.jsonl: holds no rows (prompts expected)"],
    );
    place.write("prompts.jsonl", "\n\n");
    place.refused(&generate, &["prompts.jsonl: holds no rows"]);
    for name in ["prompts.csv", "prompts"] {
        place.write(name, "x");
        let parts = [name, "the name must end in .jsonl or .parquet"];
        place.refused(&generate.replace("prompts.jsonl", name), &parts);
    }
    place.write("prompts.parquet", "PAR1 but no more");
    place.refused(
        &generate.replace("prompts.jsonl", "prompts.parquet"),
        &["prompts.parquet: "],
    );
}

#[test]
fn rows_that_are_malformed() {
    let generate = format!("{GENERATE} llama");
    for (second, parts) in [
        ("{\"prompt\": \"x\"", ["line 2: not a JSON object", "EOF"]),
        ("[1, 2]", ["line 2: not a JSON object", "found a list"]),
        ("{\"prompt\": NaN}", ["line 2", "JSON has no NaN"]),
        (
            "{\"text\": \"x\"}",
            [
                "line 2: key `prompt` is missing",
                "`instruction` or `messages`",
            ],
        ),
        (
            "{\"prompt\": 3}",
            [
                "line 2: key `prompt` must be a string or a list of messages",
                "found the number 3",
            ],
        ),
        (
            "{\"prompt\": \"\"}",
            ["line 2: key `prompt`", "found an empty string"],
        ),
        (
            "{\"prompt\": [{\"role\": \"user\"}]}",
            [
                "line 2: key `prompt[0].content` must be a string",
                "found nothing",
            ],
        ),
        (
            "{\"prompt\": \"x\", \"prompt_id\": \"a\"}",
            [
                "prompt_id `a` stands at line 1 and again at line 2",
                "must be unique",
            ],
        ),
    ] {
        let place = Place::with_model();
        let first = "{\"prompt\": \"hello\", \"prompt_id\": \"a\"}";
        place.write(
            "prompts.jsonl",
            format!("{first}\n{second}\n{{\"prompt\": \"y\"}}\n"),
        );
        place.refused(&generate, &parts);
        place.refused(&generate, &["prompts.jsonl"]);
    }
}

#[test]
fn a_torn_last_line_is_dropped_with_a_warning() {
    let place = with_prompt();
    let whole = place.read("prompts.jsonl");
    place.write(
        "prompts.jsonl",
        format!("{whole}{{\"prompt_id\": \"b\", \"pro"),
    );
    let ran = place.sppo(&format!("{GENERATE} llama"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("WARN"), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("prompts.jsonl, line 2: torn last line dropped"),
        "{}",
        ran.stderr
    );
    assert_eq!(place.rows("out.jsonl").len(), 1);
}

#[test]
fn a_prompt_that_is_too_long() {
    let place = Place::with_model();
    let long = "word ".repeat(600);
    let rows = [
        json!({"prompt": "hi"}),
        json!({"prompt_id": "long-one", "prompt": long}),
    ];
    place.write_rows("prompts.jsonl", &rows);
    let parts = [
        "prompt long-one has ",
        "tokens, which leaves no room in the model's context of 512",
    ];
    place.refused(&format!("{GENERATE} llama"), &parts);
}

#[test]
fn unknown_keys_and_sections() {
    refused_config(
        "\n[train]\nlearning_rat = 1e-6\n",
        &["c.toml line 3: unknown key train.learning_rat; did you mean train.learning_rate?"],
    );
    refused_config(
        "[trian]\n",
        &["c.toml line 1: unknown section trian; did you mean train?"],
    );
    refused_config(
        "learning_rate = 1.0\n",
        &["unknown key learning_rate; did you mean train.learning_rate?"],
    );
    refused_config(
        "[pairs]\nxyzzy = 1\n",
        &["unknown key pairs.xyzzy; known here: keep_ties"],
    );
    let place = Place::new();
    let parts = ["--set: unknown key train.epoch; did you mean train.epochs?"];
    place.refused("config --set train.epoch=2", &parts);
    let parts = [
        "--set \"train.epochs\": there is no '='",
        "write --set section.key=value",
    ];
    place.refused("config --set train.epochs", &parts);
}

#[test]
fn configurations_that_are_absent_or_no_toml() {
    let place = Place::new();
    let parts = ["cannot read the configuration absent.toml", "No such file"];
    place.refused("train --config absent.toml", &parts);
    refused_config("seed = 1\n[train\n", &["c.toml line 2: not valid TOML"]);
    refused_config("seed = 1\nseed = 2\n", &["c.toml line 2: not valid TOML"]);
}

#[test]
fn values_of_the_wrong_type_or_out_of_range() {
    for (lines, part) in [
        (
            "[train]\nepochs = \"two\"",
            "line 2: train.epochs must be a whole number, 0 or more, found the string \"two\"",
        ),
        (
            "[train]\nepochs = 1.5",
            "train.epochs must be a whole number, 0 or more, found 1.5",
        ),
        (
            "[train]\nbatch_size = 0",
            "line 2: train.batch_size must be 1 or more, found 0",
        ),
        (
            "[train]\nbatch_size = -4",
            "train.batch_size must be a whole number, 0 or more, found -4",
        ),
        (
            "[train]\nlearning_rate = 0.0",
            "train.learning_rate must be a number above 0, found 0",
        ),
        (
            "[train]\nbeta = -0.1",
            "train.beta must be a number above 0, found -0.1",
        ),
        (
            "[train]\nbeta = nan",
            "train.beta must be a finite number, found",
        ),
        (
            "[train]\nwarmup_ratio = 1.5",
            "train.warmup_ratio must be a number from 0 to 1, found 1.5",
        ),
        (
            "[train]\nalpha = 1.0",
            "train.alpha must be a number from 0 to below 1, found 1",
        ),
        (
            "[train]\nmax_grad_norm = 0",
            "train.max_grad_norm must be a number above 0, found 0",
        ),
        (
            "[train]\nmax_length = 256",
            "train.max_prompt_length must be below train.max_length (256), found 512",
        ),
        (
            "[train]\nstop_at_epoch = 2",
            "train.stop_at_epoch must be from 1 to train.epochs (1), found 2",
        ),
        (
            "[generate]\nsamples = 1",
            "generate.samples must be 2 or more, found 1",
        ),
        (
            "[generate]\ntop_p = 0",
            "generate.top_p must be a number above 0, at most 1, found 0",
        ),
        ("iterations = 0", "iterations must be 1 or more, found 0"),
        ("train = 3", "train must be a section, [train], found 3"),
        (
            "[model.init]\ntokenizer = \"t\"\nheads = 3",
            "model.init.heads must be a divisor of hidden_size (64)",
        ),
        ("[model.init]\nlayers = 1", "[model.init] needs tokenizer"),
    ] {
        refused_config(lines, &[part, "c.toml"]);
    }
}

#[test]
fn words_that_are_no_choice() {
    refused_config(
        "[train]\nloss = \"spo\"",
        &[
            "train.loss must be one of sppo, sppo_single",
            "found the string \"spo\"; did you mean sppo?",
        ],
    );
    refused_config(
        "[train]\noptimizer = \"lion\"",
        &["train.optimizer must be one of rmsprop, adamw, sgd"],
    );
    refused_config(
        "[train]\nprecision = \"f16\"",
        &["train.precision must be one of f32, bf16"],
    );
}

#[test]
fn options_that_exclude_each_other() {
    refused_config(
        "[train]\nbeta = 0.1\neta = 10",
        &["c.toml line 3: train.beta and train.eta are both given; keep one of them"],
    );
    refused_config(
        "[train]\nwarmup_ratio = 0.1\nwarmup_steps = 5",
        &["train.warmup_ratio and train.warmup_steps are both given"],
    );
    refused_config(
        "[model]\npath = \"x\"\n[model.init]\ntokenizer = \"t\"",
        &["model.path and model.init are both given"],
    );
    refused_config(
        "[train]\neval_every = 5",
        &["train.eval_every and train.eval_data belong together"],
    );
    refused_config(
        "[judge]\nscores = \"s.jsonl\"",
        &["judge.scores is given but judge.kind is \"rubric\""],
    );
}

#[test]
fn flags_with_wrong_numbers() {
    let place = with_prompt();
    for (flags, flag, part) in [
        (
            "--temperature=-1",
            "--temperature",
            "expected a number, 0 or more",
        ),
        (
            "--temperature nan",
            "--temperature",
            "expected a number, 0 or more",
        ),
        (
            "--top-p 0",
            "--top-p",
            "expected a number above 0, at most 1",
        ),
        (
            "--samples 0",
            "--samples",
            "expected a whole number, 1 or more",
        ),
        ("--batch 0", "--batch", "expected a whole number, 1 or more"),
        ("--shard 4/4", "--shard", "write I/N with I from 0 to N-1"),
        ("--seed x", "--seed", "invalid digit"),
        ("--tempratur 1", "--tempratur", "'--temperature'"),
    ] {
        // Without the flags that `GENERATE` gives already.
        let args =
            format!("generate --prompts prompts.jsonl --out out.jsonl --model llama {flags}");
        place.refused(&args, &[flag, part]);
    }
    place.refused(
        "generate --model llama",
        &["--prompts <FILE>", "--out <FILE>"],
    );
    place.refused("generat", &["unrecognized subcommand 'generat'"]);
}

#[test]
fn devices_that_are_not_there() {
    let place = with_prompt();
    let model = format!("{GENERATE} llama --device");
    place.refused(
        &format!("{model} tpu"),
        &["unknown device \"tpu\"; write cpu, flex"],
    );
    place.refused(&format!("{model} cpu:1"), &["cpu takes no number"]);
    for (name, there) in [
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
    ] {
        if !there {
            let feature = format!("--features {name}");
            let parts = ["this build has no device", name, &feature];
            place.refused(&format!("{model} {name}:0"), &parts);
        }
    }
    let place = with_pairs(|_| {});
    place.refused(
        &format!("{TRAIN} --set device=tpu"),
        &["unknown device \"tpu\""],
    );
}

#[test]
fn a_configuration_without_what_the_command_needs() {
    let place = with_pairs(|_| {});
    place.write("bare.toml", "output_dir = \"out\"\n");
    place.refused(
        "train --config bare.toml",
        &["needs train.data", "sppo pairs makes one"],
    );
    place.refused("sft --config bare.toml", &["needs sft.data"]);
    place.refused("run --config bare.toml", &["the run needs prompts.train"]);
    let args = "train --config bare.toml --set train.data=pairs.jsonl";
    place.refused(args, &["no model is given; set model.path", "[model.init]"]);
    let args = format!("{TRAIN} --set model.path=absent");
    place.refused(&args, &["model \"absent\" is not a folder"]);
}

#[test]
fn pairs_without_the_probabilities_of_the_loss() {
    let place = with_pairs(|rows| {
        rows[3].as_object_mut().unwrap().remove("chosen_probs_lose");
    });
    let parts = [
        "pairs.jsonl, row 4: key `chosen_probs_lose` is missing",
        "the loss `sppo` needs it",
        "pair-3",
    ];
    place.refused(TRAIN, &parts);
}

#[test]
fn pairs_with_probabilities_that_are_none() {
    for (value, part) in [
        (
            json!(1.5),
            "key `chosen_probs_win` must be a number from 0 to 1, found 1.5",
        ),
        (
            json!(-0.1),
            "key `chosen_probs_win` must be a number from 0 to 1, found -0.1",
        ),
        (
            json!("NaN"),
            "key `chosen_probs_win` must be a finite number, found the string \"NaN\"",
        ),
    ] {
        let place = with_pairs(|rows| rows[1]["chosen_probs_win"] = value);
        place.refused(TRAIN, &["pairs.jsonl, line 2", part]);
    }
    let place = with_pairs(|_| {});
    let text =
        place
            .read("pairs.jsonl")
            .replacen("\"chosen_probs\":", "\"chosen_probs\":NaN,\"x\":", 1);
    place.write("pairs.jsonl", text);
    place.refused(
        TRAIN,
        &["pairs.jsonl, line 1: not a JSON object", "JSON has no NaN"],
    );
}

#[test]
fn pairs_that_the_model_cannot_take() {
    let place = with_pairs(|rows| rows[2]["chosen_ids"] = json!([5, 426]));
    let parts = ["row pair-2: token id 426 is outside the model's vocabulary of 426"];
    place.refused(TRAIN, &parts);
    place.refused(SCORE, &parts);
    let place = with_pairs(|rows| rows[0]["rejected_ids"] = json!(vec![7; 600]));
    let parts = [
        "row pair-0: ",
        "has 605 tokens, the model's context 512; lower train.max_length",
    ];
    place.refused(TRAIN, &parts);
    place.refused(SCORE, &parts);
    let parts = [
        "row pair-0: ",
        "rejected response have 605 ids together; max_length is 500",
    ];
    place.refused(
        &format!("{SCORE} --max-length 500 --max-prompt-length 100"),
        &parts,
    );
    let place = with_pairs(|rows| rows[0]["chosen_ids"] = json!([]));
    place.refused(TRAIN, &["line 1: key `chosen_ids`", "found an empty list"]);
    let place = with_pairs(|rows| rows[0]["chosen_ids"] = json!([-1]));
    place.refused(
        TRAIN,
        &["line 1: key `chosen_ids[0]` must be an integer from 0"],
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let place = with_prompt();
    place.write("file", "");
    let below = "generate --model llama --prompts prompts.jsonl --out file/out.jsonl";
    place.refused(below, &["file: cannot make this folder"]);
    fs::create_dir(place.path("folder.jsonl")).unwrap();
    let folder = "generate --model llama --prompts prompts.jsonl --out folder.jsonl";
    place.refused(folder, &["folder.jsonl: cannot write to it"]);
    let place = with_pairs(|_| {});
    place.write("file", "");
    place.refused(
        &format!("{TRAIN} --set output_dir=file"),
        &["file", "cannot make"],
    );
    place.refused(
        &format!("{TRAIN} --set output_dir=file/below"),
        &["file/below", "cannot make"],
    );
}

#[test]
fn outputs_that_hold_other_work() {
    let place = with_prompt();
    let generate = format!("{GENERATE} llama");
    place.ok(&generate);
    let parts = [
        "out.jsonl already holds other work (prompt_id a with 2 responses)",
        "choose another --out",
    ];
    place.refused(&generate.replace("--samples 2", "--samples 3"), &parts);
    place.write_rows("prompts.jsonl", &[json!({"prompt_id": "b", "prompt": "x"})]);
    place.refused(&generate, &parts);

    let place = with_pairs(|_| {});
    place.ok(SCORE);
    place.write_rows("pairs.jsonl", &golden_pairs()[..3]);
    let parts = [
        "out.jsonl already holds 16 rows, pairs.jsonl has 3",
        "choose another --out",
    ];
    place.refused(SCORE, &parts);

    let place = with_responses();
    place.ok(&format!("{JUDGE} rubric"));
    let args = format!("{JUDGE} rubric --set judge.rubric.length_target=9.0");
    place.refused(
        &args,
        &["prompt_id `a`: out.jsonl already holds a judgement made otherwise"],
    );
}

#[test]
fn judges_that_this_build_has_not() {
    let place = with_responses();
    for judge in ["pairrm", "reward", "http"] {
        let part = format!("{judge} is not part of this version");
        place.refused(&format!("{JUDGE} {judge}"), &["--judge", &part]);
    }
    let parts = ["is not one of rubric, scores", "did you mean rubric?"];
    place.refused(&format!("{JUDGE} rubrik"), &parts);
    place.refused(&format!("{JUDGE} scores"), &["--scores <FILE>"]);
    let args = format!("{JUDGE} rubric --model llama");
    place.refused(&args, &["--model llama: the rubric judge has no model"]);
}

#[test]
fn rubrics_that_make_no_sense() {
    let place = with_responses();
    let judge = format!("{JUDGE} rubric --config c.toml");
    for (rules, parts) in [
        (
            "lenght_target = 3.0",
            [
                "[judge.rubric]: unknown field `lenght_target`",
                "length_target",
            ],
        ),
        ("length_target = \"x\"", ["[judge.rubric]", "length_target"]),
        (
            "required = [{ pattern = '(a', weight = 1.0 }]",
            [
                "judge.rubric.required[0].pattern",
                "not a regular expression",
            ],
        ),
        (
            "forbidden = [{ pattern = 'a', weight = -1.0 }]",
            ["judge.rubric.forbidden[0].weight", "found -1"],
        ),
        (
            "temperature = 0.0",
            [
                "judge.rubric.temperature",
                "must be a finite number above 0, found 0",
            ],
        ),
        (
            "ending_weight = 0.0\nlength_weight = 0.0\nrepetition_weight = 0.0",
            ["judge.rubric.", "all weights are 0"],
        ),
    ] {
        place.write("c.toml", format!("[judge.rubric]\n{rules}\n"));
        place.refused(&judge, &parts);
    }
}

#[test]
fn a_rubric_that_needs_references() {
    let place = with_responses();
    let args = format!("{JUDGE} rubric --set judge.rubric.similarity_weight=1.0");
    place.refused(&args, &["prompt_id `a`", "similarity_weight", "reference"]);
}

#[test]
fn scores_that_do_not_fit() {
    let place = with_responses();
    let judge = format!("{JUDGE} scores --scores scores.jsonl");
    for (row, parts) in [
        (
            json!({"prompt_id": "b", "rm_scores": [1, 2]}),
            ["prompt_id `a`", "scores.jsonl has no scores for it"],
        ),
        (
            json!({"prompt_id": "a", "rm_scores": [1, 2, 3]}),
            [
                "prompt_id `a`",
                "`rm_scores` is for 3 responses, but the row has 2",
            ],
        ),
        (
            json!({"prompt_id": "a"}),
            ["scores.jsonl, line 1", "`rm_scores` or `comparison_logits`"],
        ),
        (
            json!({"rm_scores": [1, 2]}),
            [
                "scores.jsonl, line 1: key `prompt_id` is missing",
                "joined to the responses",
            ],
        ),
        (
            json!({"prompt_id": "a", "comparison_logits": [[0, 1], [1]]}),
            [
                "scores.jsonl, line 1: key `comparison_logits[1]`",
                "the matrix is square",
            ],
        ),
    ] {
        place.write_rows("scores.jsonl", &[row]);
        place.refused(&judge, &parts);
    }
    fs::remove_file(place.path("scores.jsonl")).unwrap();
    place.refused(&judge, &["scores.jsonl: cannot read it"]);
}

#[test]
fn judged_rows_that_make_no_pairs() {
    let row = |responses: Value, scores: Value, probability: Value| json!({"prompt_id": "a", "prompt": "p", "responses": responses, "rm_scores": scores, "probability": probability});
    for (row, parts) in [
        (
            row(json!(["x"]), json!([1]), json!([[0.5]])),
            ["prompt_id `a`", "a pair needs at least two"],
        ),
        (
            row(json!(["x", "y"]), json!([1]), json!([[0.5]])),
            ["line 1: key `rm_scores`", "2 long, one for each response"],
        ),
        (
            row(
                json!(["x", "y"]),
                json!([1, 2]),
                json!([[0.5, 2], [0, 0.5]]),
            ),
            ["line 1: key `probability[0][1]`", "from 0 to 1, found 2"],
        ),
        (
            json!({"prompt": "p", "responses": ["x", "y"]}),
            [
                "line 1: key `rm_scores` is missing",
                "sppo judge writes them",
            ],
        ),
    ] {
        let place = Place::new();
        place.write_rows("judged.jsonl", &[row]);
        place.refused("pairs --judged judged.jsonl --out pairs.jsonl", &parts);
    }
}

#[test]
#[cfg(feature = "ndarray")]
fn bf16_where_there_is_none() {
    let place = with_pairs(|_| {});
    let args = format!("{TRAIN} --device ndarray --set train.precision=bf16");
    let parts = [
        "train.precision = \"bf16\": this device has no bf16",
        "set train.precision = \"f32\"",
    ];
    place.refused(&args, &parts);
}
