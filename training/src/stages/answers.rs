//! Responses in the files that other evaluation programs read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::error::StageError;
use super::markdown::markdown_counts;
use crate::data::{Prompt, PromptRow, QuestionRow, ResponseRow, read_each_numbered, read_rows};
use crate::files::{
    Existing, Lock, MadeFrom, Mark, Output, OutputError, Seal, fingerprint, mark_beside, read_mark,
    replace_file, write_mark,
};
use crate::tokenise::BadRows;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerFormat {
    /// alpaca_eval's `model_outputs`: a list of dataset, instruction, output, generator.
    AlpacaEval,
    /// arena-hard-auto's `model_answer/NAME.jsonl`.
    ArenaHard,
}

impl AnswerFormat {
    fn name(self) -> &'static str {
        match self {
            Self::AlpacaEval => "alpaca-eval",
            Self::ArenaHard => "arena-hard",
        }
    }

    /// What its files end in.
    fn extension(self) -> &'static str {
        match self {
            Self::AlpacaEval => "json",
            Self::ArenaHard => "jsonl",
        }
    }
}

/// A file of answers, made whole from a finished row file.
#[derive(Clone, Debug)]
pub struct Answers<'a> {
    /// Whose file it is.
    pub format: AnswerFormat,
    /// The file.
    pub out: &'a Path,
    /// What the model is called in it.
    pub model_name: &'a str,
    /// The prompts in their order.
    pub prompts: &'a [PromptRow],
    /// Numbers of their rows in their file, from 1.
    pub numbers: &'a [usize],
    /// The file that they come from.
    pub prompts_file: &'a Path,
    /// Whether rows of it that cannot be used are left out.
    pub skip_bad: bool,
    /// What becomes of a file that was made from something else.
    pub existing: Existing<'a>,
}

/// What a prompt's row says for the answer.
struct Question {
    uid: Option<String>,
    dataset: Option<String>,
}

/// Answers whose prompts are known to fit their format.
pub struct ReadyAnswers<'a> {
    job: Answers<'a>,
    /// In the order of the prompts.
    questions: Vec<Question>,
}

impl<'a> Answers<'a> {
    /// The row file beside the answers that the responses are written to. Its name begins with a
    /// dot: arena-hard-auto takes every other `.jsonl` of its folder for a model's.
    pub fn row_file(out: &Path) -> PathBuf {
        let name = out.file_stem().unwrap_or_default().to_string_lossy();
        out.with_file_name(format!(".{name}.rows.jsonl"))
    }

    /// Refuses prompts that have no place in the format.
    pub fn check(self) -> Result<ReadyAnswers<'a>, StageError> {
        let extension = self.format.extension();
        if self.out.extension().is_none_or(|end| end != extension) {
            return Err(StageError::Input(format!(
                "{}: --format {} writes a .{extension} file; give it a name that ends so",
                self.out.display(),
                self.format.name()
            )));
        }
        let mut of_number = HashMap::new();
        read_each_numbered::<QuestionRow>(self.prompts_file, self.skip_bad, |number, row| {
            of_number.insert(number, row);
        })?;
        let mut bad = BadRows::default();
        let mut questions = Vec::with_capacity(self.prompts.len());
        for (prompt, number) in self.prompts.iter().zip(self.numbers) {
            let found = of_number.remove(number);
            let (uid, dataset) = found.map_or((None, None), |row| (row.uid, row.dataset));
            match self.format {
                AnswerFormat::AlpacaEval if instruction(&prompt.prompt).is_none() => {
                    bad.add(|| format!("row {number} is a conversation"));
                    bad.advise("AlpacaEval's instructions are texts: give its `instruction` column, or one user turn");
                }
                AnswerFormat::ArenaHard if uid.is_none() => {
                    bad.add(|| format!("row {number} has no `uid`"));
                    bad.advise(
                        "give arena-hard-auto's question.jsonl, whose rows have `uid` and `prompt`",
                    );
                }
                _ => {}
            }
            questions.push(Question { uid, dataset });
        }
        bad.refused()?;
        let without = questions
            .iter()
            .filter(|question| question.dataset.is_none())
            .count();
        if self.format == AnswerFormat::AlpacaEval && without > 0 {
            tracing::warn!(
                "{without} of {} prompts have no `dataset`, and their answers are marked \"{DATASET}\"",
                questions.len()
            );
        }
        Ok(ReadyAnswers {
            job: self,
            questions,
        })
    }
}

/// Where a prompt's row names no data set.
const DATASET: &str = "alpaca_eval";

