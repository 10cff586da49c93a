//! Compiled kernels and autotune's choices, kept from run to run in a folder of the user's.
//!
//! CubeCL's key of a kernel holds its name and settings, but neither its text nor what it is compiled
//! for and with: the folder's name holds the program itself (a hash of its file), the architecture
//! and the compiler, and for autotune's choices the card. CubeCL locks its tables of contents, and
//! appends whole entries, so that processes of one machine may share a folder.

use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cubecl::config::CubeClRuntimeConfig;
use cubecl::config::cache::CacheConfig;
use sppo_training::cluster::launch::launcher;
use sppo_training::files::host;

/// The variable that names the folder; empty or `off`: nothing is kept.
pub const VARIABLE: &str = "SPPO_KERNEL_CACHE";

/// CubeCL gives up a lock of this age.
const LOCK: Duration = Duration::from_secs(30);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Kernels of a build that did not run for so long go.
const UNUSED: Duration = Duration::from_secs(30 * DAY.as_secs());

/// What kernels are compiled for, and what chooses among them, as names of folders.
pub struct For {
    pub target: String,
    pub card: String,
}

/// Lets CubeCL keep its kernels; removes those of builds that are out of use.
pub fn enable(config: &mut CubeClRuntimeConfig, what: &For) {
    let folder = root(&|name| std::env::var_os(name).map(PathBuf::from)).and_then(|root| {
        let folder = prepared(&root, what)
            .inspect_err(|error| {
                tracing::warn!(
                    "compiled kernels are not kept: {}: {error}; {VARIABLE} names another folder",
                    root.display()
                );
            })
            .ok()?;
        for old in remove_unused(&root, UNUSED) {
            tracing::info!(
                "kernels of a build that has not run for {} days are removed: {}",
                UNUSED.as_secs() / DAY.as_secs(),
                old.display()
            );
        }
        Some(folder)
    });
    // A file for a folder keeps nothing: CubeCL has no switch for autotune's choices.
    let choices = folder.as_ref().map(|folder| folder.join(clean(&what.card)));
    config.autotune.cache = CacheConfig::File(choices.unwrap_or_else(|| "/dev/null".into()));
    config.compilation.cache = folder.map(CacheConfig::File);
}

/// The folder of all kernels; none where nothing is to be kept.
fn root(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let given = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(path) = variable(VARIABLE) {
        let off = path.as_os_str().is_empty() || path == Path::new("off");
        return (!off).then_some(path);
    }
    let caches = given("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let caches = caches.or_else(|| Some(given("HOME")?.join(".cache")))?;
    let folder = caches.join("sppo/kernels");
    // Homes of a cluster are often one: appending is safe between processes of one machine.
    Some(match launcher() {
        Some(_) => folder.join(clean(&host())),
        None => folder,
    })
}

/// A folder that can be written, for this program and this target.
fn prepared(root: &Path, what: &For) -> io::Result<PathBuf> {
    let program = program(&std::env::current_exe()?)?;
    let version = env!("CARGO_PKG_VERSION");
    let folder = root.join(format!("{version}-{program:016x}/{}", clean(&what.target)));
    fs::create_dir_all(&folder)?;
    let trial = folder.join(format!("written-by-{}", std::process::id()));
    fs::write(&trial, "")?;
    fs::remove_file(&trial)?;
    remove_old_locks(&folder);
    std::path::absolute(folder)
}

/// Removes the folders of builds that did not run for so long, and gives them. Each run changes its
/// folder ([`prepared`]), so the folder's time is that of its last use.
fn remove_unused(root: &Path, unused: Duration) -> Vec<PathBuf> {
    let age = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|m| m.modified()).ok()?;
        // A time to come is of a clock that was set back.
        Some(
            SystemTime::now()
                .duration_since(modified)
                .unwrap_or_default(),
        )
    };
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let is_old = |build: &Path| {
        let targets = entries(build).filter_map(|entry| age(&entry.path()));
        targets
            .chain(age(build))
            .min()
            .is_some_and(|age| age > unused)
    };
    entries(root)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| entry.file_name().to_str().is_some_and(is_of_a_build))
        .map(|entry| entry.path())
        .filter(|build| is_old(build) && fs::remove_dir_all(build).is_ok())
        .collect()
}

