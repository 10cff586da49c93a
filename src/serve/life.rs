//! Where the server is between its start and its end, and what is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::error::ApiError;

/// Loading, serving, draining.
#[derive(Default)]
pub struct Life {
    loaded: AtomicBool,
    draining: AtomicBool,
    under_way: AtomicUsize,
}

/// A request that is answered; it counts as under way as long as this lives.
pub struct UnderWay(Arc<Life>);

impl Life {
    /// The model is there.
    pub fn loaded(&self) {
        self.loaded.store(true, Ordering::SeqCst);
    }

    /// Nothing new is begun from here on.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Whether nothing new is begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Whether requests are taken; 503 where not.
    pub fn check(&self) -> Result<(), ApiError> {
        if self.is_draining() {
            return Err(ApiError::unavailable("the server is shutting down"));
        }
        match self.loaded.load(Ordering::SeqCst) {
            true => Ok(()),
            false => Err(ApiError::unavailable("the model is being loaded")),
        }
    }

    /// Begins a request, or refuses it.
    pub fn begin(self: &Arc<Self>) -> Result<UnderWay, ApiError> {
        // Counted first: a drain that begins meanwhile waits for it.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let begun = UnderWay(self.clone());
        self.check().map(|()| begun)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}
