//! How near two sets of images are: distances between the features that a network sees in them.
//!
//! Images become features ([`features()`]) by one of the [`EXTRACTORS`], or their mean and covariance at once
//! ([`statistics()`]). A [`Reference`] gives Fréchet distances to any number of sets; [`kid`], [`infinity`] and
//! [`precision_recall`] take features. Work runs on the current rayon pool, and its results are the same bits for any
//! number of threads and any batch.

mod extractors;
mod features;
mod frechet;
mod infinity;
mod kid;
mod matrix;
mod precision_recall;
mod random;
mod statistics;

pub use extractors::{Classifier, EXTRACTORS, Extractor, Kind, Resize, extractor, is_fid};
pub use features::{Features, extract, features, statistics};
pub use frechet::Reference;
pub use infinity::{INFINITY_POINTS, Infinity, infinity};
pub use kid::{KID_SUBSETS, Kid, kid};
pub use precision_recall::{NEIGHBOURS, PrecisionRecall, precision_recall};
pub use statistics::{Accumulator, Statistics, check_count};
