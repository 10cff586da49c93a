//! Safetensors folders: one file, or shards with an index; memory-mapped in, sharded out.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use burn::tensor::{DType, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use serde_json::{Value, json};

use crate::other_formats::{and, not_downloaded, other_weights};
use crate::progress;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Largest shard written, in bytes.
pub const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// A checkpoint's path that is no folder.
    #[error("{dir} is not a folder; expected a checkpoint with config.json and {SINGLE}")]
    NoFolder {
        /// The path.
        dir: PathBuf,
    },
    /// A folder without weights.
    #[error("{dir} holds neither {SINGLE} nor {INDEX}{}", and(hint))]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What it holds instead, and what to do with it.
        hint: Option<String>,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that is no safetensors file, or only part of one.
    #[error("{path} is no whole safetensors file ({message}); it may be truncated, copy it again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file that stands for one that was not downloaded.
    #[error("{path} cannot be read: {hint}")]
    NotDownloaded {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        hint: &'static str,
    },
    /// Two tensors that mean the same parameter.
    #[error("{path}: tensors {first} and {second} are both {name}; remove one of them")]
    SameName {
        /// The folder or file.
        path: PathBuf,
        /// The one tensor's name.
        first: String,
        /// The other's.
        second: String,
        /// What both are without their prefixes.
        name: String,
    },
    /// An index of shards that cannot be used.
    #[error("{path}: {message}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// An index that names a file outside its folder.
    #[error("{path} names the shard {shard:?}, which lies outside its folder; refused")]
    Outside {
        /// The index.
        path: PathBuf,
        /// The shard's name in it.
        shard: String,
    },
    /// An index that names a file that does not exist.
    #[error("{path} names the shard {shard:?}, which is not there")]
    AbsentShard {
        /// The index.
        path: PathBuf,
        /// The shard's name in it.
        shard: String,
    },
    /// An index that looks for a tensor in a shard without it.
    #[error("{path} says that {shard:?} holds {tensor}, but it does not")]
    AbsentTensor {
        /// The index.
        path: PathBuf,
        /// The shard's name in it.
        shard: String,
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor of a dtype that is not read.
    #[error("{path}: tensor {tensor} has dtype {dtype}; known are F32, F16 and BF16, and F64")]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Its dtype as safetensors names it.
        dtype: String,
    },
    /// A tensor with values that are not finite.
    #[error("{path}: tensor {tensor} holds NaN or infinity")]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
}

/// An opened checkpoint: every tensor's place in a memory-mapped file.
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    shape: Vec<usize>,
    dtype: Dtype,
    start: usize,
    end: usize,
}

