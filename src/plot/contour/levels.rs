//! Between which numbers bands lie.

/// How levels are spaced between the lowest and the highest number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Levels {
    /// Each step above the lowest number is as many times the one before, so that the basin is resolved.
    #[default]
    Log,
    /// By equal steps.
    Linear,
}

impl Levels {
    /// The spacings by name.
    pub const NAMES: [(&'static str, Self); 2] = [("log", Self::Log), ("linear", Self::Linear)];
}
