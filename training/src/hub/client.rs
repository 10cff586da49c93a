//! One question to the Hub: what a repository has, what a file is, and its bytes.

use std::time::Duration;

use serde_json::Value;
use ureq::Body;
use ureq::http::{HeaderMap, Response};

use super::error::HubError;
use super::name::{Repository, inside, is_commit, is_plain};
use super::settings::Settings;
use super::url::{escaped, follow, is_absolute, origin};
use crate::monitor::Monitor;

/// Attempts of a question, and pauses between them, each twice that before it.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// Until a silent server counts as one that does not answer.
const SILENCE: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 8;
/// Bytes of a list of files; that of a data set with a hundred thousand files has 30 MB.
const MOST_BYTES: u64 = 128 << 20;

/// Asks the Hub. Holds the token, so it has no `Debug`.
pub(super) struct Client {
    settings: Settings,
    agent: ureq::Agent,
    /// The first pause between attempts.
    pub pause: Duration,
}

/// What a repository has at a revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

impl Listing {
    pub fn names(&self) -> Vec<&str> {
        self.files.iter().map(String::as_str).collect()
    }
}

/// What a file is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FileFacts {
    /// Names its content: of a large file its SHA-256, of others git's hash.
    pub etag: String,
    /// In bytes.
    pub size: u64,
}

/// A file at a commit.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub repository: &'a Repository,
    pub commit: &'a str,
    pub file: &'a str,
}

/// How an attempt failed that another may mend.
pub(super) struct Failed {
    pub message: String,
    /// What the server asks to wait.
    pub pause: Option<Duration>,
}

impl From<String> for Failed {
    fn from(message: String) -> Self {
        Self {
            message,
            pause: None,
        }
    }
}

/// What one attempt brings: an answer, a failure that may pass, or an error that does not.
pub(super) type Attempt<T> = Result<Result<T, Failed>, HubError>;

impl Client {
    pub fn new(settings: Settings) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .http_status_as_error(false)
            // They are followed here: the token goes to the Hub alone, and its headers count.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("sppo/", env!("CARGO_PKG_VERSION")))
            // Sizes are those of the files.
            .accept_encoding("identity")
            .build();
        Self {
            settings,
            agent: config.into(),
            pause: PAUSE,
        }
    }

    /// The files of a repository at its revision, and the commit that this is now.
    pub fn list(
        &self,
        repository: &Repository,
        monitor: &dyn Monitor,
    ) -> Result<Listing, HubError> {
        let revision = escaped(repository.revision(), false);
        let url = format!(
            "{}/{}/revision/{revision}",
            self.settings.endpoint,
            repository.api()
        );
        self.patiently(repository, &url, monitor, || {
            let mut response = match self.send(&url, None, false)? {
                Ok((response, _)) => response,
                Err(failed) => return Ok(Err(failed)),
            };
            let status = response.status().as_u16();
            if status != 200 {
                return self.refused(repository, None, &url, response.headers(), status);
            }
            let body = response.body_mut().with_config().limit(MOST_BYTES);
            Ok(match body.read_to_vec() {
                Ok(body) => Ok(listing(&body).map_err(|problem| strange(&url, problem))?),
                Err(error) => Err(Failed::from(error.to_string())),
            })
        })
    }

    /// What a file is.
    pub fn facts(&self, place: Place<'_>, monitor: &dyn Monitor) -> Result<FileFacts, HubError> {
        let url = self.address(place);
        self.patiently(place.repository, &url, monitor, || {
            let (response, linked) = match self.send(&url, None, true)? {
                Ok(found) => found,
                Err(failed) => return Ok(Err(failed)),
            };
            let status = response.status().as_u16();
            if !(200..400).contains(&status) {
                return self.refused(
                    place.repository,
                    Some(place.file),
                    &url,
                    response.headers(),
                    status,
                );
            }
            // Where it leads elsewhere, only the Hub's own headers tell of the file.
            let size = header(&linked, "x-linked-size").or_else(|| match status {
                200 => header(response.headers(), "content-length"),
                _ => None,
            });
            let size = size.and_then(|size| size.parse().ok());
            let etag = header(&linked, "x-linked-etag").or_else(|| header(&linked, "etag"));
            let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
            match (etag, size) {
                (Some(etag), Some(size)) if is_plain(etag) => Ok(Ok(FileFacts {
                    etag: etag.into(),
                    size,
                })),
                _ => Err(strange(&url, "no ETag or no size of the file".into())),
            }
        })
    }

    /// A file's bytes from `start` on; the response may begin at 0 all the same.
    pub fn open(&self, place: Place<'_>, start: u64) -> Attempt<Response<Body>> {
        let url = self.address(place);
        let (response, _) = match self.send(&url, Some(start), false)? {
            Ok(found) => found,
            Err(failed) => return Ok(Err(failed)),
        };
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(Ok(response)),
            status => self.refused(
                place.repository,
                Some(place.file),
                &url,
                response.headers(),
                status,
            ),
        }
    }

    /// Tries a question again where that may help.
    fn patiently<T>(
        &self,
        repository: &Repository,
        url: &str,
        monitor: &dyn Monitor,
        mut attempt: impl FnMut() -> Attempt<T>,
    ) -> Result<T, HubError> {
        let mut pause = self.pause;
        for number in 1.. {
            let failed = match attempt()? {
                Ok(found) => return Ok(found),
                Err(failed) => failed,
            };
            if number == ATTEMPTS {
                return Err(self.unreachable(repository, url, failed));
            }
            tracing::debug!("{url}, attempt {number}: {}", failed.message);
            wait(pause, &failed, monitor)?;
            pause *= 2;
        }
        Err(HubError::Stopped)
    }

    pub fn unreachable(&self, repository: &Repository, url: &str, failed: Failed) -> HubError {
        HubError::Unreachable {
            name: repository.to_string(),
            argument: repository.argument(),
            url: origin(url).into(),
            last: failed.message,
        }
    }

    fn address(&self, place: Place<'_>) -> String {
        let Place {
            repository,
            commit,
            file,
        } = place;
        let (endpoint, page) = (&self.settings.endpoint, repository.page());
        format!("{endpoint}/{page}/resolve/{commit}/{}", escaped(file, true))
    }

    /// Sends a question and follows where it leads: with `head`, for headers, only within the Hub.
    /// The last response, and the headers of the last one of the Hub itself.
    fn send(
        &self,
        url: &str,
        start: Option<u64>,
        head: bool,
    ) -> Attempt<(Response<Body>, HeaderMap)> {
        let mut url = url.to_string();
        let own = origin(&url).to_string();
        let mut linked = HeaderMap::new();
        for _ in 0..REDIRECTS {
            let mut request = match head {
                true => self.agent.head(&url),
                false => self.agent.get(&url),
            };
            if let Some(start) = start.filter(|start| *start > 0) {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = &self.settings.token
                && origin(&url) == own
            {
                request = request.header("Authorization", format!("Bearer {}", token.secret));
            }
            let response = match request.call() {
                Ok(response) => response,
                Err(error) => return Ok(Err(Failed::from(error.to_string()))),
            };
            if origin(&url) == own {
                linked = response.headers().clone();
            }
            let status = response.status().as_u16();
            let location = header(response.headers(), "location");
            let (300..=399, Some(location)) = (status, location) else {
                return Ok(Ok((response, linked)));
            };
            if head && is_absolute(location) && origin(location) != own {
                return Ok(Ok((response, linked)));
            }
            let Some(target) = follow(&url, location) else {
                return Err(strange(&url, format!("a redirect to {}", origin(location))));
            };
            url = target;
        }
        Err(strange(&url, format!("more than {REDIRECTS} redirects")))
    }

    /// What a status that is no success means.
    fn refused<T>(
        &self,
        repository: &Repository,
        file: Option<&str>,
        url: &str,
        headers: &HeaderMap,
        status: u16,
    ) -> Attempt<T> {
        let name = repository.to_string();
        let code = header(headers, "x-error-code").unwrap_or_default();
        let message = header(headers, "x-error-message").unwrap_or_default();
        let page = format!("{}/{}", self.settings.endpoint, repository.page());
        let token = self
            .settings
            .token
            .as_ref()
            .map(|token| token.place.clone());
        if let 408 | 425 | 429 | 500..=599 = status {
            return Ok(Err(Failed {
                message: format!("status {status} {message}").trim_end().into(),
                pause: header(headers, "retry-after")
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
            }));
        }
        Err(match (status, code) {
            (401 | 403, "GatedRepo") | (403, "") if file.is_some() || code == "GatedRepo" => {
                HubError::Gated { name, page, token }
            }
            (401, _) => HubError::Unauthorized { name, token },
            (403, _) => HubError::Forbidden {
                name,
                message: match message {
                    "" => "no reason is given".into(),
                    message => message.into(),
                },
            },
            (404, _) => HubError::Absent {
                what: match (code, file) {
                    ("RevisionNotFound", _) => {
                        format!(
                            "{} has no revision {}",
                            repository.id,
                            repository.revision()
                        )
                    }
                    ("RepoNotFound", _) | (_, None) => format!("the Hub has no {name}"),
                    (_, Some(file)) => format!("{name} has no file {file}"),
                },
                page,
            },
            _ => strange(url, format!("status {status} {message}")),
        })
    }
}

