//! The merge methods, one file each, and the table of them.

mod linear;
mod model_stock;
mod passthrough;
mod slerp;
mod sparse;
mod task_arithmetic;

use super::Method;

/// Every merge method.
pub static METHODS: &[&dyn Method] = &[
    &linear::Linear,
    &slerp::Slerp,
    &task_arithmetic::TaskArithmetic,
    &sparse::TIES,
    &sparse::DARE_TIES,
    &sparse::DARE_LINEAR,
    &sparse::BREADCRUMBS,
    &sparse::BREADCRUMBS_TIES,
    &sparse::DELLA,
    &sparse::DELLA_LINEAR,
    &model_stock::ModelStock,
    &passthrough::Passthrough,
];
