//! `ckptmerge stats`

#[cfg(feature = "plot")]
use super::picture::Picture;
use super::report::{check_beside, count, csv, table};
use super::tuned::{Tuned, names};
use super::{Common, Run, named};
use crate::analysis::{self, By, Counted, Distribution, Distributions, Histograms, LEVELS};
#[cfg(feature = "plot")]
use crate::plot::{BoxPlot, FiveNumbers, Histogram};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tell how the changes of fine-tuned models are distributed
///
/// Takes the task vectors τ = TUNED − BASE and tells of each model and layer the norm ‖τ‖, the norm relative to the base's,
/// the standard deviation, the excess kurtosis (0 for a normal distribution, more with heavier tails), the share of elements
/// that did not change, and quantiles; in --csv and --json also the mean, the skewness, the least and the most. Moments are the
/// population's, without correction for small samples. Quantiles are exact, over all elements, and interpolated between two of
/// them as numpy does by default. Models of any formats and types mix; tied tensors count once; elements that are not finite in
/// a task vector are left out of it and counted.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge stats base.st a.st b.st c.st
  ckptmerge stats base/ a/ b/ c/ --plot layers.svg --csv layers.csv
  ckptmerge stats base/ a/ b/ --by model --histogram --bins 201 --plot histogram.png")]
pub(super) struct Stats {
    #[command(flatten)]
    models: Tuned,
    /// What is put together: model, block (the same thing in all layers), layer or tensor
    ///
    /// A layer ends with the last number in a tensor's name, as `model.layers.7` does, or in models with many numbers in
    /// their names with the last that counts layers; the rest of the name is the block.
    #[arg(long, value_name = "PART", default_value = "layer", value_parser = named(&By::NAMES))]
    by: By,
    /// Count the elements in bins of equal width as well, and draw the counts instead of the boxes
    ///
    /// Takes one more pass. What is beyond the ends is counted in the first and the last bin. The picture is of all tensors, on
    /// a logarithmic scale; --histogram-csv has the parts of --by as well.
    #[arg(long)]
    histogram: bool,
    /// How many bins
    #[arg(long, value_name = "N", default_value = "101", requires = "histogram", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    bins: u32,
    /// The bins are from −END to END [default: the larger of the 0.1 % and 99.9 % quantiles' magnitudes of all models]
    #[arg(long, value_name = "END", requires = "histogram", value_parser = end)]
    range: Option<f64>,
    /// Write all that is known of each model, in all and by part
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    /// Write the counts of each bin and model, in all and by part
    #[arg(long, value_name = "FILE.csv", requires = "histogram")]
    histogram_csv: Option<PathBuf>,
    #[cfg(feature = "plot")]
    #[command(flatten)]
    picture: Picture,
}

fn end(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(end) if end > 0.0 && end <= 1e300 => Ok(end),
        _ => Err("the end is a number above 0, and at most 1e300".to_owned()),
    }
}

/// The tails at which a histogram ends.
const TAILS: [f64; 2] = [0.001, 0.999];