/// Waits for `pause`, or for what the server asks, if that is longer, but not for hours.
pub(super) fn wait(
    pause: Duration,
    failed: &Failed,
    monitor: &dyn Monitor,
) -> Result<(), HubError> {
    const STEP: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(300);
    let mut left = pause.max(failed.pause.unwrap_or_default()).min(LONGEST);
    if left > SILENCE {
        tracing::info!(
            "the Hub asks to wait {} s: {}",
            left.as_secs(),
            failed.message
        );
    }
    while !left.is_zero() {
        if monitor.interrupted() {
            return Err(HubError::Stopped);
        }
        let step = left.min(STEP);
        std::thread::sleep(step);
        left -= step;
    }
    Ok(())
}

/// A header as text.
pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn strange(url: &str, problem: String) -> HubError {
    HubError::Strange {
        url: url.into(),
        problem,
    }
}

/// The commit and the files that the Hub tells of; names that lead out of a folder are no files.
fn listing(body: &[u8]) -> Result<Listing, String> {
    let told: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let commit = told["sha"].as_str().filter(|commit| is_commit(commit));
    let commit = commit.ok_or("no commit")?.to_string();
    let files = told["siblings"].as_array().ok_or("no list of files")?;
    let files = files.iter().filter_map(|file| {
        let name = file["rfilename"].as_str().and_then(inside)?;
        Some(name.to_string())
    });
    Ok(Listing {
        commit,
        files: files.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_of_the_folder_are_no_files() {
        let commit = "ab".repeat(20);
        let with = |commit: &str, file: &str| {
            let told = serde_json::json!({"sha": commit, "siblings": [{"rfilename": file}]});
            listing(told.to_string().as_bytes())
        };
        let found = with(&commit, "data/a.parquet").unwrap();
        assert_eq!(
            (found.commit.as_str(), found.names()),
            (commit.as_str(), vec!["data/a.parquet"])
        );
        for file in ["../a", "/a", "a//b", "a\\b", ""] {
            assert!(with(&commit, file).unwrap().names().is_empty(), "{file}");
        }
        assert!(with("../..", "a").is_err());
        assert!(listing(b"<html>").is_err());
    }
}
