//! Rules over several keys: what excludes what, what needs what, and how one bounds another.

use std::collections::HashSet;

use toml::Table;

use super::choices::{JudgeKind, LoraTarget};
use super::define::Section;
use super::error::ConfigError;
use super::key::join;
use super::places::KeyPlaces;
use super::range::MOST;
use super::sections::{Config, Init, JudgeConfig, JudgeHttp, RubricConfig, TrainLora};

/// Keys of a section of which only one can be given.
pub const ALTERNATIVES: [(&str, &str, &str); 4] = [
    ("model", "path", "init"),
    ("prompts", "train", "per_iteration_files"),
    ("train", "beta", "eta"),
    ("train", "warmup_ratio", "warmup_steps"),
];

/// Settles each pair of alternatives: one that `--set` gives takes the place of one that the file
/// gives; two from the same side are refused. `table` holds what was given.
pub fn alternatives(table: &mut Table, places: &KeyPlaces) -> Result<(), ConfigError> {
    for (section, one, other) in ALTERNATIVES {
        let Some(given) = table
            .get_mut(section)
            .and_then(|value| value.as_table_mut())
        else {
            continue;
        };
        if !(given.contains_key(one) && given.contains_key(other)) {
            continue;
        }
        let [first, second] = [one, other].map(|key| join(section, key));
        let (kept, dropped) = match (places.is_set(&first), places.is_set(&second)) {
            (true, false) if !places.in_file(&first) => (&first, &second),
            (false, true) if !places.in_file(&second) => (&second, &first),
            _ => {
                return Err(ConfigError::Conflict {
                    at: places.at(&second),
                    message: format!("{first} and {second} are both given; keep one of them"),
                });
            }
        };
        tracing::info!(
            "--set {kept} takes the place of {dropped}, {}",
            places.at(dropped)
        );
        given.remove(if *dropped == first { one } else { other });
    }
    Ok(())
}

/// Settings that only other kinds of judge use: refused, or taken out of `table` where `--set`
/// chose the kind and the file gave them. True where some were taken out.
pub fn unused_by_judge(
    judge: &JudgeConfig,
    table: &mut Table,
    places: &KeyPlaces,
) -> Result<bool, ConfigError> {
    let used = used_by(judge.kind);
    let mut sections = Vec::new();
    judge.settings("judge", true, &mut sections);
    let mut taken = false;
    for section in sections {
        let given = section.settings.iter().filter(|setting| !setting.default);
        let given = given.map(|setting| (setting.key, join(&section.name, setting.key)));
        let unused: Vec<_> = given.filter(|(_, path)| !used.contains(path)).collect();
        let replaced = |path: &str| places.is_set("judge.kind") && !places.is_set(path);
        if let Some((_, path)) = unused.iter().find(|(_, path)| !replaced(path)) {
            return Err(unused_key(path, judge.kind, places));
        }
        let Some((_, first)) = unused.first() else {
            continue;
        };
        tracing::info!(
            "--set judge.kind = {:?} leaves {first} and the like, {}, unused",
            judge.kind.word(),
            places.at(first)
        );
        for (key, _) in unused {
            remove(table, &section.name, key);
        }
        taken = true;
    }
    Ok(taken)
}

/// The settings that a kind of judge takes, others at their default.
fn used_by(kind: JudgeKind) -> HashSet<String> {
    let mut sections = Vec::new();
    let judge = JudgeConfig {
        kind,
        ..JudgeConfig::default()
    };
    judge.settings("judge", true, &mut sections);
    let used = sections.iter().flat_map(|section| {
        let used = section.settings.iter().filter(|setting| setting.in_effect);
        used.map(|setting| join(&section.name, setting.key))
    });
    used.collect()
}

fn unused_key(path: &str, kind: JudgeKind, places: &KeyPlaces) -> ConfigError {
    let users = JudgeKind::ALL.iter().copied();
    let users = users.filter(|user| used_by(*user).contains(path));
    let users: Vec<String> = users.map(|user| format!("{:?}", user.word())).collect();
    ConfigError::Conflict {
        at: places.at(path),
        message: format!(
            "{path} is given but judge.kind is {:?}; remove it or set judge.kind = {}",
            kind.word(),
            users.join(" or ")
        ),
    }
}

fn remove(table: &mut Table, section: &str, key: &str) {
    let parts = section.split('.');
    let within = parts.into_iter().try_fold(table, |table, part| {
        table.get_mut(part).and_then(|value| value.as_table_mut())
    });
    if let Some(table) = within {
        table.remove(key);
    }
}

