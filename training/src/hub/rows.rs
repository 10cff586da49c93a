//! Rows of a data set on the Hub: which of its files a name means.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cache::{Cache, files_of};
use super::error::HubError;
use super::name::{CONVERTED, Inside, Repository};

/// Formats of row files, the one that is taken first.
const FORMATS: [&str; 3] = [".parquet", ".jsonl", ".json"];

/// The files in the cache that hold the rows of `hf://datasets/org/name[@revision]/path-or-split`,
/// in their order; none where the path names a file of this machine.
pub fn row_files(path: &Path) -> Result<Option<Vec<PathBuf>>, HubError> {
    let Some(inside) = Inside::of(path) else {
        return Ok(None);
    };
    let inside = inside?;
    let cache = Cache::from_env()?;
    match in_cache(&cache, &inside) {
        Some(files) => Ok(Some(files)),
        None => Err(HubError::NotHere {
            place: cache.repository(&inside.repository),
            name: inside.to_string(),
        }),
    }
}

/// Whether rows can be read: of a file, or of the Hub's cache.
pub fn are_here(path: &Path) -> bool {
    match row_files(path) {
        Ok(None) => path.exists(),
        Ok(Some(_)) => true,
        Err(_) => false,
    }
}

/// Where the cache has them, all of them.
pub(super) fn in_cache(cache: &Cache, inside: &Inside) -> Option<Vec<PathBuf>> {
    let given = &inside.repository;
    let converted = given.revision.is_none().then(|| given.at(CONVERTED));
    let mut places = [Some(given.clone()), converted].into_iter().flatten();
    places.find_map(|repository| {
        let snapshot = cache.snapshot(&repository)?;
        let files = files_of(&snapshot);
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        let Ok(Found::Files(files)) = find(&names, inside) else {
            return None;
        };
        let commit = snapshot.file_name()?.to_str()?;
        let whole = whole_mark(cache, &repository, commit, &inside.path);
        if !are_counted(&files, &inside.path) && !whole.is_file() {
            return None;
        }
        Some(files.into_iter().map(|name| snapshot.join(name)).collect())
    })
}

/// Whether the files that `path` means say themselves that they are all: the file of that name, one
/// named like the split, or parts with their number.
pub(super) fn are_counted(files: &[String], path: &str) -> bool {
    let split = path.rsplit('/').next().unwrap_or(path);
    let is_single = |file: &String| {
        let name = file.rsplit('/').next().unwrap_or(file);
        file == path || name.split('.').next() == Some(split)
    };
    match files {
        [file] if is_single(file) => true,
        files => files.iter().all(|file| file.contains("-of-")),
    }
}

/// Lies in the cache where all files of a split were there whose names do not count them: a download
/// that stopped, or another program, may have left a part of them.
pub(super) fn whole_mark(
    cache: &Cache,
    repository: &Repository,
    commit: &str,
    path: &str,
) -> PathBuf {
    let folder = cache.repository(repository).join(".sppo-whole");
    folder.join(commit).join(path.replace('/', "%2F"))
}

/// What a name means among files.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// These, in their order.
    Files(Vec<String>),
    /// The Hub converted the beginning only.
    Beginning(String),
    /// Nothing.
    Nothing,
}

/// The files of a data set that a name means: the file of that path, else those of the split.
pub(super) fn find(files: &[&str], inside: &Inside) -> Result<Found, HubError> {
    let path = inside.path.as_str();
    if files.contains(&path) {
        return Ok(Found::Files(vec![path.into()]));
    }
    let (config, split) = match path.rsplit_once('/') {
        Some((config, split)) => (Some(config), split),
        None => (None, path),
    };
    // By folder, and within it by format.
    let mut sets: BTreeMap<&str, BTreeMap<usize, Vec<Shard<'_>>>> = BTreeMap::new();
    for file in files {
        if let Some(shard) = Shard::of(file, split)
            && config.is_none_or(|config| shard.folder == config)
        {
            let formats = sets.entry(shard.folder).or_default();
            formats.entry(shard.format).or_default().push(shard);
        }
    }
    if sets.len() > 1 {
        let names = sets.keys().map(|folder| match *folder {
            "" => split.to_string(),
            folder => format!("{folder}/{split}"),
        });
        return Err(HubError::Ambiguous {
            name: inside.to_string(),
            found: names.collect::<Vec<_>>().join(", "),
        });
    }
    let Some((_, mut shards)) = sets.into_values().next().and_then(|mut f| f.pop_first()) else {
        let partial = format!("partial-{split}");
        let begins = files.iter().any(|file| Shard::of(file, &partial).is_some());
        return Ok(match begins {
            true => Found::Beginning(partial),
            false => Found::Nothing,
        });
    };
    shards.sort_by_key(|shard| (shard.number, shard.file));
    let of = shards.iter().filter_map(|shard| shard.of).max();
    match of {
        Some(of) if of != shards.len() => Err(HubError::PartsMissing {
            name: inside.to_string(),
            found: shards.len(),
            of,
        }),
        _ => Ok(Found::Files(
            shards.iter().map(|shard| shard.file.to_string()).collect(),
        )),
    }
}