impl Run for Stats {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        let models = self.models.open(common, &report)?;
        #[cfg(feature = "plot")]
        let picture = self.picture.path();
        #[cfg(not(feature = "plot"))]
        let picture = None;
        check_beside(&[self.csv.as_deref(), self.histogram_csv.as_deref(), picture], models.all())?;
        let vectors = self.models.vectors(&models, &report)?;
        let settings = common.settings();
        let mut levels = LEVELS.to_vec();
        if self.histogram {
            levels.extend(TAILS);
            levels.sort_by(f64::total_cmp);
        }
        // Nearly always two passes find all quantiles.
        let bytes = 2 * vectors.bytes();
        let found =
            report.watched(bytes, |control| analysis::distributions(&vectors, self.by, &levels, &settings, control))?;
        report.note(|| format!("took {} to find the quantiles", passes(found.passes)));
        let (labels, base) = models.labels().split_at(vectors.models);
        for (label, total) in labels.iter().zip(&found.total).filter(|(_, total)| total.moments.not_finite > 0) {
            let elements = count(total.moments.not_finite, "element");
            let what = if base.is_empty() { "no finite number" } else { "no finite change" };
            report.warn(&format!("{label} has {what} in {elements}, left out of its statistics"));
        }
        let histograms = if self.histogram {
            let end = self.range.unwrap_or_else(|| ends(&found)).min(1e300);
            if end == 0.0 {
                report.remark("nothing changed: the bins are from −1 to 1");
            }
            let bins = (self.bins as usize, if end == 0.0 { 1.0 } else { end });
            let count =
                |control: crate::stream::Control<'_>| analysis::histograms(&vectors, self.by, bins, &settings, control);
            Some(report.watched(vectors.bytes(), count)?)
        } else {
            None
        };
        let base = base.first().map(String::as_str);
        let shown =
            Shown { found: &found, histograms: histograms.as_ref(), labels, names: names(labels), base, by: self.by };
        report.answer(|| shown.text(), || shown.document())?;
        if let Some(path) = &self.csv {
            report.write(path, shown.csv().as_bytes())?;
        }
        if let (Some(path), Some(histograms)) = (&self.histogram_csv, &histograms) {
            report.write(path, shown.counts_csv(histograms).as_bytes())?;
        }
        #[cfg(feature = "plot")]
        if self.picture.is_wanted() {
            match &histograms {
                Some(histograms) => self.picture.draw(&report, &shown.counts(histograms))?,
                None => self.picture.draw(&report, &shown.boxes())?,
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn passes(number: u32) -> String {
    if number == 1 { "1 pass".to_owned() } else { format!("{number} passes") }
}

/// Where a histogram of all models ends: at the larger of the magnitudes that all but a thousandth are above or below; if
/// these are zero, at the largest of all.
fn ends(found: &Distributions) -> f64 {
    let at = |total: &Distribution, level: f64| {
        let place = found.levels.iter().position(|known| *known == level);
        place.and_then(|place| total.quantiles.get(place)).map_or(0.0, |quantile| quantile.abs())
    };
    let largest = |magnitudes: &dyn Fn(&Distribution) -> [f64; 2]| {
        found.total.iter().flat_map(magnitudes).filter(|end| end.is_finite()).fold(0.0, f64::max)
    };
    let tails = largest(&|total| TAILS.map(|level| at(total, level)));
    if tails > 0.0 { tails } else { largest(&|total| [total.moments.min.abs(), total.moments.max.abs()]) }
}

/// What was found, with the names of the models.
struct Shown<'a> {
    found: &'a Distributions,
    histograms: Option<&'a Histograms>,
    labels: &'a [String],
    /// The labels, for people.
    names: Vec<String>,
    base: Option<&'a str>,
    by: By,
}

impl Shown<'_> {
    fn title(&self) -> String {
        match self.base {
            Some(base) => format!("Changes from {}", names(&[base.to_owned()]).concat()),
            None => "Values of the models".to_owned(),
        }
    }

    /// Every model of every part, those of all parts together last.
    fn all<'s>(&'s self, labels: &'s [String]) -> impl Iterator<Item = (&'s str, &'s str, &'s Distribution)> {
        let parts = self.found.parts.iter().map(|(name, part)| (name.as_str(), part));
        let all = parts.chain(std::iter::once(("all", &self.found.total)));
        all.flat_map(move |(name, part)| {
            part.iter().zip(labels).map(move |(found, label)| (name, label.as_str(), found))
        })
    }