/// Checks the values that depend on each other.
pub fn values(config: &Config, places: &KeyPlaces) -> Result<(), ConfigError> {
    let check = Check { places };
    if let Some(init) = &config.model.init {
        check.init(init)?;
    }
    let train = &config.train;
    let sft = &config.sft;
    for (section, rows, batches) in [
        ("train", train.batch_size, train.gradient_accumulation),
        ("sft", sft.batch_size, sft.gradient_accumulation),
    ] {
        check.that(
            &join(section, "gradient_accumulation"),
            rows.saturating_mul(batches) <= MOST as usize,
            || format!("such that a step, {section}.batch_size ({rows}) times this, has at most {MOST} rows"),
            batches,
        )?;
    }
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
    if let Some(files) = &config.prompts.per_iteration_files {
        check.that(
            "prompts.per_iteration_files",
            files.len() == config.iterations,
            || format!("a file for each of {} iterations", config.iterations),
            files.len(),
        )?;
    }
    if train.eval_every > 0 && train.eval_data.is_none() {
        return Err(ConfigError::Missing {
            at: places.at("train.eval_every"),
            message: "train.eval_every needs train.eval_data, a file of held-out pairs".into(),
        });
    }
    if let Some(lora) = &train.lora {
        check.lora(lora)?;
    }
    check.judge(&config.judge)
}

/// Whether every rank of a job has a part of a step; `section` is train or sft.
pub fn parts_for_ranks(
    section: &str,
    batch_size: usize,
    gradient_accumulation: usize,
    ranks: usize,
) -> Result<(), ConfigError> {
    if gradient_accumulation >= ranks {
        return Ok(());
    }
    let parts = match gradient_accumulation {
        1 => "1 part".into(),
        parts => format!("{parts} parts"),
    };
    // As many rows a step as before, or the fewest that there can be.
    let rows = (batch_size.saturating_mul(gradient_accumulation) / ranks).max(1);
    Err(ConfigError::Conflict {
        at: section.into(),
        message: format!(
            "a step has {parts} for {ranks} ranks; set {section}.batch_size to at most {rows} and gradient_accumulation to {ranks} or more"
        ),
    })
}

struct Check<'p> {
    places: &'p KeyPlaces,
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
            at: self.places.at(key),
            key: key.into(),
            expected: expected(),
            found: found.to_string(),
        })
    }

    /// What each kind of judge needs.
    fn judge(&self, judge: &JudgeConfig) -> Result<(), ConfigError> {
        use JudgeKind::{Http, PairRm, Reward, Rubric, Scores};
        let kind = judge.kind;
        let missing = |key: &str, what: &str| ConfigError::Missing {
            at: self.places.at("judge.kind"),
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
            Http => self.answers(&judge.http),
            Rubric => self.rubric(&judge.rubric),
            Scores | PairRm | Reward => Ok(()),
        }
    }

    fn answers(&self, http: &JudgeHttp) -> Result<(), ConfigError> {
        let words = [&http.first, &http.second, &http.tie];
        let twice = |i: &usize| words[..*i].contains(&words[*i]);
        match (1..words.len()).find(twice) {
            None => Ok(()),
            Some(i) => Err(ConfigError::Conflict {
                at: self.places.at("judge.http.first"),
                message: format!(
                    "judge.http.first, second and tie must differ, found {:?} twice",
                    words[i]
                ),
            }),
        }
    }

    fn rubric(&self, rubric: &RubricConfig) -> Result<(), ConfigError> {
        for (key, rules) in [
            ("required", &rubric.required),
            ("forbidden", &rubric.forbidden),
        ] {
            if let Some(i) = rules.iter().position(|rule| rule.pattern.is_none()) {
                let path = format!("judge.rubric.{key}[{i}]");
                return Err(ConfigError::Missing {
                    at: self.places.at(&path),
                    message: format!("{path} needs pattern, a regular expression"),
                });
            }
        }
        let patterns = rubric.required.iter().chain(&rubric.forbidden);
        let mut weights = patterns.map(|rule| rule.weight).chain([
            rubric.ending_weight,
            rubric.length_weight,
            rubric.repetition_weight,
            rubric.similarity_weight,
        ]);
        match weights.any(|weight| weight > 0.0) {
            true => Ok(()),
            false => Err(ConfigError::Conflict {
                at: self.places.at("judge.rubric"),
                message: "judge.rubric.ending_weight: all weights are 0, so every response would \
                          score the same; give one rule a weight"
                    .into(),
            }),
        }
    }

    fn lora(&self, lora: &TrainLora) -> Result<(), ConfigError> {
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
                at: self.places.at("model.init"),
                message: "[model.init] needs tokenizer, the folder with the tokenizer".into(),
            });
        }
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

#[cfg(test)]
mod tests {
    use super::parts_for_ranks;

    #[test]
    fn every_rank_has_a_part_of_a_step() {
        let refused = |section, batch_size, parts, ranks| {
            let found = parts_for_ranks(section, batch_size, parts, ranks);
            found.unwrap_err().to_string()
        };
        assert_eq!(
            refused("train", 8, 1, 2),
            "train: a step has 1 part for 2 ranks; set train.batch_size to at most 4 and gradient_accumulation to 2 or more"
        );
        assert_eq!(
            refused("sft", 8, 8, 32),
            "sft: a step has 8 parts for 32 ranks; set sft.batch_size to at most 2 and gradient_accumulation to 32 or more"
        );
        assert!(refused("train", 1, 3, 4).contains("to at most 1 and"));
        for (parts, ranks) in [(1, 1), (8, 8), (9, 8), (1, 0)] {
            assert!(parts_for_ranks("train", 1, parts, ranks).is_ok());
        }
    }
}
