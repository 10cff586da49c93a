use proptest::prelude::*;
use proptest::sample::Index;

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
        "",
        &["train.warmup_ratio=0.2", "train.warmup_steps=3"],
        "--set: train.warmup_ratio and train.warmup_steps are both given; keep one of them",
    ),
    (
        "[train]\nbeta = 0.1\neta = 10",
        &["train.eta=3"],
        "--set: train.beta and train.eta are both given; keep one of them",
    ),
    (
        "[train]\nepochs = 10000001",
        &[],
        "run.toml line 2: train.epochs must be at most 10000000, found 10000001",
    ),
    (
        "[judge.rubric]\nlenght_target = 3.0",
        &[],
        "run.toml line 2: unknown key judge.rubric.lenght_target; did you mean \
         judge.rubric.length_target?",
    ),
    (
        "[judge]\nlength_target = 3.0",
        &[],
        "run.toml line 2: unknown key judge.length_target; did you mean judge.rubric.length_target?",
    ),
    (
        "[judge.rubric]\nlength_target = \"x\"",
        &[],
        "run.toml line 2: judge.rubric.length_target must be a finite number, found the string \"x\"",
    ),
    (
        "[judge.rubric]\nlength_tolerance = nan",
        &[],
        "run.toml line 2: judge.rubric.length_tolerance must be a finite number, found NaN",
    ),
    (
        "[judge.rubric]\ntemperature = 0",
        &[],
        "run.toml line 2: judge.rubric.temperature must be a number above 0, found 0",
    ),
    (
        "[judge.rubric]\nending_weight = -1.0",
        &[],
        "run.toml line 2: judge.rubric.ending_weight must be a number, 0 or more, found -1",
    ),
    (
        "[judge.rubric]\nrepetition_ngram = 0",
        &[],
        "run.toml line 2: judge.rubric.repetition_ngram must be 1 or more, found 0",
    ),
    (
        "[judge.rubric]\nrequired = [\n  { pattern = 'a' },\n  { patern = 'b' },\n]",
        &[],
        "run.toml line 4: unknown key judge.rubric.required[1].patern; did you mean \
         judge.rubric.required[1].pattern?",
    ),
    (
        "[[judge.rubric.forbidden]]\npattern = 'a'\nweight = -1",
        &[],
        "run.toml line 3: judge.rubric.forbidden[0].weight must be a number, 0 or more, found -1",
    ),
    (
        "[judge.rubric]\nrequired = [{ pattern = 'a', weight = \"much\" }]",
        &[],
        "run.toml line 2: judge.rubric.required[0].weight must be a finite number, found the \
         string \"much\"",
    ),
    (
        "[judge.rubric]\nrequired = ['a']",
        &[],
        "run.toml line 2: judge.rubric.required must be a list, each entry a table of pattern, \
         weight, found an array; \"a\" does not fit",
    ),
    (
        "",
        &["judge.rubric.required=[{ pattern = '(a' }]"],
        "--set: judge.rubric.required[0].pattern must be a regular expression, found the string \
         \"(a\"; not a regular expression: unclosed group",
    ),
    (
        "[judge.rubric]\nforbidden = [\n  { weight = 2 },\n]",
        &[],
        "run.toml line 3: judge.rubric.forbidden[0] needs pattern, a regular expression",
    ),
    (
        "[judge.rubric]\nending_weight = 0\nlength_weight = 0\nrepetition_weight = 0",
        &[],
        "run.toml line 1: judge.rubric.ending_weight: all weights are 0, so every response would \
         score the same; give one rule a weight",
    ),
    (
        "[judge]\nkind = \"scores\"\nscores = \"s\"\n[judge.rubric]\nlength_target = 3",
        &[],
        "run.toml line 5: judge.rubric.length_target is given but judge.kind is \"scores\"; remove \
         it or set judge.kind = \"rubric\"",
    ),
    (
        "[judge.http]\nbase_url = \"http://h\"",
        &[],
        "run.toml line 2: judge.http.base_url is given but judge.kind is \"rubric\"; remove it or \
         set judge.kind = \"http\"",
    ),
    (
        "[judge]\nprecision = \"bf16\"",
        &[],
        "run.toml line 2: judge.precision is given but judge.kind is \"rubric\"; remove it or set \
         judge.kind = \"pairrm\" or \"reward\"",
    ),
    (
        "[judge]\nscores = \"s\"",
        &[
            "judge.kind=rubric",
            "judge.rubric.length_target=3",
            "judge.model=m",
        ],
        "--set: judge.model is given but judge.kind is \"rubric\"; remove it or set judge.kind = \
         \"pairrm\" or \"reward\"",
    ),
    (
        "[judge]\nkind = \"http\"\n[judge.http]\nmodel = \"m\"\nbase_url = \"http://h\"\ntie = \"A\"",
        &[],
        "run.toml: judge.http.first, second and tie must differ, found \"A\" twice",
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

/// Both sides of every pair of alternatives.
const EITHER: [(&str, &str); 6] = [
    ("train.beta=0.5", "train.eta=100"),
    ("train.eta=8", "train.beta=0.25"),
    ("train.warmup_ratio=0.5", "train.warmup_steps=7"),
    ("train.warmup_steps=7", "train.warmup_ratio=0.5"),
    ("model.path=m", "model.init.tokenizer=t"),
    ("model.init.tokenizer=t", "model.path=m"),
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

#[test]
fn ranges_and_effects_are_documented() {
    let text = Config::documented();
    for part in [
        "# Highest learning rate.\n# A number above 0.\nlearning_rate = 5e-7\n",
        "# A whole number, 1 or more. Does not change the result.\nbatch = 32\n",
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

/// Numbers and text of which a value of any type can be made.
type Raw = (Index, f64, u32, String);

fn raw() -> impl Strategy<Value = Raw> {
    let float = prop_oneof![0.0..1.0, 1e-9..1e4, any::<f64>()];
    (any::<Index>(), float, 0..3000u32, any::<String>())
}

/// A value of the type of `shape`, the key's default or example.
fn value(shape: &Value, key: &KeyDoc, (index, float, whole, text): &Raw) -> Value {
    let words = key.expected.rsplit("one of ").next().unwrap_or_default();
    let words: Vec<&str> = words.split(", ").collect();
    match shape {
        Value::Float(_) => Value::Float(*float),
        Value::Integer(_) => Value::Integer((*whole).into()),
        Value::Boolean(_) => Value::Boolean(whole % 2 == 0),
        Value::Array(_) if !key.entries.is_empty() => {
            let weight = ("weight".to_string(), Value::Float(*float));
            let pattern = ("pattern".to_string(), regex::escape(text).into());
            Value::Array(vec![Value::Table([weight, pattern].into_iter().collect())])
        }
        Value::Array(_) => Value::Array(vec![(*index.get(&words)).into()]),
        _ if words.len() > 1 => (*index.get(&words)).into(),
        _ => text.as_str().into(),
    }
}

/// Puts a value into nested tables.
fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.into(), value)),
        Some((section, rest)) => {
            let below = table.entry(section).or_insert(Table::new().into());
            put(below.as_table_mut().unwrap(), rest, value);
        }
    }
}

