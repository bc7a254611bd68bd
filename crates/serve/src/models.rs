//! Names under which a server answers: the base and its adapters.

use burn_lora_text::Tokenizer;
use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

/// What answers under a name.
#[derive(Clone)]
pub(crate) struct Served {
    pub name: String,
    /// Name of the adapter in the model, which no other gets after it; `None` for the base.
    pub adapter: Option<String>,
    pub tokenizer: Arc<Tokenizer>,
    /// Tokens that end an answer beside the model's own.
    pub ends: Vec<u32>,
    pub folder: Option<PathBuf>,
    /// Seconds since 1970.
    pub created: u64,
}

impl Served {
    pub fn new(
        name: &str,
        adapter: Option<&str>,
        tokenizer: Arc<Tokenizer>,
        folder: Option<PathBuf>,
    ) -> Self {
        let created = now();
        let ends = tokenizer.end_tokens();
        let (name, adapter) = (name.into(), adapter.map(Into::into));
        Self { name, adapter, tokenizer, ends, folder, created }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    time.map_or(0, |time| time.as_secs())
}

/// All names, the base's first.
pub(crate) struct Models(RwLock<Vec<Arc<Served>>>);

impl Models {
    pub fn new(base: Served) -> Self {
        Self(RwLock::new(vec![Arc::new(base)]))
    }

    pub fn all(&self) -> Vec<Arc<Served>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn base(&self) -> Arc<Served> {
        self.all().swap_remove(0)
    }

    pub fn get(&self, name: &str) -> Option<Arc<Served>> {
        self.all().into_iter().find(|served| served.name == name)
    }

    pub fn add(&self, served: Served) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(Arc::new(served));
    }

    /// Removes an adapter's name.
    pub fn remove(&self, name: &str) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|served| served.adapter.is_none() || served.name != name);
    }
}
