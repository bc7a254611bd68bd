//! Llama-family models: not written yet. See the status in the README.