impl Checkpoint {
    /// Opens the weights of a folder; nothing but headers is read.
    pub fn open(dir: &Path) -> Result<Self, SafetensorsError> {
        if !dir.is_dir() {
            return Err(SafetensorsError::NoFolder { dir: dir.into() });
        }
        let mut checkpoint = Self {
            dir: dir.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let index = dir.join(INDEX);
        // The order of transformers, where both are there.
        if dir.join(SINGLE).is_file() {
            checkpoint.add_file(&dir.join(SINGLE))?;
        } else if index.is_file() {
            checkpoint.open_index(&index)?;
        } else {
            let hint = other_weights(dir);
            return Err(SafetensorsError::NoWeights {
                dir: dir.into(),
                hint,
            });
        }
        Ok(checkpoint)
    }

    /// Opens one safetensors file.
    pub fn open_file(path: &Path) -> Result<Self, SafetensorsError> {
        let mut checkpoint = Self {
            dir: path.into(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.add_file(path)?;
        Ok(checkpoint)
    }

    fn open_index(&mut self, path: &Path) -> Result<(), SafetensorsError> {
        let malformed = |message: String| SafetensorsError::Index {
            path: path.into(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|source| SafetensorsError::Read {
            path: path.into(),
            source,
        })?;
        let index: Value =
            serde_json::from_str(&text).map_err(|e| malformed(format!("not valid JSON: {e}")))?;
        let map = index
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| malformed("has no weight_map object".into()))?;
        let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (tensor, shard) in map {
            let shard = shard
                .as_str()
                .ok_or_else(|| malformed(format!("weight_map: {tensor} names no file")))?;
            shards.entry(shard.into()).or_default().push(tensor.clone());
        }
        for (shard, tensors) in shards {
            let mut parts = Path::new(&shard).components();
            if !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(SafetensorsError::Outside {
                    path: path.into(),
                    shard,
                });
            }
            let file = self.dir.join(&shard);
            if !file.is_file() {
                return Err(SafetensorsError::AbsentShard {
                    path: path.into(),
                    shard,
                });
            }
            self.add_file(&file)?;
            if let Some(tensor) = tensors.into_iter().find(|t| !self.tensors.contains_key(t)) {
                return Err(SafetensorsError::AbsentTensor {
                    path: path.into(),
                    shard,
                    tensor,
                });
            }
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<(), SafetensorsError> {
        let read = |source| SafetensorsError::Read {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        // SAFETY: the map is only read; a checkpoint that another process rewrites in place
        // while it is loaded is not supported (ours are written aside and renamed).
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        if let Some(hint) = not_downloaded(&map) {
            let path = path.into();
            return Err(SafetensorsError::NotDownloaded { path, hint });
        }
        let corrupt = |e: safetensors::SafeTensorError| SafetensorsError::Corrupt {
            path: path.into(),
            message: e.to_string(),
        };
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(corrupt)?;
        let data_start = header + 8;
        let index = self.files.len();
        for (name, info) in metadata.tensors() {
            self.tensors.insert(
                name,
                Entry {
                    file: index,
                    shape: info.shape.clone(),
                    dtype: info.dtype,
                    start: data_start + info.data_offsets.0,
                    end: data_start + info.data_offsets.1,
                },
            );
        }
        let needed = data_start + metadata.data_len();
        if map.len() != needed {
            return Err(SafetensorsError::Corrupt {
                path: path.into(),
                message: format!("its header asks for {needed} bytes, it has {}", map.len()),
            });
        }
        self.files.push((path.into(), map));
        Ok(())
    }

    /// Gives every tensor another name; an error where two would share one.
    pub(crate) fn rename(
        &mut self,
        plain: impl Fn(&str) -> String,
    ) -> Result<(), SafetensorsError> {
        let mut named: BTreeMap<String, (String, Entry)> = BTreeMap::new();
        for (old, entry) in std::mem::take(&mut self.tensors) {
            let name = plain(&old);
            if let Some((first, _)) = named.get(&name) {
                return Err(SafetensorsError::SameName {
                    path: self.dir.clone(),
                    first: first.clone(),
                    second: old,
                    name,
                });
            }
            named.insert(name, (old, entry));
        }
        let plainly = named.into_iter().map(|(name, (_, entry))| (name, entry));
        self.tensors = plainly.collect();
        Ok(())
    }

    /// Whether two tensors hold the same values; false where one is missing.
    pub(crate) fn same(&self, one: &str, other: &str) -> Result<bool, SafetensorsError> {
        let (Some(a), Some(b)) = (self.tensors.get(one), self.tensors.get(other)) else {
            return Ok(false);
        };
        if a.shape != b.shape || a.dtype != b.dtype {
            let values = |name| self.load(name, DType::F32);
            return Ok(a.shape == b.shape && values(one)? == values(other)?);
        }
        let bytes = |entry: &Entry| &self.files[entry.file].1[entry.start..entry.end];
        Ok(bytes(a) == bytes(b))
    }

    /// Names and shapes of all tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// bf16 where all tensors are, else f32.
    pub fn common_dtype(&self) -> DType {
        match self.tensors.values().all(|t| t.dtype == Dtype::BF16) {
            true => DType::BF16,
            false => DType::F32,
        }
    }

    /// The folder or file that was opened.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Some elements of a flat f32 tensor, or `None` where the checkpoint lacks it; only they are
    /// read.
    pub fn load_range(
        &self,
        name: &str,
        range: Range<usize>,
    ) -> Result<Option<Vec<f32>>, SafetensorsError> {
        let Some(entry) = self.tensors.get(name) else {
            return Ok(None);
        };
        let (path, map) = &self.files[entry.file];
        let bytes = &map[entry.start..entry.end];
        let Some(bytes) = bytes
            .get(4 * range.start..4 * range.end)
            .filter(|_| entry.dtype == Dtype::F32)
        else {
            return Err(SafetensorsError::Corrupt {
                path: path.clone(),
                message: format!(
                    "{name} is not a f32 tensor of at least {} elements",
                    range.end
                ),
            });
        };
        if !all_finite(bytes, entry.dtype) {
            return Err(SafetensorsError::NonFinite {
                path: path.clone(),
                tensor: name.into(),
            });
        }
        let words = bytes.chunks_exact(4);
        let values = words.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(values.collect()))
    }

    /// A tensor's values in `dtype`, or `None` where the checkpoint lacks it.
    pub fn load(&self, name: &str, dtype: DType) -> Result<Option<TensorData>, SafetensorsError> {
        let Some(entry) = self.tensors.get(name) else {
            return Ok(None);
        };
        progress::advance();
        let (path, map) = &self.files[entry.file];
        let found = match entry.dtype {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(SafetensorsError::Dtype {
                    path: path.clone(),
                    tensor: name.into(),
                    dtype: format!("{other:?}"),
                });
            }
        };
        let bytes = &map[entry.start..entry.end];
        if !all_finite(bytes, entry.dtype) {
            return Err(SafetensorsError::NonFinite {
                path: path.clone(),
                tensor: name.into(),
            });
        }
        let data = TensorData::from_bytes_vec(bytes.to_vec(), entry.shape.clone(), found);
        Ok(Some(data.convert_dtype(dtype)))
    }
}

/// Whether no exponent is all ones, read straight from the little-endian bytes.
fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    match dtype {
        Dtype::F64 => bytes
            .chunks_exact(8)
            .all(|b| u16::from_le_bytes([b[6], b[7]]) & 0x7ff0 != 0x7ff0),
        Dtype::F32 => bytes
            .chunks_exact(4)
            .all(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 != 0x7f80_0000),
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 != 0x7f80),
        _ => bytes
            .chunks_exact(2)
            .all(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7c00 != 0x7c00),
    }
}

/// A tensor to be written: its values are fetched from the device only when its turn comes.
pub struct LazyTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its size along each dimension.
    pub shape: Vec<usize>,
    /// What its values are written as; all but BF16 and F16 becomes F32.
    pub dtype: DType,
    /// Gives its values, in any float dtype.
    pub fetch: Box<dyn Fn() -> TensorData + 'a>,
}