    fn text(&self) -> String {
        let levels = [0.01, 0.25, 0.5, 0.75, 0.99];
        let quantiles = levels.map(level_name);
        let vector = if self.base.is_some() { "τ" } else { "x" };
        let (norm, relative) = (format!("‖{vector}‖"), format!("‖{vector}‖/‖base‖"));
        let mut headings = vec!["part", "model", norm.as_str()];
        if self.by == By::Model {
            headings.remove(0);
        }
        if self.base.is_some() {
            headings.push(&relative);
        }
        headings.extend(["std", "kurtosis", "zeros"]);
        headings.extend(quantiles.iter().map(String::as_str));
        let row = |(part, label, found): (&str, &str, &Distribution)| {
            let mut row = vec![part.to_owned(), label.to_owned(), format!("{:.4e}", found.moments.norm())];
            if self.by == By::Model {
                row.remove(0);
            }
            if self.base.is_some() {
                row.push(short(found.relative_norm()));
            }
            row.push(short(found.moments.std()));
            row.push(found.moments.excess_kurtosis().map_or_else(undefined, |kurtosis| format!("{kurtosis:.2}")));
            row.push(found.moments.sparsity().map_or_else(undefined, |share| format!("{:.2} %", 100.0 * share)));
            row.extend(levels.iter().map(|level| short(self.quantile(found, *level))));
            row
        };
        let right: Vec<&str> =
            headings.iter().copied().filter(|heading| !["part", "model"].contains(heading)).collect();
        let elements = self.found.total.iter().map(|total| total.moments.count + total.moments.not_finite).max();
        let mut text = format!("{}, {}; kurtosis is excess\n\n", self.title(), count(elements.unwrap_or(0), "element"));
        text += &table(&headings, &right, self.all(&self.names).map(row));
        if let Some(histograms) = self.histograms {
            text += &self.counts_text(histograms);
        }
        text
    }

    fn quantile(&self, found: &Distribution, level: f64) -> Option<f64> {
        let place = self.found.levels.iter().position(|known| *known == level)?;
        found.quantiles.get(place).copied()
    }

    fn counts_text(&self, histograms: &Histograms) -> String {
        let mut headings = vec!["from", "to"];
        headings.extend(self.names.iter().map(String::as_str));
        let row = |(bin, edges): (usize, &[f64])| {
            let mut row: Vec<String> = edges.iter().map(|edge| format!("{edge:.3e}")).collect();
            row.extend(histograms.total.iter().map(|model| model.counts[bin].to_string()));
            row
        };
        let mut text = "\n".to_owned();
        text += &table(&headings, &headings, histograms.edges.windows(2).enumerate().map(row));
        for (label, Counted { below, above, .. }) in self.names.iter().zip(&histograms.total) {
            if below + above > 0 {
                let beyond = count(below + above, "element");
                text += &format!(
                    "{label}: {beyond} beyond the ends are in the first bin ({below}) and the last ({above})\n"
                );
            }
        }
        text
    }

    fn document(&self) -> Value {
        let describe = |found: &[Distribution]| -> Vec<Value> {
            let model = |(label, found): (&String, &Distribution)| {
                let moments = &found.moments;
                json!({
                    "model": label,
                    "elements": moments.count,
                    "not_finite": moments.not_finite,
                    "zeros": moments.zeros,
                    "sparsity": moments.sparsity(),
                    "norm": moments.norm(),
                    "relative_norm": found.relative_norm(),
                    "mean": moments.mean(),
                    "std": moments.std(),
                    "skewness": moments.skewness(),
                    "excess_kurtosis": moments.excess_kurtosis(),
                    "min": moments.min,
                    "max": moments.max,
                    "quantiles": self.found.levels.iter().map(|level| self.quantile(found, *level)).collect::<Vec<_>>(),
                })
            };
            self.labels.iter().zip(found).map(model).collect()
        };
        let part = |(name, part): &(String, Vec<Distribution>)| json!({"name": name, "models": describe(part)});
        let mut document = json!({
            "base": self.base,
            "models": self.labels,
            "levels": self.found.levels,
            "total": describe(&self.found.total),
            "parts": self.found.parts.iter().map(part).collect::<Vec<_>>(),
        });
        if let Some(histograms) = self.histograms {
            let describe = |counted: &[Counted]| -> Vec<Value> {
                let model = |(label, counted): (&String, &Counted)| json!({"model": label, "counts": counted.counts, "below": counted.below, "above": counted.above});
                self.labels.iter().zip(counted).map(model).collect()
            };
            let part = |(name, part): &(String, Vec<Counted>)| json!({"name": name, "models": describe(part)});
            document["histogram"] = json!({
                "edges": histograms.edges,
                "total": describe(&histograms.total),
                "parts": histograms.parts.iter().map(part).collect::<Vec<_>>(),
            });
        }
        document
    }