impl ReadyAnswers<'_> {
    /// What they depend on, from what the responses depend on.
    fn made_from(&self, responses: &MadeFrom) -> MadeFrom {
        let columns: Vec<[&str; 2]> = self
            .questions
            .iter()
            .map(|question| {
                [&question.uid, &question.dataset].map(|text| text.as_deref().unwrap_or_default())
            })
            .collect();
        let columns = serde_json::to_vec(&columns).unwrap_or_default();
        let columns = fingerprint([("columns", columns.as_slice())]);
        let made_from = MadeFrom {
            command: format!("generate --format {}", self.job.format.name()),
            ..responses.clone()
        };
        made_from.setting("model_name", self.job.model_name).input(
            "columns of the prompts",
            self.job.prompts_file,
            columns,
        )
    }

    fn output(&self) -> Output {
        Output {
            name: self.job.out.into(),
            mark: mark_beside(self.job.out),
            parts: vec![self.job.out.into()],
        }
    }

    /// Whether the file is there, whole and of this making. One of another making, or of somebody
    /// else, is refused before anything is sampled; what is to be replaced stays until then.
    pub fn are_there(&self, responses: &MadeFrom) -> Result<bool, StageError> {
        let (output, made_from) = (self.output(), self.made_from(responses));
        output.refuse_foreign()?;
        if !self.job.out.exists() {
            return Ok(false);
        }
        let mark = match read_mark::<Mark>(&output.mark) {
            Err(OutputError::Damaged { .. }) if self.job.existing == Existing::Overwrite => {
                return Ok(false);
            }
            mark => mark?,
        };
        let Some(mark) = mark else {
            return Ok(false);
        };
        let differences = mark.made_from.differences(&made_from);
        if !differences.is_empty() {
            return match self.job.existing {
                Existing::Overwrite => Ok(false),
                existing => {
                    output.give_way(differences, existing)?;
                    Ok(false)
                }
            };
        }
        let whole = mark.finished.is_some() && output.check(&mark, self.job.existing)?;
        if whole {
            tracing::info!("nothing to do: {} is finished", self.job.out.display());
        }
        Ok(whole)
    }

    /// Writes the file from the finished responses.
    pub fn write(&self, responses: &MadeFrom, rows: &Path) -> Result<(), StageError> {
        let rows: Vec<ResponseRow> = read_rows(rows)?;
        let of_prompt = self
            .job
            .prompts
            .iter()
            .map(|prompt| prompt.prompt_id.as_str());
        let of_prompt: HashMap<&str, usize> =
            of_prompt.enumerate().map(|(i, id)| (id, i)).collect();
        let mut answers = Vec::with_capacity(rows.len());
        for row in &rows {
            if let Some(&place) = of_prompt.get(row.prompt_id.as_str()) {
                answers.push(self.answer(place, row));
            }
        }
        if answers.len() < self.job.prompts.len() {
            tracing::warn!(
                "{} has answers to {} of {} prompts: the others were left out",
                self.job.out.display(),
                answers.len(),
                self.job.prompts.len()
            );
        }
        let count = answers.len();
        let text = match self.job.format {
            AnswerFormat::AlpacaEval => format!("{:#}\n", Value::from(answers)),
            AnswerFormat::ArenaHard => answers.iter().map(|answer| format!("{answer}\n")).collect(),
        };
        let output = self.output();
        let _lock = Lock::beside(self.job.out)?;
        let made_from = self.made_from(responses);
        output.refuse_foreign()?;
        output.claim(&made_from, self.job.existing)?;
        let mut mark = Mark::new(made_from);
        write_mark(&output.mark, &mark)?;
        replace_file(self.job.out, text.as_bytes())?;
        mark.finished = Some(Seal::of_file(self.job.out, Some(count))?);
        Ok(write_mark(&output.mark, &mark)?)
    }

    fn answer(&self, place: usize, row: &ResponseRow) -> Value {
        let (prompt, question) = (&self.job.prompts[place], &self.questions[place]);
        let (name, text) = (self.job.model_name, row.responses[0].as_str());
        match self.job.format {
            AnswerFormat::AlpacaEval => json!({
                "dataset": question.dataset.as_deref().unwrap_or(DATASET),
                "instruction": instruction(&prompt.prompt),
                "output": text,
                "generator": name,
            }),
            AnswerFormat::ArenaHard => arena_answer(name, question.uid.as_deref(), prompt, row),
        }
    }
}

/// The text of a prompt that is one, or one turn of the user's.
fn instruction(prompt: &Prompt) -> Option<&str> {
    match prompt {
        Prompt::Text(text) => Some(text),
        Prompt::Messages(turns) => match turns.as_slice() {
            [turn] if turn.role == "user" => turn.content.as_deref(),
            _ => None,
        },
    }
}

fn arena_answer(name: &str, uid: Option<&str>, prompt: &PromptRow, row: &ResponseRow) -> Value {
    let text = row.responses[0].as_str();
    let turns = prompt.prompt.messages();
    let turns = turns
        .iter()
        .map(|turn| json!({"role": turn.role, "content": turn.content}));
    let answer = json!({"role": "assistant", "content": {"answer": text}});
    let parts = [name, uid.unwrap_or_default(), text];
    let id = fingerprint(parts.map(|part| ("answer", part.as_bytes())));
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // The stop token is no part of the answer.
    let stopped = row
        .finish_reasons
        .as_ref()
        .is_some_and(|reasons| reasons[0] == "stop");
    let tokens = row.tokens.as_ref().map_or(0, |tokens| tokens[0]);
    let mut metadata = json!({"token_len": tokens.saturating_sub(u32::from(stopped))});
    if let (Value::Object(all), Value::Object(counts)) = (&mut metadata, markdown_counts(text)) {
        all.extend(counts);
    }
    json!({
        "uid": uid,
        "ans_id": &id[..22],
        "model": name,
        "messages": turns.chain([answer]).collect::<Vec<_>>(),
        "tstamp": now.map_or(0.0, |since| since.as_secs_f64()),
        "metadata": metadata,
    })
}
