//! What an engine can never answer.

use super::plan::CachePlan;
use super::request::{GenerateError, Request};
use crate::llama::LlamaConfig;

/// Refuses a request that an engine of this plan, with or without a tokenizer, cannot answer.
pub(super) fn check_request(
    request: &Request,
    config: &LlamaConfig,
    plan: &CachePlan,
    has_tokenizer: bool,
) -> Result<(), GenerateError> {
    let id = || request.id.clone();
    let room = request.params.max_new_tokens.min(1);
    check_prompt_with(config, &request.id, &request.prompt, room)?;
    let needed = request.most_tokens(config.max_position_embeddings);
    if needed > plan.tokens {
        return Err(GenerateError::SlotTooSmall {
            id: id(),
            needed,
            slot: plan.tokens,
        });
    }
    if request.needs_text() && !has_tokenizer {
        return Err(GenerateError::NoTokenizer { id: id() });
    }
    if request.stop.iter().any(String::is_empty) {
        return Err(GenerateError::EmptyStop { id: id() });
    }
    Ok(())
}

/// Refuses a prompt that the model cannot answer.
pub fn check_prompt(config: &LlamaConfig, id: &str, prompt: &[u32]) -> Result<(), GenerateError> {
    check_prompt_with(config, id, prompt, 1)
}

/// The same with `room` tokens behind it.
fn check_prompt_with(
    config: &LlamaConfig,
    id: &str,
    prompt: &[u32],
    room: usize,
) -> Result<(), GenerateError> {
    let id = id.to_string();
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt { id });
    }
    if prompt.len() + room > config.max_position_embeddings {
        return Err(GenerateError::PromptTooLong {
            id,
            tokens: prompt.len(),
            context: config.max_position_embeddings,
        });
    }
    if let Some(&token) = prompt.iter().find(|&&t| t as usize >= config.vocab_size) {
        return Err(GenerateError::UnknownToken {
            id,
            token,
            vocab: config.vocab_size,
        });
    }
    Ok(())
}
