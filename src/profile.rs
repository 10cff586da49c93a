//! `SPPO_PROFILE`: what a command's time is to be divided by.

use std::ffi::OsStr;

use crate::errors::user;

/// The variable; `kernels` times each kernel of a GPU.
pub const VARIABLE: &str = "SPPO_PROFILE";

/// Whether kernels are to be timed; a `UserError` where the variable says something else.
pub fn wanted() -> anyhow::Result<bool> {
    read(std::env::var_os(VARIABLE).as_deref())
}

fn read(value: Option<&OsStr>) -> anyhow::Result<bool> {
    match value.map(|value| value.to_string_lossy()) {
        None => Ok(false),
        Some(text) if text.is_empty() => Ok(false),
        Some(text) if text == "kernels" => Ok(true),
        Some(text) => Err(user(format!(
            "{VARIABLE}={text:?} is unknown; {VARIABLE}=kernels times a GPU's kernels"
        ))),
    }
}

/// Refuses the variable on a CPU.
#[cfg(any(feature = "flex", feature = "ndarray"))]
pub fn refuse() -> anyhow::Result<()> {
    match wanted()? {
        true => Err(user(format!(
            "{VARIABLE}=kernels times a GPU's kernels, and a CPU has none; unset it, or use --device \
             cuda or --device wgpu"
        ))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernels_are_known() {
        let of = |text: &str| read(Some(OsStr::new(text)));
        assert!(!read(None).unwrap() && !of("").unwrap() && of("kernels").unwrap());
        let error = of("Kernels").unwrap_err();
        assert_eq!(crate::errors::exit_code(&error), 2);
        assert!(
            error
                .to_string()
                .starts_with("SPPO_PROFILE=\"Kernels\" is unknown; SPPO_PROFILE=kernels ")
        );
    }
}