proptest! {
    #[test]
    fn every_configuration_loads_back_equal(
        beside in 0..4usize,
        given in proptest::collection::vec((any::<Index>(), raw()), 1..40),
    ) {
        let sections = Config::sections();
        let keys: Vec<_> = sections.iter().flat_map(|section| &section.keys).collect();
        let beside: &[&str] = [
            &[][..],
            &HTTP,
            &["judge.kind=pairrm", "judge.model=m"],
            &["judge.kind=scores", "judge.scores=s", "model.init.tokenizer=t"],
        ][beside];
        let mut table = Table::new();
        let mut config = parse("", beside).unwrap();
        for (index, raw) in given {
            let key = index.get(&keys);
            let shape = key.default.as_deref().or(key.example).unwrap();
            let shape = format!("x = {shape}").parse::<Table>().unwrap()["x"].clone();
            let mut next = table.clone();
            put(&mut next, &key::join(&key.section, key.key), value(&shape, key, &raw));
            // What is out of range or in conflict is for other tests.
            if let Ok(found) = parse(&next.to_string(), beside) {
                (table, config) = (next, found);
            }
        }
        let written = config.to_toml();
        let again = parse(&written, &[]).map_err(|error| error.to_string());
        prop_assert_eq!(again, Ok(config), "{}", written);
    }
}
