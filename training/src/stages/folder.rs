//! A model's folder as a stage uses it: with its chat template and the date that this one sees.

use std::path::Path;

use sppo_model::chat_template::{NaiveDate, TemplateSource, today};
use sppo_model::model_folder::ModelFolder;

use super::error::StageError;
use super::learning::with_model;
use crate::files::{MadeFrom, Mark, read_mark};

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
    let Some(date) = date.or_else(|| date_of(mark, DATE)) else {
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
