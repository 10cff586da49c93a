//! Why something of the Hub is not here.

use std::path::PathBuf;

use crate::files::FileError;

/// Why something of the Hub is not here.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A name that is none.
    #[error(
        "{name:?} names nothing on the Hub; write hf://datasets/org/name[@revision]/, then a file of it or a split such as train"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// Nobody knows where the cache lies.
    #[error("neither HF_HUB_CACHE, HF_HOME nor HOME is set, so there is no cache of the Hub")]
    NoCache,
    /// It is not in the cache, and whoever asked reads nothing else.
    #[error("{name} is not in the Hub's cache, {}; download it first (sppo download {name})", place.display())]
    NotHere {
        /// What was asked for.
        name: String,
        /// Where it would lie.
        place: PathBuf,
    },
    /// It would have to be downloaded, which is forbidden.
    #[error(
        "{name} is not whole in the Hub's cache, {}, and HF_HUB_OFFLINE forbids to download it; unset that, or run sppo download {argument} where there is a network and copy the folder", place.display()
    )]
    Offline {
        /// What was asked for.
        name: String,
        /// The same for `sppo download`.
        argument: String,
        /// Where it would lie.
        place: PathBuf,
    },
    /// The Hub cannot be reached, or does not answer.
    #[error(
        "cannot download {name}: {url} gives no answer: {last}; without a network, run sppo download {argument} on a machine that has one, copy its cache here, and name it in HF_HUB_CACHE"
    )]
    Unreachable {
        /// What was asked for.
        name: String,
        /// The same for `sppo download`.
        argument: String,
        /// Whose answer was waited for.
        url: String,
        /// What happened.
        last: String,
    },
    /// Status 401.
    #[error(
        "the Hub does not show {name} to {} (status 401): there is no such repository, or it is private or gated. Check the name; {}", who(token.as_deref()), how_to_log_in(token.as_deref())
    )]
    Unauthorized {
        /// The repository.
        name: String,
        /// Where the token that was sent is from.
        token: Option<String>,
    },
    /// Status 403 of a repository whose licence has to be accepted.
    #[error(
        "{name} is gated (status 403): open {page} in a browser, accept its conditions with the account of your token, wait for access where it has to be granted, and run the same command again. {}", how_to_log_in(token.as_deref())
    )]
    Gated {
        /// The repository.
        name: String,
        /// Where its conditions are.
        page: String,
        /// Where the token that was sent is from.
        token: Option<String>,
    },
    /// Any other status 403.
    #[error("the Hub refuses {name} (status 403): {message}")]
    Forbidden {
        /// The repository.
        name: String,
        /// What it says.
        message: String,
    },
    /// Status 404.
    #[error("{what} (status 404); check the name at {page}")]
    Absent {
        /// What there is not.
        what: String,
        /// Where to look.
        page: String,
    },
    /// A repository without weights that can be read.
    #[error("{name} has no weights as safetensors, the only format that is read; it has {found}")]
    NoWeights {
        /// The repository.
        name: String,
        /// Some of its files.
        found: String,
    },
    /// No file or split of that name.
    #[error(
        "{name}: the data set has no such file, and no such split as .parquet, .jsonl or .json; it has {found}"
    )]
    NoRows {
        /// What was asked for.
        name: String,
        /// Its files that could be meant.
        found: String,
    },
    /// A split of several configurations.
    #[error(
        "{name}: several sets of files are called so: {found}; give one of them with its folder, or a file"
    )]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// The folders.
        found: String,
    },
    /// Not all parts of a split are in the repository.
    #[error("{name}: {found} of {of} parts are in the data set")]
    PartsMissing {
        /// What was asked for.
        name: String,
        /// Parts there are.
        found: usize,
        /// Parts there should be.
        of: usize,
    },
    /// The transfer broke again and again.
    #[error(
        "{file} of {name} broke off after {done} of {size} bytes, {attempts} times without any more: {last}; run the same command again: it goes on from there"
    )]
    Broken {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// Bytes that are here.
        done: u64,
        /// Bytes that it has.
        size: u64,
        /// Attempts that brought nothing.
        attempts: usize,
        /// What happened to the last.
        last: String,
    },
    /// What came is not what was announced.
    #[error("{file} of {name}: {problem}; it is thrown away, run the same command again")]
    Damaged {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// An answer that the Hub would not give.
    #[error("{url} answers what the Hub would not: {problem}; is HF_ENDPOINT right?")]
    Strange {
        /// Whose answer.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked to stop; what came is kept.
    #[error("stopped")]
    Stopped,
}

impl HubError {
    /// Whether the user's input is at fault (exit code 2) rather than the network or the disk (1).
    pub fn is_input(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::Damaged { .. }
            | Self::Strange { .. }
            | Self::Stopped => false,
            Self::File(error) => error.is_input(),
            _ => true,
        }
    }
}

fn who(token: Option<&str>) -> &'static str {
    match token {
        Some(_) => "the owner of your token",
        None => "everybody",
    }
}

fn how_to_log_in(token: Option<&str>) -> String {
    match token {
        Some(place) => format!("The token is that of {place}"),
        None => {
            "No token was given: make one at https://huggingface.co/settings/tokens and put it \
                 into HF_TOKEN"
                .into()
        }
    }
}
