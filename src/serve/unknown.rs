//! Keys that this server does not know: said once each, since clients send extras.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::fields::{Fields, cut};

/// More names than this are not kept, whoever sends them.
const MOST: usize = 200;

/// The keys that were named.
#[derive(Default)]
pub struct UnknownKeys(Mutex<BTreeSet<String>>);

impl UnknownKeys {
    /// Names what is left of a body, where it was not named before.
    pub fn say(&self, route: &str, fields: &Fields) {
        let Ok(mut said) = self.0.lock() else { return };
        for key in fields.unknown() {
            let key = cut(key);
            if said.len() < MOST && said.insert(format!("{route} {key}")) {
                tracing::warn!(
                    "{route}: the key `{key}` is not known here and was ignored (said once)"
                );
            }
        }
    }
}
