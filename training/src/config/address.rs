//! An address whose query and user may hold secrets.

use serde::{Serialize, Serializer};
use toml::Value;

use super::key::{Key, Misfit, filled};
use crate::data::stable_hash;

/// What is written in place of a value that nobody may see.
const HIDDEN: &str = "[hidden";

/// Parameters by these names are keys: which key is used changes no result.
const SECRET_NAMES: [&str; 8] = [
    "key", "token", "secret", "sig", "auth", "pass", "code", "cred",
];

/// An address as it was given; what is written, printed or hashed shows no value of its query.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(String);

impl Address {
    /// Of a text that was checked or will be.
    pub fn new(text: impl Into<String>) -> Self {
        Address(text.into())
    }

    /// The whole address, to send requests to.
    pub fn whole(&self) -> &str {
        &self.0
    }

    /// The address of something below it; the query stays at the end.
    pub fn below(&self, path: &str) -> Address {
        let (start, query) = self.parts();
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        Address(format!("{}/{path}{query}", start.trim_end_matches('/')))
    }

    /// The address with user, password and the query's values hidden. Values other than keys leave
    /// a few digits of their hash, so that two different ones can be told apart.
    pub fn shown(&self) -> String {
        let (start, query) = self.parts();
        let start = match start.split_once("://") {
            Some((scheme, rest)) => {
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                let host = match host.rsplit_once('@') {
                    Some((_, host)) => format!("{HIDDEN}]@{host}"),
                    None => host.to_string(),
                };
                format!("{scheme}://{host}{path}")
            }
            None => start.to_string(),
        };
        let Some(query) = query else {
            return start;
        };
        let hidden = parameters(query).map(|(name, value)| match name {
            Some(name) if is_secret(name) => format!("{name}={HIDDEN}]"),
            Some(name) => format!("{name}={HIDDEN} {}]", &stable_hash(&value)[..4]),
            None => format!("{HIDDEN}]"),
        });
        format!("{start}?{}", hidden.collect::<Vec<_>>().join("&"))
    }

    /// The query's values that are keys: by their name, without one, or by their length.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let keys = parameters(self.parts().1.unwrap_or_default())
            .filter(|(name, value)| name.is_none_or(is_secret) || value.len() >= 16);
        keys.map(|(_, value)| value)
    }

    fn parts(&self) -> (&str, Option<&str>) {
        match self.0.split_once('?') {
            Some((start, query)) => (start, Some(query)),
            None => (&self.0, None),
        }
    }
}

/// Names and values of a query; a value alone has no name.
fn parameters(query: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| match part.split_once('=') {
        Some((name, value)) => (Some(name), value),
        None => (None, part),
    })
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|word| name.contains(word))
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.shown())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

impl Key for Address {
    fn expected() -> String {
        "an address (a string that is not empty)".into()
    }

    fn read(value: &Value, path: &str) -> Result<Self, Misfit> {
        let misfit = |hint| Misfit::of::<Self>(value, path, hint);
        let text = filled(value).ok_or_else(|| misfit(None))?;
        if text.contains(HIDDEN) {
            let hint = "its secrets were hidden when it was written; put them back";
            return Err(misfit(Some(hint.into())));
        }
        Ok(Address(text.into()))
    }

    fn write(&self, _short: bool) -> Option<Value> {
        Some(Value::String(self.shown()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// r022: a key in the query of an address was printed and written into files.
    #[test]
    fn an_address_shows_no_secret() {
        let plain = Address::new("http://h:80/v1/");
        assert_eq!(plain.shown(), "http://h:80/v1/");
        assert_eq!(
            plain.below("chat/completions").whole(),
            "http://h:80/v1/chat/completions"
        );
        let keyed = Address::new("https://me:pw@h/v1?api_key=s3cret&version=7&hunter2");
        let shown = keyed.shown();
        assert!(shown.starts_with("https://[hidden]@h/v1?api_key=[hidden]&version=[hidden "));
        assert!(shown.ends_with("]&[hidden]"), "{shown}");
        assert_eq!(format!("{keyed:?}"), format!("{shown:?}"));
        assert_eq!(serde_json::json!(keyed), shown);
        assert_eq!(
            keyed.below("x").whole(),
            "https://me:pw@h/v1/x?api_key=s3cret&version=7&hunter2"
        );
        let rotated = Address::new("https://me:pw@h/v1?api_key=other&version=7&hunter3");
        assert_eq!(rotated.shown(), shown);
        assert_eq!(keyed.secrets().collect::<Vec<_>>(), ["s3cret", "hunter2"]);
        let other = Address::new("https://me:pw@h/v1?api_key=s3cret&version=8&hunter2");
        assert_ne!(other.shown(), shown);
        let again = Address::read(&keyed.write(false).unwrap(), "judge.http.base_url");
        assert!(again.unwrap_err().hint.unwrap().contains("put them back"));
    }
}