impl LazyTensor<'_> {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

impl View for &LazyTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // Written one by one.
        progress::advance();
        let data = (self.fetch)().convert_dtype(self.dtype);
        Cow::Owned(data.as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// The part of a folder's files that one of several processes writes, which write it together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which of them, from 0; the first one writes all but shards of weights.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// All files.
    pub const WHOLE: Self = Self { index: 0, of: 1 };
}

/// Writes tensors as `model.safetensors`, or as shards of at most `max_shard` bytes with an index;
/// of these the share's, dealt out in turn.
pub fn write(
    dir: &Path,
    tensors: &[LazyTensor<'_>],
    max_shard: usize,
    share: Share,
) -> Result<(), SafetensorsError> {
    let mut shards: Vec<Vec<&LazyTensor<'_>>> = vec![Vec::new()];
    let mut size = 0;
    for tensor in tensors {
        if size > 0 && size + tensor.bytes() > max_shard {
            shards.push(Vec::new());
            size = 0;
        }
        size += tensor.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    if let [only] = shards.as_slice() {
        return match share.index {
            0 => write_file(&dir.join(SINGLE), only),
            _ => Ok(()),
        };
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        if i % share.of == share.index {
            write_file(&dir.join(&name), shard)?;
        }
        for tensor in shard {
            weight_map.insert(tensor.name.clone(), name.clone());
        }
    }
    if share.index > 0 {
        return Ok(());
    }
    let total: usize = tensors.iter().map(LazyTensor::bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    let path = dir.join(INDEX);
    std::fs::write(&path, format!("{index:#}\n"))
        .map_err(|source| SafetensorsError::Write { path, source })
}

/// Writes tensors into one safetensors file and flushes it to the disk.
pub fn write_file(path: &Path, tensors: &[&LazyTensor<'_>]) -> Result<(), SafetensorsError> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let views = tensors.iter().map(|t| (t.name.as_str(), *t));
    let failed = |source| SafetensorsError::Write {
        path: path.into(),
        source,
    };
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|e| failed(std::io::Error::other(e.to_string())))?;
    File::open(path).and_then(|f| f.sync_all()).map_err(failed)
}
