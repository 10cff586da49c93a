mod effective;
mod overrides;
mod refused;
mod round_trip;

use super::*;

fn parse(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Config::parse(text, Path::new("run.toml"), &overrides)
}

#[test]
fn an_empty_file_gives_the_published_defaults() {
    let config = parse("", &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.train.learning_rate, 5e-7);
    assert_eq!(config.train.beta, 0.001);
    assert_eq!(config.train.eta(), 1000.0);
    assert_eq!((config.generate.samples, config.generate.top_p), (5, 0.9));
    assert_eq!(
        (config.train.max_length, config.train.max_prompt_length),
        (1024, 512)
    );
    assert_eq!(config.output_dir, Path::new("runs/default"));
}

#[test]
fn keys_are_read_from_the_file_and_overridden() {
    let text = "iterations = 2\n[train]\nloss = \"sigmoid\"\nbatch_size = 4\n";
    let set = [
        "train.learning_rate=1e-6",
        "train.batch_size = 2",
        "train.data=a.jsonl",
    ];
    let config = parse(text, &set).unwrap();
    assert_eq!((config.iterations, config.train.batch_size), (2, 2));
    assert_eq!(config.train.loss, Loss::Dpo);
    assert_eq!(config.train.learning_rate, 1e-6);
    assert_eq!(config.train.data.as_deref(), Some(Path::new("a.jsonl")));
}

#[test]
fn eta_becomes_beta_and_warmup_steps_replace_the_ratio() {
    let config = parse("[train]\neta = 500\nwarmup_steps = 7\n", &[]).unwrap();
    assert_eq!((config.train.beta, config.train.eta), (0.002, None));
    assert_eq!(config.train.warmup_ratio, None);
    assert_eq!(config.train.warmup(100), 7);
    assert_eq!(Config::default().train.warmup(21), 3);
}

#[test]
fn the_resolved_configuration_loads_back_equal() {
    let text = r#"
        output_dir = "a \"quoted\" folder"
        [model.init]
        tokenizer = "tok"
        hidden_size = 32
        [train]
        eta = 3
        warmup_steps = 5
        max_grad_norm = 1
        learning_rate = 1.0000000000000002e-7
        [judge.rubric]
        length_unit = "characters"
        forbidden = [{ pattern = '\bx"' }]
        [[judge.rubric.required]]
        pattern = "x"
        weight = 0.5
    "#;
    for config in [parse(text, &[]).unwrap(), Config::default()] {
        let written = config.to_toml();
        let again = parse(&written, &[]).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(again, config, "{written}");
    }
}

#[test]
fn the_documentation_is_a_configuration_and_has_every_key() {
    let text = Config::documented();
    assert_eq!(parse(&text, &[]).unwrap(), Config::default());
    for section in Config::sections() {
        assert!(!section.doc.is_empty(), "{}", section.name);
        for key in section.keys {
            assert!(!key.doc.is_empty(), "{}", key.key);
            let shown = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{} = ", key.key))
            };
            assert!(text.lines().any(shown), "{}", key.key);
        }
    }
}

#[test]
fn what_is_commented_out_can_be_given() {
    for section in Config::sections() {
        for key in section.keys {
            let Some(example) = key.example else { continue };
            let name = key::join(&section.name, key.key);
            let given = format!("{name}={example}");
            // What the key needs beside it.
            let beside: &[&str] = match name.as_str() {
                "judge.model" => &["judge.kind=pairrm"],
                "judge.scores" => &["judge.kind=scores"],
                _ if section.name == "judge.http" => &HTTP,
                _ => &[],
            };
            let overrides = [beside, &[&given]].concat();
            parse("", &overrides).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// A judge behind an address.
const HTTP: [&str; 3] = [
    "judge.kind=http",
    "judge.http.base_url=http://h",
    "judge.http.model=m",
];

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Some(Path::new("no/such.toml")), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the configuration no/such.toml"
    );
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_model_must_be_given() {
    let message = Config::default().model.source().unwrap_err().to_string();
    assert!(
        message.starts_with("[model]: no model is given"),
        "{message}"
    );
}

#[test]
fn an_override_value_that_is_not_toml_is_a_string() {
    let config = parse("", &["model.path=org/name", "device=wgpu:1"]).unwrap();
    assert_eq!(config.model.path.as_deref(), Some("org/name"));
    assert_eq!(config.device, "wgpu:1");
    let config = parse("", &["output_dir=a\nseed = 3"]).unwrap();
    assert_eq!(config.output_dir, Path::new("a\nseed = 3"));
    assert_eq!(config.seed, 42);
}

#[test]
fn adapters_are_asked_for_by_their_section() {
    assert_eq!(parse("[train]\n", &[]).unwrap().train.lora, None);
    let all = parse("[train.lora]\n", &[]).unwrap().train.lora.unwrap();
    let lora = sppo_model::llama::Lora::from(&all);
    assert_eq!((lora.rank, lora.scale()), (16, 2.0));
    let known: Vec<_> = sppo_model::llama::lora::targets().collect();
    assert_eq!(
        (&lora.targets, LoraTarget::WORDS),
        (&known.iter().map(|t| t.to_string()).collect(), &known[..])
    );
    let text = "[train.lora]\nrank = 4\ntargets = [\"v_proj\", \"q_proj\"]\n";
    let config = parse(text, &[]).unwrap();
    let again = parse(&config.to_toml(), &[]).unwrap();
    assert_eq!(again, config, "{}", config.to_toml());
    let targets = again.train.lora.unwrap().targets;
    assert_eq!(targets, [LoraTarget::V, LoraTarget::Q]);
}

#[test]
fn ranges_and_effects_are_documented() {
    let text = Config::documented();
    for part in [
        "# Highest learning rate.\n# A number above 0.\nlearning_rate = 5e-7\n",
        "# A whole number, 1 or more. Changes speed or memory; the result by rounding at most.\nbatch = 32\n",
        "# A list, each entry a table of pattern, weight.\n\
         # - pattern: In the syntax of the `regex` crate. A regular expression. (always given)\n\
         # - weight: What a match is worth. A number, 0 or more. (1.0 unless given)\nrequired = []\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let sections = serde_json::to_value(Config::sections()).unwrap();
    let find = |list: &serde_json::Value, by: &str, name: &str| {
        let mut list = list.as_array().unwrap().iter();
        list.find(|entry| entry[by] == name).unwrap().clone()
    };
    let train = find(&sections, "name", "train");
    let rate = find(&train["keys"], "key", "learning_rate");
    assert_eq!(
        (&rate["expected"], &rate["affects"]),
        (&"a number above 0".into(), &"result".into())
    );
    let data = find(&train["keys"], "key", "data");
    assert_eq!(data["affects"], "nothing");
    let rubric = find(&sections, "name", "judge.rubric");
    let required = find(&rubric["keys"], "key", "required");
    assert_eq!(required["entries"][1]["key"], "weight");
}
