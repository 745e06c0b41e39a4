//! `ckptmerge similarity`

#[cfg(feature = "diffusion")]
use super::gradients::{Beside, GradientOptions};
#[cfg(feature = "plot")]
use super::picture::Picture;
use super::report::{check_beside, count, csv, grouped, significant, table};
use super::tuned::{Tuned, names, without_what_all_share};
use super::{Common, Run, named};
use crate::analysis::{self, By, Products, Similarity as Found};
#[cfg(feature = "diffusion")]
use crate::error::Error;
use crate::plot::terminal;
#[cfg(feature = "plot")]
use crate::plot::{Heatmap, Scale};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Pairs of models of which a table tells each.
const PAIRS_LISTED: usize = 15;

/// Tell how alike the changes of fine-tuned models are
///
/// Takes the task vectors τ = TUNED − BASE and prints the cosine of the angle between every two: 1 if they changed the
/// same way, 0 if independently, −1 if against each other, `–` if one did not change. For every two models it tells of
/// which share of the elements that both changed the change has the same sign, and for each model how far it moved (‖τ‖),
/// how far for its size (‖τ‖/‖base‖), the share of elements that changed, and its own energy: the share of ‖τ‖² that no
/// combination of the other models has. Models of any formats and types mix; tied tensors count once; elements that are not
/// finite in a model count in none.
#[derive(Args)]
#[command(after_help = "Examples:
  ckptmerge similarity base.st a.st b.st c.st
  ckptmerge similarity base/ a/ b/ c/ --by layer --plot layers.svg --csv layers.csv
  ckptmerge similarity a.st b.st --base-less
  ckptmerge similarity --gradients base/ --data images.npy --points 20 --plot gradients.svg")]
pub(super) struct Similarity {
    #[command(flatten)]
    models: Tuned,
    /// What is compared: model, block (the same thing in all layers), layer or tensor
    ///
    /// A layer ends with the last number in a tensor's name, as `model.layers.7` does, or in models with many numbers in
    /// their names with the last that counts layers; the rest of the name is the block.
    #[arg(long, value_name = "PART", default_value = "model", value_parser = named(&By::NAMES))]
    by: By,
    /// Write all that is known of every two models, and of each with itself, in all and by part
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    #[cfg(feature = "plot")]
    #[command(flatten)]
    picture: Picture,
    #[cfg(feature = "diffusion")]
    #[command(flatten)]
    gradients: GradientOptions,
}

impl Run for Similarity {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let report = common.report();
        #[cfg(feature = "diffusion")]
        if self.gradients.are_wanted()? {
            self.of_gradients(common, &report)?;
            return Ok(ExitCode::SUCCESS);
        }
        let models = self.models.open(common, &report)?;
        #[cfg(feature = "plot")]
        let picture = self.picture.path();
        #[cfg(not(feature = "plot"))]
        let picture = None;
        check_beside(&[self.csv.as_deref(), picture], models.all())?;
        if picture.is_some() && self.by != By::Model && models.tuned.len() == 1 {
            anyhow::bail!("one model alone has no pairs whose parts could be drawn: give two, or draw --by model");
        }
        let vectors = self.models.vectors(&models, &report)?;
        let settings = common.settings();
        let bytes = vectors.bytes();
        let found = report.watched(bytes, |control| analysis::similarity(&vectors, self.by, &settings, control))?;
        let (labels, base) = models.labels().split_at(vectors.models);
        for (index, label) in labels.iter().enumerate() {
            match found.total.not_finite(index) {
                0 => {}
                1 => report.warn(&format!("{label} has an element that is not finite; it counts in no model")),
                many => report.warn(&format!(
                    "{label} has {} elements that are not finite; they count in no model",
                    grouped(many)
                )),
            }
        }
        let base = base.first().map(String::as_str);
        let shown = Shown { found: &found, labels, names: names(labels), base, by: self.by };
        report.answer_with_picture(|| shown.text(report.width(), report.has_colour()), || shown.document())?;
        if let Some(path) = &self.csv {
            report.write(path, shown.csv().as_bytes())?;
        }
        #[cfg(feature = "plot")]
        if self.picture.is_wanted() {
            self.picture.draw(&report, &shown.heatmap())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(feature = "diffusion")]
impl Similarity {
    /// Of one model's gradients.
    fn of_gradients(&self, common: &Common, report: &super::report::Report) -> anyhow::Result<()> {
        let (model, selection) = self.models.alone("--gradients")?;
        if self.by != By::Model {
            let message =
                "--gradients compares timesteps, by all weights together: leave --by out, and take some with --include";
            return Err(Error::Recipe(message.to_owned()).into());
        }
        let beside = Beside {
            csv: self.csv.as_deref(),
            #[cfg(feature = "plot")]
            picture: &self.picture,
        };
        self.gradients.run(model, &selection, &beside, common, report)
    }
}

/// What was found, with the names of the models.
struct Shown<'a> {
    found: &'a Found,
    labels: &'a [String],
    /// The labels, for people.
    names: Vec<String>,
    base: Option<&'a str>,
    by: By,
}

