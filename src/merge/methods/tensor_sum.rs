//! A window of rows from the second model, the others from the first. Rows are those of the first dimension.
//!
//! The window is `alpha` of the rows wide and begins at `beta` of them; what reaches beyond the last row goes on at the
//! first. supermerger's and sd-meh's "tensor sum" cut its ends to whole rows, from `⌊n·β⌋` to `⌊n·(α+β)⌋`; that is the
//! default, as theirs are the names of the parameters. sd-mecha 1.1.8, whose `width` and `offset` are these, rounds to the nearest row,
//! half to even; `round` 1 does so. It also takes a width above 1 for 1, lets a negative one reach backward, and lets
//! offsets run around in a circle, all of which hold here for both.
//!
//! supermerger's "tensor sum 2" takes rows of the second dimension by the length of the first, a slip; there is no such
//! method here. Numbers are copied, not computed: what is written is the numbers of one model or of the other.

use crate::error::Result;
use crate::merge::{About, Allowed, Base, Block, Data, Method, Parameter, Shader, Solution, Terms, Weight};
use std::ops::Range;

/// See the module.
pub(super) struct TensorSum;

const ABOUT: About = About {
    name: "tensor-sum",
    what: "a window of rows from the second model, the others from the first",
    formula: "x₂ in rows n·β to n·(α+β), counted in a circle, x₁ in the others",
    source: "https://github.com/hako-mikan/sd-webui-supermerger",
    base: Base::None,
    models: (2, 2),
    weight: Weight::Unused,
    normalizes: false,
    parameters: &[
        Parameter::shared("alpha", 0.5, "the window's width, as a share of the rows"),
        Parameter::shared("beta", 0.0, "where the window begins, as a share of the rows"),
        Parameter::shared("round", 0.0, "1 rounds the window's ends to the nearest row, 0 down")
            .within(Allowed::Switch),
    ],
};

/// The rows that are taken from one model, and whether that is the second.
fn window(terms: &Terms, rows: u64) -> (Range<u64>, bool) {
    let (mut width, mut offset) = (terms.get("alpha"), terms.get("beta"));
    if width < 0.0 {
        (width, offset) = (-width, offset + width);
    }
    let width = width.min(1.0);
    if !(0.0..1.0).contains(&offset) {
        offset -= offset.floor();
    }
    let row = |share: f64| {
        let place = share * rows as f64;
        if terms.is_on("round") { place.round_ties_even() as u64 } else { place as u64 }
    };
    let end = width + offset;
    if end <= 1.0 { (row(offset)..row(end), true) } else { (row(end - 1.0)..row(offset), false) }
}

const BEFORE: &str = "
fn before$(at: Place, i: u32) -> bool {
    return at.high < word$(i + 1u) || (at.high == word$(i + 1u) && at.low < word$(i));
}
";

impl Method for TensorSum {
    fn about(&self) -> &About {
        &ABOUT
    }

    fn solve(&self, terms: &Terms, data: &Data<'_>) -> Result<Solution> {
        let rows = terms.shape.first().copied().unwrap_or(1);
        let row = data.elements().checked_div(rows).unwrap_or(0);
        let (window, is_second) = window(terms, rows);
        let window = window.start * row..window.end * row;
        let bounds = [window.start, window.end].map(|at| [at as u32, (at >> 32) as u32]);
        let function = move |block: &mut Block<'_>, out: &mut [f32]| {
            let [first, second] = block.first();
            let (inside, outside) = if is_second { (second, first) } else { (first, second) };
            let within = |element: u64| element.saturating_sub(block.start).min(out.len() as u64) as usize;
            let inner = within(window.start)..within(window.end).max(within(window.start));
            out.copy_from_slice(outside);
            out[inner.clone()].copy_from_slice(&inside[inner]);
        };
        let shader = move || {
            let (inside, outside) = if is_second { (1, 0) } else { (0, 1) };
            let value = format!("select(x[{outside}], x[{inside}], !before$(at, 0u) && before$(at, 2u))");
            Shader::of(value).words(bounds.into_iter().flatten()).with(BEFORE)
        };
        Ok(Solution::of(function, shader))
    }
}
