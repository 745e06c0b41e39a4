//! A plane that can be asked: one HTML file with nothing beside it.

/// What the file tells beside the picture.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// What a point of the plane means in weights of the tuned models.
    pub weights: Vec<Weight>,
    /// The marks, in a table.
    pub places: Vec<Place>,
    /// Settings, by name.
    pub facts: Vec<(String, String)>,
}

/// The weight of one tuned model at the point (x, y): `x · u + y · v`.
#[derive(Clone, Debug, Default)]
pub struct Weight {
    /// The model.
    pub name: String,
    /// What a unit along x adds.
    pub u: f64,
    /// What a unit along y adds.
    pub v: f64,
}

/// What is known of a mark.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Its coordinates along x and y.
    pub at: (f64, f64),
    /// How far it lies from the plane.
    pub distance: f64,
    /// The number at the mark itself for each panel, where it is known.
    pub losses: Vec<Option<f64>>,
}
