//! What goes wrong in judging.

use sppo_model::ops::DeviceError;

use crate::data::{DataError, ResponseRow};

/// What goes wrong in judging.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// A setting of the judge that makes no sense.
    #[error("{key}: {problem}")]
    Config {
        /// Key of the configuration, like `judge.model`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A row that this judge cannot judge.
    #[error("prompt_id `{prompt_id}`: {problem}")]
    Row {
        /// The row.
        prompt_id: String,
        /// Why it cannot be judged.
        problem: String,
    },
    /// A file of rows or scores.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A judge's model failed on its device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The threads that ask a server cannot work.
    #[error("the threads that ask the judge's server cannot work: {source}")]
    Workers {
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The judge itself failed: a model, a server.
    #[error("the {judge} judge failed on prompt_id `{prompt_id}`: {source}")]
    Failed {
        /// Kind of the judge, like `http`.
        judge: String,
        /// The row that it was judging.
        prompt_id: String,
        /// What went wrong in it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl JudgeError {
    pub(super) fn row(row: &ResponseRow, problem: impl Into<String>) -> Self {
        JudgeError::Row {
            prompt_id: row.prompt_id.clone(),
            problem: problem.into(),
        }
    }

    /// Whether the user's input is at fault rather than the judge at work.
    pub fn is_input(&self) -> bool {
        !matches!(
            self,
            JudgeError::Failed { .. } | JudgeError::Device(_) | JudgeError::Workers { .. }
        )
    }
}
