//! The text of a prompt, for judges that read it.

use std::path::Path;

use sppo_model::chat_template::{ChatTemplate, NaiveDate, TemplateError, TemplateSource};

use super::JudgeError;
use crate::data::{Prompt, ResponseRow, stable_hash};

/// Renders prompts: a string stays as it is, messages go through a chat template with the header
/// of the answer behind them.
pub struct PromptText {
    template: Option<ChatTemplate>,
    fingerprint: Option<String>,
}

impl PromptText {
    /// With the chat template of a folder, where one is given.
    pub fn from_dir(folder: Option<&Path>) -> Result<Self, JudgeError> {
        Self::of(folder.map(|folder| (folder, TemplateSource::Folder)), None)
    }

    /// With the chat template of a folder, or one used in its stead, where a folder is given; it
    /// sees `date`, or today's.
    pub fn of(
        folder: Option<(&Path, TemplateSource<'_>)>,
        date: Option<NaiveDate>,
    ) -> Result<Self, JudgeError> {
        let Some((folder, source)) = folder else {
            return Ok(PromptText {
                template: None,
                fingerprint: None,
            });
        };
        let config = |problem: String| JudgeError::Config {
            key: "judge.chat_template".into(),
            problem,
        };
        let template = ChatTemplate::from_source(folder, source)
            .map_err(|error| config(error.to_string()))?
            .ok_or_else(|| {
                config(format!(
                    "{} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
                    folder.display()
                ))
            })?;
        let template = match date {
            Some(date) => template.with_date(date),
            None => template,
        };
        Ok(PromptText {
            fingerprint: Some(stable_hash(&template.identity())),
            template: Some(template),
        })
    }

    /// A hash of the template, for the judge's description.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// The date that the template sees, where it uses it.
    pub fn date(&self) -> Option<NaiveDate> {
        let template = self.template.as_ref().filter(|t| t.uses_date());
        template.map(ChatTemplate::date)
    }

    /// The text of a row's prompt.
    pub fn render(&self, row: &ResponseRow) -> Result<String, JudgeError> {
        match (&row.prompt, &self.template) {
            (Prompt::Text(text), _) => Ok(text.clone()),
            (Prompt::Messages(messages), Some(template)) => template
                .render_prompt(messages)
                .map_err(|error: TemplateError| JudgeError::row(row, error.to_string())),
            (Prompt::Messages(_), None) => Err(JudgeError::row(
                row,
                "its prompt is a list of messages; name a folder whose chat template renders it (--chat-template DIR, or judge.chat_template)",
            )),
        }
    }
}
