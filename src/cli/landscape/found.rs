//! What is known of a plane.

use crate::analysis::{Place, Plane};
use crate::cli::report::{significant, table};
use crate::error::{Error, Result};
use crate::plot::{Contours, Details, Mark, MarkKind, Panel, Place as PlaceOnPage, Weight};
use crate::search::Lattice;
use serde_json::{Value, json};

/// A model that a plane is about.
#[derive(Clone)]
pub(super) struct Member {
    /// For people, and in full.
    pub(super) name: String,
    pub(super) label: String,
    pub(super) kind: MarkKind,
    pub(super) place: Place,
    /// As a candidate.
    pub(super) weights: Vec<f64>,
    /// Its own numbers.
    pub(super) values: Vec<f64>,
    /// The fingerprint of one that does not span the plane.
    pub(super) mark: Option<String>,
}

impl Member {
    /// The model at the origin, of so many that have weights.
    pub(super) fn origin(name: String, label: String, weights: usize) -> Self {
        let place = Place { at: [0.0; 2], beyond: 0.0 };
        Self { name, label, kind: MarkKind::Base, place, weights: vec![0.0; weights], values: Vec::new(), mark: None }
    }
}

/// A plane with its numbers.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) plane: Plane,
    pub(super) members: Vec<Member>,
    pub(super) lattice: Lattice,
    pub(super) axes: [String; 2],
    /// The names of the models that have weights.
    pub(super) weighted: Vec<String>,
    pub(super) unit: String,
    pub(super) titles: Vec<String>,
    pub(super) labels: Vec<String>,
    /// What they are judged by.
    pub(super) facts: Value,
    /// By row and column: a number for each label.
    pub(super) values: Vec<Vec<Option<Vec<f64>>>>,
    /// Points that a journal had.
    pub(super) known_before: usize,
    /// The share of the models' energy that the plane holds, where it does not go through them.
    pub(super) energy: Option<f64>,
}

/// The lowest number of a grid.
pub(super) struct Lowest {
    pub(super) at: [f64; 2],
    pub(super) value: f64,
}

impl Found {
    /// That the model at the origin has numbers: if it has none, none will.
    pub(super) fn check_origin(&self) -> Result<()> {
        let origin = self.members.first();
        if origin.is_some_and(|origin| origin.values.iter().any(|value| value.is_finite())) {
            return Ok(());
        }
        let name = origin.map_or("BASE", |origin| origin.label.as_str());
        let message = "has itself no number that is finite, so there is nothing to draw around it";
        Err(Error::Recipe(format!("{name} {message}; does it hold NaN (`ckptmerge inspect {name} --stats`)?")))
    }

    /// One of the numbers of a point.
    pub(super) fn value(&self, [column, row]: [usize; 2], label: usize) -> Option<f64> {
        let values = self.values.get(row)?.get(column)?.as_ref()?;
        values.get(label).copied().filter(|value| value.is_finite())
    }

    /// The lowest of a label's.
    pub(super) fn lowest(&self, label: usize) -> Option<Lowest> {
        let points = self.points().filter_map(|(point, at)| Some(Lowest { at, value: self.value(point, label)? }));
        points.min_by(|a, b| a.value.total_cmp(&b.value))
    }

    /// All points with their places, row by row.
    pub(super) fn points(&self) -> impl Iterator<Item = ([usize; 2], [f64; 2])> {
        let rows = self.lattice.ys.iter().enumerate();
        rows.flat_map(|(row, y)| self.lattice.xs.iter().enumerate().map(move |(column, x)| ([column, row], [*x, *y])))
    }

    /// The weights of the models at a place.
    pub(super) fn weights(&self, at: [f64; 2]) -> Vec<f64> {
        self.plane.weights(at).into_iter().take(self.weighted.len()).collect()
    }

    /// The rows and columns that are known altogether.
    pub(super) fn known_so_far(&self) -> Self {
        let rows: Vec<usize> = (0..self.lattice.ys.len())
            .filter(|&row| self.values[row].iter().filter(|value| value.is_some()).count() > 1)
            .collect();
        let is_known = |column: usize| rows.iter().all(|&row| self.values[row][column].is_some());
        let columns: Vec<usize> = (0..self.lattice.xs.len()).filter(|&column| is_known(column)).collect();
        let pick = |places: &[f64], which: &[usize]| which.iter().map(|&index| places[index]).collect();
        let lattice = Lattice { xs: pick(&self.lattice.xs, &columns), ys: pick(&self.lattice.ys, &rows) };
        let row = |&row: &usize| columns.iter().map(|&column| self.values[row][column].clone()).collect();
        Self { lattice, values: rows.iter().map(row).collect(), ..self.clone() }
    }

