use std::path::{Path, PathBuf};
