//! What the step thread promises: plans that contradict themselves end their connection, what one sequence
//! can't have fails that sequence only, a sequence's tokens depend on nothing but itself, and the newest claim
//! owns the thread.

mod claims;
mod cuda;
mod drafts;
mod driver;
mod embeddings;
mod exactness;
mod guided;
mod inventory;
mod plans;
mod ranks;
