//! A model's folder as a stage uses it: with its chat template and the date that this one sees.

use std::path::Path;

use sppo_model::chat_template::{NaiveDate, TemplateSource, today};
use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use super::learning::with_model;
use crate::cluster::{self, lead};
use crate::files::{Lock, MadeFrom, Mark, OutputError, read_mark};

/// Setting of a mark that keeps the day on which its output was begun, or the one that was given.
const DATE: &str = "date";

/// Opens a folder. Its template sees `date`, else the day of the output with this mark, else today.
/// A date that changes nothing is said.
pub(super) fn open_folder(
    path: &Path,
    template: TemplateSource<'_>,
    date: Option<NaiveDate>,
    mark: &Path,
) -> Result<ModelFolder, StageError> {
    let folder = ModelFolder::open_with(path, template)?;
    let date = same_date(date.or_else(|| date_of(mark, DATE)))?;
    let Some(date) = date else {
        return Ok(folder);
    };
    let folder = folder.with_date(date);
    if date != today() && !folder.uses_date() {
        tracing::info!(
            "{}: the chat template does not use the date, so {date} changes nothing",
            path.display()
        );
    }
    Ok(folder)
}

/// The day that rank 0 knows of, where there are several: their midnights differ, and what lies on
/// disk may have changed before the last of them looked.
pub fn same_date(date: Option<NaiveDate>) -> Result<Option<NaiveDate>, StageError> {
    let world = cluster::world();
    if world.size() == 1 {
        return Ok(date);
    }
    let own = date.unwrap_or_else(today);
    let date = lead(world, || Ok::<_, StageError>(own.to_string()))?;
    Ok(date.parse().ok())
}

/// The day that a mark keeps under the name of a setting.
pub fn date_of(mark: &Path, setting: &str) -> Option<NaiveDate> {
    // A mark that cannot be read is said where the output is claimed.
    let mark: Mark = read_mark(mark).ok()??;
    mark.made_from
        .settings
        .get(setting)?
        .trim_matches('"')
        .parse()
        .ok()
}

/// Adds a model, its chat template, and the date where the template uses it.
pub(super) fn with_folder(
    made_from: MadeFrom,
    folder: &ModelFolder,
    template: TemplateSource<'_>,
) -> Result<MadeFrom, StageError> {
    let made_from = with_model(made_from, folder.path(), template)?;
    Ok(match folder.uses_date() {
        true => made_from.setting(DATE, folder.date()),
        false => made_from,
    })
}

/// Locks a folder that many files are written into, as [`Lock::inside`] does: among several ranks,
/// rank 0 for all.
pub fn lock_folder(dir: &Path) -> Result<Option<Lock>, OutputError> {
    let mut lock = None;
    lead(cluster::world(), || {
        lock = Some(Lock::inside(dir)?);
        Ok::<_, OutputError>(())
    })?;
    Ok(lock)
}
