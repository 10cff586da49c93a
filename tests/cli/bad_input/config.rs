//! Configurations, flags and devices that are refused.

use super::super::Place;
use super::{GENERATE, TRAIN, with_pairs, with_prompt};

/// A configuration of one line must be refused.
fn refused_config(lines: &str, parts: &[&str]) {
    let place = Place::new();
    place.write("c.toml", lines);
    place.refused("config --config c.toml", parts);
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
        &["train.eval_every needs train.eval_data"],
    );
    refused_config(
        "[judge]\nscores = \"s.jsonl\"",
        &["judge.scores is given but judge.kind is \"rubric\""],
    );
    refused_config(
        "[judge.http]\nmodel = \"m\"",
        &[
            "c.toml line 2: judge.http.model is given but judge.kind is \"rubric\"; remove it or set judge.kind = \"http\"",
        ],
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
fn what_only_a_gpu_has() {
    let place = with_pairs(|_| {});
    place.refused(
        "warm-up --config train.toml",
        &["sppo warm-up is for GPUs: a CPU compiles no kernels; give --device cuda"],
    );
    if !cfg!(feature = "cuda") {
        let parts = ["this build has no device \"cuda\"", "--features cuda"];
        place.refused("warm-up --config train.toml --device cuda", &parts);
    }
    let bench = "bench --model llama --only generate --generate 1 --prompt 4 --new 1";
    for (value, part) in [
        (
            "kernels",
            "SPPO_PROFILE=kernels times a GPU's kernels, and a CPU has none; unset it",
        ),
        (
            "all",
            "SPPO_PROFILE=\"all\" is unknown; SPPO_PROFILE=kernels times",
        ),
    ] {
        let ran = place.command(bench).env("SPPO_PROFILE", value).output();
        let ran = ran.unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
        assert!(ran.stdout.is_empty());
    }
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
