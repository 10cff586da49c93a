//! How many rows a run has and how long they are: read where they are there, assumed elsewhere.

use std::path::Path;

use serde::Serialize;
use sppo_model::chat_text::ChatText;
use sppo_model::end_of_turn::EndOfTurn;

use super::judging;
use super::shape::{Assumed, Shape};
use crate::config::{Config, OnTooLong};
use crate::cost::memory::Training;
use crate::cost::{Batch, flops};
use crate::data::{PairContent, PairRow, RowFile};
use crate::hub::are_here;
use crate::self_play::TrainPrompts;
use crate::stages::StageError;
use crate::tokenise::{RowTokeniser, TokenisedPair, tokenise_pairs};

/// Mean lengths of UltraFeedback's prompts and of the responses to them, in tokens.
const PROMPT: usize = 150;
const RESPONSE: usize = 300;
/// Prompts of an iteration where no file tells.
const PROMPTS: usize = 20_000;

/// Operations of one iteration; of judging what is computed here.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct IterationFlops {
    pub generation: f64,
    pub judging: f64,
    pub reference: f64,
    pub training: f64,
}

/// The rows of one iteration.
pub(super) struct Rows {
    /// Whether the run samples its own responses, or trains on given pairs.
    pub generates: bool,
    pub prompts: usize,
    pub pairs: usize,
    pub prompt: usize,
    pub response: usize,
    pub longest_prompt: usize,
    /// Longest sequence that may come.
    longest: usize,
    /// The pairs themselves, where they are known.
    known: Vec<TokenisedPair>,
    pub notes: Vec<String>,
}

impl Rows {
    pub fn of(config: &Config, model: &Shape, assumed: &Assumed) -> Result<Self, StageError> {
        let train = &config.train;
        let longest = train.max_length.min(model.config.max_position_embeddings);
        // Only `sppo train` reads train.data.
        let prompts = config.prompts.files();
        let generates = !prompts.is_empty() && train.data.is_none();
        let mut rows = Self {
            generates,
            prompts: 0,
            pairs: 0,
            prompt: PROMPT.min(train.max_prompt_length),
            response: RESPONSE,
            longest_prompt: train.max_prompt_length,
            longest,
            known: Vec::new(),
            notes: Vec::new(),
        };
        if generates {
            rows.longest = longest.min(rows.longest_prompt + config.generate.max_new_tokens + 1);
        }
        let files = train.data.as_ref().map_or(prompts, std::slice::from_ref);
        match (files.iter().find(|file| !are_here(file)), &train.data) {
            (Some(file), _) => rows.assume(config, &format!("{} is not there", file.display())),
            (None, Some(file)) => rows.read_pairs(config, model, file)?,
            (None, None) if generates => rows.read_prompts(config, model)?,
            (None, None) => rows.assume(config, "neither prompts.train nor train.data is given"),
        }
        if !prompts.is_empty() && !generates {
            let note = "train.data is given, so this is what sppo train takes; sppo run would take prompts.train";
            rows.notes.push(note.into());
        }
        if generates {
            rows.response = rows.response.min(config.generate.max_new_tokens);
        }
        rows.response = rows
            .response
            .min(longest.saturating_sub(rows.prompt))
            .max(1);
        if let Some(prompts) = assumed.prompts {
            (rows.prompts, rows.pairs) = (prompts, prompts);
            rows.known.clear();
        }
        if assumed.prompt_tokens.is_some() || assumed.response_tokens.is_some() {
            rows.prompt = assumed.prompt_tokens.unwrap_or(rows.prompt);
            rows.response = assumed.response_tokens.unwrap_or(rows.response);
            rows.known.clear();
        }
        // As training cuts them.
        rows.prompt = rows.prompt.min(train.max_prompt_length);
        rows.response = rows
            .response
            .min(longest.saturating_sub(rows.prompt))
            .max(1);
        if rows.known.is_empty() && assumed.response_tokens.is_none() {
            rows.notes.push(format!(
                "responses of {} tokens on average are assumed; --response-tokens changes that",
                rows.response
            ));
        }
        Ok(rows)
    }

    fn assume(&mut self, config: &Config, why: &str) {
        let prompts = config.prompts.per_iteration.unwrap_or(PROMPTS).min(PROMPTS);
        (self.prompts, self.pairs) = (prompts, prompts);
        self.notes.push(format!(
            "{why}: {prompts} prompts an iteration, of {} tokens on average, are assumed; --prompts and --prompt-tokens change that",
            self.prompt
        ));
    }

    fn assume_prompts(&mut self, why: &str) {
        self.notes.push(format!(
            "{why}: prompts of {} tokens on average are assumed; --prompt-tokens changes that",
            self.prompt
        ));
    }

