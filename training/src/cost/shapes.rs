//! Shapes of published models, for plans made before anything is downloaded.

use serde_json::json;
use sppo_model::llama::LlamaConfig;

/// Hidden size, layers, heads, key and value heads, feed-forward size, context, tied embeddings.
type Shape = (usize, usize, usize, usize, usize, usize, bool);

/// Width of a head, vocabulary, base of the rotation.
type Family = (usize, usize, f64);

const LLAMA: Family = (128, 128_256, 500_000.0);
const LLAMA_1B: Family = (64, 128_256, 500_000.0);
const SMOL: Family = (64, 49_152, 100_000.0);

/// The last parts of repository ids begin with these, longest first.
const PUBLISHED: [(&str, Shape, Family); 8] = [
    (
        "Llama-3.3-70B",
        (8192, 80, 64, 8, 28672, 131_072, false),
        LLAMA,
    ),
    (
        "Llama-3.1-70B",
        (8192, 80, 64, 8, 28672, 131_072, false),
        LLAMA,
    ),
    ("Llama-3-70B", (8192, 80, 64, 8, 28672, 8192, false), LLAMA),
    (
        "Llama-3.1-8B",
        (4096, 32, 32, 8, 14336, 131_072, false),
        LLAMA,
    ),
    (
        "Llama-3.2-1B",
        (2048, 16, 32, 8, 8192, 131_072, true),
        LLAMA_1B,
    ),
    (
        "Llama-3.2-3B",
        (3072, 28, 24, 8, 8192, 131_072, true),
        LLAMA,
    ),
    ("Llama-3-8B", (4096, 32, 32, 8, 14336, 8192, false), LLAMA),
    ("SmolLM2-135M", (576, 30, 9, 3, 1536, 8192, true), SMOL),
];

/// The shape of a published Llama 3, or of the small model of configs/, by its repository id;
/// `None` where it is not known.
pub fn published(id: &str) -> Option<LlamaConfig> {
    let name = id.rsplit('/').next()?;
    let name = name.strip_prefix("Meta-").unwrap_or(name);
    let known = PUBLISHED.iter().find(|(known, ..)| {
        let rest = name.strip_prefix(known);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    });
    let (_, shape, (head_dim, vocab, theta)) = known?;
    let (hidden, layers, heads, kv_heads, ffn, context, tied) = shape;
    let fields = json!({
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "intermediate_size": ffn, "vocab_size": vocab,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": theta,
        "tie_word_embeddings": tied,
    });
    LlamaConfig::from_map(fields.as_object()?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Sizes;

    #[test]
    fn published_models_have_their_known_number_of_parameters() {
        for (id, billions) in [
            ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
            ("meta-llama/Llama-3.1-8B", 8.030),
            ("meta-llama/Llama-3.2-1B-Instruct", 1.236),
            ("meta-llama/Llama-3.2-3B", 3.213),
            ("meta-llama/Meta-Llama-3-70B-Instruct", 70.554),
            ("meta-llama/Llama-3.3-70B-Instruct", 70.554),
            ("HuggingFaceTB/SmolLM2-135M-Instruct", 0.1345),
        ] {
            let found = Sizes::of(&published(id).unwrap(), None).weights() as f64 / 1e9;
            assert!((found - billions).abs() < 1e-3, "{id}: {found}");
        }
        for other in ["meta-llama/Llama-3-8Bx", "gpt2", ""] {
            assert!(published(other).is_none(), "{other}");
        }
    }
}
