//! How PairRM reads a comparison: source, left and right candidate, each truncated, end to end.

use super::config::PairRmConfig;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Turns texts into the segments of packed comparisons, as LLM-Blender's collator does.
#[derive(Clone, Debug)]
pub struct Packer {
    tokenizer: Tokenizer,
    config: PairRmConfig,
    sep: Option<String>,
}

/// Token ids of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source(Vec<u32>);

/// Token ids of a candidate beside a given source; its prefix says on which side it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    left: Vec<u32>,
    right: Vec<u32>,
}

/// One packed comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Source, left and right candidate, each `[CLS] … [SEP]`.
    pub ids: Vec<u32>,
    /// Where the three prefix tokens stand in `ids`.
    pub prefixes: [usize; 3],
}

impl Packer {
    /// `sep_token` is what the tokenizer's own configuration calls it.
    pub fn new(tokenizer: Tokenizer, config: PairRmConfig, sep_token: Option<String>) -> Self {
        Packer {
            tokenizer,
            config,
            sep: sep_token,
        }
    }

    /// A prompt, cut on the right to `source_maxlength` tokens.
    pub fn source(&self, text: &str) -> Result<Source, TokenizerError> {
        let limit = self.config.source_maxlength;
        Ok(Source(self.segment("<|source|>", text, limit)?))
    }

    /// A response, cut on the right to `candidate_maxlength` tokens and half of those that the
    /// source leaves.
    pub fn candidate(&self, text: &str, source: &Source) -> Result<Candidate, TokenizerError> {
        let config = &self.config;
        let spare = config.source_maxlength.saturating_sub(source.0.len());
        let limit = config.candidate_maxlength + spare / 2;
        let ids = self.segment("<|candidate|>", text, limit)?;
        let on_side = |prefix: u32| {
            let side = |id: &u32| match *id == config.prefixes.candidate {
                true => prefix,
                false => *id,
            };
            ids.iter().map(side).collect()
        };
        Ok(Candidate {
            left: on_side(config.prefixes.candidate1),
            right: on_side(config.prefixes.candidate2),
        })
    }

    /// `[CLS] prefix text [SEP]` of at most `limit` tokens.
    fn segment(&self, prefix: &str, text: &str, limit: usize) -> Result<Vec<u32>, TokenizerError> {
        let text = match &self.sep {
            Some(sep) => text.replace(sep.as_str(), " "),
            None => text.to_string(),
        };
        let mut ids = self.tokenizer.encode(&format!("{prefix}{text}"), true)?;
        if ids.len() > limit
            && let Some(end) = ids.last().copied()
        {
            ids.truncate(limit - 1);
            ids.push(end);
        }
        Ok(ids)
    }
}

impl Packed {
    /// Lays source, left and right candidate end to end.
    pub fn new(source: &Source, left: &Candidate, right: &Candidate) -> Self {
        let ids = [&source.0[..], &left.left, &right.right].concat();
        // Behind each segment's [CLS].
        let second = source.0.len() + 1;
        Packed {
            prefixes: [1, second, second + left.left.len()],
            ids,
        }
    }
}
