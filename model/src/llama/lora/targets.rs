//! The linear layers that can have an adapter, by the last parts of their names.

use crate::llama::parameters::LINEAR_LAYERS;

/// The names that [`Lora::targets`](super::Lora) may hold.
pub fn targets() -> impl Iterator<Item = &'static str> {
    LINEAR_LAYERS.into_iter().map(last_part)
}

/// Such as `q_proj` of `self_attn.q_proj`.
pub(super) fn last_part(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
