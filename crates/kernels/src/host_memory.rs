//! Memory of the host.

/// Keeps freed memory of the process for what it allocates next, where the system's allocator would give large blocks back at
/// once (glibc): each step of training on a CPU, and each token, allocates the same again, and the system clears the pages that
/// it hands out, which takes a sixth of a step. For a program, at its start; the memory that it has used most stays its own.
/// Elsewhere nothing is done.
pub fn keep_host_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: these settings have no other effect than where memory comes from.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, libc::c_int::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
