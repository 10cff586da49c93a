//! The one TOML configuration: defaults, reading, checking and documentation of every key.
//!
//! Relative paths in it are relative to the current directory, not to the file.

#[macro_use]
mod define;
mod address;
mod check;
mod choices;
mod error;
mod key;
mod model_path;
mod names;
mod places;
mod range;
mod sections;
mod text;

#[cfg(test)]
mod tests;

use std::path::Path;

use toml::{Table, Value};

pub use address::Address;
pub use check::parts_for_ranks;
pub use choices::{
    JudgeKind, LengthUnit, LoraTarget, Loss, Matmul, OnBadRow, OnInvalid, OnNonFinite, OnTooLong,
    OptimizerKind, Precision, Probability, Recompute, Reduce, Rows, ScheduleKind, Split,
};
pub use define::{Effective, Section, SectionDoc};
pub use error::{ConfigError, NoSuchChoice, nearest};
pub use key::{Affects, Date, KeyDoc, Pattern};
pub use model_path::{ModelSource, model_name, resolve_model};
pub use range::{COUNT, COUNT_OR_NONE, NOT_NEGATIVE, PROBABILITY, RANK, Range, SAMPLES};
pub use sections::{
    Cluster, Config, Eval, Generate, Init, JudgeConfig, JudgeHttp, Logging, Model, Pairs, Prompts,
    RubricConfig, Sft, Train, TrainLora, WeightedPattern,
};

use key::Key;
use places::KeyPlaces;

impl Config {
    /// Reads the file, applies `section.key=value` overrides, and refuses whatever is unknown,
    /// of the wrong type, out of range or conflicting. Loads nothing else.
    ///
    /// An override of one of two alternatives (`train.eta` and `train.beta`) takes the place of
    /// the other where that came from the file.
    pub fn load(path: Option<&Path>, overrides: &[String]) -> Result<Self, ConfigError> {
        match path {
            None => Self::resolve(KeyPlaces::default(), Table::new(), overrides),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                    path: path.into(),
                    source,
                })?;
                Self::parse(&text, path, overrides)
            }
        }
    }

    /// As `load`, from text; `path` is for messages.
    pub fn parse(text: &str, path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let (places, table) = KeyPlaces::parse(text, path)?;
        Self::resolve(places, table, overrides)
    }

    fn resolve(
        mut places: KeyPlaces,
        mut table: Table,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        for text in overrides {
            places.set(&mut table, text)?;
        }
        names::check(&table, &Self::sections(), &places)?;
        check::alternatives(&mut table, &places)?;
        let mut config = Self::from_table(&table, &places)?;
        if check::unused_by_judge(&config.judge, &mut table, &places)? {
            config = Self::from_table(&table, &places)?;
        }
        check::values(&config, &places)?;
        if let Some(eta) = config.train.eta.take() {
            config.train.beta = 1.0 / eta;
        }
        if config.train.warmup_steps.is_some() {
            config.train.warmup_ratio = None;
        }
        Ok(config)
    }

    fn from_table(table: &Table, places: &KeyPlaces) -> Result<Self, ConfigError> {
        Self::read(&Value::Table(table.clone()), "").map_err(|misfit| ConfigError::WrongValue {
            at: places.at(&misfit.key),
            found: match misfit.hint {
                Some(hint) => format!("{}; {hint}", misfit.found),
                None => misfit.found,
            },
            key: misfit.key,
            expected: misfit.expected,
        })
    }
}