    fn read_prompts(&mut self, config: &Config, model: &Shape) -> Result<(), StageError> {
        let parts = TrainPrompts::read(config)?.rounds.into_iter();
        let part = parts.map(|part| part.rows).max_by_key(Vec::len);
        let part = part.unwrap_or_default();
        (self.prompts, self.pairs) = (part.len(), part.len());
        let folder = model.folder.as_deref();
        let Some(text) = folder
            .map(|folder| ChatText::find_with(folder, config.model.template()))
            .transpose()?
            .flatten()
        else {
            self.assume_prompts("there is no tokenizer yet");
            return Ok(());
        };
        let mut lengths = Vec::with_capacity(part.len());
        for row in &part {
            match text.prompt_ids(&row.prompt.messages()) {
                Ok(ids) => lengths.push(ids.len()),
                Err(_) if config.on_bad_row.skips() => {}
                Err(problem) => return Err(problem.into()),
            }
        }
        self.limit_prompts(config, model, &mut lengths)?;
        (self.prompts, self.pairs) = (lengths.len(), lengths.len());
        self.prompt = lengths.iter().sum::<usize>() / lengths.len().max(1);
        self.longest_prompt = lengths.into_iter().max().unwrap_or(self.longest_prompt);
        let most = self.longest_prompt + config.generate.max_new_tokens + 1;
        self.longest = self.longest.min(most);
        Ok(())
    }

    /// Skips or cuts prompts that are too long, as generation will.
    fn limit_prompts(
        &mut self,
        config: &Config,
        model: &Shape,
        lengths: &mut Vec<usize>,
    ) -> Result<(), StageError> {
        let limits = &config.prompts;
        let room = model.config.max_position_embeddings.saturating_sub(1);
        let most = limits.max_length.map_or(room, |most| most.min(room));
        let all = lengths.len();
        let long = lengths.iter().filter(|length| **length > most).count();
        if long == 0 {
            return Ok(());
        }
        let becomes = match limits.on_too_long {
            OnTooLong::Stop => "end the run before it begins",
            OnTooLong::Skip => {
                lengths.retain(|length| *length <= most);
                "are left out"
            }
            OnTooLong::Cut => {
                lengths
                    .iter_mut()
                    .for_each(|length| *length = most.min(*length));
                "lose their beginning"
            }
        };
        if lengths.is_empty() {
            return Err(StageError::Input(format!(
                "all {all} prompts of an iteration have more than {most} tokens and are left out (on_too_long = skip); raise prompts.max_length"
            )));
        }
        self.notes.push(format!(
            "{long} of {all} prompts of an iteration have more than {most} tokens and {becomes} (prompts.on_too_long = {})",
            limits.on_too_long
        ));
        Ok(())
    }

    fn read_pairs(
        &mut self,
        config: &Config,
        model: &Shape,
        file: &Path,
    ) -> Result<(), StageError> {
        let train = &config.train;
        let rows = RowFile::<PairRow>::read(file, config.on_bad_row.skips())?;
        self.pairs = rows.rows.len();
        let folder = model.folder.as_deref();
        let find = |folder| ChatText::find_with(folder, config.model.template());
        let text = folder.map(find).transpose()?.flatten();
        let is_text = |row: &PairRow| matches!(row.content, PairContent::Text { .. });
        if text.is_none() && rows.rows.iter().any(is_text) {
            self.assume_prompts("the pairs hold text, and there is no tokenizer yet");
            return Ok(());
        }
        let tokeniser = text.map(|text| {
            // A plan needs lengths only: any one token stands for the end that no file names.
            let end = text
                .end_of_turn()?
                .unwrap_or_else(|| EndOfTurn::of_token(0));
            let most = train.max_prompt_length.min(self.longest.saturating_sub(1));
            RowTokeniser::new(text, end, train.rows, self.longest, most)
        });
        let pairs = tokenise_pairs(
            &rows,
            tokeniser
                .transpose()?
                .as_ref()
                .ok_or(folder.unwrap_or(file)),
            train.max_length,
            model.config.vocab_size,
            model.config.max_position_embeddings,
        )?;
        self.pairs = pairs.rows.len();
        self.known = pairs.rows.into_iter().map(|pair| pair.pair).collect();
        Ok(())
    }

