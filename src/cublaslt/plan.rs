//! How cuBLASLt computes products of one kind: its descriptors and the routine it chose.

use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use super::layout::Layout;
use super::library::{
    ALIGNMENTS, AS_IT_LIES, Algorithm, BF16, COMPUTE_F32, F32, Functions, Heuristic,
    MOST_WORKSPACE, NOT_SUPPORTED, Pointer, Status, TURN_FIRST, TURN_SECOND, TURNED,
};

/// A factor: what lies in memory, whether it has to be turned, and what its address is a multiple of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Factor {
    pub lies: Layout,
    pub turn: bool,
    pub alignment: u32,
}

/// All that the choice of a routine depends on. The factors and the result are those of cuBLAS,
/// whose matrices lie column after column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    pub first: Factor,
    pub second: Factor,
    pub result: Factor,
    pub inputs: Element,
    pub output: Element,
}

/// A number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    Bf16,
}

impl Element {
    fn code(self) -> c_int {
        match self {
            Self::F32 => F32,
            Self::Bf16 => BF16,
        }
    }
}

/// A descriptor, destroyed with this.
struct Descriptor {
    at: Pointer,
    destroy: unsafe extern "C" fn(Pointer) -> Status,
}

impl Descriptor {
    fn new(
        functions: &Functions,
        destroy: unsafe extern "C" fn(Pointer) -> Status,
        create: impl FnOnce(&mut Pointer) -> Status,
    ) -> Result<Self, String> {
        let mut at = null_mut();
        functions.checked(create(&mut at))?;
        Ok(Self { at, destroy })
    }

    fn set<T>(
        &self,
        functions: &Functions,
        set: unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status,
        attribute: c_int,
        value: T,
    ) -> Result<(), String> {
        let at = (&raw const value).cast();
        // SAFETY: the descriptor is there, and the value has the attribute's type.
        functions.checked(unsafe { set(self.at, attribute, at, size_of::<T>()) })
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: nobody else has it; products that were started have what they need of it.
        unsafe {
            (self.destroy)(self.at);
        }
    }
}

/// The descriptors of a kind, and the routine.
pub struct Plan {
    operation: Descriptor,
    first: Descriptor,
    second: Descriptor,
    result: Descriptor,
    algorithm: Algorithm,
    workspace: usize,
}

// SAFETY: descriptors are memory of the host's, which any thread may use, one at a time.
unsafe impl Send for Plan {}

impl Plan {
    /// Asks cuBLASLt for the routine that it thinks fastest.
    pub fn new(
        functions: &Functions,
        handle: Pointer,
        kind: &Kind,
        workspace: usize,
    ) -> Result<Self, String> {
        let f = functions;
        // SAFETY: places for results are ours, here and below.
        let create =
            |at: &mut Pointer| unsafe { (f.cublasLtMatmulDescCreate)(at, COMPUTE_F32, F32) };
        let operation = Descriptor::new(f, f.cublasLtMatmulDescDestroy, create)?;
        for (attribute, factor) in [(TURN_FIRST, kind.first), (TURN_SECOND, kind.second)] {
            let how = if factor.turn { TURNED } else { AS_IT_LIES };
            operation.set(f, f.cublasLtMatmulDescSetAttribute, attribute, how)?;
        }
        let layout = |lies: Layout, element: Element| {
            let too_large = |_| "a matrix that is too large".to_owned();
            let (rows, columns) = (lies.rows as u64, lies.columns as u64);
            let leading = i64::try_from(lies.leading).map_err(too_large)?;
            Descriptor::new(f, f.cublasLtMatrixLayoutDestroy, |at| unsafe {
                (f.cublasLtMatrixLayoutCreate)(at, element.code(), rows, columns, leading)
            })
        };
        let first = layout(kind.first.lies, kind.inputs)?;
        let second = layout(kind.second.lies, kind.inputs)?;
        let result = layout(kind.result.lies, kind.output)?;

        let create = |at: &mut Pointer| unsafe { (f.cublasLtMatmulPreferenceCreate)(at) };
        let preference = Descriptor::new(f, f.cublasLtMatmulPreferenceDestroy, create)?;
        let set = f.cublasLtMatmulPreferenceSetAttribute;
        preference.set(f, set, MOST_WORKSPACE, workspace as u64)?;
        let [of_first, of_second, of_result] =
            [kind.first, kind.second, kind.result].map(|factor| factor.alignment);
        let alignments = [of_first, of_second, of_result, of_result];
        for (attribute, alignment) in ALIGNMENTS.into_iter().zip(alignments) {
            preference.set(f, set, attribute, alignment)?;
        }

        let (mut best, mut found) = (Heuristic::NONE, 0);
        // SAFETY: the descriptors are there, and there is room for one result.
        let status = unsafe {
            (f.cublasLtMatmulAlgoGetHeuristic)(
                handle,
                operation.at,
                first.at,
                second.at,
                result.at,
                result.at,
                preference.at,
                1,
                &mut best,
                &mut found,
            )
        };
        f.checked(status)?;
        f.checked(if found == 0 {
            NOT_SUPPORTED
        } else {
            best.state
        })?;
        Ok(Self {
            operation,
            first,
            second,
            result,
            algorithm: best.algorithm,
            workspace: best.workspace,
        })
    }

    /// Starts a product of this kind.
    ///
    /// # Safety
    /// `first`, `second` and `result` are device memory of the kind's layouts and alignments,
    /// `workspace` is as large as the plan was allowed; all stay until the stream is past the
    /// product.
    pub unsafe fn start(
        &self,
        functions: &Functions,
        handle: Pointer,
        [first, second, result, workspace]: [u64; 4],
        stream: crate::gpu::driver::Stream,
    ) -> Result<(), String> {
        let (one, zero) = (1.0, 0.0);
        // SAFETY: the caller's promise; with a factor of 0 the result's values are not read.
        let status = unsafe {
            (functions.cublasLtMatmul)(
                handle,
                self.operation.at,
                &one,
                first as *const c_void,
                self.first.at,
                second as *const c_void,
                self.second.at,
                &zero,
                result as *const c_void,
                self.result.at,
                result as *mut c_void,
                self.result.at,
                &self.algorithm,
                workspace as *mut c_void,
                self.workspace,
                stream,
            )
        };
        functions.checked(status)
    }
}
