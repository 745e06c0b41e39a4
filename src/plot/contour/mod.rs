//! A loss over a plane through models, as filled bands between lines of equal loss.
//!
//! The plane is spanned by two orthonormal directions, so that distances in the picture are those between the models'
//! weights (Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", Figure 1). Levels grow
//! geometrically above the lowest number, `lowest + (highest − lowest) · rᵏ`, as losses rise from a basin by orders of
//! magnitude; what is above a cut has the last colour.

mod bands;
mod layout;
mod legend;
mod levels;
mod marks;
#[cfg(test)]
mod tests;

pub(super) use layout::raised;
pub use levels::Levels;
pub(super) use marks::Field;

use crate::error::{Error, Result};

/// Numbers over a plane, in one panel or several that share their axes.
#[derive(Clone, Debug)]
pub struct Contours {
    /// Stands above it.
    pub title: String,
    /// Remarks below the title.
    pub notes: Vec<String>,
    /// What the columns' coordinate is, below its axis.
    pub x_label: String,
    /// What the rows' coordinate is, beside its axis.
    pub y_label: String,
    /// What the numbers are, beside the colour bar.
    pub unit: String,
    /// The columns' coordinates, rising, not necessarily by equal steps.
    pub xs: Vec<f64>,
    /// The rows' coordinates, rising; the first row is drawn lowest.
    pub ys: Vec<f64>,
    /// What is drawn over the plane. Of five, seven and so on the first has the place of four.
    pub panels: Vec<Panel>,
    /// How levels are spaced.
    pub levels: Levels,
    /// How many bands there are, 2 to 64.
    pub count: usize,
    /// Numbers from here on have the last colour. Without, that is at a high quantile where the highest number is far beyond it.
    pub most: Option<f64>,
    /// Whether all panels have the same levels. If not, each has a colour bar of its own.
    pub shared: bool,
    /// Whether a length is the same along both axes; not so anyway where a side would be more than three times the other.
    pub equal: bool,
    /// Whether lines between the points are smooth curves through them, or else straight.
    pub smooth: bool,
    /// Models in the plane, and other points worth a name.
    pub marks: Vec<Mark>,
    /// Task vectors: from where to where.
    pub arrows: Vec<((f64, f64), (f64, f64))>,
    /// Where a search went, in order.
    pub path: Vec<(f64, f64)>,
    /// Whether the lowest number of each panel is marked and said.
    pub lowest: bool,
}

impl Default for Contours {
    fn default() -> Self {
        Self {
            title: String::new(),
            notes: Vec::new(),
            x_label: String::new(),
            y_label: String::new(),
            unit: String::new(),
            xs: Vec::new(),
            ys: Vec::new(),
            panels: Vec::new(),
            levels: Levels::default(),
            count: 12,
            most: None,
            shared: false,
            equal: true,
            smooth: true,
            marks: Vec::new(),
            arrows: Vec::new(),
            path: Vec::new(),
            lowest: true,
        }
    }
}

/// One set of numbers over the plane.
#[derive(Clone, Debug, Default)]
pub struct Panel {
    /// Stands above it.
    pub title: String,
    /// The numbers: rows by y, in them columns by x. None where it is not known; what is not finite is not known either.
    pub values: Vec<Vec<Option<f64>>>,
}

/// A point with a name.
#[derive(Clone, Debug, Default)]
pub struct Mark {
    /// Stands beside it.
    pub name: String,
    /// Its coordinates along x and y.
    pub at: (f64, f64),
    /// What it is, and so its shape.
    pub kind: MarkKind,
    /// Whether it lies beside the plane, so that `at` is the point of the plane nearest to it. It is drawn hollow.
    pub beyond: bool,
}

/// What a mark stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MarkKind {
    /// The model that task vectors are differences from: a disc.
    Base,
    /// A tuned model: a square.
    Model,
    /// A merge: a star.
    Merge,
    /// Anything else: a diamond.
    #[default]
    Point,
}

impl Contours {
    /// Whether it can be drawn.
    ///
    /// # Errors
    /// [`Error::Recipe`] with what is wrong with the numbers.
    pub fn check(&self) -> Result<()> {
        let wrong = |why: String| Err(Error::Recipe(format!("the plane cannot be drawn: {why}")));
        for (numbers, axis) in [(&self.xs, "x"), (&self.ys, "y")] {
            if numbers.len() < 2 {
                return wrong(format!("along {axis} there are fewer than two coordinates"));
            }
            let rises = numbers.iter().all(|number| number.is_finite()) && numbers.is_sorted_by(|a, b| a < b);
            let range = numbers.last().zip(numbers.first()).map_or(0.0, |(last, first)| last - first);
            if !(rises && range.is_normal()) {
                return wrong(format!("the coordinates along {axis} do not rise, or are not finite"));
            }
        }
        if self.panels.is_empty() {
            return wrong("there are no numbers".to_owned());
        }
        for panel in &self.panels {
            let title = super::clean(&panel.title);
            let whole = panel.values.iter().all(|row| row.len() == self.xs.len());
            if panel.values.len() != self.ys.len() || !whole {
                let (rows, columns) = (self.ys.len(), self.xs.len());
                return wrong(format!("`{title}` has not {rows} rows of {columns} numbers, as the coordinates have"));
            }
            if panel.numbers().next().is_none() {
                return wrong(format!("`{title}` has no numbers, or none that can be shown"));
            }
        }
        if !(2..=64).contains(&self.count) {
            return wrong(format!("{} bands were asked for; there are 2 to 64", self.count));
        }
        match self.most {
            Some(most) if !most.is_finite() => wrong(format!("{most} is no end for a colour bar")),
            _ => Ok(()),
        }
    }
}

impl Panel {
    /// The numbers that are known.
    pub(super) fn numbers(&self) -> impl Iterator<Item = f64> {
        self.values.iter().flatten().flatten().copied().filter(|number| number.is_finite())
    }
}
