//! A model folder with a hostile chat template or tokenizer made the program hang, overflow its stack,
//! run out of memory or panic; random encodings (BPE dropout) were taken without a word.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::golden;

fn copy_of_golden() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path("llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let row = json!({"prompt": "Say a word."});
    fs::write(dir.path().join("prompts.jsonl"), format!("{row}\n")).unwrap();
    dir
}

/// Exit code and stderr of generating with the folder.
fn generate(folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sppo"))
        .args(["generate", "--model", ".", "--prompts", "prompts.jsonl"])
        .args([
            "--out",
            "out.jsonl",
            "--samples",
            "1",
            "--max-new-tokens",
            "2",
        ])
        .current_dir(folder)
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), stderr)
}

#[test]
fn hostile_templates_are_exit_2() {
    let dir = copy_of_golden();
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".to_owned(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}".to_owned(),
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}\
            {% endset %}{% endfor %}{{ n.s }}"
            .to_owned(),
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = [n.s] %}{% endfor %}\
            {{ n.s }}"
            .to_owned(),
        "{{ '{:>999999999}'.format(1) }}".to_owned(),
        "{{ '%1000000000d'|format(1) }}".to_owned(),
        "{{ ','.join([1] * 99999999) }}".to_owned(),
        format!("{{{{ 1{} }}}}", "+1".repeat(200_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
    ] {
        fs::write(dir.path().join("chat_template.jinja"), &source).unwrap();
        let (code, stderr) = generate(dir.path());
        let shown: String = source.chars().take(80).collect();
        assert_eq!(code, Some(2), "{shown}: {stderr}");
        assert!(stderr.contains("chat_template.jinja"), "{shown}: {stderr}");
        assert!(!stderr.contains("panicked"), "{shown}: {stderr}");
    }
}

#[test]
fn hostile_tokenizers_are_exit_2() {
    let dir = copy_of_golden();
    let path = dir.path().join("tokenizer.json");
    let golden: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let doubling = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let changes = [
        ("/model/dropout", json!(0.1), "`model.dropout` is 0.1"),
        (
            "/normalizer",
            json!({"type": "Sequence", "normalizers": vec![doubling; 64]}),
            "times as long",
        ),
        (
            "/pre_tokenizer",
            json!({"type": "FixedLength", "length": 0}),
            "",
        ),
        ("/added_tokens/0/id", json!(4_000_000_000u64), ""),
    ];
    for (place, value, word) in changes {
        let mut json = golden.clone();
        *json.pointer_mut(place).unwrap() = value;
        fs::write(&path, json.to_string()).unwrap();
        let (code, stderr) = generate(dir.path());
        assert_eq!(code, Some(2), "{place}: {stderr}");
        assert!(
            stderr.contains("tokenizer.json") && stderr.contains(word),
            "{place}: {stderr}"
        );
        assert!(!stderr.contains("panicked"), "{place}: {stderr}");
    }
}
