//! The environment variables of huggingface_hub that say where the Hub and its cache are.

use std::path::PathBuf;

use super::error::HubError;

/// Where the Hub and its cache are, and who asks. No `Debug`: it holds the token.
#[derive(Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`, without a slash at its end.
    pub endpoint: String,
    /// The folder with a folder for each repository.
    pub cache: PathBuf,
    /// What proves who asks.
    pub token: Option<Token>,
    /// Whether nothing may be downloaded.
    pub offline: bool,
}

/// A secret, and where it is from.
#[derive(Clone)]
pub struct Token {
    /// Sent to the Hub and to nobody else.
    pub secret: String,
    /// A variable or a file.
    pub place: String,
}

impl Settings {
    /// As the environment says.
    pub fn from_env() -> Result<Self, HubError> {
        Self::of(&variable)
    }

    pub(super) fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let offline = variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE"));
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: cache(variable).ok_or(HubError::NoCache)?,
            token: token(variable),
            offline: offline.is_some_and(|value| is_true(&value)),
        })
    }
}

fn is_true(value: &str) -> bool {
    let value = value.to_ascii_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

/// A path that a variable holds; `~/` is the home folder, as in huggingface_hub.
fn path(variable: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<PathBuf> {
    let given = variable(name)?;
    match (given.strip_prefix("~/"), variable("HOME")) {
        (Some(rest), Some(home)) => Some(PathBuf::from(home).join(rest)),
        _ => Some(given.into()),
    }
}

/// A variable of the environment that is not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where the cache lies.
pub(super) fn cache(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
        .iter()
        .find_map(|name| path(variable, name))
        .or_else(|| Some(home(variable)?.join("hub")))
}

/// Where programs of Hugging Face keep their files.
fn home(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    match (path(variable, "HF_HOME"), path(variable, "XDG_CACHE_HOME")) {
        (Some(home), _) => Some(home),
        (None, Some(caches)) => Some(caches.join("huggingface")),
        (None, None) => Some(PathBuf::from(variable("HOME")?).join(".cache/huggingface")),
    }
}

fn token(variable: &dyn Fn(&str) -> Option<String>) -> Option<Token> {
    let clean = |text: String, place: String| {
        let secret: String = text.split_whitespace().collect();
        (!secret.is_empty()).then_some(Token { secret, place })
    };
    let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter();
    let mut given = given.filter_map(|name| clean(variable(name)?, name.into()));
    given.next().or_else(|| {
        // The stored one may be forbidden.
        if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value)) {
            return None;
        }
        let path = match path(variable, "HF_TOKEN_PATH") {
            Some(path) => path,
            None => home(variable)?.join("token"),
        };
        clean(
            std::fs::read_to_string(&path).ok()?,
            path.display().to_string(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let found = |name: &str| {
            let mut all = variables.iter();
            Some(all.find(|(known, _)| *known == name)?.1.to_string())
        };
        Settings::of(&found).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_cache_is_where_the_variables_say() {
        for (variables, expected) in [
            (&[("HOME", "/h")][..], "/h/.cache/huggingface/hub"),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")],
                "/x/huggingface/hub",
            ),
            (
                &[("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/f")],
                "/f/hub",
            ),
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")], "/c"),
            (&[("HUGGINGFACE_HUB_CACHE", "/c"), ("HF_HOME", "/f")], "/c"),
            (&[("HOME", "/h"), ("HF_HOME", "~/f")], "/h/f/hub"),
        ] {
            assert_eq!(settings(variables).cache, PathBuf::from(expected));
        }
        assert!(Settings::of(&|_| None).is_err());
    }

    #[test]
    fn endpoint_and_offline() {
        let plain = settings(&[("HOME", "/h")]);
        assert_eq!(
            (plain.endpoint.as_str(), plain.offline),
            ("https://huggingface.co", false)
        );
        let mirror = settings(&[("HOME", "/h"), ("HF_ENDPOINT", "http://m:80/")]);
        assert_eq!(mirror.endpoint, "http://m:80");
        for (value, offline) in [("1", true), ("yes", true), ("0", false), ("False", false)] {
            let set = settings(&[("HOME", "/h"), ("HF_HUB_OFFLINE", value)]);
            assert_eq!(set.offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_of_a_variable_comes_before_that_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "of-file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        let secret = |settings: Settings| settings.token.map(|token| token.secret);
        let file = settings(&[("HF_HOME", home)]);
        assert_eq!(secret(file), Some("of-file".into()));
        let both = settings(&[("HF_HOME", home), ("HF_TOKEN", " of-variable ")]);
        assert_eq!(secret(both), Some("of-variable".into()));
        assert_eq!(secret(settings(&[("HF_HOME", "/nowhere")])), None);
        let forbidden = [("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")];
        assert_eq!(secret(settings(&forbidden)), None);
    }
}
