//! The pure core: events and time go in, decisions come out. No I/O, no clock, no task.
//!
//! ```text
//!            submit, cancel                 StepPlan           StepResult
//! shell ──▶ Placement ──▶ Planner (one per worker) ──▶ worker ──▶ Planner ──▶ outputs
//!           which worker   which rows run next
//!                          └─ Blocks: who holds which KV block, and what it can still be used for
//! ```
//!
//! * [`placement`] knows every live sequence and the worker it is on; it has the sequences that wait for one.
//! * [`planner`] writes a worker's steps: slots, token budget, preemption, one step ahead.
//! * [`fairness`] has what waits for a place on a worker, and says whose turn it is.
//! * [`drain`] measures how fast that goes, and so when to come back.
//! * [`blocks`] accounts for a worker's KV blocks; [`prefix`] names their content, by which they are shared.
//! * [`inventory`] is what a worker is told of them, and tells its next scheduler.
//! * [`holders`] and [`sessions`] are what placement knows of caches: who has which block, who went where;
//!   [`spread`] says when one more should have what many begin with.
//!
//! Workers don't depend on each other, so their planners run in parallel.

pub mod blocks;
pub mod drain;
pub mod fairness;
pub mod holders;
pub mod inventory;
pub mod placement;
pub mod planner;
mod pool;
pub mod prefix;
pub mod sequence;
pub mod sessions;
pub mod spread;
pub mod types;
