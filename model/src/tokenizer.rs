use std::path::*;
pub fn files_to_carry(_: &Path) -> Vec<PathBuf> {
    vec![]
}
