//! Fine-tuning: not written yet. See the status in the README.
