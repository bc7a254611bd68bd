//! Data: from files to batches of tokens.