    fn csv(&self) -> String {
        let quantiles: Vec<String> = self.found.levels.iter().map(|level| format!("q{level}")).collect();
        let mut headings =
            vec!["part", "model", "elements", "not_finite", "zeros", "sparsity", "norm", "relative_norm"];
        headings.extend(["mean", "std", "skewness", "excess_kurtosis", "min", "max"]);
        headings.extend(quantiles.iter().map(String::as_str));
        let row = |(part, label, found): (&str, &str, &Distribution)| {
            let moments = &found.moments;
            let mut row = vec![part.to_owned(), label.to_owned()];
            row.extend([moments.count, moments.not_finite, moments.zeros].map(|count| count.to_string()));
            let some = [
                moments.sparsity(),
                Some(moments.norm()),
                found.relative_norm(),
                moments.mean(),
                moments.std(),
                moments.skewness(),
                moments.excess_kurtosis(),
                Some(moments.min),
                Some(moments.max),
            ];
            let quantiles = self.found.levels.iter().map(|level| self.quantile(found, *level));
            let number =
                |number: Option<f64>| number.filter(|x| x.is_finite()).map_or_else(String::new, |x| x.to_string());
            row.extend(some.into_iter().chain(quantiles).map(number));
            row
        };
        csv(&headings, self.all(self.labels).map(row))
    }

    fn counts_csv(&self, histograms: &Histograms) -> String {
        let parts = histograms.parts.iter().map(|(name, part)| (name.as_str(), part));
        let all = parts.chain(std::iter::once(("all", &histograms.total)));
        let rows = all.flat_map(|(name, part)| {
            self.labels.iter().zip(part).flat_map(move |(label, counted)| {
                histograms.edges.windows(2).zip(&counted.counts).map(move |(edges, count)| {
                    let mut row = vec![name.to_owned(), label.clone()];
                    row.extend(edges.iter().map(f64::to_string));
                    row.push(count.to_string());
                    row
                })
            })
        });
        csv(&["part", "model", "from", "to", "count"], rows)
    }

    /// A box for each part and model; of models as a whole, one beside the other.
    #[cfg(feature = "plot")]
    fn boxes(&self) -> BoxPlot {
        let five = |found: &Distribution| {
            let at = |level| self.quantile(found, level);
            let (low, lower, median) = (at(0.01)?, at(0.25)?, at(0.5)?);
            Some(FiveNumbers { low, lower, median, upper: at(0.75)?, high: at(0.99)? })
        };
        let (groups, series) = if self.by == By::Model {
            (self.names.clone(), vec![(String::new(), self.found.total.iter().map(five).collect())])
        } else {
            let of_model = |(model, name): (usize, &String)| {
                (name.clone(), self.found.parts.iter().map(|(_, part)| part.get(model).and_then(five)).collect())
            };
            let parts = self.found.parts.iter().map(|(name, _)| name.clone()).collect();
            (parts, self.names.iter().enumerate().map(of_model).collect())
        };
        let title = format!("{}: quartiles and median, whiskers at 1 % and 99 %", self.title());
        BoxPlot { title, unit: self.unit(), groups, series, log: false }
    }

    #[cfg(feature = "plot")]
    fn unit(&self) -> String {
        (if self.base.is_some() { "tuned − base" } else { "value" }).to_owned()
    }

    /// The counts of each model.
    #[cfg(feature = "plot")]
    fn counts(&self, histograms: &Histograms) -> Histogram {
        let beyond = histograms.total.iter().any(|counted| counted.below + counted.above > 0);
        let tails = if beyond { "; what is beyond the ends is in the outermost bins" } else { "" };
        Histogram {
            title: format!("{}, all tensors{tails}", self.title()),
            unit: self.unit(),
            edges: histograms.edges.clone(),
            series: self
                .names
                .iter()
                .zip(&histograms.total)
                .map(|(label, all)| (label.clone(), all.counts.clone()))
                .collect(),
            log_counts: true,
        }
    }
}

/// `1 %`, and `median` for the half.
fn level_name(level: f64) -> String {
    if level == 0.5 { "median".to_owned() } else { format!("{} %", (1e5 * level).round() / 1e3) }
}

fn short(number: Option<f64>) -> String {
    number.map_or_else(undefined, |number| format!("{number:.2e}"))
}

/// What stands where there is no number.
fn undefined() -> String {
    "–".to_owned()
}
