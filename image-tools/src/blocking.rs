//! Runs the async calls of `tough` to their end, whatever runtime the caller may be inside.

use std::future::Future;

/// Runs the future that `make` makes on a thread and a runtime of its own.
///
/// # Errors
/// When no runtime could be made, or the future panicked.
pub(crate) fn run<T, F, Make>(make: Make) -> std::io::Result<T>
where
    T: Send,
    F: Future<Output = T>,
    Make: FnOnce() -> F + Send,
{
    let body = || Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(make()));
    std::thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|_| Err(std::io::Error::other("the task ended unexpectedly")))
}
