//! The cluster simulator: the scheduler's real core and the router's real state machine, on simulated workers, in
//! virtual time, from one seed.
//!
//! ```text
//!  faults: clients ─▶ routers ══▶ schedulers ══▶ workers      which process dies when, which wire breaks;
//!                                                             each stream against the undisturbed run
//!  load:   traffic ────────────▶ one scheduler ══▶ 1,000 workers   how fast, how fair, how much in vain
//! ```
//!
//! * [`faults`] runs a small cluster in which things go wrong. Each run is its seed's: a failing one comes again.
//! * [`load`] runs a large one in which nothing does, with the real policy and with simpler ones.
//! * [`worker`] does what plans say, and knows what a step costs on a device ([`worker::Cost`]).
//! * [`model`] says which token comes next: a hash of those before it.
//!
//! Real: `Placement`, `Planner` and the assembly of submissions (`volley_scheduler`); `Request` with its assemblers
//! (`volley_router`). Simulated: the tasks and channels between them, gRPC, etcd, workers, clients.
#![forbid(unsafe_code)]

pub mod faults;
pub mod load;
pub mod model;
pub mod random;
pub mod worker;
