//! Checkpoint folder -> a running engine: the one place that chooses a backend.

use std::path::Path;

use crate::engine::{Engine, EngineOptions, Estimate, LoadProgress, LogHook};
use crate::error::{Error, Result};

/// See `Engine::open`.
pub(crate) fn open(
    folder: &Path,
    options: &EngineOptions,
    log: Option<LogHook>,
    progress: &mut dyn FnMut(LoadProgress) -> bool,
) -> Result<Engine> {
    let _ = (options, log, progress);
    Err(Error::NotFound { path: folder.to_path_buf() })
}

/// See `Engine::estimate`.
pub(crate) fn estimate(folder: &Path, options: &EngineOptions) -> Result<Estimate> {
    let _ = options;
    Err(Error::NotFound { path: folder.to_path_buf() })
}
