//! The trainer's state on disk: written aside, flushed, renamed; found again by its key.
//!
//! `<output_dir>/checkpoints/step-N/` is a Hugging Face folder, or a PEFT one where adapters are
//! trained; `trainer/` in it holds f32 masters, optimizer state and the position.
//! `<output_dir>/model/` is the trained model, or the adapters.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sppo_model::checkpoint::{Checkpoint, LazyTensor, write_file};
use sppo_model::ops::TrainingOps;

use super::{Adapters, ModelFiles, TrainError, TrainSettings};
use crate::config::model_name;
use crate::learner::{Learner, ParamState};

/// What a checkpoint says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Hash of all that the result depends on.
    pub key: String,
    /// Steps behind it, skipped ones too.
    pub step: usize,
    /// Optimizer updates behind it.
    pub updates: usize,
    /// Of adapters, the weights of their base ([`weights_fingerprint`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

/// Files beside weights and templates that determine what a model folder answers.
const FINGERPRINTED: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];
const STATE: &str = "trainer/state.json";
const OPTIMIZER: &str = "trainer/optimizer.safetensors";
const PROVENANCE: &str = "sppo.json";

/// SHA-256 over labelled parts, in hex.
pub fn fingerprint<'a>(parts: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (label, bytes) in parts {
        for part in [label.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of the files of a model folder that determine what it computes.
pub fn model_fingerprint(dir: &Path) -> Result<String, TrainError> {
    files_fingerprint(dir, |name| {
        is_weights(name) || name.ends_with(".jinja") || FINGERPRINTED.contains(&name)
    })
}

/// SHA-256 of a model folder's weights alone.
pub fn weights_fingerprint(dir: &Path) -> Result<String, TrainError> {
    files_fingerprint(dir, is_weights)
}

fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
}

fn files_fingerprint(dir: &Path, counts: impl Fn(&str) -> bool) -> Result<String, TrainError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(io("read", dir))? {
        let path = entry.map_err(io("read", dir))?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if path.is_file() && counts(name) {
            files.push(path);
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        let mut file = File::open(&path).map_err(io("read", &path))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = file.read(&mut buffer).map_err(io("read", &path))?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
        }
    }
    Ok(hex(&hash.finalize()))
}

/// The fingerprint of the weights that the adapters in `dir` were trained on, where this program
/// wrote them.
pub fn base_of_adapters(dir: &Path) -> Option<String> {
    let saved = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).ok()?;
        serde_json::from_str::<Saved>(&text).ok()?.base
    };
    saved(PROVENANCE).or_else(|| saved(STATE))
}

/// The newest whole checkpoint of this key.
pub fn latest_checkpoint(output_dir: &Path, key: &str) -> Option<(PathBuf, Saved)> {
    let mut found: Vec<(PathBuf, Saved)> = step_folders(output_dir)
        .into_iter()
        .filter_map(|dir| {
            let text = fs::read_to_string(dir.join(STATE)).ok()?;
            let saved: Saved = serde_json::from_str(&text).ok()?;
            (saved.key == key).then_some((dir, saved))
        })
        .collect();
    found.sort_by_key(|(_, saved)| saved.step);
    found.pop()
}

/// The trained model of this key, where it is whole.
pub fn finished_model(output_dir: &Path, key: &str) -> Option<PathBuf> {
    let dir = output_dir.join("model");
    let text = fs::read_to_string(dir.join(PROVENANCE)).ok()?;
    let saved: Saved = serde_json::from_str(&text).ok()?;
    (saved.key == key).then_some(dir)
}

/// Removes checkpoints of other inputs, which would be pruned among this training's own, with a
/// warning; the trained model stays until the new one replaces it.
pub fn clear_other_work(output_dir: &Path, key: &str) -> Result<(), TrainError> {
    let is_other = |mark: &Path| {
        let saved: Option<Saved> = fs::read_to_string(mark)
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok());
        saved.is_none_or(|saved| saved.key != key)
    };
    let folders: Vec<PathBuf> = step_folders(output_dir)
        .into_iter()
        .filter(|dir| is_other(&dir.join(STATE)))
        .collect();
    let model = output_dir.join("model").join(PROVENANCE);
    if !folders.is_empty() || (model.is_file() && is_other(&model)) {
        tracing::warn!(
            "{} holds a training of other rows, settings or weights; this one starts anew and replaces it",
            output_dir.display()
        );
    }
    for dir in &folders {
        fs::remove_dir_all(dir).map_err(io("remove", dir))?;
    }
    Ok(())
}

fn step_folders(output_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(output_dir.join("checkpoints")) else {
        return Vec::new();
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str());
            name.is_some_and(|n| n.starts_with("step-"))
        })
        .collect();
    folders.sort();
    folders
}

