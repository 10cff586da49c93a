//! The allocator's settings.

/// Keeps freed memory for the next tensor. By default glibc maps every large block anew and gives
/// it back when freed; on a CPU the page faults cost a model of PairRM's size a third of its time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed_memory() {
    // SAFETY: sets two numbers of the allocator, before any other thread runs.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() {}
