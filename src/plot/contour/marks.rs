//! What lies over a plane: marks with their names, arrows, a search's path.

use super::{Contours, MarkKind};
use crate::plot::colour::Rgb;
use crate::plot::font::{fitted, text_width};
use crate::plot::scene::{Scene, Side};
use std::f64::consts::{PI, TAU};

type Point = (f64, f64);

/// On every colour of a field, black with white around it is seen, and so is the merge's vermilion.
pub(super) const INK: Rgb = (20, 20, 20);
const WHITE: Rgb = (255, 255, 255);
const MERGE: Rgb = (213, 60, 0);
/// How much farther than what it surrounds a halo reaches.
const RIM: f64 = 1.25;
const OUTLINE: f64 = 1.3;
const ARROW: f64 = 1.7;
const HEAD: (f64, f64) = (10.0, 7.5);
/// Nearer than this to the field's edge there is no name.
const MARGIN: f64 = 3.0;

/// A rectangle on the picture and what of the plane it shows.
#[derive(Clone, Copy, Debug)]
pub(in crate::plot) struct Field {
    pub(in crate::plot) from: Point,
    pub(in crate::plot) to: Point,
    /// The lowest and the highest coordinate along each axis.
    pub(in crate::plot) x: Point,
    pub(in crate::plot) y: Point,
}

impl Field {
    /// Where a point of the plane is on the picture, be it within the field or not.
    pub(super) fn place(&self, (x, y): Point) -> Point {
        let share = |place: f64, ends: Point| (place - ends.0) / (ends.1 - ends.0);
        let across = self.from.0 + share(x, self.x) * (self.to.0 - self.from.0);
        (across, self.to.1 - share(y, self.y) * (self.to.1 - self.from.1))
    }

    fn holds(&self, (x, y): Point) -> bool {
        // What rounding moves beyond the edge lies on it.
        let rest = 1e-6;
        (self.from.0 - rest..=self.to.0 + rest).contains(&x) && (self.from.1 - rest..=self.to.1 + rest).contains(&y)
    }

    /// An arrow's tip at the edge, from where to where, that points at what is beyond it: at an edge straight out, at a corner slanting.
    fn tip(&self, place: Point) -> (Point, Point) {
        let edge = (place.0.clamp(self.from.0, self.to.0), place.1.clamp(self.from.1, self.to.1));
        let way = |beyond: f64| if beyond == 0.0 { 0.0 } else { beyond.signum() };
        let out = (way(place.0 - edge.0), way(place.1 - edge.1));
        let length = out.0.hypot(out.1).max(1.0);
        let back = |far: f64| (edge.0 - out.0 / length * far, edge.1 - out.1 / length * far);
        (back(HEAD.0 + 2.0), back(2.0))
    }

    /// What of the line from `a` to `b` lies in the field (Liang and Barsky 1984).
    fn clipped(&self, a: Point, b: Point) -> Option<(Point, Point)> {
        // What is not finite, or farther than differences tell from there, has no line.
        if ![a.0, a.1, b.0, b.1].iter().all(|place| place.abs() < 1e9) {
            return None;
        }
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let (mut enters, mut leaves) = (0f64, 1f64);
        for (speed, room) in
            [(-dx, a.0 - self.from.0), (dx, self.to.0 - a.0), (-dy, a.1 - self.from.1), (dy, self.to.1 - a.1)]
        {
            if speed == 0.0 && room < 0.0 {
                return None;
            } else if speed < 0.0 {
                enters = enters.max(room / speed);
            } else if speed > 0.0 {
                leaves = leaves.min(room / speed);
            }
        }
        let at = |share: f64| (a.0 + dx * share, a.1 + dy * share);
        (enters < leaves).then(|| (at(enters), at(leaves)))
    }
}

/// What a legend's entry shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Sign {
    Mark(MarkKind, bool),
    Arrow,
    Path,
    Lowest,
    Unknown,
}

/// A mark's size as a share of a large field's.
fn radius(kind: MarkKind) -> f64 {
    match kind {
        MarkKind::Base => 5.0,
        MarkKind::Model => 5.6,
        MarkKind::Merge => 7.6,
        MarkKind::Point => 4.6,
    }
}

fn regular(centre: Point, radius: f64, corners: u32, turn: f64) -> Vec<Point> {
    let at = |corner: u32| {
        let angle = turn + f64::from(corner) / f64::from(corners) * TAU;
        (centre.0 + radius * angle.sin(), centre.1 - radius * angle.cos())
    };
    (0..corners).map(at).collect()
}

