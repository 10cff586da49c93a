//! Which cards are ours to replace: those that say so and were not edited.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::files::{CARD, FileError, fingerprint, replace_file};

const BEGIN: &str = "<!-- sppo card ";
const END: &str =
    ": this file is made anew with the model and by `sppo card`, unless it is edited -->\n";

/// What became of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was written.
    New,
    /// Somebody edited the one that is there, which stays.
    Kept,
}

/// The text with the line by which it is known again.
pub(super) fn marked(text: &str) -> String {
    format!("{text}\n{BEGIN}{}{END}", key(text))
}

/// Whether this program wrote a card and nobody edited it.
fn is_ours(card: &str) -> bool {
    let Some((text, line)) = card.rsplit_once(BEGIN) else {
        return false;
    };
    let key_of_text = text.strip_suffix('\n').map(key);
    line.strip_suffix(END) == key_of_text.as_deref() && key_of_text.is_some()
}

fn key(text: &str) -> String {
    fingerprint([("card", text.as_bytes())])[..16].into()
}

/// Writes the card of `dir`; one that was edited stays, unless `overwrite` says otherwise.
pub(super) fn put(dir: &Path, text: &str, overwrite: bool) -> Result<Written, FileError> {
    let path = dir.join(CARD);
    match read(&path)? {
        Some(card) if !is_ours(&card) && !overwrite => Ok(Written::Kept),
        before => {
            let new = marked(text);
            if before.as_ref() != Some(&new) {
                replace_file(&path, new.as_bytes())?;
            }
            Ok(Written::New)
        }
    }
}

/// Writes the card of the folder `dir` that takes the place of `target`, whose card goes along where
/// it was edited.
pub(super) fn put_in_new(dir: &Path, target: &Path, text: &str) -> Result<Written, FileError> {
    let before = read(&target.join(CARD))?;
    match before.filter(|card| !is_ours(card)) {
        Some(edited) => {
            let path = dir.join(CARD);
            fs::write(&path, edited).map_err(FileError::new("write", &path))?;
            Ok(Written::Kept)
        }
        None => put(dir, text, true),
    }
}

fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edited_card_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, path) = (dir.path(), dir.path().join(CARD));
        assert_eq!(put(dir, "one\n", false).unwrap(), Written::New);
        assert_eq!(put(dir, "two\n", false).unwrap(), Written::New);
        let ours = fs::read_to_string(&path).unwrap();
        assert!(ours.starts_with("two\n"), "{ours}");
        let without_line = "two\n".to_string();
        let edited = ours.replacen("two", "mine", 1);
        let behind = format!("{ours}\nMore.\n");
        for text in [without_line, edited, behind, String::new()] {
            fs::write(&path, &text).unwrap();
            assert_eq!(put(dir, "three\n", false).unwrap(), Written::Kept, "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let new = tempfile::tempdir().unwrap();
            assert_eq!(
                put_in_new(new.path(), dir, "four\n").unwrap(),
                Written::Kept
            );
            assert_eq!(fs::read_to_string(new.path().join(CARD)).unwrap(), text);
        }
        assert_eq!(put(dir, "three\n", true).unwrap(), Written::New);
        assert!(is_ours(&fs::read_to_string(&path).unwrap()));
        let new = tempfile::tempdir().unwrap();
        assert_eq!(put_in_new(new.path(), dir, "four\n").unwrap(), Written::New);
    }
}