    fn title(&self) -> String {
        let models = self.members.iter().filter(|member| member.kind != MarkKind::Merge);
        let models: Vec<&str> = models.map(|member| member.name.as_str()).collect();
        match (&models[..], self.energy) {
            ([alone], _) => format!("Random plane around {alone}"),
            (models, Some(_)) => format!("Principal plane of {} models", models.len() - 1),
            (models, None) => format!("Plane through {}", models.join(", ")),
        }
    }

    /// How many models do not lie in the plane, and how far at most.
    fn beside(&self) -> Option<(usize, f64)> {
        let far: Vec<f64> = self.members.iter().map(|member| member.place.beyond).filter(|far| *far > 0.0).collect();
        (!far.is_empty()).then(|| (far.len(), far.iter().copied().fold(0.0, f64::max)))
    }

    /// The picture.
    pub(super) fn contours(&self) -> Contours {
        let panel = |(label, title): (usize, &String)| {
            let row = |row: usize| (0..self.lattice.xs.len()).map(|column| self.value([column, row], label)).collect();
            Panel { title: title.clone(), values: (0..self.lattice.ys.len()).map(row).collect() }
        };
        let mark = |member: &Member| Mark {
            name: member.name.clone(),
            at: member.place.at.into(),
            kind: member.kind,
            beyond: member.place.beyond > 0.0,
        };
        let is_through = |member: &&Member| member.kind == MarkKind::Model && self.energy.is_none();
        let arrows = self.members.iter().filter(is_through).map(|member| ((0.0, 0.0), member.place.at.into()));
        let [x_label, y_label] = self.axes.clone();
        let mut notes = Vec::new();
        if let Some(energy) = self.energy {
            notes.push(format!("the plane holds {:.0} % of the task vectors' energy", 100.0 * energy));
        }
        if let Some((count, most)) = self.beside() {
            let models = if count == 1 { "a hollow mark lies" } else { "hollow marks lie" };
            let most = significant(most, 3);
            notes.push(format!(
                "{models} off the plane, by {most} at most: a model's own loss differs from the colour there"
            ));
        }
        Contours {
            title: self.title(),
            notes,
            x_label,
            y_label,
            unit: self.unit.clone(),
            xs: self.lattice.xs.clone(),
            ys: self.lattice.ys.clone(),
            panels: self.titles.iter().enumerate().map(panel).collect(),
            marks: self.members.iter().map(mark).collect(),
            arrows: arrows.collect(),
            ..Contours::default()
        }
    }

    /// What a page tells beside the picture.
    pub(super) fn details(&self) -> Details {
        let [u, v] = &self.plane.directions;
        let weights = self.weighted.iter().zip(u.iter().zip(v));
        let weights = weights.map(|(name, (u, v))| Weight { name: name.clone(), u: *u, v: *v });
        let place = |member: &Member| PlaceOnPage {
            name: member.name.clone(),
            at: member.place.at.into(),
            distance: member.place.beyond,
            losses: member.values.iter().map(|value| value.is_finite().then_some(*value)).collect(),
        };
        let facts = self.facts.as_object().into_iter().flatten().filter(|(_, value)| !value.is_object());
        let facts =
            facts.map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        Details { weights: weights.collect(), places: self.members.iter().map(place).collect(), facts: facts.collect() }
    }

    /// What the numbers are called in tables.
    fn headings(&self) -> Vec<String> {
        self.labels.iter().map(|label| label.trim_start_matches("loss at ").to_owned()).collect()
    }