/// Whether a name is VERSION-HASH, as [`prepared`] makes them; a user's folder may hold others.
fn is_of_a_build(name: &str) -> bool {
    let hash = name.rsplit_once('-').map_or("", |(_, hash)| hash);
    let digits = hash
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hash.len() == 16 && digits && name.starts_with(|c: char| c.is_ascii_digit())
}

/// A hash of a file's bytes.
fn program(path: &Path) -> io::Result<u64> {
    let (mut file, mut hasher) = (fs::File::open(path)?, DefaultHasher::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            bytes => hasher.write(&buffer[..bytes]),
        }
    }
}

/// Letters, digits and dots; the rest becomes `_`.
fn clean(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    name.chars()
        .map(|c| if allowed(c) { c } else { '_' })
        .collect()
}

/// Locks that a killed process left: CubeCL would wait for one that it cannot read, and then panic.
fn remove_old_locks(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let age = entry.metadata().and_then(|m| m.modified());
        let age = age.ok().and_then(|modified| modified.elapsed().ok());
        if path.is_dir() {
            remove_old_locks(&path);
        } else if path.extension().is_some_and(|e| e == "lock") && age.is_some_and(|a| a > LOCK) {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_of(variables: &[(&str, &str)]) -> Option<PathBuf> {
        root(&|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_folder_is_the_users() {
        let home = ("HOME", "/home/a");
        assert_eq!(root_of(&[home]), Some("/home/a/.cache/sppo/kernels".into()));
        let xdg = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(root_of(&[home, xdg]), Some("/caches/sppo/kernels".into()));
        assert_eq!(root_of(&[home, xdg, (VARIABLE, "/k")]), Some("/k".into()));
        for off in ["", "off"] {
            assert_eq!(root_of(&[home, (VARIABLE, off)]), None);
        }
        assert_eq!(root_of(&[]), None);
        // The specification has relative paths ignored.
        let relative = ("XDG_CACHE_HOME", "caches");
        assert_eq!(root_of(&[home, relative]), root_of(&[home]));
    }

    #[test]
    fn a_folder_for_each_program_and_target() {
        let folder = tempfile::tempdir().unwrap();
        let of = |target: &str| {
            let what = For {
                target: target.into(),
                card: String::new(),
            };
            prepared(folder.path(), &what)
        };
        let (a, b) = (of("sm_90/nvrtc 13.0").unwrap(), of("sm_80").unwrap());
        assert!(a.ends_with("sm_90_nvrtc_13.0") && a.is_dir(), "{a:?}");
        assert_eq!(a.parent(), b.parent());
        assert_eq!(fs::read_dir(&a).unwrap().count(), 0);
        let file = folder.path().join("file");
        fs::write(&file, "a").unwrap();
        assert!(
            prepared(
                &file,
                &For {
                    target: "a".into(),
                    card: String::new()
                }
            )
            .is_err()
        );
        let other = folder.path().join("b");
        fs::write(&other, "b").unwrap();
        assert_ne!(program(&file).unwrap(), program(&other).unwrap());
    }

    #[test]
    fn builds_out_of_use_go() {
        let root = tempfile::tempdir().unwrap();
        let long_ago = SystemTime::now() - 31 * DAY;
        let make = |name: &str, old: bool| {
            let target = root.path().join(name).join("sm_90");
            fs::create_dir_all(&target).unwrap();
            fs::write(target.join("kernels"), "").unwrap();
            let set = |path: &Path| {
                fs::File::open(path)
                    .unwrap()
                    .set_modified(long_ago)
                    .unwrap()
            };
            if old {
                set(&target);
            }
            set(target.parent().unwrap());
            target.parent().unwrap().to_owned()
        };
        let unused = make("0.1.0-0123456789abcdef", true);
        let kept = [
            make("0.1.0-1123456789abcdef", false),
            make("pictures-of-my-holidays", true),
            make("0.1.0-0123456789ABCDEF", true),
        ];
        assert_eq!(remove_unused(root.path(), UNUSED), [unused.clone()]);
        assert!(!unused.exists() && kept.iter().all(|path| path.join("sm_90/kernels").is_file()));
        assert!(remove_unused(&root.path().join("none"), UNUSED).is_empty());
    }

    #[test]
    fn only_old_locks_go() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("a.lock"), folder.path().join("b.lock"));
        let made = fs::File::create(&old).unwrap();
        made.set_modified(SystemTime::now() - 2 * LOCK).unwrap();
        fs::write(&new, "").unwrap();
        remove_old_locks(folder.path());
        assert_eq!((old.exists(), new.exists()), (false, true));
    }
}