fn star(centre: Point, radius: f64) -> Vec<Point> {
    let outer = regular(centre, radius, 5, 0.0);
    let inner = regular(centre, radius * 0.45, 5, PI / 5.0);
    outer.into_iter().zip(inner).flat_map(|(outer, inner)| [outer, inner]).collect()
}

fn corners(kind: MarkKind, centre: Point, radius: f64) -> Vec<Point> {
    match kind {
        MarkKind::Base => regular(centre, radius, 32, 0.0),
        MarkKind::Model => regular(centre, radius * 1.2, 4, PI / 4.0),
        MarkKind::Merge => star(centre, radius),
        MarkKind::Point => regular(centre, radius * 1.15, 4, 0.0),
    }
}

/// A closed line with white around it.
fn outlined(scene: &mut Scene, mut corners: Vec<Point>, fill: Option<Rgb>) {
    corners.extend(corners.first().copied());
    corners.extend(corners.get(1).copied());
    scene.path(corners.clone(), OUTLINE + 2.0 * RIM, WHITE);
    if let Some(fill) = fill {
        scene.area(corners.get(2..).unwrap_or_default().to_vec(), fill);
    }
    scene.path(corners, OUTLINE, INK);
}

pub(super) fn draw_mark(scene: &mut Scene, kind: MarkKind, hollow: bool, centre: Point, scale: f64) {
    let fill = if kind == MarkKind::Merge { MERGE } else { INK };
    outlined(scene, corners(kind, centre, radius(kind) * scale), (!hollow).then_some(fill));
}

/// The tip that stands for a mark outside the field: it points from `from` outward to `to`.
fn draw_tip(scene: &mut Scene, kind: MarkKind, hollow: bool, (from, to): (Point, Point)) {
    let fill = if kind == MarkKind::Merge { MERGE } else { INK };
    outlined(scene, triangle(from, to, HEAD.1), (!hollow).then_some(fill));
}

/// A triangle with its point at `to` and its foot's middle at `from`.
fn triangle(from: Point, to: Point, width: f64) -> Vec<Point> {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy).max(1e-9);
    let (side_x, side_y) = (-dy / length * width / 2.0, dx / length * width / 2.0);
    vec![to, (from.0 + side_x, from.1 + side_y), (from.0 - side_x, from.1 - side_y)]
}

/// An arrow of the picture, its halo first.
pub(super) fn draw_arrow(scene: &mut Scene, from: Point, to: Point, headed: bool) {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let length = dx.hypot(dy);
    if length < 1.0 {
        return;
    }
    let back = |far: f64| (to.0 - dx / length * far, to.1 - dy / length * far);
    // The line ends within the head, not at its point.
    let head = HEAD.0.min(length * 0.7);
    let line = vec![from, if headed { back(head * 0.8) } else { to }];
    let tip = triangle(back(head), to, HEAD.1);
    let closed = || tip.iter().chain(tip.first()).chain(tip.get(1)).copied().collect::<Vec<Point>>();
    scene.path(line.clone(), ARROW + 2.0 * RIM, WHITE);
    if headed {
        scene.path(closed(), 2.0 * RIM, WHITE);
    }
    scene.path(line, ARROW, INK);
    if headed {
        scene.area(tip.clone(), INK);
    }
}

pub(super) fn draw_cross(scene: &mut Scene, (x, y): Point, size: f64) {
    let lines = [[(x - size, y - size), (x + size, y + size)], [(x - size, y + size), (x + size, y - size)]];
    for (width, colour) in [(1.6 + 2.0 * RIM, WHITE), (1.6, INK)] {
        for line in lines {
            scene.path(line.to_vec(), width, colour);
        }
    }
}

/// A line through points of the picture with a dot at each.
pub(super) fn draw_path(scene: &mut Scene, pieces: &[(Point, Point)], dots: &[Point]) {
    for (width, colour) in [(1.0 + 2.0, WHITE), (1.0, INK)] {
        for (from, to) in pieces {
            scene.path(vec![*from, *to], width, colour);
        }
    }
    for dot in dots {
        scene.area(regular(*dot, 2.9, 12, 0.0), WHITE);
        scene.area(regular(*dot, 1.9, 12, 0.0), INK);
    }
}

