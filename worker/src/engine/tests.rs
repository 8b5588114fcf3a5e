//! What the step thread promises: plans that contradict themselves end their connection, what one sequence
//! can't have fails that sequence only, and a sequence's tokens depend on nothing but itself.

mod driver;
mod exactness;
mod guided;
mod plans;
