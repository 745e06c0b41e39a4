//! Planes through models, for pictures of what lies between them.
//!
//! A plane has an origin θ and two directions `u = Σ aᵢ·τᵢ` and `v = Σ bᵢ·τᵢ` of task vectors τᵢ. All is told by the Gram matrix
//! `Gᵢⱼ = τᵢ·τⱼ`, without a vector of a model's size: ⟨u, v⟩ = `aᵀ·G·b`, and another model's place is ⟨τ, u⟩ and ⟨τ, v⟩.
//!
//! Through three models the directions are orthonormal by Gram and Schmidt, the first along τ₁ (Garipov et al. 2018,
//! <https://arxiv.org/abs/1802.10026>, §A; Wortsman et al. 2022, <https://arxiv.org/abs/2203.05482>). Of more models they are the two
//! principal directions through θ, which hold most of the energy Σ‖τᵢ‖².

use super::Products;
use crate::error::{Error, Result};
use faer::{Mat, Side};

/// Sines of angles below this are taken for zero: f64 would not tell the second direction to nine digits.
const SINE: f64 = 1e-3;

/// A plane through a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Plane {
    /// What the directions are made of, by task vector.
    pub directions: [Vec<f64>; 2],
    /// The share of the task vectors' energy that lies in the plane.
    pub energy: f64,
}

/// Where a model is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    /// Along the directions.
    pub at: [f64; 2],
    /// How far the model is from the plane.
    pub beyond: f64,
}

impl Plane {
    /// The plane through the origin and two models, by their task vectors' numbers.
    ///
    /// # Errors
    /// [`Error::Recipe`] if a model is the origin, or all three lie on a line; `label` names them.
    pub fn through(products: &Products, [first, second]: [usize; 2], label: &dyn Fn(usize) -> String) -> Result<Self> {
        let norm = |index: usize| {
            let norm = products.norm(index);
            let message = || format!("{} is the model at the origin: there is no direction to it", label(index));
            if norm > 0.0 && norm.is_finite() { Ok(norm) } else { Err(Error::Recipe(message())) }
        };
        let (of_first, of_second) = (norm(first)?, norm(second)?);
        let cosine = products.product(first, second) / (of_first * of_second);
        let sine = (1.0 - cosine * cosine).max(0.0).sqrt();
        if sine < SINE {
            let way = if cosine > 0.0 { "the same way" } else { "opposite ways" };
            let message = format!("{} and {} lie {way} from the origin", label(first), label(second));
            return Err(Error::Recipe(format!(
                "{message} (their angle's sine is {sine:.1e}): a line is no plane; take another model"
            )));
        }
        let mut directions = [vec![0.0; products.vectors()], vec![0.0; products.vectors()]];
        directions[0][first] = 1.0 / of_first;
        directions[1][first] = -cosine / (of_first * sine);
        directions[1][second] = 1.0 / (of_second * sine);
        Ok(Self { directions, energy: 1.0 })
    }

    /// The plane through the origin that holds most of the energy of the first `models` task vectors: its directions are the
    /// eigenvectors of their Gram matrix with the largest eigenvalues, each so that the models are more on its positive side.
    ///
    /// # Errors
    /// [`Error::Recipe`] if they all lie on a line.
    pub fn principal(products: &Products, models: usize) -> Result<Self> {
        let gram = Mat::from_fn(models, models, |i, j| products.product(i, j));
        let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|_| {
            Error::Recipe("the models' inner products have no eigenvectors: are there NaN in them?".to_owned())
        })?;
        let (values, vectors) = (eigen.S().column_vector(), eigen.U());
        // In rising order.
        let places = [models.checked_sub(1), models.checked_sub(2)];
        let largest = places[0].map_or(0.0, |place| values[place]);
        let mut directions = [vec![0.0; products.vectors()], vec![0.0; products.vectors()]];
        let mut energy = 0.0;
        for (direction, place) in directions.iter_mut().zip(places) {
            let value = place.map_or(0.0, |place| values[place]);
            let (Some(place), true) = (place, value > SINE * SINE * largest && value.is_finite()) else {
                return Err(Error::Recipe(
                    "the models lie on a line through the origin, which is no plane; take another model".to_owned(),
                ));
            };
            let sum: f64 = (0..models).map(|i| vectors[(i, place)]).sum();
            let scale = if sum < 0.0 { -1.0 } else { 1.0 } / value.sqrt();
            (0..models).for_each(|i| direction[i] = scale * vectors[(i, place)]);
            energy += value;
        }
        let all: f64 = (0..models).map(|i| products.product(i, i)).sum();
        Ok(Self { directions, energy: energy / all })
    }

    /// The plane that two vectors span as they are, whatever their lengths and their angle.
    #[must_use]
    pub fn spanned() -> Self {
        Self { directions: [vec![1.0, 0.0], vec![0.0, 1.0]], energy: 1.0 }
    }

    /// The weights of the task vectors at a place of the plane.
    #[must_use]
    pub fn weights(&self, [x, y]: [f64; 2]) -> Vec<f64> {
        let [u, v] = &self.directions;
        u.iter().zip(v).map(|(u, v)| x * u + y * v).collect()
    }

    /// Where a model is, by the number of its task vector. The directions are orthonormal.
    #[must_use]
    pub fn place(&self, products: &Products, index: usize) -> Place {
        let along = |direction: &Vec<f64>| -> f64 {
            direction.iter().enumerate().map(|(i, share)| share * products.product(i, index)).sum()
        };
        let square = products.product(index, index);
        // What rounding leaves of a direction that a model has no part in is none.
        let least = 1e-12 * square.sqrt();
        let at =
            [along(&self.directions[0]), along(&self.directions[1])].map(|at| if at.abs() > least { at } else { 0.0 });
        let rest = square - at[0] * at[0] - at[1] * at[1];
        // What rounding leaves of a model in the plane.
        let beyond = if rest > 1e-12 * square { rest.sqrt() } else { 0.0 };
        Place { at, beyond }
    }
}