/// Draws all that lies over a field, with names of some size or without.
pub(super) fn draw_over(
    scene: &mut Scene,
    plane: &Contours,
    field: &Field,
    lowest: Option<Point>,
    names: Option<f64>,
    inks: (Rgb, Rgb),
) {
    // Marks of small fields are smaller.
    let scale = ((field.to.0 - field.from.0).min(field.to.1 - field.from.1) / 320.0).clamp(0.7, 1.0);
    let reach = |at: Point| {
        let marks = plane.marks.iter().filter(|mark| mark.at == at);
        marks.map(|mark| radius(mark.kind) * scale + RIM + 1.0).fold(0.0, f64::max)
    };
    let mut lines = Vec::new();
    for (from, to) in &plane.arrows {
        let (a, b) = (field.place(*from), field.place(*to));
        let length = (b.0 - a.0).hypot(b.1 - a.1);
        let stop = reach(*to);
        if length.is_nan() || length <= stop + 4.0 {
            continue;
        }
        let end = (b.0 - (b.0 - a.0) / length * stop, b.1 - (b.1 - a.1) / length * stop);
        if let Some((from, clipped)) = field.clipped(a, end) {
            draw_arrow(scene, from, clipped, field.holds(end));
            lines.push((from, clipped));
        }
    }
    let path: Vec<Point> = plane.path.iter().map(|point| field.place(*point)).collect();
    let pieces = path.windows(2).filter_map(|pair| field.clipped(*pair.first()?, *pair.get(1)?)).collect::<Vec<_>>();
    let dots: Vec<Point> = path.into_iter().filter(|point| field.holds(*point)).collect();
    draw_path(scene, &pieces, &dots);
    lines.extend(pieces);
    let lowest = lowest.map(|point| field.place(point));
    if let Some(place) = lowest {
        draw_cross(scene, place, 3.6 * scale);
    }

    let mut spots: Vec<(Point, f64)> = lowest.into_iter().map(|place| (place, 5.0)).collect();
    // Those within the field, and tips at its edge for the others, from where to where.
    let mut shown = Vec::new();
    for mark in &plane.marks {
        let place = field.place(mark.at);
        if !(place.0.is_finite() && place.1.is_finite()) {
            continue;
        }
        if field.holds(place) {
            spots.push((place, radius(mark.kind) * scale + RIM));
            shown.push((mark, None));
        } else {
            let tip = field.tip(place);
            spots.push((((tip.0.0 + tip.1.0) / 2.0, (tip.0.1 + tip.1.1) / 2.0), HEAD.0 / 2.0 + RIM));
            shown.push((mark, Some(tip)));
        }
    }
    let of_marks = spots.get(spots.len() - shown.len()..).unwrap_or_default();
    let room = ((field.to.0 - field.from.0) * 0.45).max(40.0);
    let size = names.unwrap_or_default();
    let texts = told_apart(&shown.iter().map(|(mark, _)| mark.name.as_str()).collect::<Vec<_>>(), size, room);
    let wanted = |(text, (at, around)): (String, &(Point, f64))| {
        let text = fitted(&text, size, room);
        Wanted { size: (text_width(&text, size), size * 1.2), text, at: *at, around: *around }
    };
    let labels: Vec<Wanted> = texts.into_iter().zip(of_marks).map(wanted).collect();
    let places = match names {
        Some(_) => placed(&labels, &Box { from: field.from, to: field.to }, &spots, &lines),
        None => Vec::new(),
    };
    let named = || labels.iter().zip(&places).filter_map(|(label, place)| Some((label, place.as_ref()?)));
    // Lines to names end below the marks.
    for (from, to) in named().filter_map(|(label, place)| label.leader(place)) {
        scene.path(vec![from, to], 2.6, inks.1);
        scene.path(vec![from, to], 0.9, inks.0);
    }
    for (mark, tip) in shown {
        match tip {
            Some(tip) => draw_tip(scene, mark.kind, mark.beyond, tip),
            None => draw_mark(scene, mark.kind, mark.beyond, field.place(mark.at), scale),
        }
    }
    for (label, place) in named() {
        let middle = ((place.from.0 + place.to.0) / 2.0, (place.from.1 + place.to.1) / 2.0);
        scene.haloed_text(&label.text, middle, size, Side::Middle, inks);
    }
}

