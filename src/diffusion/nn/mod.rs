//! Layers that candle computes slowly, or without the gradient or with a wrong one, on the CPU.
//!
//! Each gives an image the same bits in any batch and with any number of threads: work is cut by image and by fixed
//! pieces of it, never by how many threads there are. On other devices, and for other types than f32, candle's own
//! kernels run.

mod attention;
mod conv;
mod gemm;
mod group_norm;
mod pool;
mod softmax;
mod storage;
mod upsample;

pub use attention::{SCORES, attention};
pub use conv::{Window, conv2d, linear};
pub use group_norm::group_norm;
pub use pool::max_pool2d;
pub use upsample::upsample;
