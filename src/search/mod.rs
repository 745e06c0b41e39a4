//! Trying candidates: sums of task vectors over a base, and what each is worth.
//!
//! An [`Objective`] gives numbers to the candidate of some weights, `θ + Σ wᵢ·τᵢ`; [`evaluate`] asks it for many at a time, and a
//! [`Journal`] keeps each answer before it counts, so that a run that was interrupted goes on. A [`Lattice`] is the points of a plane,
//! the coarse ones first.

#[cfg(feature = "diffusion")]
mod candidates;
mod evaluation;
mod journal;
mod lattice;
mod objectives;

#[cfg(feature = "diffusion")]
pub use candidates::Candidates;
pub use evaluation::{Job, evaluate};
pub use journal::{Journal, key};
pub use lattice::Lattice;
pub use objectives::{Command, Evaluator, Objective};
#[cfg(feature = "diffusion")]
pub use objectives::{Distance, Images, Loss, Samples};
