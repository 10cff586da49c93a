//! The names of a Llama's tensors as transformers writes them, out of those that other programs
//! write.

use crate::checkpoint::{Checkpoint, SafetensorsError};

/// What torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
const WRAPPERS: [&str; 3] = [
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
];
/// A tensor that every Llama has, from the beginning of its body's names on.
const LANDMARK: &str = "layers.0.input_layernorm.weight";
/// Where transformers' names of the body begin.
const BODY: &str = "model.";
/// The parts of the body.
const PARTS: [&str; 4] = ["embed_tokens.", "layers.", "norm.", "rotary_emb."];

/// Takes wrappers and foreign prefixes off the names: `_orig_mod.model.layers…`, `layers…` (a body
/// saved by itself) and `module.model.layers…` all become `model.layers…`.
pub(super) fn use_plain_names(checkpoint: &mut Checkpoint) -> Result<(), SafetensorsError> {
    let unwrapped = |name: &str| WRAPPERS.iter().fold(name.into(), without);
    let names: Vec<String> = checkpoint.shapes().map(|(n, _)| unwrapped(n)).collect();
    let before: Vec<&str> = names
        .iter()
        .filter_map(|n| n.strip_suffix(LANDMARK))
        .collect();
    // More than one body is no Llama; its names are reported as they are.
    let prefix = match before.as_slice() {
        [only] => *only,
        _ => BODY,
    };
    checkpoint.rename(|name| plain(&unwrapped(name), prefix))
}

fn without(name: String, wrapper: &&str) -> String {
    name.replace(wrapper, "")
}

/// A name whose body begins with `prefix`.
fn plain(name: &str, prefix: &str) -> String {
    let body = |rest: &str| format!("{BODY}{rest}");
    let part = |rest: &str| PARTS.iter().any(|part| rest.starts_with(part));
    let own = name.strip_prefix(prefix).filter(|rest| part(rest));
    // What stands beside the body lies where the body's own prefix begins.
    let outer = prefix.strip_suffix(BODY).unwrap_or_default();
    match own {
        Some(rest) => body(rest),
        None => name.strip_prefix(outer).unwrap_or(name).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    /// r040: only `model.…` and `lm_head.weight` were known.
    #[test]
    fn prefixes_come_off() {
        for (prefix, name, expected) in [
            (
                "model.",
                "model.layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
            ),
            ("model.", "lm_head.weight", "lm_head.weight"),
            (
                "",
                "layers.0.mlp.up_proj.weight",
                "model.layers.0.mlp.up_proj.weight",
            ),
            ("", "norm.weight", "model.norm.weight"),
            ("", "lm_head.weight", "lm_head.weight"),
            ("", "score.weight", "score.weight"),
            (
                "module.model.",
                "module.model.norm.weight",
                "model.norm.weight",
            ),
            ("module.model.", "module.lm_head.weight", "lm_head.weight"),
            ("model.model.", "model.lm_head.weight", "lm_head.weight"),
            (
                "transformer.",
                "transformer.norm.weight",
                "model.norm.weight",
            ),
            ("transformer.", "lm_head.weight", "lm_head.weight"),
            ("model.", "other.weight", "other.weight"),
        ] {
            assert_eq!(plain(name, prefix), expected, "{prefix} {name}");
        }
    }
}
