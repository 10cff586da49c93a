//! Files and folders that other programs rely on: hashed, marked, locked, replaced in one step,
//! flushed.

mod config;
mod error;
mod hash;
mod lock;
mod mark;
mod output;
mod replace;
mod seal;

pub(crate) use config::{RESOLVED_CONFIG, config_in_effect};
pub(crate) use error::path_is_at_fault;
pub use error::{Damage, Difference, FileError, Holder, OutputError};
pub use hash::{
    adapter_fingerprint, file_fingerprint, fingerprint, hex, model_fingerprint, weights_fingerprint,
};
pub use lock::{Lock, host};
pub use mark::{IN_FOLDER, Input, MadeFrom, Mark, mark_beside};
pub use mark::{read_mark, set_commit, write_mark};
pub use output::{Existing, Output};
pub(crate) use output::{is_same_file, is_there};
pub(crate) use replace::replace_file_soon;
pub(crate) use replace::{OLD, PARTIAL, begin_folder, create_aside, put_folder, put_in_place};
pub use replace::{replace_file, replace_folder};
pub use seal::{CARD, FileSeal, Seal};
