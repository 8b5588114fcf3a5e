//! The check on a machine with a GPU.
