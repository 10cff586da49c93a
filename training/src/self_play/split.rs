//! The prompts of each iteration.

use std::path::{Path, PathBuf};

use crate::config::{Config, Split};
use crate::data::{PromptRow, RowFile};
use crate::stages::StageError;

/// The prompts of one iteration.
#[derive(Clone, Debug)]
pub(crate) struct RoundPrompts {
    /// Where they are from.
    pub file: PathBuf,
    /// In their order.
    pub rows: Vec<PromptRow>,
    /// The number of each in the file, from 1.
    pub numbers: Vec<usize>,
}

/// The prompts of all iterations.
pub(crate) struct TrainPrompts {
    /// Of each iteration.
    pub rounds: Vec<RoundPrompts>,
    /// Rows that cannot be used.
    pub left_out: usize,
}

impl TrainPrompts {
    /// Reads them: a file for each iteration, or of one file equal parts in its order, or all of it
    /// each time. None where no file is given.
    pub fn read(config: &Config) -> Result<Self, StageError> {
        let prompts = &config.prompts;
        let mut found = Self {
            rounds: Vec::new(),
            left_out: 0,
        };
        if let Some(files) = &prompts.per_iteration_files {
            for file in files {
                let whole = found.file(config, file)?;
                found.rounds.push(whole);
            }
        } else if let Some(file) = &prompts.train {
            let whole = found.file(config, file)?;
            found.rounds = split(config, &whole)?;
        }
        let most = prompts.per_iteration.unwrap_or(usize::MAX);
        for round in &mut found.rounds {
            round.rows.truncate(most);
            round.numbers.truncate(most);
        }
        Ok(found)
    }

    fn file(&mut self, config: &Config, file: &Path) -> Result<RoundPrompts, StageError> {
        let read = RowFile::<PromptRow>::read(file, config.on_bad_row.skips())?;
        self.left_out += read.left_out;
        Ok(RoundPrompts {
            file: read.path,
            rows: read.rows,
            numbers: read.numbers,
        })
    }
}

fn split(config: &Config, whole: &RoundPrompts) -> Result<Vec<RoundPrompts>, StageError> {
    let (rounds, count) = (config.iterations, whole.rows.len());
    match config.prompts.split {
        Split::Reuse => Ok(vec![whole.clone(); rounds]),
        Split::Disjoint if count < rounds => Err(StageError::Input(format!(
            "prompts.split = \"disjoint\" needs at least one prompt for each of {rounds} iterations, found {count}; add prompts or set prompts.split = \"reuse\"",
        ))),
        Split::Disjoint => {
            let bound = |i: usize| i * count / rounds;
            let part = |i: usize| RoundPrompts {
                file: whole.file.clone(),
                rows: whole.rows[bound(i)..bound(i + 1)].to_vec(),
                numbers: whole.numbers[bound(i)..bound(i + 1)].to_vec(),
            };
            Ok((0..rounds).map(part).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids of each iteration's prompts, with their numbers.
    fn rounds(overrides: &[String]) -> Vec<Vec<(String, usize)>> {
        let config = Config::load(None, overrides).unwrap();
        let found = TrainPrompts::read(&config).unwrap();
        let of = |round: RoundPrompts| {
            let ids = round.rows.into_iter().map(|row| row.prompt_id);
            ids.zip(round.numbers).collect()
        };
        found.rounds.into_iter().map(of).collect()
    }

    #[test]
    fn parts_of_a_file_and_files_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, ids: &[&str]| {
            let row = |id: &&str| format!("{{\"prompt\": \"p\", \"prompt_id\": \"{id}\"}}\n");
            let path = dir.path().join(name);
            std::fs::write(&path, ids.iter().map(row).collect::<String>()).unwrap();
            path.display().to_string()
        };
        let one = write("one.jsonl", &["a", "b", "c", "d"]);
        let two = write("two.jsonl", &["a", "e"]);
        let id = |id: &str, number| (id.to_string(), number);
        let set = |texts: &[String]| rounds(texts);
        let iterations = "iterations=2".to_string();
        let train = format!("prompts.train={one:?}");
        assert_eq!(
            set(&[iterations.clone(), train.clone()]),
            [vec![id("a", 1), id("b", 2)], vec![id("c", 3), id("d", 4)]]
        );
        let files = format!("prompts.per_iteration_files=[{one:?}, {two:?}]");
        let most = "prompts.per_iteration=1".to_string();
        assert_eq!(
            set(&[iterations.clone(), files.clone()])[1],
            [id("a", 1), id("e", 2)]
        );
        assert_eq!(
            set(&[iterations.clone(), files.clone(), most]),
            [vec![id("a", 1)], vec![id("a", 1)]]
        );
        let refused = |texts: &[String]| Config::load(None, texts).unwrap_err().to_string();
        let message = refused(std::slice::from_ref(&files));
        assert!(
            message.contains("a file for each of 3 iterations"),
            "{message}"
        );
        let message = refused(&[iterations, files, train]);
        assert!(message.contains("keep one of them"), "{message}");
    }
}
