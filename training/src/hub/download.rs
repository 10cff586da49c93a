//! Models and rows into the cache, where they are not there.

use std::path::{Path, PathBuf};

use super::cache::Cache;
use super::client::{Client, FileFacts, Listing, Place};
use super::error::HubError;
use super::model::{INDEX, Part, has_weights, is_whole, needed, shards};
use super::name::{CONVERTED, Inside, Repository, inside, is_commit};
use super::rows::{Found, are_counted, find, in_cache, row_files_of, some, whole_mark};
use super::settings::Settings;
use super::transfer::Transfer;
use crate::files::replace_file;
use crate::monitor::Monitor;

const MIB: u64 = 1 << 20;

/// Whether what is in the cache is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// It is: the same command means the same model tomorrow.
    Cached,
    /// The Hub is asked whether it has a newer one.
    Newest,
}

/// The Hub and its cache.
pub struct Hub {
    client: Client,
    cache: Cache,
    offline: bool,
}

impl Hub {
    /// As the environment says.
    pub fn from_env() -> Result<Self, HubError> {
        Ok(Self::new(Settings::from_env()?))
    }

    /// With these settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            cache: Cache::new(&settings.cache),
            offline: settings.offline,
            client: Client::new(settings),
        }
    }

    /// Pauses between attempts begin with this.
    #[cfg(test)]
    pub(super) fn with_pause(mut self, pause: std::time::Duration) -> Self {
        self.client.pause = pause;
        self
    }

    /// The folder of a model, downloaded as far as `part` needs it.
    pub fn model(
        &self,
        repository: &Repository,
        part: Part,
        fresh: Fresh,
        monitor: &dyn Monitor,
    ) -> Result<PathBuf, HubError> {
        let cached = self.cache.snapshot(repository);
        let cached = cached.filter(|snapshot| is_whole(snapshot, part));
        let name = repository.to_string();
        if let Some(snapshot) = self.enough(cached, repository, &name, fresh)? {
            return Ok(snapshot);
        }
        let listing = self.client.list(repository, monitor)?;
        let names = listing.names();
        let mut files: Vec<String> = needed(&names, part).into_iter().map(String::from).collect();
        let chosen: Vec<&str> = files.iter().map(String::as_str).collect();
        if part == Part::Whole && !has_weights(&chosen) {
            return Err(HubError::NoWeights {
                name,
                found: some(names.into_iter()),
            });
        }
        if files.iter().any(|file| file == INDEX) {
            // What else there is to fetch stands in it.
            let index = [INDEX.to_string()];
            let folder = self.fetch(repository, &listing, &index, monitor)?;
            files.retain(|file| file != INDEX);
            files.splice(0..0, self.shards(repository, &folder.join(INDEX))?);
        }
        let folder = self.fetch(repository, &listing, &files, monitor)?;
        self.refer(repository, &listing)?;
        Ok(folder)
    }

    /// The files that an index in the cache names.
    fn shards(&self, repository: &Repository, index: &Path) -> Result<Vec<String>, HubError> {
        let bytes = std::fs::read(index).map_err(crate::files::FileError::new("read", index))?;
        let names = shards(&bytes).and_then(|names| {
            let within = names.iter().all(|name| inside(name).is_some());
            within
                .then_some(names)
                .ok_or("it leads out of its folder".into())
        });
        names.map_err(|problem| HubError::Damaged {
            name: repository.to_string(),
            file: INDEX.into(),
            problem,
        })
    }

    /// The files of `hf://datasets/org/name[@revision]/path-or-split`, downloaded.
    pub fn rows(
        &self,
        inside: &Inside,
        fresh: Fresh,
        monitor: &dyn Monitor,
    ) -> Result<Vec<PathBuf>, HubError> {
        let cached = in_cache(&self.cache, inside);
        let name = inside.to_string();
        if let Some(files) = self.enough(cached, &inside.repository, &name, fresh)? {
            return Ok(files);
        }
        let (repository, listing, files) = self.find_rows(inside, monitor)?;
        let folder = self.fetch(&repository, &listing, &files, monitor)?;
        let whole = whole_mark(&self.cache, &repository, &listing.commit, &inside.path);
        if !are_counted(&files, &inside.path) && !whole.is_file() {
            replace_file(&whole, b"")?;
        }
        self.refer(&repository, &listing)?;
        Ok(files.iter().map(|file| folder.join(file)).collect())
    }

    /// In the data set itself, else in the Hub's conversion of it to Parquet.
    fn find_rows(
        &self,
        inside: &Inside,
        monitor: &dyn Monitor,
    ) -> Result<(Repository, Listing, Vec<String>), HubError> {
        let own = &inside.repository;
        let listing = self.client.list(own, monitor)?;
        if let Found::Files(files) = find(&listing.names(), inside)? {
            return Ok((own.clone(), listing, files));
        }
        let mut found = row_files_of(&listing.names());
        if own.revision.is_none() {
            let converted = own.at(CONVERTED);
            match self.client.list(&converted, monitor) {
                Ok(listing) => match find(&listing.names(), inside)? {
                    Found::Files(files) => return Ok((converted, listing, files)),
                    Found::Beginning(split) => {
                        found +=
                            &format!("; the Hub converted only its beginning to Parquet ({split})");
                    }
                    Found::Nothing => {
                        found +=
                            &format!("; converted by the Hub: {}", row_files_of(&listing.names()));
                    }
                },
                Err(HubError::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(HubError::NoRows {
            name: inside.to_string(),
            found,
        })
    }

    /// What is in the cache, where that is enough, or where nothing else may be had.
    fn enough<T>(
        &self,
        cached: Option<T>,
        repository: &Repository,
        name: &str,
        fresh: Fresh,
    ) -> Result<Option<T>, HubError> {
        let fixed = repository.revision.as_deref().is_some_and(is_commit);
        match cached {
            Some(cached) if self.offline || fixed || fresh == Fresh::Cached => Ok(Some(cached)),
            None if self.offline => Err(HubError::Offline {
                name: name.into(),
                argument: name.into(),
                place: self.cache.repository(repository),
            }),
            _ => Ok(None),
        }
    }

    /// Brings the files into the snapshot of the listing's commit, in their order; gives its folder.
    fn fetch(
        &self,
        repository: &Repository,
        listing: &Listing,
        files: &[String],
        monitor: &dyn Monitor,
    ) -> Result<PathBuf, HubError> {
        let folder = self.cache.repository(repository);
        let snapshot = folder.join("snapshots").join(&listing.commit);
        let place = |file| Place {
            repository,
            commit: &listing.commit,
            file,
        };
        // What is refused is refused before the first of many gigabytes.
        let mut missing: Vec<(&str, FileFacts)> = Vec::new();
        for file in files.iter().filter(|file| !snapshot.join(file).is_file()) {
            missing.push((file, self.client.facts(place(file), monitor)?));
        }
        if missing.is_empty() {
            return Ok(snapshot);
        }
        let bytes: u64 = missing.iter().map(|(_, facts)| facts.size).sum();
        let label = format!("downloading {repository}");
        monitor.begin(&label, "MiB", 0, bytes.div_ceil(MIB) as usize);
        let mut transfer = Transfer {
            client: &self.client,
            cache: &self.cache,
            monitor,
            rest: 0,
        };
        let mut all = missing.iter();
        let done = all.try_for_each(|(file, facts)| transfer.file(place(file), facts));
        if done.is_ok() {
            // Up to the whole that was announced.
            transfer.count(bytes.next_multiple_of(MIB) - bytes);
        }
        monitor.end();
        done.map(|()| snapshot)
    }

    /// Lets the revision mean the listing's commit from now on.
    fn refer(&self, repository: &Repository, listing: &Listing) -> Result<(), HubError> {
        let revision = repository.revision();
        if is_commit(revision) {
            return Ok(());
        }
        let folder = self.cache.repository(repository);
        let reference = folder.join("refs").join(revision);
        let before = std::fs::read_to_string(&reference).unwrap_or_default();
        // Another process may be writing the same.
        if before.trim() == listing.commit {
            return Ok(());
        }
        Ok(replace_file(&reference, listing.commit.as_bytes())?)
    }
}
