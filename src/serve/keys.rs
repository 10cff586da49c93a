//! The API key: read from a file, compared in a time that tells nothing, shown nowhere.

use std::path::Path;

use anyhow::Context;
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use crate::errors::{OrUser, user};

/// The hash of the key; the key itself is not kept.
pub struct ApiKey([u8; 32]);

impl ApiKey {
    /// Of this text.
    pub fn new(key: &str) -> Self {
        Self(hash(key.as_bytes()))
    }

    /// Reads the one line of a file.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        Ok(Self::new(&key_of_file(path)?))
    }

    /// Whether the request carries it as `Authorization: Bearer KEY`.
    pub fn opens(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let Some((scheme, key)) = given.and_then(|given| given.split_at_checked(7)) else {
            return false;
        };
        // Hashes of equal length, every byte looked at.
        let given = hash(key.trim_ascii());
        let differs = self
            .0
            .iter()
            .zip(given)
            .fold(0, |bits, (a, b)| bits | (a ^ b));
        scheme.eq_ignore_ascii_case(b"bearer ") && std::hint::black_box(differs) == 0
    }
}

/// The key in a file, its one line.
pub fn key_of_file(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read --api-key-file {}", path.display()))
        .or_user()?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(user(format!(
            "--api-key-file {}: expected one line with the key, of visible ASCII characters \
             without spaces (e.g. from: openssl rand -hex 32)",
            path.display()
        )));
    }
    Ok(key.into())
}

fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_opens() {
        let key = ApiKey(hash(b"secret"));
        let opens = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            key.opens(&headers)
        };
        assert!(opens("Bearer secret") && opens("bearer  secret "));
        for wrong in [
            "Bearer secre",
            "Bearer secrets",
            "Basic secret",
            "secret",
            "Bearer ",
            "",
        ] {
            assert!(!opens(wrong), "{wrong}");
        }
        assert!(!key.opens(&HeaderMap::new()));
    }
}