/// A file of a split: `train.parquet`, `data/train-00000-of-00002.parquet` with or without a hash
/// behind it, or `default/train/0000.parquet`.
#[derive(Debug)]
struct Shard<'f> {
    file: &'f str,
    /// Where the split lies.
    folder: &'f str,
    /// Its place in [`FORMATS`].
    format: usize,
    number: Option<usize>,
    /// How many there are.
    of: Option<usize>,
}

impl<'f> Shard<'f> {
    fn of(file: &'f str, split: &str) -> Option<Self> {
        let format = FORMATS.iter().position(|end| file.ends_with(end))?;
        let stem = &file[..file.len() - FORMATS[format].len()];
        let (folder, name) = stem.rsplit_once('/').unwrap_or(("", stem));
        let shard = |folder, number, of| Self {
            file,
            folder,
            format,
            number,
            of,
        };
        let parent = folder.rsplit_once('/').unwrap_or(("", folder));
        if parent.1 == split {
            return Some(shard(parent.0, name.parse().ok(), None));
        }
        let rest = name.strip_prefix(split)?;
        if rest.is_empty() {
            return Some(shard(folder, None, None));
        }
        let (number, rest) = rest.strip_prefix('-')?.split_once("-of-")?;
        let of = rest.split_once('-').map_or(rest, |(of, _hash)| of);
        Some(shard(
            folder,
            Some(number.parse().ok()?),
            Some(of.parse().ok()?),
        ))
    }
}

/// The row files among a repository's, for messages.
pub(super) fn row_files_of(files: &[&str]) -> String {
    let rows = files
        .iter()
        .filter(|file| FORMATS.iter().any(|end| file.ends_with(end)));
    some(rows.copied())
}

/// The first of some names.
pub(super) fn some<'f>(names: impl Iterator<Item = &'f str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.len() {
        0 => "none".into(),
        1..=8 => names.join(", "),
        count => format!("{} and {} more", names[..8].join(", "), count - 8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(path: &str) -> Inside {
        let name = format!("hf://datasets/org/name/{path}");
        Inside::of(Path::new(&name)).unwrap().unwrap()
    }

    fn found(files: &[&str], path: &str) -> Vec<String> {
        match find(files, &inside(path)) {
            Ok(Found::Files(files)) => files,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn files_and_splits() {
        let old = [
            "README.md",
            "data/test-00000-of-00001-abc.parquet",
            "data/train-00001-of-00002-0123.parquet",
            "data/train-00000-of-00002-4567.parquet",
            "data/train_prefs-00000-of-00001.parquet",
        ];
        assert_eq!(found(&old, "train"), [old[3], old[2]]);
        assert_eq!(found(&old, "data/train"), [old[3], old[2]]);
        assert_eq!(found(&old, "train_prefs"), [old[4]]);
        assert_eq!(found(&old, old[1]), [old[1]]);
        assert_eq!(
            found(&["train.jsonl", "train.parquet"], "train"),
            ["train.parquet"]
        );
        let converted = ["default/train/0000.parquet", "default/train/0001.parquet"];
        assert_eq!(found(&converted, "train"), converted);
        assert_eq!(found(&converted, "default/train"), converted);
        assert_eq!(find(&old, &inside("validation")).unwrap(), Found::Nothing);
        let beginning = find(&["default/partial-train/0000.parquet"], &inside("train"));
        assert_eq!(beginning.unwrap(), Found::Beginning("partial-train".into()));
    }

    #[test]
    fn some_names_count_themselves() {
        for (files, path, counted) in [
            (vec!["data/a.parquet"], "data/a.parquet", true),
            (vec!["x/train.jsonl"], "train", true),
            (vec!["train-00000-of-00001.parquet"], "train", true),
            (vec!["default/train/0000.parquet"], "train", false),
            (vec!["train/a.jsonl", "train/b.jsonl"], "train", false),
        ] {
            let files: Vec<String> = files.into_iter().map(String::from).collect();
            assert_eq!(are_counted(&files, path), counted, "{files:?}");
        }
    }

    #[test]
    fn what_is_not_whole_or_not_clear_is_refused() {
        let message = |files: &[&str], path: &str| {
            let error = find(files, &inside(path)).unwrap_err();
            assert!(error.is_input());
            error.to_string()
        };
        let missing = message(&["data/train-00001-of-00003.parquet"], "train");
        assert!(missing.contains("1 of 3 parts"), "{missing}");
        let by_day = ["train/20240101.parquet", "train/20240103.parquet"];
        assert_eq!(found(&by_day, "train"), by_day);
        let two = ["a/train.parquet", "b/train.parquet"];
        let ambiguous = message(&two, "train");
        assert!(ambiguous.contains("a/train, b/train"), "{ambiguous}");
        assert_eq!(found(&two, "b/train"), ["b/train.parquet"]);
    }
}
