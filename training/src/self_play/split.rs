//! The prompts of each iteration.

use crate::config::{Config, Split};
use crate::data::PromptRow;
use crate::stages::StageError;

/// The prompts of each iteration: equal parts in the order of the file, or all of them each time.
pub(crate) fn split_prompts(
    config: &Config,
    prompts: Vec<PromptRow>,
) -> Result<Vec<Vec<PromptRow>>, StageError> {
    let limit = config.prompts.per_iteration.unwrap_or(usize::MAX);
    let rounds = config.iterations;
    let whole = match config.prompts.split {
        Split::Reuse => vec![prompts; rounds],
        Split::Disjoint if prompts.len() < rounds => {
            return Err(StageError::Input(format!(
                "prompts.split = \"disjoint\" needs at least one prompt for each of {rounds} iterations, found {}; add prompts or set prompts.split = \"reuse\"",
                prompts.len()
            )));
        }
        Split::Disjoint => {
            let part = |i: usize| {
                let bound = |i: usize| i * prompts.len() / rounds;
                prompts[bound(i)..bound(i + 1)].to_vec()
            };
            (0..rounds).map(part).collect()
        }
    };
    let limited = |part: Vec<PromptRow>| part.into_iter().take(limit).collect();
    Ok(whole.into_iter().map(limited).collect())
}
