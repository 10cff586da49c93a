//! What to do with a folder whose files are in a format that is not read here.

use std::path::{Path, PathBuf};

/// A hint behind an error's text, where there is one.
pub(crate) fn and(hint: &Option<String>) -> String {
    let text = hint.as_ref().map(|hint| format!("; {hint}"));
    text.unwrap_or_default()
}

/// Says which other weights a folder holds, and how they become safetensors.
pub(crate) fn other_weights(dir: &Path) -> Option<String> {
    let names = names(dir);
    let find = |fits: &dyn Fn(&str) -> bool| names.iter().find(|name| fits(name));
    let converted = converted(dir);
    let dir = quoted(dir);
    if let Some(name) = find(&|n| n.ends_with(".gguf")) {
        return Some(format!(
            "{name} is a GGUF file, which is not read; take the model in the Hugging Face format it was made from, or convert it: python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; f='{name}'; M.from_pretrained({dir}, gguf_file=f).save_pretrained({converted}); T.from_pretrained({dir}, gguf_file=f).save_pretrained({converted})\""
        ));
    }
    if let Some(name) = find(&|n| n.starts_with("consolidated.")) {
        return Some(format!(
            "{name} is in Meta's own format, which is not read; download the model in the Hugging Face format, or convert it: python -m transformers.models.llama.convert_llama_weights_to_hf --input_dir {dir} --output_dir {converted}"
        ));
    }
    if let Some(name) = find(&|n| is_torch(n)) {
        return Some(format!(
            "{name} is PyTorch's format, which is not read; convert it: {}",
            save_again(&dir, &converted)
        ));
    }
    let own = ["model.safetensors", "model.safetensors.index.json"];
    if let Some(name) = find(&|n| own.contains(&n)) {
        return Some(format!(
            "{name} is a link to a file that is not there; download it again"
        ));
    }
    if let Some(name) = find(&|n| n.contains("-of-") && n.ends_with(".safetensors")) {
        return Some(format!(
            "{name} is one of several parts, and model.safetensors.index.json, which lists them, is missing; download that file too"
        ));
    }
    if let Some(name) = find(&|n| n.ends_with(".safetensors") && n != "adapter_model.safetensors") {
        return Some(format!(
            "{name} is there; if these are the weights, rename it to model.safetensors"
        ));
    }
    None
}

/// Says how a folder without tokenizer.json gets one, where it holds another tokenizer.
pub(crate) fn other_tokenizer(dir: &Path) -> Option<String> {
    let names = names(dir);
    let known = |name: &&String| {
        name.ends_with(".model") || matches!(name.as_str(), "vocab.json" | "tiktoken.model")
    };
    let name = names.iter().find(known)?;
    let dir = quoted(dir);
    Some(format!(
        "{name} is there, which is not read; make tokenizer.json of it: python -c \"from transformers import AutoTokenizer as T; T.from_pretrained({dir}, use_fast=True).save_pretrained({dir})\""
    ))
}

/// Says how a file that should hold data and is a Git LFS pointer or a stump of a download gets
/// its content; `begin` is how it begins.
pub(crate) fn not_downloaded(begin: &[u8]) -> Option<&'static str> {
    begin
        .starts_with(b"version https://git-lfs")
        .then_some("it is a Git LFS pointer, not the file itself; fetch it: git lfs pull")
}

/// The command that has transformers write a model anew as safetensors.
fn save_again(dir: &str, converted: &str) -> String {
    format!(
        "python -c \"from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; M.from_pretrained({dir}, dtype='auto').save_pretrained({converted}); T.from_pretrained({dir}).save_pretrained({converted})\""
    )
}

fn is_torch(name: &str) -> bool {
    let weights = name.starts_with("pytorch_model") || name.starts_with("model");
    let other = [".pt", ".pth", ".ckpt"]
        .iter()
        .any(|end| name.ends_with(end));
    other || weights && (name.ends_with(".bin") || name.ends_with(".bin.index.json"))
}

/// Names of a folder's files, sorted.
fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// A folder beside `dir` for the converted model.
fn converted(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let beside: PathBuf = dir.with_file_name(format!("{name}-safetensors"));
    quoted(&beside)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}
