//! The merge methods, one file each, and the table of them.

mod add_difference;
mod arcee_fusion;
mod cosine;
mod euclidean_add_difference;
mod fisher;
mod geometric;
mod geometric_median;
mod karcher;
mod lcsc;
mod linear;
mod max;
mod model_stock;
mod multiply_difference;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod perpendicular;
mod ram;
mod ramplus_tl;
mod rotate;
mod sce;
mod sigmoid;
mod similarity_add_difference;
mod slerp;
mod smooth_add;
mod sparse;
mod sum_twice;
mod task_arithmetic;
mod tensor_sum;
mod train_difference;
mod triple_sum;
mod weighted_subtraction;

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
    &add_difference::AddDifference,
    &train_difference::TrainDifference,
    &similarity_add_difference::SimilarityAddDifference,
    &multiply_difference::MultiplyDifference,
    &euclidean_add_difference::EuclideanAddDifference,
    &smooth_add::SmoothAdd,
    &perpendicular::Perpendicular,
    &sum_twice::SumTwice,
    &triple_sum::TripleSum,
    &weighted_subtraction::WeightedSubtraction,
    &sigmoid::Sigmoid,
    &tensor_sum::TensorSum,
    &cosine::COSINE_A,
    &cosine::COSINE_B,
    &rotate::Rotate,
    &geometric::Geometric,
    &geometric_median::GeometricMedian,
    &max::Max,
    &lcsc::Lcsc,
    &sce::Sce,
    &ram::Ram,
    &ramplus_tl::RamPlus,
    &arcee_fusion::ArceeFusion,
    &nearswap::Nearswap,
    &passthrough::Passthrough,
];
