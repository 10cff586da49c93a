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
        length = { target = 20, weight = 0.5 }
        [[judge.rubric.pattern]]
        regex = "x"
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
                line.starts_with(&format!("{} = ", key.key)) || line.contains("[judge.rubric]")
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
            if key.key == "scores" || key.key == "tokenizer" {
                continue;
            }
            // The rubric, which is the default, has no model.
            let kind = match (section.name, key.key) {
                ("judge", "model") => "kind = \"pairrm\"\n",
                _ => "",
            };
            let text = format!("[{}]\n{kind}{} = {example}\n", section.name, key.key);
            parse(&text, &[]).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Bad file text, overrides, and what the message must be.
const BAD: &[(&str, &[&str], &str)] = &[
    (
        "[train]\nlearning_rat = 1e-6",
        &[],
        "run.toml line 2: unknown key train.learning_rat; did you mean train.learning_rate?",
    ),
    (
        "\n[trian]\nbeta = 0.1",
        &[],
        "run.toml line 2: unknown section trian; did you mean train?",
    ),
    (
        "learning_rate = 1e-6",
        &[],
        "run.toml line 1: unknown key learning_rate; did you mean train.learning_rate?",
    ),
    (
        "[model.init]\ntokenizer = \"t\"\nhead = 2",
        &[],
        "run.toml line 3: unknown key model.init.head; did you mean model.init.heads?",
    ),
    (
        "",
        &["train.batchsize=4"],
        "--set: unknown key train.batchsize; did you mean train.batch_size?",
    ),
    (
        "[pairs]\nzebra = 1",
        &[],
        "run.toml line 2: unknown key pairs.zebra; known here: keep_ties",
    ),
    (
        "seed = 1\nseed = 2",
        &[],
        "run.toml line 2: not valid TOML: duplicate key",
    ),
    (
        "[train\n",
        &[],
        "run.toml line 1: not valid TOML: unclosed table, expected `]`",
    ),
    (
        "[train]\nbatch_size = \"8\"",
        &[],
        "run.toml line 2: train.batch_size must be a whole number, 0 or more, found the string \"8\"",
    ),
    (
        "[train]\nbatch_size = 0",
        &[],
        "run.toml line 2: train.batch_size must be 1 or more, found 0",
    ),
    (
        "seed = -1",
        &[],
        "run.toml line 1: seed must be a whole number, 0 or more, found -1",
    ),
    (
        "[train]\nlearning_rate = -1e-6",
        &[],
        "run.toml line 2: train.learning_rate must be a number above 0, found -0.000001",
    ),
    (
        "[train]\nlearning_rate = 0",
        &[],
        "run.toml line 2: train.learning_rate must be a number above 0, found 0",
    ),
    (
        "[train]\nlearning_rate = nan",
        &[],
        "run.toml line 2: train.learning_rate must be a finite number, found NaN",
    ),
    (
        "",
        &["train.max_grad_norm=inf"],
        "--set: train.max_grad_norm must be a finite number, found inf",
    ),
    (
        "[generate]\ntop_p = 0.0",
        &[],
        "run.toml line 2: generate.top_p must be a number above 0, at most 1, found 0",
    ),
    (
        "[generate]\ntemperature = -0.5",
        &[],
        "run.toml line 2: generate.temperature must be a number, 0 or more, found -0.5",
    ),
    (
        "[train]\nwarmup_ratio = 1.5",
        &[],
        "run.toml line 2: train.warmup_ratio must be a number from 0 to 1, found 1.5",
    ),
    (
        "[train]\nmax_length = 512",
        &[],
        "run.toml: train.max_prompt_length must be below train.max_length (512), found 512",
    ),
    (
        "[train]\nepochs = 2\nstop_at_epoch = 3",
        &[],
        "run.toml line 3: train.stop_at_epoch must be from 1 to train.epochs (2), found 3",
    ),
    (
        "[train]\nbeta = 0.1\neta = 10",
        &[],
        "run.toml line 3: train.beta and train.eta are both given; keep one of them",
    ),
    (
        "[train]\nwarmup_ratio = 0.1",
        &["train.warmup_steps=3"],
        "--set: train.warmup_ratio and train.warmup_steps are both given; keep one of them",
    ),
    (
        "[model]\npath = \"m\"\n[model.init]\ntokenizer = \"t\"",
        &[],
        "run.toml line 3: model.path and model.init are both given; keep one of them",
    ),
    (
        "[model.init]\nlayers = 1",
        &[],
        "run.toml line 1: [model.init] needs tokenizer, the folder with the tokenizer",
    ),
    (
        "[model.init]\ntokenizer = \"t\"\nheads = 3",
        &[],
        "run.toml line 3: model.init.heads must be a divisor of hidden_size (64) into even heads, found 3",
    ),
    (
        "[model.init]\ntokenizer = \"t\"\nkv_heads = 3",
        &[],
        "run.toml line 3: model.init.kv_heads must be a divisor of heads (4), found 3",
    ),
    (
        "[train]\nloss = \"spo\"",
        &[],
        "run.toml line 2: train.loss must be one of sppo, sppo_single, sppo_hard, dpo, hinge, ipo, \
         kto_pair, found the string \"spo\"; did you mean sppo?",
    ),
    (
        "[judge]\nkind = \"pairm\"",
        &[],
        "run.toml line 2: judge.kind must be one of pairrm, reward, rubric, http, scores, found \
         the string \"pairm\"; did you mean pairrm?",
    ),
    (
        "[judge]\nkind = \"pairrm\"",
        &[],
        "run.toml line 2: judge.kind = \"pairrm\" needs judge.model, the folder of the judge's model",
    ),
    (
        "[judge]\nprobability = \"comparisons\"",
        &[],
        "run.toml line 2: judge.probability is given but judge.kind is \"rubric\"; remove it or set \
         judge.kind = \"pairrm\" or \"http\" or \"scores\"",
    ),
    (
        "[judge]\nkind = \"scores\"",
        &[],
        "run.toml line 2: judge.kind = \"scores\" needs judge.scores, the file with the scores",
    ),
    (
        "[train.lora]\nrank = 0",
        &[],
        "run.toml line 2: train.lora.rank must be from 1 to 65536, found 0",
    ),
    (
        "[train.lora]\nalpha = 0",
        &[],
        "run.toml line 2: train.lora.alpha must be a number above 0, found 0",
    ),
    (
        "[train.lora]\ntargets = [\"q_proj\", \"v_prj\"]",
        &[],
        "run.toml line 2: train.lora.targets must be a list, each entry one of q_proj, k_proj, \
         v_proj, o_proj, gate_proj, up_proj, down_proj, found an array; \"v_prj\" does not fit \
         (did you mean v_proj?)",
    ),
    (
        "[train.lora]\ntargets = [\"embed_tokens\"]",
        &[],
        "run.toml line 2: train.lora.targets must be a list, each entry one of q_proj, k_proj, \
         v_proj, o_proj, gate_proj, up_proj, down_proj, found an array; \"embed_tokens\" does not \
         fit",
    ),
    (
        "[train.lora]\ntargets = []",
        &[],
        "run.toml line 2: train.lora.targets must be some of q_proj, k_proj, v_proj, o_proj, \
         gate_proj, up_proj, down_proj, each once, found none",
    ),
    (
        "",
        &["train.lora.targets=[\"q_proj\", \"q_proj\"]"],
        "--set: train.lora.targets must be some of q_proj, k_proj, v_proj, o_proj, gate_proj, \
         up_proj, down_proj, each once, found q_proj twice",
    ),
    (
        "[train.lora]\nr = 8",
        &[],
        "run.toml line 2: unknown key train.lora.r; known here: rank, alpha, targets",
    ),
    (
        "train = 3",
        &[],
        "run.toml line 1: train must be a section, [train], found 3",
    ),
    (
        "seed = 1",
        &["seed.x=2"],
        "--set \"seed.x=2\": seed is a key, not a section; write --set section.key=value",
    ),
    (
        "",
        &["train.seed"],
        "--set \"train.seed\": there is no '='; write --set section.key=value",
    ),
    (
        "output_dir = \"\"",
        &[],
        "run.toml line 1: output_dir must be a path (a string that is not empty), found the string \"\"",
    ),
];

#[test]
fn bad_input_is_refused_by_name() {
    for (text, overrides, expected) in BAD {
        let message = match parse(text, overrides) {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        };
        assert_eq!(message, *expected, "{text:?} {overrides:?}");
    }
}

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
