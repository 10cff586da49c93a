//! cuBLASLt, as far as it is used: loaded at run time, so that no build needs it.

use std::ffi::{OsStr, OsString, c_char, c_int, c_void};
use std::fmt;

use crate::gpu::driver::Stream;
use crate::shared_library::{self, file_of, open, table, text};

/// Where the library is looked for unless its path is given.
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];

/// The variable that names the library.
pub const VARIABLE: &str = "SPPO_CUBLASLT";

/// How it is installed.
const INSTALL: &str = "install the CUDA toolkit, or pip install nvidia-cublas (nvidia-cublas-cu12 for CUDA \
     12) and name its libcublasLt.so in $SPPO_CUBLASLT, or use matmul \"cubecl\"";

/// `cublasStatus_t`.
pub type Status = c_int;

/// `CUBLAS_STATUS_SUCCESS`.
pub const SUCCESS: Status = 0;

/// `CUBLAS_STATUS_NOT_SUPPORTED`.
pub const NOT_SUPPORTED: Status = 15;

/// `CUBLAS_COMPUTE_32F`.
pub const COMPUTE_F32: c_int = 68;

/// `CUDA_R_32F`.
pub const F32: c_int = 0;

/// `CUDA_R_16BF`.
pub const BF16: c_int = 14;

/// `CUBLAS_OP_N`, `CUBLAS_OP_T`.
pub const AS_IT_LIES: c_int = 0;
pub const TURNED: c_int = 1;

/// `CUBLASLT_MATMUL_DESC_TRANSA`, `…TRANSB`.
pub const TURN_FIRST: c_int = 3;
pub const TURN_SECOND: c_int = 4;

/// `CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES`, `…MIN_ALIGNMENT_A_BYTES` to `…D_BYTES`.
pub const MOST_WORKSPACE: c_int = 1;
pub const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];

/// `cublasLtHandle_t` and the descriptors.
pub type Pointer = *mut c_void;

/// `cublasLtMatmulAlgo_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Heuristic {
    pub algorithm: Algorithm,
    pub workspace: usize,
    pub state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

impl Heuristic {
    /// Room for one.
    pub const NONE: Self = Self {
        algorithm: Algorithm([0; 8]),
        workspace: 0,
        state: NOT_SUPPORTED,
        waves: 0.0,
        reserved: [0; 4],
    };
}

table! {
    /// Functions of cuBLASLt 12 and 13.
    Functions {
        cublasLtGetVersion() -> usize;
        cublasLtGetStatusName(Status) -> *const c_char;
        cublasLtCreate(*mut Pointer) -> Status;
        cublasLtMatmulDescCreate(*mut Pointer, c_int, c_int) -> Status;
        cublasLtMatmulDescSetAttribute(Pointer, c_int, *const c_void, usize) -> Status;
        cublasLtMatmulDescDestroy(Pointer) -> Status;
        cublasLtMatrixLayoutCreate(*mut Pointer, c_int, u64, u64, i64) -> Status;
        cublasLtMatrixLayoutDestroy(Pointer) -> Status;
        cublasLtMatmulPreferenceCreate(*mut Pointer) -> Status;
        cublasLtMatmulPreferenceSetAttribute(Pointer, c_int, *const c_void, usize) -> Status;
        cublasLtMatmulPreferenceDestroy(Pointer) -> Status;
        cublasLtMatmulAlgoGetHeuristic(
            Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, c_int, *mut Heuristic, *mut c_int
        ) -> Status;
        cublasLtMatmul(
            Pointer, Pointer, *const f32, *const c_void, Pointer, *const c_void, Pointer, *const f32,
            *const c_void, Pointer, *mut c_void, Pointer, *const Algorithm, *mut c_void, usize, Stream
        ) -> Status;
    }
}

/// A library that was found.
#[derive(Clone)]
pub struct Library {
    pub functions: Functions,
    /// Its file.
    path: String,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: gives a number.
        let version = unsafe { (self.functions.cublasLtGetVersion)() };
        // 12.9.1 is 120901.
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        write!(f, "cuBLASLt {major}.{minor}.{patch} ({})", self.path)
    }
}

/// Finds cuBLASLt: where the variable says and nowhere else, or by its names. Says what is wrong
/// otherwise.
pub fn find(variable: Option<OsString>) -> Result<Library, String> {
    let variable = variable.filter(|path| !path.is_empty());
    let given = variable.as_deref().map(|path| (VARIABLE, path));
    let found = shared_library::find(given, &NAMES, load);
    found.map_err(|error| format!("{error}; {INSTALL}"))
}

/// Loads one library.
fn load(path: &OsStr) -> Result<Library, String> {
    let shown = path.display();
    let library = open(path).map_err(|error| format!("{shown} cannot be loaded: {error}"))?;
    // SAFETY: the types of cuBLASLt's header.
    let functions = unsafe { Functions::of(library) }
        .map_err(|name| format!("{shown} is no cuBLASLt that can be used: it has no {name}"))?;
    let path = file_of(functions.cublasLtGetVersion as *const c_void);
    Ok(Library {
        functions,
        path: path.unwrap_or_else(|| shown.to_string()),
    })
}

impl Functions {
    /// What cuBLASLt calls an error.
    pub fn checked(&self, status: Status) -> Result<(), String> {
        match status {
            SUCCESS => Ok(()),
            // SAFETY: a string of the library's own, or null.
            failed => match unsafe { text((self.cublasLtGetStatusName)(failed)) } {
                name if name.is_empty() => Err(format!("an error without a name ({failed})")),
                name => Err(format!("{name} ({failed})")),
            },
        }
    }
}
