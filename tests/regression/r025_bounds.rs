//! Durations and counts beyond what a clock, a system or a machine can hold panicked, hung or
//! wrapped around: `timeout_seconds = 9.3e18`, `concurrency = 1000000`, `cache_memory_mib = 2^44`.

use super::server::{JUDGE, VERDICT, judge, place, start};
use crate::cli::Place;

#[test]
fn settings_without_measure_are_refused() {
    let place = place("http://127.0.0.1:1/v1", "");
    for (key, value) in [
        ("judge.http.timeout_seconds", "9.3e18"),
        ("judge.http.timeout_seconds", "1e300"),
        ("judge.http.retry_seconds", "9.3e18"),
        ("judge.http.retries", "9223372036854775807"),
        ("judge.http.concurrency", "1000000"),
        ("judge.http.max_tokens", "9223372036854775807"),
    ] {
        place.refused(&format!("{JUDGE} --set {key}={value}"), &[key]);
    }
    for key in [
        "generate.cache_memory_mib",
        "generate.samples",
        "generate.top_k",
        "generate.max_new_tokens",
        "eval.samples",
        "train.memory_mib",
        "train.warmup_steps",
        "train.checkpoint_every",
        "train.eval_every",
        "train.epochs",
        "model.init.hidden_size",
        "model.init.layers",
    ] {
        for value in ["17592186044416", "9223372036854775807"] {
            place.refused(
                &format!("config --set {key}={value} --set model.init.tokenizer=t"),
                &[key, value.get(..4).unwrap()],
            );
        }
    }
}

#[test]
fn numbers_that_are_too_large_together_are_refused() {
    let place = place("http://127.0.0.1:1/v1", "");
    for section in ["train", "sft"] {
        let sets =
            format!("--set {section}.batch_size=10000 --set {section}.gradient_accumulation=10000");
        let key = format!("{section}.gradient_accumulation");
        place.refused(&format!("config {sets}"), &[&key, "at most 10000000 rows"]);
    }
}

#[test]
fn as_many_questions_at_a_time_as_are_admitted() {
    let (port, _) = start(|_, _| ("200 OK".into(), VERDICT.into()));
    let place = place(&format!("http://127.0.0.1:{port}/v1"), "");
    let more = "--set judge.http.concurrency=1024 --set judge.http.timeout_seconds=86400 \
                --set judge.http.retries=10000000 --set judge.http.retry_seconds=86400";
    let (code, text) = judge(&place, more);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn flags_without_measure_are_refused() {
    let place = Place::with_model();
    place.write("p.jsonl", "{\"prompt\": \"a\"}\n");
    let generate = "generate --model llama --prompts p.jsonl --out r.jsonl";
    for flag in [
        "--samples",
        "--cache-memory-mib",
        "--max-new-tokens",
        "--top-k",
        "--batch",
    ] {
        for value in [
            "17592186044416",
            "18446744073709551615",
            "18446744073709551616",
        ] {
            place.refused(&format!("{generate} {flag} {value}"), &[flag, value]);
        }
    }
    assert!(!place.path("r.jsonl").exists());
    for (flags, parts) in [
        ("--shortest 9 --new 8", ["--shortest 9", "--new 8"]),
        ("--lora 100000", ["--lora", "65536"]),
        ("--batch 10000000 --steps 10000000", ["--batch", "--steps"]),
        (
            "--generate 10000000 --prompt 10000000",
            ["--generate", "lower"],
        ),
        (
            "--prompt 10000000 --batch 1 --steps 1 --generate 1",
            ["context", "--prompt"],
        ),
        (
            "--response 10000000 --batch 1 --steps 1 --only train",
            ["context", "--response"],
        ),
        (
            "--only generate --pairs p.jsonl",
            ["--pairs", "--only generate"],
        ),
    ] {
        place.refused(&format!("bench --model llama {flags}"), &parts);
    }
    place.ok("bench --model llama --batch 1 --steps 1 --prompt 2 --response 1 --generate 1 --new 1 --shortest 1");
}
