//! Single tokens as text and bytes, as log-probabilities name them.

use sppo_model::tokenizer::Tokenizer;

/// A token's text: what it says where that is whole characters, else `bytes:\xe2\x82`.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    text_of(&tokenizer.token_bytes(id))
}

/// The text of a token's bytes; no two byte strings have the same.
pub fn text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => {
            let hex = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", hex.collect::<String>())
        }
    }
}