    pub(super) fn text(&self) -> String {
        let (columns, rows) = (self.lattice.xs.len(), self.lattice.ys.len());
        let known = match self.known_before {
            0 => String::new(),
            known => format!(", {known} known before"),
        };
        let energy = self.energy.map_or_else(String::new, |energy| format!(", {:.1} % of the energy", 100.0 * energy));
        let mut text = format!("{}: {columns}×{rows} points{known}{energy}, by {}\n\n", self.title(), self.unit);
        let headings = self.headings();
        let all: Vec<&str> =
            ["", "x", "y", "off plane"].into_iter().chain(headings.iter().map(String::as_str)).collect();
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| significant(value, 5));
        let place = |value: f64| significant(value, 4);
        let row = |member: &Member| {
            let Place { at: [x, y], beyond } = member.place;
            let values = (0..self.labels.len())
                .map(|label| number(member.values.get(label).copied().filter(|value| value.is_finite())));
            [member.name.clone(), place(x), place(y), place(beyond)].into_iter().chain(values).collect()
        };
        let mut rows: Vec<Vec<String>> = self.members.iter().map(row).collect();
        let lowest = (0..self.labels.len()).filter_map(|label| Some((label, self.lowest(label)?)));
        let several = self.labels.len() > 1;
        let lowest: Vec<(usize, Lowest)> = lowest.collect();
        for (label, Lowest { at: [x, y], value }) in &lowest {
            let name = if several { format!("lowest, {}", headings[*label]) } else { "lowest point".to_owned() };
            let values =
                (0..self.labels.len()).map(|other| if other == *label { number(Some(*value)) } else { String::new() });
            rows.push([name, place(*x), place(*y), String::new()].into_iter().chain(values).collect());
        }
        text += &table(&all, &all[1..], rows);
        if let (Some((_, Lowest { at, .. })), false) = (lowest.first(), self.weighted.is_empty()) {
            let weights = self.weights(*at).into_iter().map(|weight| significant(weight, 3)).collect::<Vec<_>>();
            let point =
                if several { format!("where {} is lowest", self.labels[0]) } else { "at the lowest point".to_owned() };
            text += &format!("\nWeights {point}: {} ({})\n", weights.join(","), self.weighted.join(", "));
        }
        let edges = lowest.iter().filter(|(_, lowest)| self.is_on_edge(lowest.at)).count();
        if edges > 0 {
            let points =
                if several { format!("{edges} of {} lowest points are", lowest.len()) } else { "It is".to_owned() };
            text += &format!("{points} on the plane's edge: there may be lower ones beyond (--margin)\n");
        }
        text
    }

    /// Whether a place is one of the outermost.
    fn is_on_edge(&self, [x, y]: [f64; 2]) -> bool {
        let is_end = |places: &[f64], at: f64| places.first() == Some(&at) || places.last() == Some(&at);
        is_end(&self.lattice.xs, x) || is_end(&self.lattice.ys, y)
    }

    pub(super) fn document(&self) -> Value {
        let finite = |value: f64| value.is_finite().then_some(value);
        let member = |member: &Member| {
            let kind = match member.kind {
                MarkKind::Base => "base",
                MarkKind::Model => "tuned",
                MarkKind::Merge | MarkKind::Point => "mark",
            };
            json!({
                "model": member.label, "kind": kind, "x": member.place.at[0], "y": member.place.at[1],
                "distance_from_plane": member.place.beyond,
                "values": member.values.iter().map(|value| finite(*value)).collect::<Vec<_>>(),
            })
        };
        let lowest = |label: usize| {
            let Lowest { at, value } = self.lowest(label)?;
            Some(json!({
                "x": at[0], "y": at[1], "value": value, "weights": self.weights(at), "on_edge": self.is_on_edge(at),
            }))
        };
        let of_label = |label: usize| -> Vec<Vec<Option<f64>>> {
            let row = |row: usize| (0..self.lattice.xs.len()).map(|column| self.value([column, row], label)).collect();
            (0..self.lattice.ys.len()).map(row).collect()
        };
        let labels = 0..self.labels.len();
        json!({
            "models": self.members.iter().map(member).collect::<Vec<_>>(),
            "directions": self.plane.directions.iter().map(|d| d.iter().take(self.weighted.len()).collect::<Vec<_>>()).collect::<Vec<_>>(),
            "energy": self.energy,
            "labels": self.labels,
            "judged_by": self.facts,
            "xs": self.lattice.xs,
            "ys": self.lattice.ys,
            "values": labels.clone().map(of_label).collect::<Vec<_>>(),
            "lowest": labels.map(lowest).collect::<Vec<_>>(),
            "known_before": self.known_before,
        })
    }
}
