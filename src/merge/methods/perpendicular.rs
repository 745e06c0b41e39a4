//! What is new in the second model's change: its part at right angles to the first model's.
//!
//! `out = a + α·(d − e·(d·e)/‖e‖²)` with `d = b − c`, `e = a − c`, each tensor as one vector. sd-mecha 1.1.8's
//! `add_perpendicular`. Where the first model changed nothing there is no direction to be at right angles to: as in
//! sd-mecha, the result is then the first model.

use crate::error::Result;
use crate::merge::{About, Base, Data, Method, Parameter, Solution, Terms, Weight};

/// See the module.
pub(super) struct Perpendicular;

const ABOUT: About = About {
    name: "perpendicular",
    what: "the first model plus the part of the second's change at right angles to its own",
    formula: "x₁ + α·(d − e·(d·e)/‖e‖²), d = x₂ − b, e = x₁ − b",
    source: "https://github.com/ljleb/sd-mecha",
    base: Base::Last,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[Parameter::shared("alpha", 1.0, "scales what is added")],
};

impl Method for Perpendicular {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let gram = data.gram(true)?;
        let alpha = terms.get("alpha");
        if gram.product(0, 0) == 0.0 {
            return Ok(Solution::around_base(vec![1.0, 0.0]));
        }
        let along = gram.product(0, 1) / gram.product(0, 0);
        Ok(Solution::around_base(vec![1.0 - alpha * along, alpha]))
    }
}
