//! Overrides that take the place of something in the file.

use super::*;

/// Both sides of every pair of alternatives.
const EITHER: [(&str, &str); 8] = [
    ("train.beta=0.5", "train.eta=100"),
    ("train.eta=8", "train.beta=0.25"),
    ("train.warmup_ratio=0.5", "train.warmup_steps=7"),
    ("train.warmup_steps=7", "train.warmup_ratio=0.5"),
    ("model.path=m", "model.init.tokenizer=t"),
    ("model.init.tokenizer=t", "model.path=m"),
    (
        "prompts.train=\"a\"",
        "prompts.per_iteration_files=[\"a\", \"b\", \"c\"]",
    ),
    (
        "prompts.per_iteration_files=[\"a\", \"b\", \"c\"]",
        "prompts.train=\"a\"",
    ),
];

#[test]
fn an_override_takes_the_place_of_the_alternative_in_the_file() {
    for (one, other) in EITHER {
        let only = parse("", &[other]).unwrap();
        let resolved = parse("", &[one]).unwrap().to_toml();
        for file in [Config::documented(), resolved] {
            let again = parse(&file, &[other]);
            assert_eq!(
                again.unwrap_or_else(|e| panic!("{e}")),
                only,
                "{one} {other}"
            );
        }
    }
    let pairs: Vec<_> = EITHER
        .iter()
        .map(|(one, other)| [*one, *other].join(" "))
        .collect();
    for (section, one, other) in check::ALTERNATIVES {
        for (one, other) in [(one, other), (other, one)] {
            let (one, other) = (key::join(section, one), key::join(section, other));
            let both =
                |pair: &&String| pair.starts_with(&one) && pair.contains(&format!(" {other}"));
            assert_eq!(pairs.iter().filter(both).count(), 1, "{one} {other}");
        }
    }
}

#[test]
fn an_override_of_the_kind_takes_the_place_of_other_judges_settings() {
    let rules = "[judge]\nscores = \"s\"\n[judge.rubric]\nlength_target = 3\nrequired = [{ pattern = 'a' }]";
    let config = parse(rules, &HTTP).unwrap();
    assert_eq!(config, parse("", &HTTP).unwrap());
    for kind in ["pairrm", "reward"] {
        let kind = format!("judge.kind={kind}");
        let set = [kind.as_str(), "judge.model=m"];
        assert_eq!(
            parse(&config.to_toml(), &set).unwrap(),
            parse("", &set).unwrap()
        );
    }
    // What is at its default is as good as absent.
    assert_eq!(
        parse("[judge.http]\nconcurrency = 8\n[judge.rubric]\n", &[]).unwrap(),
        Config::default()
    );
}
