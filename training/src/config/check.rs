//! Ranges of numbers and options that exclude each other.

use toml::Table;

use super::source::Source;
use super::{Config, ConfigError, Init, Judge, JudgeKind, LoraTarget, Probability, TrainLora};

/// Refuses options of which only one may be given; `table` holds what was given.
pub fn conflicts(table: &Table, source: &Source) -> Result<(), ConfigError> {
    let pairs = [
        ("model", "path", "init"),
        ("train", "beta", "eta"),
        ("train", "warmup_ratio", "warmup_steps"),
    ];
    for (section, one, other) in pairs {
        let Some(given) = table.get(section).and_then(|value| value.as_table()) else {
            continue;
        };
        if given.contains_key(one) && given.contains_key(other) {
            return Err(ConfigError::Conflict {
                at: source.at(&format!("{section}.{other}")),
                message: format!(
                    "{section}.{one} and {section}.{other} are both given; keep one of them"
                ),
            });
        }
    }
    Ok(())
}

/// Checks every number's range and the values that depend on each other.
pub fn values(config: &Config, source: &Source) -> Result<(), ConfigError> {
    let check = Check { source };
    check.counts(config)?;
    check.numbers(config)?;
    if let Some(init) = &config.model.init {
        check.init(init)?;
    }
    let train = &config.train;
    check.that(
        "train.max_prompt_length",
        train.max_prompt_length < train.max_length,
        || format!("below train.max_length ({})", train.max_length),
        train.max_prompt_length,
    )?;
    if let Some(stop) = train.stop_at_epoch {
        check.that(
            "train.stop_at_epoch",
            (1..=train.epochs).contains(&stop),
            || format!("from 1 to train.epochs ({})", train.epochs),
            stop,
        )?;
    }
    if train.eval_every > 0 && train.eval_data.is_none() {
        return Err(ConfigError::Missing {
            at: source.at("train.eval_every"),
            message: "train.eval_every needs train.eval_data, a file of held-out pairs".into(),
        });
    }
    if let Some(lora) = &train.lora {
        check.lora(lora)?;
    }
    check.judge(&config.judge)
}

struct Check<'s> {
    source: &'s Source,
}

