//! Which settings the results depend on.

use std::collections::BTreeMap;

use super::*;

fn effective(section: &str, overrides: &[&str]) -> Effective {
    let config = parse("", overrides).unwrap();
    match section {
        "train" => config.train.effective(),
        "generate" => config.generate.effective(),
        "judge" => config.judge.effective(),
        _ => config.effective(),
    }
}

#[test]
fn the_effective_settings_are_those_that_change_the_result() {
    let none = effective("train", &[]);
    assert_eq!(none.to_string(), "settings 1\n");
    for same in [
        "train.beta2=0.5",
        "train.learning_rate=0.0000005",
        "train.eta=1000",
        "train.memory_mib=5000",
        "train.recompute=layer",
        "train.matmul=cublaslt",
        "train.data=p.jsonl",
        "train.checkpoint_every=7",
        "train.on_non_finite=skip",
    ] {
        assert_eq!(effective("train", &[same]), none, "{same}");
    }
    let sgd = ["train.optimizer=sgd"];
    let with = |more| effective("train", &[sgd[0], more]);
    assert_eq!(with("train.alpha=0.5"), effective("train", &sgd));
    assert_eq!(with("train.eps=1e-6"), effective("train", &sgd));
    assert_ne!(with("train.weight_decay=0.1"), effective("train", &sgd));
    let adamw = [
        "train.optimizer=adamw",
        "train.beta2=0.5",
        "train.alpha=0.5",
    ];
    let expected = "settings 1\nbeta2 = 0.5\noptimizer = \"adamw\"\n";
    assert_eq!(effective("train", &adamw).to_string(), expected);
    let greedy = [
        "generate.temperature=0",
        "generate.top_k=9",
        "generate.batch=3",
    ];
    let expected = "settings 1\ntemperature = 0.0\n";
    assert_eq!(effective("generate", &greedy).to_string(), expected);
    assert_eq!(
        effective("train", &["train.seed=1", "train.shuffle=false"]),
        effective("train", &["train.shuffle=false"])
    );
}

#[test]
fn alternatives_are_one_effective_setting() {
    let steps = effective("train", &["train.warmup_steps=7"]);
    assert_eq!(steps.to_string(), "settings 1\nwarmup_steps = 7\n");
    let ratio = effective("train", &["train.warmup_ratio=0.1"]);
    assert_eq!(ratio, effective("train", &[]));
    let beta = effective("train", &["train.beta=0.125"]);
    assert_eq!(effective("train", &["train.eta=8"]), beta);
    let mut config = Config::default();
    config.train.warmup_ratio = None;
    let off = config.train.effective().to_string();
    assert_eq!(off, "settings 1\nwarmup_ratio = off\n");
}

#[test]
fn sections_below_are_effective_by_their_names() {
    let lora = effective("train", &["train.lora={}"]);
    assert_eq!(lora.to_string(), "settings 1\nlora = on\n");
    let lora = effective("train", &["train.lora.rank=4"]);
    assert_eq!(lora.to_string(), "settings 1\nlora = on\nlora.rank = 4\n");
    let required =
        "judge.rubric.required=[{ pattern = 'a', weight = 1.0 }, { weight = 2, pattern = 'b' }]";
    let rules = effective("judge", &[required, "judge.rubric.similarity_weight=1"]);
    let expected = "settings 1\n\
         rubric.required = [{ pattern = \"a\" }, { pattern = \"b\", weight = 2.0 }]\n\
         rubric.similarity_weight = 1.0\n";
    assert_eq!(rules.to_string(), expected);
    // Settings of another kind can stand in a configuration that was not read from a file.
    let mut judge = parse("", &[required]).unwrap().judge;
    judge.kind = JudgeKind::Reward;
    assert_eq!(
        judge.effective().to_string(),
        "settings 1\nkind = \"reward\"\n"
    );
    let json = serde_json::to_string(&lora).unwrap();
    let again: Effective = serde_json::from_str(&json).unwrap();
    assert_eq!(again, lora, "{json}");
}

/// What a mark keeps gives the section again, so that a card can list all of it.
#[test]
fn settings_of_a_mark_are_a_section_again() {
    let given = [
        "train.loss=dpo",
        "train.beta=0.1",
        "train.optimizer=adamw",
        "train.lora.rank=4",
        "train.warmup_steps=7",
        "train.max_grad_norm=2",
    ];
    let train = parse("", &given).unwrap().train;
    let mut settings: BTreeMap<String, String> = train.effective().into_settings().collect();
    // Beside those of the section a mark has others.
    for (name, value) in [
        ("date", "2026-11-28"),
        ("on_bad_row", "skip"),
        ("raw", "true"),
    ] {
        settings.insert(name.into(), value.into());
    }
    let restored: Train = Effective::restored(&settings).unwrap();
    assert_eq!(restored.effective(), train.effective());
    let all = Effective::with_defaults(&restored);
    for (name, value) in [
        ("loss", "\"dpo\""),
        ("beta1", "0.9"),
        ("lora.alpha", "32.0"),
        ("warmup_steps", "7"),
    ] {
        assert_eq!(all[name], value, "{name}");
    }
    // Not in effect, or without effect on the result, or off.
    for name in [
        "alpha",
        "warmup_ratio",
        "recompute",
        "checkpoint_every",
        "eta",
    ] {
        assert!(!all.contains_key(name), "{name}");
    }
    settings.insert("settings format".into(), "99".into());
    assert!(Effective::restored::<Train>(&settings).is_none());
    let wrong = BTreeMap::from([("loss".to_string(), "3".to_string())]);
    assert!(Effective::restored::<Train>(&wrong).is_none());
}
