//! NCCL, as far as it is used: loaded at run time, so that no build needs it.

use std::ffi::{OsStr, OsString, c_char, c_int, c_void};
use std::fmt;
use std::path::PathBuf;

use crate::shared_library::{self, file_of, open, table, text};

/// Where NCCL is looked for unless its path is given. PyPI's packages have the first name only.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The variable that names the library.
pub const VARIABLE: &str = "SPPO_NCCL";

/// 2.14 is the first with communicators that do not block.
const OLDEST: Version = Version(2_14_00);

/// `ncclResult_t`.
pub type Status = c_int;

/// `ncclSuccess`.
pub const SUCCESS: Status = 0;

/// `ncclInProgress`: to be asked again.
pub const IN_PROGRESS: Status = 7;

/// `ncclFloat32`.
pub const FLOAT32: c_int = 7;

/// `ncclBfloat16`.
pub const BFLOAT16: c_int = 9;

/// `ncclSum`.
pub const SUM: c_int = 0;

/// `ncclComm_t`.
pub type Comm = *mut c_void;

/// `cudaStream_t`, which is the driver's `CUstream`.
pub type Stream = *mut c_void;

/// `ncclUniqueId`: what the ranks find each other by.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UniqueId(pub [u8; 128]);

/// `ncclConfig_t` as 2.14 had it. Later versions take it, since it says its size and version, and
/// put their own `NCCL_CONFIG_UNDEF_INT` where it ends.
#[repr(C)]
pub struct CommConfig {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    /// Where 2.17 begins.
    undefined: c_int,
}

impl CommConfig {
    /// Calls return at once and are asked after.
    pub const NON_BLOCKING: Self = Self {
        size: size_of::<Self>(),
        magic: 0xcafe_beef,
        version: OLDEST.0 as u32,
        blocking: 0,
        undefined: c_int::MIN,
    };
}

table! {
    /// Functions of NCCL 2.14 and later.
    Functions {
        ncclGetErrorString(Status) -> *const c_char;
        ncclGetLastError(Comm) -> *const c_char;
        ncclGetUniqueId(*mut UniqueId) -> Status;
        ncclCommInitRankConfig(*mut Comm, c_int, UniqueId, c_int, *mut CommConfig) -> Status;
        ncclCommGetAsyncError(Comm, *mut Status) -> Status;
        ncclCommAbort(Comm) -> Status;
        ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> Status;
        ncclAllGather(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> Status;
    }
}

table! {
    /// The function of every NCCL.
    OldFunctions {
        ncclGetVersion(*mut c_int) -> Status;
    }
}

/// `NCCL_VERSION_CODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(c_int);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Up to 2.8 it was 2804.
        let major = if self.0 < 10_000 { 1000 } else { 10_000 };
        let (major, rest) = (self.0 / major, self.0 % major);
        write!(f, "{major}.{}.{}", rest / 100, rest % 100)
    }
}

/// A library that was found.
#[derive(Clone)]
pub struct Library {
    pub functions: Functions,
    pub version: Version,
    /// Its file.
    pub path: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.version, self.path)
    }
}

/// What names the library: `[cluster] nccl`, or the variable.
pub fn given(nccl: Option<&PathBuf>, variable: Option<OsString>) -> Option<Given> {
    let variable = variable.filter(|path| !path.is_empty());
    let key = nccl.map(|path| ("cluster.nccl", path.clone().into()));
    key.or(variable.map(|path| (VARIABLE, path)))
        .map(|(name, path)| Given { name, path })
}

/// A path of NCCL, and where it was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Given {
    pub name: &'static str,
    pub path: OsString,
}

/// Finds NCCL: where it was given and nowhere else, or by its names. Says what is wrong otherwise.
pub fn find(given: Option<&Given>) -> Result<Library, String> {
    let given = given.map(|Given { name, path }| (*name, path.as_os_str()));
    shared_library::find(given, &NAMES, load)
}

/// Loads one library.
fn load(path: &OsStr) -> Result<Library, String> {
    let shown = path.display();
    let lacks = |name| format!("{shown} is no NCCL that can be used: it has no {name}");
    let library = open(path).map_err(|error| format!("{shown} cannot be loaded: {error}"))?;
    // SAFETY: the type of NCCL's header.
    let old = unsafe { OldFunctions::of(library) }.map_err(lacks)?;
    let mut code = 0;
    // SAFETY: `code` is ours.
    let status = unsafe { (old.ncclGetVersion)(&mut code) };
    if status != SUCCESS {
        return Err(format!(
            "{shown} does not work: ncclGetVersion gives error {status}"
        ));
    }
    let version = Version(code);
    if version < OLDEST {
        return Err(format!(
            "{shown} is NCCL {version}, which is too old: {OLDEST} is the first that can be used"
        ));
    }
    // SAFETY: the types of NCCL's header.
    let functions = unsafe { Functions::of(library) }.map_err(lacks)?;
    let path = file_of(old.ncclGetVersion as *const c_void);
    Ok(Library {
        functions,
        version,
        path: path.unwrap_or_else(|| shown.to_string()),
    })
}

impl Functions {
    /// What NCCL says of an error: what it is, and its last words.
    pub fn explain(&self, status: Status, comm: Comm) -> String {
        // SAFETY: both give strings of NCCL's own, or null; a communicator may be null here.
        let (what, last) = unsafe {
            let what = (self.ncclGetErrorString)(status);
            (text(what), text((self.ncclGetLastError)(comm)))
        };
        match last.trim() {
            "" => format!("{what} ({status})"),
            last => format!("{what} ({status}): {last}"),
        }
    }
}