impl Check<'_> {
    fn that(
        &self,
        key: &str,
        holds: bool,
        expected: impl FnOnce() -> String,
        found: impl std::fmt::Display,
    ) -> Result<(), ConfigError> {
        if holds {
            return Ok(());
        }
        Err(ConfigError::WrongValue {
            at: self.source.at(key),
            key: key.into(),
            expected: expected(),
            found: found.to_string(),
        })
    }

    /// What each kind of judge needs, and what no kind but one can use.
    fn judge(&self, judge: &Judge) -> Result<(), ConfigError> {
        use JudgeKind::{Http, PairRm, Reward, Scores};
        let kind = judge.kind;
        let given: [(&str, bool, &[JudgeKind]); 4] = [
            ("judge.scores", judge.scores.is_some(), &[Scores]),
            ("judge.model", judge.model.is_some(), &[PairRm, Reward]),
            (
                "judge.temperature",
                judge.temperature != 1.0,
                &[PairRm, Reward, Http, Scores],
            ),
            (
                "judge.probability",
                judge.probability == Probability::Comparisons,
                &[PairRm, Http, Scores],
            ),
        ];
        for (key, given, users) in given {
            if given && !users.contains(&kind) {
                let users: Vec<String> = users
                    .iter()
                    .map(|user| format!("{:?}", user.word()))
                    .collect();
                return Err(ConfigError::Conflict {
                    at: self.source.at(key),
                    message: format!(
                        "{key} is given but judge.kind is {:?}; remove it or set judge.kind = {}",
                        kind.word(),
                        users.join(" or ")
                    ),
                });
            }
        }
        let missing = |key: &str, what: &str| ConfigError::Missing {
            at: self.source.at("judge.kind"),
            message: format!("judge.kind = {:?} needs {key}, {what}", kind.word()),
        };
        match kind {
            Scores if judge.scores.is_none() => {
                Err(missing("judge.scores", "the file with the scores"))
            }
            PairRm | Reward if judge.model.is_none() => {
                Err(missing("judge.model", "the folder of the judge's model"))
            }
            Http if judge.http.base_url.is_none() => Err(missing(
                "judge.http.base_url",
                "the address of the server, such as http://localhost:8000/v1",
            )),
            Http if judge.http.model.is_none() => Err(missing(
                "judge.http.model",
                "the model's name on the server",
            )),
            _ => Ok(()),
        }
    }

    /// Whole numbers that have a least value.
    fn counts(&self, config: &Config) -> Result<(), ConfigError> {
        let (sft, train) = (&config.sft, &config.train);
        let limits = [
            ("prompts.per_iteration", config.prompts.per_iteration),
            ("judge.samples", config.judge.samples),
            ("train.memory_mib", train.memory_mib),
            ("eval.prompts", config.eval.prompts),
        ];
        let limits = limits.into_iter().filter_map(|(key, n)| Some((key, n?, 1)));
        let counts = [
            ("iterations", config.iterations, 1),
            ("sft.epochs", sft.epochs, 1),
            ("sft.batch_size", sft.batch_size, 1),
            ("sft.gradient_accumulation", sft.gradient_accumulation, 1),
            ("sft.max_length", sft.max_length, 4),
            ("generate.samples", config.generate.samples, 2),
            ("generate.max_new_tokens", config.generate.max_new_tokens, 1),
            ("generate.batch", config.generate.batch, 1),
            ("train.epochs", train.epochs, 1),
            ("train.batch_size", train.batch_size, 1),
            (
                "train.gradient_accumulation",
                train.gradient_accumulation,
                1,
            ),
            ("train.max_length", train.max_length, 2),
            ("train.max_prompt_length", train.max_prompt_length, 1),
            ("train.keep_checkpoints", train.keep_checkpoints, 1),
            ("judge.batch_tokens", config.judge.batch_tokens, 1),
            ("judge.http.max_tokens", config.judge.http.max_tokens, 1),
            ("judge.http.concurrency", config.judge.http.concurrency, 1),
            ("eval.samples", config.eval.samples, 1),
            ("eval.max_new_tokens", config.eval.max_new_tokens, 1),
        ];
        for (key, found, least) in counts.into_iter().chain(limits) {
            let most = 10_000_000;
            let range = || match found > most {
                true => format!("at most {most}"),
                false => format!("{least} or more"),
            };
            self.that(key, (least..=most).contains(&found), range, found)?;
        }
        Ok(())
    }

    /// Numbers with a fraction; every one is finite already.
    fn numbers(&self, config: &Config) -> Result<(), ConfigError> {
        let (sft, train) = (&config.sft, &config.train);
        let optional = [
            ("sft.max_grad_norm", sft.max_grad_norm, POSITIVE),
            ("train.max_grad_norm", train.max_grad_norm, POSITIVE),
            ("train.eta", train.eta, INVERTIBLE),
            ("train.warmup_ratio", train.warmup_ratio, RATIO),
        ];
        let optional = optional
            .into_iter()
            .filter_map(|(key, x, r)| Some((key, x?, r)));
        let numbers = [
            ("sft.learning_rate", sft.learning_rate, POSITIVE),
            ("sft.warmup_ratio", sft.warmup_ratio, RATIO),
            (
                "generate.temperature",
                config.generate.temperature,
                NOT_NEGATIVE,
            ),
            ("generate.top_p", config.generate.top_p, PROBABILITY),
            ("eval.top_p", config.eval.top_p, PROBABILITY),
            ("judge.temperature", config.judge.temperature, POSITIVE),
            (
                "judge.http.text_logit",
                config.judge.http.text_logit,
                POSITIVE,
            ),
            (
                "judge.http.timeout_seconds",
                config.judge.http.timeout_seconds,
                POSITIVE,
            ),
            (
                "judge.http.retry_seconds",
                config.judge.http.retry_seconds,
                POSITIVE,
            ),
            ("train.learning_rate", train.learning_rate, POSITIVE),
            ("train.beta", train.beta, POSITIVE),
            ("train.alpha", train.alpha, DECAY),
            ("train.eps", train.eps, POSITIVE),
            ("train.beta1", train.beta1, DECAY),
            ("train.beta2", train.beta2, DECAY),
            ("train.weight_decay", train.weight_decay, NOT_NEGATIVE),
            ("eval.temperature", config.eval.temperature, NOT_NEGATIVE),
        ];
        for (key, found, range) in numbers.into_iter().chain(optional) {
            self.in_range(key, found, range)?;
        }
        Ok(())
    }

    fn in_range(&self, key: &str, found: f64, range: Range) -> Result<(), ConfigError> {
        self.that(key, (range.holds)(found), || range.says.into(), found)
    }

    fn lora(&self, lora: &TrainLora) -> Result<(), ConfigError> {
        let range = || "from 1 to 65536".into();
        let fits = (1..=1 << 16).contains(&lora.rank);
        self.that("train.lora.rank", fits, range, lora.rank)?;
        self.in_range("train.lora.alpha", lora.alpha, POSITIVE)?;
        let targets = &lora.targets;
        let twice = |i: &usize| targets[..*i].contains(&targets[*i]);
        let found = match (targets.is_empty(), (0..targets.len()).find(twice)) {
            (true, _) => "none".into(),
            (false, Some(i)) => format!("{} twice", targets[i]),
            (false, None) => return Ok(()),
        };
        let expected = || format!("some of {}, each once", LoraTarget::WORDS.join(", "));
        self.that("train.lora.targets", false, expected, found)
    }

    fn init(&self, init: &Init) -> Result<(), ConfigError> {
        if init.tokenizer.as_os_str().is_empty() {
            return Err(ConfigError::Missing {
                at: self.source.at("model.init"),
                message: "[model.init] needs tokenizer, the folder with the tokenizer".into(),
            });
        }
        let counts = [
            ("model.init.hidden_size", init.hidden_size),
            ("model.init.intermediate_size", init.intermediate_size),
            ("model.init.layers", init.layers),
            ("model.init.heads", init.heads),
            ("model.init.kv_heads", init.kv_heads),
            ("model.init.context", init.context),
        ];
        for (key, found) in counts {
            self.that(key, found >= 1, || "1 or more".into(), found)?;
        }
        self.in_range("model.init.rope_theta", init.rope_theta, POSITIVE)?;
        self.in_range(
            "model.init.initializer_range",
            init.initializer_range,
            POSITIVE,
        )?;
        let head_dim = init.hidden_size / init.heads;
        self.that(
            "model.init.heads",
            init.hidden_size.is_multiple_of(init.heads) && head_dim.is_multiple_of(2),
            || {
                format!(
                    "a divisor of hidden_size ({}) into even heads",
                    init.hidden_size
                )
            },
            init.heads,
        )?;
        self.that(
            "model.init.kv_heads",
            init.heads.is_multiple_of(init.kv_heads),
            || format!("a divisor of heads ({})", init.heads),
            init.kv_heads,
        )
    }
}

#[derive(Clone, Copy)]
struct Range {
    holds: fn(f64) -> bool,
    says: &'static str,
}

const POSITIVE: Range = Range {
    holds: |x| x > 0.0,
    says: "a number above 0",
};
const INVERTIBLE: Range = Range {
    holds: |x| x > 0.0 && x.recip().is_finite(),
    says: "a number above 0",
};
const NOT_NEGATIVE: Range = Range {
    holds: |x| x >= 0.0,
    says: "a number, 0 or more",
};
const RATIO: Range = Range {
    holds: |x| (0.0..=1.0).contains(&x),
    says: "a number from 0 to 1",
};
const PROBABILITY: Range = Range {
    holds: |x| x > 0.0 && x <= 1.0,
    says: "a number above 0, at most 1",
};
const DECAY: Range = Range {
    holds: |x| (0.0..1.0).contains(&x),
    says: "a number from 0 to below 1",
};
