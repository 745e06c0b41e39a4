//! The merge methods, one file each, and the table of them.

mod arcee_fusion;
mod fisher;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod ram;
mod ramplus_tl;
mod sce;
mod slerp;
mod sparse;
mod task_arithmetic;

use super::Method;

/// Every merge method.
pub static METHODS: &[&dyn Method] = &[
    &linear::Linear,
    &fisher::Fisher,
    &slerp::Slerp,
    &nuslerp::Nuslerp,
    &multislerp::Multislerp,
    &karcher::Karcher,
    &task_arithmetic::TaskArithmetic,
    &sparse::TIES,
    &sparse::DARE_TIES,
    &sparse::DARE_LINEAR,
    &sparse::BREADCRUMBS,
    &sparse::BREADCRUMBS_TIES,
    &sparse::DELLA,
    &sparse::DELLA_LINEAR,
    &model_stock::ModelStock,
    &sce::Sce,
    &ram::Ram,
    &ramplus_tl::RamPlus,
    &arcee_fusion::ArceeFusion,
    &nearswap::Nearswap,
    &passthrough::Passthrough,
];