/// Names, or where one is too long for its room, what is left of them without the folders that all have in common.
fn told_apart(names: &[&str], size: f64, room: f64) -> Vec<String> {
    let mut parts: Vec<Vec<&str>> = names.iter().map(|name| name.split('/').collect()).collect();
    if names.len() > 1 && names.iter().any(|name| text_width(name, size) > room) {
        let common = |parts: &[Vec<&str>], part: fn(&Vec<&str>) -> Option<String>| {
            let first = parts.first().and_then(part);
            first.is_some() && parts.iter().all(|parts| parts.len() > 1 && part(parts) == first)
        };
        while common(&parts, |parts| parts.first().map(|part| (*part).to_owned())) {
            for parts in &mut parts {
                parts.remove(0);
            }
        }
        while common(&parts, |parts| parts.last().map(|part| (*part).to_owned())) {
            for parts in &mut parts {
                parts.pop();
            }
        }
    }
    parts.iter().map(|parts| parts.join("/")).collect()
}

/// A name at this distance from its mark is led to by a line.
const FAR: f64 = 9.0;

/// A name that wants a place: whose, how far its mark reaches, how large it is.
struct Wanted {
    text: String,
    at: Point,
    around: f64,
    size: (f64, f64),
}

impl Wanted {
    /// The line from a mark to a name that is far from it.
    fn leader(&self, place: &Box) -> Option<(Point, Point)> {
        let near = (self.at.0.clamp(place.from.0, place.to.0), self.at.1.clamp(place.from.1, place.to.1));
        let (dx, dy) = (near.0 - self.at.0, near.1 - self.at.1);
        let (distance, around) = (dx.hypot(dy), self.around);
        let start = (self.at.0 + dx / distance * around, self.at.1 + dy / distance * around);
        (distance > around + FAR).then_some((start, near))
    }
}

#[derive(Clone, Copy, Debug)]
struct Box {
    from: Point,
    to: Point,
}

impl Box {
    fn around(at: Point, reach: f64) -> Self {
        Self { from: (at.0 - reach, at.1 - reach), to: (at.0 + reach, at.1 + reach) }
    }

    fn meets(&self, other: &Self) -> bool {
        self.from.0 < other.to.0 && other.from.0 < self.to.0 && self.from.1 < other.to.1 && other.from.1 < self.to.1
    }

    fn is_in(&self, other: &Self) -> bool {
        self.from.0 >= other.from.0 + MARGIN
            && self.to.0 <= other.to.0 - MARGIN
            && self.from.1 >= other.from.1 + MARGIN
            && self.to.1 <= other.to.1 - MARGIN
    }
}

/// Places for names: around each mark, from near to far, it takes the cheapest. It costs to cover names, marks or lines, to be far, to be
/// led to across others, and a little not to be at the right.
fn placed(labels: &[Wanted], bounds: &Box, spots: &[(Point, f64)], lines: &[(Point, Point)]) -> Vec<Option<Box>> {
    const DISTANCES: [f64; 11] = [2.5, 6.0, 12.0, 20.0, 32.0, 48.0, 68.0, 92.0, 120.0, 150.0, 180.0];
    /// Sides in eighths of a turn from the right: right, above, left, below, and then what is between.
    const SIDES: [f64; 16] = [0.0, 2.0, 4.0, 6.0, 1.0, 7.0, 3.0, 5.0, 0.5, 7.5, 3.5, 4.5, 1.5, 6.5, 2.5, 5.5];
    let spots: Vec<Box> = spots.iter().map(|(at, around)| Box::around(*at, *around)).collect();
    let mut lines = lines.to_vec();
    let mut taken: Vec<Option<Box>> = Vec::new();
    for label in labels {
        let half = (label.size.0 / 2.0, label.size.1 / 2.0);
        let mut best: Option<(f64, Box)> = None;
        for distance in DISTANCES {
            for (order, side) in SIDES.iter().enumerate() {
                let (down, along) = (side * std::f64::consts::FRAC_PI_4).sin_cos();
                let away = label.around + distance;
                // The side or the corner that is nearest to the mark lies on a circle around it.
                let shift = |way: f64| if way.abs() < 0.3 { 0.0 } else { way.signum() };
                let middle = (
                    label.at.0 + along * away + shift(along) * half.0,
                    label.at.1 - down * away - shift(down) * half.1,
                );
                let place =
                    Box { from: (middle.0 - half.0, middle.1 - half.1), to: (middle.0 + half.0, middle.1 + half.1) };
                if !place.is_in(bounds) {
                    continue;
                }
                let others = || taken.iter().flatten();
                let covered = spots.iter().filter(|spot| place.meets(spot)).count() as f64;
                let names = others().filter(|other| place.meets(other)).count() as f64;
                let crossed: f64 = lines.iter().map(|line| length_in(line, &place)).sum();
                let leader = label.leader(&place);
                let led: f64 = leader.iter().flat_map(|line| others().map(|other| length_in(line, other))).sum();
                let cost = 2000.0 * names + 60.0 * covered + crossed + 12.0 * led + 0.6 * distance + 0.5 * order as f64;
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, place));
                }
            }
        }
        lines.extend(best.as_ref().and_then(|(_, place)| label.leader(place)));
        taken.push(best.map(|(_, place)| place));
    }
    taken
}

