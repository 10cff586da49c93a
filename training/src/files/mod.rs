//! Files and folders that other programs rely on: hashed, replaced in one step, flushed.

mod error;
mod hash;
mod replace;

pub use error::FileError;
pub(crate) use error::path_is_at_fault;
pub use hash::{fingerprint, model_fingerprint, weights_fingerprint};
pub(crate) use replace::{OLD, PARTIAL, put_in_place};
pub use replace::{replace_file, replace_folder};
