//! Libraries that are looked for at run time, and tables of their functions.

use std::ffi::{CStr, OsStr, c_char, c_void};

use libloading::Library;

/// A struct of pointers to a library's functions, which are looked up by the fields' names.
macro_rules! table {
    (
        $(#[$attribute:meta])*
        $table:ident {
            $($name:ident($($argument:ty),*) -> $result:ty;)*
        }
        $(optional { $($maybe:ident($($maybe_argument:ty),*) -> $maybe_result:ty;)* })?
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        #[expect(non_snake_case, reason = "the library's names")]
        pub struct $table {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> $result,)*
            $($(pub $maybe: Option<unsafe extern "C" fn($($maybe_argument),*) -> $maybe_result>,)*)?
        }

        impl $table {
            /// The name of a function that the library lacks, where it lacks one.
            ///
            /// # Safety
            /// The library's functions have these types.
            pub unsafe fn of(library: &'static libloading::Library) -> Result<Self, &'static str> {
                // SAFETY: the caller knows the types.
                unsafe {
                    Ok(Self {
                        $($name: $crate::shared_library::function(library, stringify!($name))
                            .ok_or(stringify!($name))?,)*
                        $($($maybe: $crate::shared_library::function(library, stringify!($maybe)),)*)?
                    })
                }
            }
        }
    };
}
pub(crate) use table;

/// The library of that name or path. It is never unloaded: it may have started threads.
pub fn open(name: &OsStr) -> Result<&'static Library, String> {
    // SAFETY: libraries of NVIDIA's may be loaded at any time; the user names no others.
    let library = unsafe { Library::new(name) };
    let library = library.map_err(|error| {
        // The loader's own words come behind.
        let cause = std::error::Error::source(&error);
        cause.map_or(error.to_string(), ToString::to_string)
    })?;
    Ok(Box::leak(Box::new(library)))
}

/// The library that was named, by its path and where it was given, or the first of `names` that can
/// be used. Says what is wrong with each otherwise.
pub fn find<T>(
    given: Option<(&str, &OsStr)>,
    names: &[&str],
    load: impl Fn(&OsStr) -> Result<T, String>,
) -> Result<T, String> {
    if let Some((name, path)) = given {
        return load(path).map_err(|error| format!("{name}: {error}"));
    }
    let mut errors = Vec::new();
    for name in names {
        match load(OsStr::new(name)) {
            Ok(library) => return Ok(library),
            Err(error) => errors.push(error),
        }
    }
    Err(errors.join("; "))
}

/// The text of a string of C.
///
/// # Safety
/// A string of C, or null.
pub unsafe fn text(string: *const c_char) -> String {
    match string.is_null() {
        true => String::new(),
        // SAFETY: the caller's promise.
        false => unsafe { CStr::from_ptr(string) }
            .to_string_lossy()
            .into_owned(),
    }
}

/// A function of a library.
///
/// # Safety
/// `F` is the function pointer's type.
pub unsafe fn function<F: Copy>(library: &'static Library, name: &str) -> Option<F> {
    // SAFETY: the caller knows the type.
    unsafe { library.get::<F>(name).ok().map(|symbol| *symbol) }
}

/// The file that a function was loaded from.
#[cfg(unix)]
pub fn file_of(function: *const c_void) -> Option<String> {
    // SAFETY: a struct of C without invariants.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is ours; an address that is in no library is refused.
    let found = unsafe { libc::dladdr(function, &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which lives as long as the library.
    let path = unsafe { std::ffi::CStr::from_ptr(info.dli_fname) };
    Some(path.to_string_lossy().into_owned())
}

/// The file that a function was loaded from; not known here.
#[cfg(not(unix))]
pub fn file_of(_function: *const c_void) -> Option<String> {
    None
}