/// How much of a line lies in a box.
fn length_in((from, to): &(Point, Point), place: &Box) -> f64 {
    let field = Field { from: place.from, to: place.to, x: (0.0, 1.0), y: (0.0, 1.0) };
    field.clipped(*from, *to).map_or(0.0, |(a, b)| (b.0 - a.0).hypot(b.1 - a.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(at: Point, width: f64) -> Wanted {
        Wanted { text: "x".to_owned(), at, around: 6.0, size: (width, 13.0) }
    }

    #[test]
    fn names_lie_beside_each_other_and_within() {
        let bounds = Box { from: (0.0, 0.0), to: (400.0, 300.0) };
        // Twelve marks in one place, and one in each corner.
        let mut labels: Vec<Wanted> = (0..12).map(|_| wanted((200.0, 150.0), 70.0)).collect();
        labels.extend([(2.0, 2.0), (398.0, 2.0), (2.0, 298.0), (398.0, 298.0)].map(|at| wanted(at, 100.0)));
        let spots: Vec<(Point, f64)> = labels.iter().map(|label| (label.at, label.around)).collect();
        let places: Vec<Box> = placed(&labels, &bounds, &spots, &[]).into_iter().flatten().collect();
        assert_eq!(places.len(), labels.len());
        for (index, place) in places.iter().enumerate() {
            assert!(place.is_in(&bounds), "{place:?}");
            assert!(places.iter().skip(index + 1).all(|other| !place.meets(other)), "{index}: {place:?}");
        }
        // With nothing in the way a name is at its mark's right; with a line there it is not.
        let alone = |lines: &[(Point, Point)]| placed(&[wanted((200.0, 150.0), 50.0)], &bounds, &[], lines);
        assert!(alone(&[]).iter().flatten().all(|place| place.from.0 > 200.0 && place.from.1 < 150.0));
        assert_eq!(told_apart(&["a/b/one/x.bin", "a/b/two/x.bin"], 12.0, 50.0), ["one", "two"]);
        assert_eq!(told_apart(&["a/b", "a/b"], 12.0, 1.0), ["b", "b"]);
        assert_eq!(told_apart(&["a/b", "a/c"], 12.0, 100.0), ["a/b", "a/c"]);
        let line = ((200.0, 150.0), (390.0, 150.0));
        assert!(alone(&[line]).iter().flatten().all(|place| length_in(&line, place) == 0.0));
        // No room is no place.
        assert!(placed(&[wanted((200.0, 150.0), 500.0)], &bounds, &[], &[]).iter().all(Option::is_none));
    }

    #[test]
    fn lines_are_cut_at_the_edge() {
        let field = Field { from: (0.0, 0.0), to: (10.0, 10.0), x: (-1.0, 1.0), y: (-1.0, 1.0) };
        assert_eq!(field.place((0.0, 1.0)), (5.0, 0.0));
        assert_eq!(field.clipped((-10.0, 5.0), (20.0, 5.0)), Some(((0.0, 5.0), (10.0, 5.0))));
        assert_eq!(field.clipped((5.0, 5.0), (5.0, 50.0)), Some(((5.0, 5.0), (5.0, 10.0))));
        assert_eq!(field.clipped((-1.0, -1.0), (-1.0, 20.0)), None);
        assert_eq!(field.clipped((-5.0, 4.0), (4.0, -5.0)), None);
        assert_eq!(field.clipped((0.0, 0.0), (f64::INFINITY, 1.0)), None);
        assert_eq!(field.tip((99.0, 4.0)), ((10.0 - HEAD.0 - 2.0, 4.0), (8.0, 4.0)));
        let (from, to) = field.tip((-99.0, 99.0));
        assert!((from.0 - (12.0 / 2f64.sqrt())).abs() < 1e-9 && to.0 > 0.0 && to.1 < 10.0 && from.1 < to.1);
    }
}
