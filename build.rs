//! Tells the program which commit it is built from, as `SPPO_COMMIT`.

use std::path::Path;
use std::process::Command;

/// What the program is made of. Nothing else makes it be built again: a commit of other files leaves
/// these as they were.
const SOURCES: [&str; 5] = ["src", "model", "training", "Cargo.toml", "Cargo.lock"];

fn main() {
    println!("cargo:rerun-if-env-changed=SPPO_COMMIT");
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    // Where there is no checkout, whoever builds may say it.
    let given = std::env::var("SPPO_COMMIT").ok();
    if let Some(commit) = given.or_else(checked_out).or_else(packaged) {
        println!("cargo:rustc-env=SPPO_COMMIT={commit}");
    }
}

/// That of the checkout in this folder; with `-dirty` where the sources differ from it.
fn checked_out() -> Option<String> {
    let top = git(&["rev-parse", "--show-toplevel"])?;
    // Not that of somebody's repository around a package.
    if Path::new(&top).canonicalize().ok()? != std::env::current_dir().ok()?.canonicalize().ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = [&["status", "--porcelain", "--"], &SOURCES[..]].concat();
    match git(&status)?.is_empty() {
        true => Some(commit),
        false => Some(format!("{commit}-dirty")),
    }
}

/// That which `cargo package` noted.
fn packaged() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit = rest.split('"').nth(1)?;
    Some(commit.get(..12)?.into())
}

fn git(arguments: &[&str]) -> Option<String> {
    // Asked while others work in the checkout, it takes no lock.
    let mut git = Command::new("git");
    let output = git
        .arg("--no-optional-locks")
        .args(arguments)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().into())
}
