//! Log-probabilities of a prompt's tokens.

use burn::tensor::{Int, Tensor, TensorData};

use super::candidates::{COUNT, Candidates, read};
use super::request::{GenerateError, TokenScore};
use super::scores::score_on_host;
use crate::llama::Decoder;
use crate::ops::{ModelOps, is_finite};

/// Most logits that are there at once.
const MOST_LOGITS: usize = 1 << 22;

/// Scores tokens, each behind the position whose output is in its row of `hidden`
/// `[tokens, hidden]`; `None` where logits are not finite. Rows run in pieces, so that memory does
/// not grow with tokens times vocabulary.
pub(super) fn score_tokens<B: ModelOps>(
    decoder: &Decoder<B>,
    hidden: Tensor<B, 2>,
    tokens: &[u32],
    likeliest: usize,
    on_device: bool,
) -> Result<Option<Vec<TokenScore>>, GenerateError> {
    let vocab = decoder.config.vocab_size;
    let rows = (MOST_LOGITS / vocab).max(2);
    let mut scores = Vec::with_capacity(tokens.len());
    for (piece, tokens) in tokens.chunks(rows).enumerate() {
        let hidden = hidden.clone().narrow(0, piece * rows, tokens.len());
        let logits = decoder.logits(hidden);
        let found = match on_device && vocab > 2 * COUNT {
            true => score_on_device(logits, tokens, likeliest)?,
            false => score_rows(&read(logits)?, vocab, tokens, likeliest),
        };
        let Some(found) = found else {
            return Ok(None);
        };
        scores.extend(found);
    }
    Ok(Some(scores))
}

fn score_rows(
    logits: &[f32],
    vocab: usize,
    tokens: &[u32],
    likeliest: usize,
) -> Option<Vec<TokenScore>> {
    let rows = logits.chunks_exact(vocab).zip(tokens);
    let score = |(row, &token): (&[f32], &u32)| {
        is_finite(row).then(|| score_on_host(row, token as usize, likeliest).of(token))
    };
    rows.map(score).collect()
}

fn score_on_device<B: ModelOps>(
    logits: Tensor<B, 2>,
    tokens: &[u32],
    likeliest: usize,
) -> Result<Option<Vec<TokenScore>>, GenerateError> {
    let rows = logits.dims()[0];
    let ids: Vec<i64> = tokens.iter().map(|&token| token.into()).collect();
    let ids = Tensor::<B, 2, Int>::from_data(TensorData::new(ids, [rows, 1]), &logits.device());
    let own = read(logits.clone().gather(1, ids))?;
    let candidates = Candidates::find(&logits, &[])?;
    let rows = tokens.iter().zip(own).zip(candidates);
    let score = |((&token, own), candidates): ((&u32, f32), Candidates)| {
        let score = candidates.score(own, likeliest).of(token);
        candidates.is_finite().then_some(score)
    };
    Ok(rows.map(score).collect())
}