/// An update can overflow where loss and gradient were finite; such weights are never saved.
pub(super) fn refuse_broken<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    step: usize,
) -> Result<(), TrainError> {
    match learner.is_finite()? {
        true => Ok(()),
        false => Err(TrainError::Broken {
            step,
            advice: settings.advice,
        }),
    }
}

/// Writes a checkpoint behind `step` steps; older ones go only once it is whole.
pub(super) fn save<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
) -> Result<(), TrainError> {
    refuse_broken(learner, settings, step)?;
    let parent = settings.output_dir.join("checkpoints");
    let target = parent.join(format!("step-{step:08}"));
    write_aside(&target, |dir| {
        write_model(learner, settings, files, dir)?;
        let trainer = dir.join("trainer");
        fs::create_dir(&trainer).map_err(io("make", &trainer))?;
        write_optimizer(learner, &dir.join(OPTIMIZER))?;
        write_saved(&dir.join(STATE), learner, settings, files, step)
    })?;
    let keep = settings.keep_checkpoints.max(1);
    let folders = step_folders(&settings.output_dir);
    for old in folders.iter().rev().skip(keep) {
        fs::remove_dir_all(old).map_err(io("remove", old))?;
    }
    Ok(())
}

/// Writes the trained model and gives its folder.
pub(super) fn save_final<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    steps: usize,
) -> Result<PathBuf, TrainError> {
    refuse_broken(learner, settings, steps)?;
    let target = settings.output_dir.join("model");
    write_aside(&target, |dir| {
        write_model(learner, settings, files, dir)?;
        write_saved(&dir.join(PROVENANCE), learner, settings, files, steps)
    })?;
    Ok(target)
}

fn write_model<B: TrainingOps>(
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    dir: &Path,
) -> Result<(), TrainError> {
    let text = match files.adapters {
        None => {
            let model = learner.valid();
            model.save(dir, files.config, settings.save_dtype, files.template)?;
            model_card(settings)
        }
        Some(Adapters { lora, .. }) => {
            let base = model_name(files.template);
            let model = learner.model();
            model.save_adapters(dir, lora, &base, files.template)?;
            adapter_card(settings, &base)
        }
    };
    let card = dir.join("README.md");
    fs::write(&card, text).map_err(io("write", &card))
}

fn adapter_card(settings: &TrainSettings, base: &str) -> String {
    format!(
        "---\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n- sppo\n- alignment\n- lora\n---\n\n# A LoRA adapter trained with sppo\n\n{}\n\nLoad it on its base, {base}, with PEFT (`PeftModel.from_pretrained`) or vLLM, or make a whole model of both with `sppo merge`.\n",
        settings.summary
    )
}

fn model_card(settings: &TrainSettings) -> String {
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- sppo\n- alignment\n---\n\n# A Llama trained with sppo\n\n{}\n\nLoad it with transformers (`AutoModelForCausalLM.from_pretrained`) or vLLM.\n",
        settings.summary
    )
}

fn write_saved<B: TrainingOps>(
    path: &Path,
    learner: &Learner<B>,
    settings: &TrainSettings,
    files: ModelFiles<'_>,
    step: usize,
) -> Result<(), TrainError> {
    let saved = Saved {
        key: settings.key.clone(),
        step,
        updates: learner.steps(),
        base: files.adapters.map(|adapters| adapters.base.clone()),
    };
    let text = serde_json::to_string_pretty(&saved).map_err(|e| TrainError::Io {
        action: "write",
        path: path.into(),
        source: e.into(),
    })?;
    fs::write(path, text).map_err(io("write", path))
}

fn write_optimizer<B: TrainingOps>(learner: &Learner<B>, path: &Path) -> Result<(), TrainError> {
    let mut tensors = Vec::new();
    for (index, parameter) in learner.parameters().trained() {
        let name = &parameter.name;
        let Some(state) = &learner.state()[index] else {
            continue;
        };
        let masters = state.master.iter().map(|t| (format!("{name}.master"), t));
        let slots = state.slots.iter().enumerate();
        let slots = slots.map(|(i, t)| (format!("{name}.slot{i}"), t));
        tensors.extend(masters.chain(slots).map(|(name, tensor)| LazyTensor {
            name,
            shape: tensor.dims().to_vec(),
            dtype: DType::F32,
            fetch: Box::new(move || tensor.clone().into_data()),
        }));
    }
    let tensors: Vec<&LazyTensor<'_>> = tensors.iter().collect();
    write_file(path, &tensors).map_err(|e| TrainError::Checkpoint(e.into()))
}

