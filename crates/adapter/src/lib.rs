//! LoRA over any linear layer: not written yet. See the status in the README.
