//! A plane as files for other programs.

use super::found::{Found, Member};
use crate::cli::report::{Report, csv};
use crate::dtype::DType;
use crate::output::{Array, write_npz};
use crate::plot::{Contours, MarkKind, interactive, vtk};
use clap::Args;
use std::path::{Path, PathBuf};

/// Files that may be wanted.
#[derive(Args)]
pub(super) struct Outputs {
    /// Write the numbers as Garipov et al.'s plane.py does, for their plane_plot.py and for NumPy
    ///
    /// `grid[i, j]` is the place of column i and row j; `tr_loss`, and `te_loss` which is the same, the first loss; `tr_err` and `te_err`
    /// how far it is above the lowest, in per cent of it (`tr_acc` is 100 less that, as their script expects one); `loss_0`, `loss_1`, … the
    /// losses of all ranges. `bend_coordinates` are BASE, the second model and the first; `curve_coordinates` go straight from one to the
    /// next; `models` are the places of all, `alphas` and `betas` the axes in lengths of the first two task vectors.
    #[arg(long, value_name = "FILE.npz", value_parser = |text: &str| ending(text, "npz"))]
    npz: Option<PathBuf>,
    /// Write the numbers as a table: a point a row, with its weights
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Write the surface for ParaView and other 3-D viewers, as VTK's legacy text: the height is the first number
    #[arg(long, value_name = "FILE.vtk", value_parser = |text: &str| ending(text, "vtk"))]
    vtk: Option<PathBuf>,
    /// Write a page that tells place, weights and numbers where the mouse points; it needs nothing beside it
    #[arg(long, value_name = "FILE.html", value_parser = |text: &str| ending(text, "html"))]
    html: Option<PathBuf>,
}

fn ending(text: &str, wanted: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let fits = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(wanted));
    if fits { Ok(path) } else { Err(format!("let its name end with .{wanted}")) }
}

/// An array, by what it is called.
struct Named {
    name: String,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

fn named(name: impl Into<String>, shape: &[usize], numbers: impl IntoIterator<Item = f64>) -> Named {
    let bytes = numbers.into_iter().flat_map(f64::to_le_bytes).collect();
    Named { name: name.into(), shape: shape.iter().map(|&side| side as u64).collect(), bytes }
}

impl Outputs {
    /// Where they are to go.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.npz, &self.csv, &self.vtk, &self.html].into_iter().flatten().map(PathBuf::as_path)
    }

    /// Writes those that are wanted.
    pub(super) fn write(&self, found: &Found, contours: &Contours, report: &Report) -> anyhow::Result<()> {
        if let Some(path) = &self.npz {
            write_npz_of(found, path)?;
            report.wrote(path);
        }
        if let Some(path) = &self.csv {
            report.write(path, csv_of(found).as_bytes())?;
        }
        if let Some(path) = &self.vtk {
            report.write(path, vtk(contours)?.as_bytes())?;
        }
        if let Some(path) = &self.html {
            report.write(path, interactive(contours, &found.details())?.as_bytes())?;
        }
        Ok(())
    }
}

fn csv_of(found: &Found) -> String {
    let weights = found.weighted.iter().map(|name| format!("weight of {name}"));
    let headings: Vec<String> =
        ["x", "y"].map(str::to_owned).into_iter().chain(weights).chain(found.labels.iter().cloned()).collect();
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let rows = found.points().map(|(point, at)| {
        let values = (0..found.labels.len())
            .map(|label| found.value(point, label).map_or_else(String::new, |value| value.to_string()));
        let numbers = at.into_iter().chain(found.weights(at)).map(|number| number.to_string());
        numbers.chain(values).collect()
    });
    csv(&headings, rows)
}

fn write_npz_of(found: &Found, path: &Path) -> anyhow::Result<()> {
    const CURVE: usize = 61;
    let (xs, ys) = (&found.lattice.xs, &found.lattice.ys);
    let (columns, rows) = (xs.len(), ys.len());
    // By column and row, as theirs.
    let points = || (0..columns).flat_map(|column| (0..rows).map(move |row| [column, row]));
    let values = |label: usize| points().map(move |point| found.value(point, label).unwrap_or(f64::NAN));
    let lowest = found.lowest(0).map_or(f64::NAN, |lowest| lowest.value);
    let excess = || values(0).map(|value| 100.0 * (value / lowest - 1.0));
    let tuned: Vec<[f64; 2]> =
        found.members.iter().filter(|member| member.kind == MarkKind::Model).map(|member| member.place.at).collect();
    let [first, second] = match tuned[..] {
        [first, second, ..] => [first, second],
        _ => [[1.0, 0.0], [0.0, 1.0]],
    };
    let bends = [[0.0; 2], second, first];
    let times = (0..CURVE).map(|index| index as f64 / (CURVE - 1) as f64);
    let curve = times.clone().flat_map(|time| {
        let (from, to, share) =
            if time <= 0.5 { (bends[0], bends[1], 2.0 * time) } else { (bends[1], bends[2], 2.0 * time - 1.0) };
        [0, 1].map(|axis| from[axis] + share * (to[axis] - from[axis]))
    });
    let square = [columns, rows];
    let mut arrays = vec![
        named("ts", &[CURVE], times),
        named("bend_coordinates", &[3, 2], bends.concat()),
        named("curve_coordinates", &[CURVE, 2], curve),
        named("alphas", &[columns], xs.iter().map(|x| x / first[0])),
        named("betas", &[rows], ys.iter().map(|y| y / second[1])),
        named("grid", &[columns, rows, 2], points().flat_map(|[column, row]| [xs[column], ys[row]])),
    ];
    for part in ["tr", "te"] {
        arrays.push(named(format!("{part}_loss"), &square, values(0)));
        arrays.push(named(format!("{part}_nll"), &square, values(0)));
        arrays.push(named(format!("{part}_acc"), &square, excess().map(|excess| 100.0 - excess)));
        arrays.push(named(format!("{part}_err"), &square, excess()));
    }
    arrays.extend((0..found.labels.len()).map(|label| named(format!("loss_{label}"), &square, values(label))));
    let of_members = |of: fn(&Member) -> [f64; 2]| found.members.iter().flat_map(of);
    arrays.push(named("models", &[found.members.len(), 2], of_members(|member| member.place.at)));
    let arrays: Vec<Array<'_>> =
        arrays.iter().map(|Named { name, shape, bytes }| Array { name, dtype: DType::F64, shape, bytes }).collect();
    let models = found.members.iter().map(|member| member.label.clone()).collect::<Vec<_>>();
    let text = [("labels", found.labels.join("\n")), ("models", models.join("\n"))];
    Ok(write_npz(path, &arrays, &text)?)
}