/// Puts the optimizer state of a checkpoint folder into `learner`, whose trained weights were
/// loaded from that folder.
pub fn restore<B: TrainingOps>(
    learner: &mut Learner<B>,
    dir: &Path,
    saved: &Saved,
) -> Result<(), TrainError> {
    let file = Checkpoint::open_file(&dir.join(OPTIMIZER))
        .map_err(|e| TrainError::Checkpoint(e.into()))?;
    let device = learner.model().device();
    let load = |name: &str| -> Result<Option<Tensor<B::InnerBackend, 1>>, TrainError> {
        let data = file
            .load(name, DType::F32)
            .map_err(|e| TrainError::Checkpoint(e.into()))?;
        Ok(data.map(|data: TensorData| Tensor::from_data(data, (&device, DType::F32))))
    };
    let table = learner.parameters();
    let mut state: Vec<Option<ParamState<B::InnerBackend>>> = Vec::new();
    state.resize_with(table.all().len(), || None);
    for (index, parameter) in table.trained() {
        let name = &parameter.name;
        let master = load(&format!("{name}.master"))?;
        let mut slots = Vec::new();
        while let Some(slot) = load(&format!("{name}.slot{}", slots.len()))? {
            slots.push(slot);
        }
        if slots.len() != learner.optimizer().slots() && saved.updates > 0 {
            return Err(TrainError::Damaged {
                path: dir.into(),
                message: format!("the optimizer state of {name} is not complete"),
            });
        }
        state[index] = Some(ParamState { master, slots });
    }
    learner.restore(saved.updates, state);
    Ok(())
}

/// Makes a folder beside its final name and renames it once `fill` has written it.
pub fn write_aside<T, E: From<TrainError>>(
    target: &Path,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let parent = target.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io("make", parent))?;
    let aside = aside(target, PARTIAL);
    let remove = |dir: &Path| match dir.exists() {
        true => fs::remove_dir_all(dir).map_err(io("remove", dir)),
        false => Ok(()),
    };
    remove(&aside)?;
    fs::create_dir(&aside).map_err(io("make", &aside))?;
    let filled = match fill(&aside) {
        Ok(filled) => filled,
        Err(error) => {
            // Half a folder is of no use and may be what filled the disk.
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
    };
    sync_tree(&aside)?;
    match target.exists() {
        true => replace(&aside, target)?,
        false => fs::rename(&aside, target).map_err(io("rename", &aside))?,
    }
    sync(parent)?;
    remove(&aside)?;
    Ok(filled)
}

/// Puts a folder in another's place, which then lies in its own: in one step, so that a kill
/// leaves one or the other under the name.
#[cfg(target_os = "linux")]
fn replace(new: &Path, target: &Path) -> Result<(), TrainError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, new, CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // Some file systems cannot.
        Err(_) => replace_in_two_steps(new, target),
    }
}

#[cfg(not(target_os = "linux"))]
fn replace(new: &Path, target: &Path) -> Result<(), TrainError> {
    replace_in_two_steps(new, target)
}

/// A rename cannot replace a folder that holds files, so the old one is set aside first.
fn replace_in_two_steps(new: &Path, target: &Path) -> Result<(), TrainError> {
    let old = aside(target, OLD);
    if old.exists() {
        fs::remove_dir_all(&old).map_err(io("remove", &old))?;
    }
    fs::rename(target, &old).map_err(io("rename", target))?;
    fs::rename(new, target).map_err(io("rename", new))?;
    fs::remove_dir_all(&old).map_err(io("remove", &old))
}

const PARTIAL: &str = ".partial";
const OLD: &str = ".old";

/// `.name.partial` or `.name.old` beside a folder.
fn aside(target: &Path, kind: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}{kind}"))
}

/// Removes folders that a kill left half written, and puts back one that was set aside for its
/// successor.
pub fn clear_remains(output_dir: &Path) -> Result<(), TrainError> {
    let own = [
        (output_dir.to_path_buf(), "model."),
        (output_dir.join("checkpoints"), "step-"),
    ];
    for (parent, begin) in own {
        let Ok(entries) = fs::read_dir(&parent) else {
            continue;
        };
        for path in entries.filter_map(|entry| entry.ok().map(|e| e.path())) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            let hidden = name.strip_prefix('.').filter(|n| n.starts_with(begin));
            let Some(hidden) = hidden.filter(|_| path.is_dir()) else {
                continue;
            };
            if let Some(name) = hidden.strip_suffix(OLD) {
                let target = parent.join(name);
                if !target.exists() {
                    fs::rename(&path, &target).map_err(io("rename", &path))?;
                    continue;
                }
            } else if !hidden.ends_with(PARTIAL) {
                continue;
            }
            fs::remove_dir_all(&path).map_err(io("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_tree(dir: &Path) -> Result<(), TrainError> {
    for entry in fs::read_dir(dir).map_err(io("read", dir))? {
        let path = entry.map_err(io("read", dir))?.path();
        match path.is_dir() {
            true => sync_tree(&path)?,
            false => sync(&path)?,
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), TrainError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io("flush", path))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> TrainError {
    let path = path.to_path_buf();
    move |source| TrainError::Io {
        action,
        path,
        source,
    }
}