impl Shown<'_> {
    /// The rows, columns and cells of a table of cosines: models by models, or parts by pairs of models.
    fn cosines(&self) -> (Vec<String>, Vec<String>, Vec<Vec<Option<f64>>>) {
        let models = self.labels.len();
        if self.by == By::Model {
            let row = |i| (0..models).map(|j| self.found.total.cosine(i, j)).collect();
            return (self.names.clone(), self.names.clone(), (0..models).map(row).collect());
        }
        let columns = pairs(models).map(|(i, j)| format!("{} · {}", self.names[i], self.names[j])).collect();
        let row = |(_, part): &(String, Products)| pairs(models).map(|(i, j)| part.cosine(i, j)).collect();
        let rows = without_what_all_share(self.found.parts.iter().map(|(name, _)| name.clone()).collect());
        (rows, columns, self.found.parts.iter().map(row).collect())
    }

    fn title(&self) -> String {
        match self.base {
            Some(base) => format!("Cosine of the changes from {}", names(&[base.to_owned()]).concat()),
            None => "Cosine of the models".to_owned(),
        }
    }

    #[cfg(feature = "plot")]
    fn heatmap(&self) -> Heatmap {
        let (rows, columns, cells) = self.cosines();
        let (title, unit) = (self.title(), "cosine".to_owned());
        Heatmap { title, unit, scale: Scale::Diverging, limit: Some(1.0), rows, columns, cells }
    }

    /// What it is, the table in colours, and the rest.
    fn text(&self, width: usize, colour: bool) -> [String; 3] {
        let total = &self.found.total;
        let models = self.labels.len();
        let title = format!("{}, {}\n\n", self.title(), count(total.elements(), "element"));
        let (rows, columns, cells) = self.cosines();
        let picture = if models > 1 && !columns.is_empty() {
            terminal::heatmap(&rows, &columns, &cells, 1.0, colour, width) + "\n"
        } else {
            String::new()
        };
        let mut text = self.pairs_text();
        if models == 1 && !self.found.parts.is_empty() {
            let name = |(name, part): &(String, Products)| self.moved(name, part, 0);
            text += &self.moved_table("part", self.found.parts.iter().map(name));
            text.push('\n');
        }
        let own = total.own_energy();
        let row = |(i, name): (usize, &String)| {
            let mut row = self.moved(name, total, i);
            row.push(percent(own[i]));
            row
        };
        text += &self.moved_table("model", self.names.iter().enumerate().map(row));
        if total.left_out() > 0 {
            let left_out = grouped(total.left_out());
            text += &format!("{left_out} elements are left out, as a model has no finite number there\n");
        }
        [title, picture, text]
    }

    /// A row for every two models; if they are many, for those that are most and least alike.
    fn pairs_text(&self) -> String {
        const EXTREMES: usize = 5;
        let total = &self.found.total;
        let mut listed: Vec<(usize, usize)> = pairs(self.labels.len()).collect();
        let all = listed.len();
        let mut text = String::new();
        if all > PAIRS_LISTED {
            let cosine = |&(i, j): &(usize, usize)| total.cosine(i, j);
            listed.retain(|pair| cosine(pair).is_some());
            listed.sort_by(|a, b| cosine(b).partial_cmp(&cosine(a)).unwrap_or(std::cmp::Ordering::Equal));
            if listed.len() > 2 * EXTREMES {
                listed.drain(EXTREMES..listed.len() - EXTREMES);
            }
            let pairs = grouped(all as u64);
            text = format!("the {EXTREMES} most and the {EXTREMES} least alike of {pairs} pairs; --csv writes all\n");
        }
        if listed.is_empty() {
            return text;
        }
        let headings = ["", "", "cosine", "angle", "same sign"];
        let row = |(i, j): (usize, usize)| {
            let cosine = total.cosine(i, j).map_or_else(undefined, |cosine| format!("{cosine:.6}"));
            let angle = total.angle(i, j).map_or_else(undefined, |angle| format!("{:.2}°", angle.to_degrees()));
            let signs = percent(total.sign_agreement(i, j));
            vec![self.names[i].clone(), self.names[j].clone(), cosine, angle, signs]
        };
        text += &table(&headings, &headings[2..], listed.into_iter().map(row));
        text.push('\n');
        text
    }

    /// How far a model moved, in a row.
    fn moved(&self, name: &str, products: &Products, model: usize) -> Vec<String> {
        let relative = products.relative_norm(model).map_or_else(String::new, |norm| significant(norm, 4));
        let changed = percent(Some(products.changed(model)));
        vec![name.to_owned(), significant(products.norm(model), 6), relative, changed]
    }

    fn moved_table(&self, first: &str, rows: impl Iterator<Item = Vec<String>>) -> String {
        let names = if self.base.is_some() {
            ["‖τ‖", "‖τ‖/‖base‖", "changed"]
        } else {
            ["‖x‖", "", "not zero"]
        };
        let mut headings = vec![first, names[0], names[1], names[2]];
        let rows: Vec<Vec<String>> = rows.collect();
        if rows.first().is_some_and(|row| row.len() > headings.len()) {
            headings.push("own energy");
        }
        table(&headings, &headings[1..], rows)
    }

    fn document(&self) -> Value {
        let describe = |products: &Products| {
            let models = 0..self.labels.len();
            let matrix = |value: &dyn Fn(usize, usize) -> Option<f64>| -> Vec<Vec<Option<f64>>> {
                models.clone().map(|i| models.clone().map(|j| value(i, j)).collect()).collect()
            };
            json!({
                "elements": products.elements(),
                "left_out": products.left_out(),
                "not_finite": models.clone().map(|i| products.not_finite(i)).collect::<Vec<_>>(),
                "norm": models.clone().map(|i| products.norm(i)).collect::<Vec<_>>(),
                "relative_norm": models.clone().map(|i| products.relative_norm(i)).collect::<Vec<_>>(),
                "changed": models.clone().map(|i| products.changed(i)).collect::<Vec<_>>(),
                "own_energy": products.own_energy(),
                "inner_product": matrix(&|i, j| Some(products.product(i, j))),
                "cosine": matrix(&|i, j| products.cosine(i, j)),
                "angle_degrees": matrix(&|i, j| products.angle(i, j).map(f64::to_degrees)),
                "sign_agreement": matrix(&|i, j| products.sign_agreement(i, j)),
            })
        };
        let part = |(name, products): &(String, Products)| {
            let mut part = json!({"name": name});
            if let (Value::Object(part), Value::Object(described)) = (&mut part, describe(products)) {
                part.extend(described);
            }
            part
        };
        json!({
            "base": self.base,
            "models": self.labels,
            "total": describe(&self.found.total),
            "parts": self.found.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }

    fn csv(&self) -> String {
        let models = self.labels.len();
        let headings = [
            "part",
            "a",
            "b",
            "elements",
            "inner_product",
            "cosine",
            "angle_degrees",
            "sign_agreement",
            "norm_a",
            "norm_b",
            "changed_a",
            "changed_b",
            "relative_norm_a",
            "relative_norm_b",
            "own_energy_a",
            "own_energy_b",
        ];
        let number = |number: Option<f64>| {
            number.filter(|number| number.is_finite()).map_or_else(String::new, |number| number.to_string())
        };
        let total = ("all", &self.found.total);
        let parts = self.found.parts.iter().map(|(name, part)| (name.as_str(), part));
        let rows = parts.chain(std::iter::once(total)).flat_map(|(name, part)| {
            let own = part.own_energy();
            (0..models).flat_map(move |i| (i..models).map(move |j| (i, j))).map(move |(i, j)| {
                vec![
                    name.to_owned(),
                    self.labels[i].clone(),
                    self.labels[j].clone(),
                    part.elements().to_string(),
                    number(Some(part.product(i, j))),
                    number(part.cosine(i, j)),
                    number(part.angle(i, j).map(f64::to_degrees)),
                    number(part.sign_agreement(i, j)),
                    number(Some(part.norm(i))),
                    number(Some(part.norm(j))),
                    part.changed(i).to_string(),
                    part.changed(j).to_string(),
                    number(part.relative_norm(i)),
                    number(part.relative_norm(j)),
                    number(own[i]),
                    number(own[j]),
                ]
            })
        });
        csv(&headings, rows)
    }
}

fn pairs(models: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..models).flat_map(move |i| (i + 1..models).map(move |j| (i, j)))
}

fn undefined() -> String {
    "–".to_owned()
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(undefined, |share| format!("{:.2} %", 100.0 * share))
}
