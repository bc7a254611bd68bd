//! Watching a run: events, progress, metrics, pictures.
