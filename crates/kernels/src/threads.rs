//! Threads that compute on the CPU.

/// Makes the calling thread one of those that compute: for a program's main thread, or another that lives as long as the
/// process. Operations on the CPU share their work between threads; from a thread outside, each of them has to wake these up
/// and be woken, which takes longer than most operations of generation.
///
/// The first thread that calls it, before any computation, joins the threads of the process; another gets threads of its own.
/// With one core nothing is done.
pub fn compute_here() {
    #[cfg(feature = "cpu")]
    join();
}

#[cfg(feature = "cpu")]
fn join() {
    let given = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    let given = given.filter(|count| *count > 0);
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    // Alone, a thread that waits for something else would leave the work of others undone.
    if given.unwrap_or(cores) < 2 || rayon::current_thread_index().is_some() {
        return;
    }
    let builder = || rayon::ThreadPoolBuilder::new().use_current_thread();
    if builder().build_global().is_err()
        && let Ok(threads) = builder().build()
    {
        // They live as long as this one.
        std::mem::forget(threads);
    }
}
