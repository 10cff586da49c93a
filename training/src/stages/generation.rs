//! What is sampled from which model, and what the responses depend on.

use std::path::Path;

use burn::tensor::DType;
use sppo_model::chat_template::{NaiveDate, TemplateSource};
use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use super::folder::{open_folder, with_folder};
use super::prompts::PromptLimits;
use crate::config::{Config, Generate};
use crate::data::{PromptRow, rows_fingerprint};
use crate::files::{Existing, MadeFrom, mark_beside};

/// Sampling of responses from one model.
#[derive(Clone, Copy, Debug)]
pub struct Generation<'a> {
    /// Folder of the model.
    pub model: &'a Path,
    /// Chat template of its text; raw ones take prompts that are strings.
    pub template: TemplateSource<'a>,
    /// What is answered, in this order.
    pub prompts: &'a [PromptRow],
    /// The file that they come from.
    pub prompts_file: &'a Path,
    /// Numbers of their rows in their file, from 1, for messages; none where they are not known.
    pub row_numbers: Option<&'a [usize]>,
    /// How long prompts may be.
    pub limits: PromptLimits,
    /// File that receives one row a prompt.
    pub out: &'a Path,
    /// How they are sampled.
    pub sampling: Sampling,
    /// Token ids that end a response; the model's own where none.
    pub stop_token_ids: Option<&'a [usize]>,
    /// The day that the chat template sees; today unless given.
    pub date: Option<NaiveDate>,
    /// Of the random numbers.
    pub seed: u64,
    /// Whether rows get summed log-probabilities.
    pub logprobs: bool,
    /// What the progress is called.
    pub label: &'a str,
    /// What becomes of an output that was made from something else.
    pub existing: Existing<'a>,
}

impl Generation<'_> {
    /// The model's folder, its template with the date of this job.
    pub fn open_folder(&self) -> Result<ModelFolder, StageError> {
        open_folder(self.model, self.template, self.date, &mark_beside(self.out))
    }

    /// What the responses depend on.
    pub fn made_from(&self, folder: &ModelFolder) -> Result<MadeFrom, StageError> {
        let Sampling {
            samples,
            temperature,
            top_p,
            top_k,
            max_new_tokens,
            dtype,
            ..
        } = self.sampling;
        // A setting that comes later is left out where it is at its default.
        let mut made_from = MadeFrom::new("generate")
            .setting("samples", samples)
            .setting("temperature", temperature)
            .setting("max_new_tokens", max_new_tokens)
            .setting("precision", format!("{dtype:?}").to_lowercase())
            .setting("seed", self.seed)
            .setting("logprobs", self.logprobs);
        if temperature > 0.0 {
            made_from = made_from.setting("top_p", top_p).setting("top_k", top_k);
        }
        let prompts = rows_fingerprint(self.prompts);
        let made_from = made_from.input("prompts", self.prompts_file, prompts);
        let made_from = made_from.settings(self.limits.settings()).settings(
            self.stop_token_ids
                .map(|ids| ("stop_token_ids", format!("{ids:?}"))),
        );
        with_folder(made_from, folder, self.template)
    }
}

/// How responses are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Responses a prompt.
    pub samples: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Samples from the most likely tokens that together have this probability.
    pub top_p: f64,
    /// 0 is off.
    pub top_k: usize,
    /// Longest response, in tokens.
    pub max_new_tokens: usize,
    /// Sequences decoded together, if the cache has room.
    pub batch: usize,
    /// Bound on the memory of keys and values.
    pub cache_memory_mib: Option<usize>,
    /// Of weights, activations and cache.
    pub dtype: DType,
}

impl From<&Generate> for Sampling {
    fn from(config: &Generate) -> Self {
        Self {
            samples: config.samples,
            temperature: config.temperature,
            top_p: config.top_p,
            top_k: config.top_k,
            max_new_tokens: config.max_new_tokens,
            batch: config.batch,
            cache_memory_mib: config.cache_memory_mib,
            dtype: config.precision.dtype(),
        }
    }
}

impl Sampling {
    /// Of held-out answers: as `[eval]` says, at the speed and precision of `[generate]`.
    pub fn of_answers(config: &Config) -> Self {
        Self {
            samples: config.eval.samples,
            temperature: config.eval.temperature,
            top_p: config.eval.top_p,
            top_k: 0,
            max_new_tokens: config.eval.max_new_tokens,
            ..Self::from(&config.generate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Precision;

    #[test]
    fn answers_are_drawn_as_eval_says_and_computed_as_generate_says() {
        let mut config = Config::default();
        config.generate.top_k = 7;
        config.generate.batch = 3;
        config.generate.cache_memory_mib = Some(9);
        config.generate.precision = Precision::Bf16;
        config.eval.samples = 2;
        config.eval.temperature = 0.5;
        config.eval.top_p = 0.25;
        config.eval.max_new_tokens = 11;
        let responses = Sampling {
            samples: 5,
            temperature: 0.7,
            top_p: 0.9,
            top_k: 7,
            max_new_tokens: 2048,
            batch: 3,
            cache_memory_mib: Some(9),
            dtype: DType::BF16,
        };
        assert_eq!(Sampling::from(&config.generate), responses);
        let answers = Sampling {
            samples: 2,
            temperature: 0.5,
            top_p: 0.25,
            top_k: 0,
            max_new_tokens: 11,
            ..responses
        };
        assert_eq!(Sampling::of_answers(&config), answers);
    }
}
