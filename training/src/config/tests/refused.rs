//! What is refused, and with which words.

use super::parse;

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
