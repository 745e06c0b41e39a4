//! GGUF checkpoints.