    /// The largest batch of `pairs` pairs.
    pub fn largest(&self, pairs: usize) -> Batch {
        if self.known.is_empty() {
            return Batch::largest(2 * pairs, self.longest);
        }
        // Which come together depends on the seed. The longest ones, and those of most tokens to
        // compute, which are others where prompts are shared.
        let longest = |pair: &TokenisedPair| {
            let lengths = pair.sides().map(|side| side.ids.len());
            lengths.into_iter().max().unwrap_or(0)
        };
        let size = |pair: &TokenisedPair| Batch::of(&pair.sides()).packed;
        let tokens = |pair: &TokenisedPair| size(pair).tokens;
        let scores = |pair: &TokenisedPair| size(pair).scores;
        let blocked = |pair: &TokenisedPair| size(pair).blocked;
        let of_largest = |size: &dyn Fn(&TokenisedPair) -> usize| {
            let mut known: Vec<&TokenisedPair> = self.known.iter().collect();
            known.sort_by_cached_key(|pair| std::cmp::Reverse(size(pair)));
            let first = known.iter().take(pairs);
            Batch::of(&first.flat_map(|pair| pair.sides()).collect::<Vec<_>>())
        };
        let others = [
            of_largest(&tokens),
            of_largest(&scores),
            of_largest(&blocked),
        ];
        let first = of_largest(&longest);
        others.into_iter().fold(first, Batch::or_larger)
    }

    /// A batch of `pairs` pairs as they usually come: of mean lengths, or the known ones of middle
    /// length.
    pub fn usual(&self, pairs: usize) -> Batch {
        if self.known.is_empty() {
            return Batch::alike(pairs, self.prompt, self.response);
        }
        let mut known: Vec<&TokenisedPair> = self.known.iter().collect();
        let tokens =
            |pair: &&TokenisedPair| pair.sides().map(|s| s.ids.len()).iter().sum::<usize>();
        known.sort_by_key(tokens);
        let before = known.len().saturating_sub(pairs) / 2;
        let middle = known.iter().skip(before).take(pairs);
        let sequences: Vec<_> = middle.flat_map(|pair| pair.sides()).collect();
        Batch::of(&sequences)
    }

    /// The most pairs of the longest kind that go through the model together.
    pub fn at_a_time(&self, config: &Config, training: &Training) -> usize {
        let most = config.train.batch_size;
        let Some(mib) = config.train.memory_mib else {
            return most;
        };
        let budget = (mib as u64) << 20;
        let holds = |pairs| training.memory(&self.largest(pairs)).peak <= budget;
        most_that(most, holds).max(1)
    }

    /// A step of `pairs` pairs of mean length, or as many of the known ones.
    pub fn mean(&self, pairs: usize) -> Batch {
        if self.known.is_empty() {
            return Batch::alike(pairs, self.prompt, self.response);
        }
        let part = pairs as f64 / self.known.len() as f64;
        let of_pair = |pair: &TokenisedPair| Batch::of(&pair.sides());
        let mut sum = Batch::default();
        for batch in self.known.iter().map(of_pair) {
            sum.packed.tokens += batch.packed.tokens;
            sum.response_tokens += batch.response_tokens;
            sum.attended += batch.attended;
        }
        let scaled = |count: usize| (count as f64 * part).round() as usize;
        sum.packed.tokens = scaled(sum.packed.tokens);
        sum.response_tokens = scaled(sum.response_tokens);
        sum.attended = scaled(sum.attended);
        sum
    }

    /// Tokens of prompts and responses of `pairs` pairs on average.
    pub fn tokens(&self, pairs: usize) -> f64 {
        let pair = match self.known.len() {
            0 => 2.0 * (self.prompt + self.response) as f64,
            known => {
                let sides = self.known.iter().flat_map(|pair| pair.sides());
                sides.map(|s| s.ids.len()).sum::<usize>() as f64 / known as f64
            }
        };
        pair * pairs as f64
    }

    /// Operations of an iteration.
    pub fn flops(&self, config: &Config, training: &Training, epochs: usize) -> IterationFlops {
        let model = &training.config;
        let all = self.mean(self.pairs);
        let samples = config.generate.samples as f64;
        let generation = match self.generates {
            true => {
                let sequences = self.prompts as f64 * samples;
                let (prompt, response) = (self.prompt as f64, self.response as f64);
                flops::generation(model, sequences, samples, prompt, response)
            }
            false => 0.0,
        };
        let (prompt, response) = (self.prompt, self.response);
        let judging = match self.generates {
            true => judging::flops(config, model, self.prompts, prompt, response),
            false => 0.0,
        };
        IterationFlops {
            generation,
            judging,
            reference: flops::forward(model, &all),
            training: epochs as f64 * flops::training(model, training.lora.as_ref(), &all),
        }
    }
}

/// The most of `limit` for which `holds`; none where not even one does. What holds for more holds
/// for fewer.
pub(super) fn most_that(limit: usize, holds: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, limit);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match holds(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_fits() {
        for (limit, bound) in [(8, 0), (8, 1), (8, 5), (8, 8), (8, 99), (1, 1)] {
            assert_eq!(most_that(limit, |n| n <= bound), bound.min(limit));
        }
    }
}
