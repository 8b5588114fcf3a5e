//! The API as a client meets it.
