//! The steps of the demo, each of which runs commands and says what came of them.

use super::story::{Command, Story, Table};
use crate::cli::report::{grouped, significant};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A step of the story.
pub(super) struct Step {
    /// What its part of the numbers is called.
    pub(super) name: &'static str,
    /// Stands above it.
    pub(super) title: &'static str,
    /// Tells it.
    pub(super) tell: fn(&mut Story<'_>) -> anyhow::Result<()>,
}

/// All steps, in their order.
pub(super) const STEPS: &[Step] = &[
    Step { name: "models", title: "A base, and copies tuned on timesteps of their own", tell: models },
    Step { name: "gradients", title: "How alike gradients at different timesteps are", tell: gradients },
    Step { name: "similarity", title: "How alike the copies' changes are", tell: similarity },
    Step { name: "changes", title: "Where the copies changed", tell: changes },
    Step { name: "activations", title: "At which timesteps the copies answer otherwise", tell: activations },
    Step { name: "merge", title: "One model of all copies", tell: merge },
    Step { name: "plane", title: "The loss around them", tell: plane },
    Step { name: "samples", title: "Images", tell: samples },
    Step { name: "distance", title: "How far the images are from real ones", tell: distance },
];

/// Images of a picture of several, and how large a pixel of theirs is drawn.
const SHOWN: u32 = 64;
const ZOOM: u32 = 4;
/// What the folder of a merged model is called.
fn merged(weights: &str) -> String {
    format!("merged-{weights}")
}

/// What is sampled from.
struct Subject {
    name: String,
    about: String,
    command: Command,
}

fn subjects(story: &Story<'_>) -> anyhow::Result<Vec<Subject>> {
    let models = story.models;
    let of = |name: &str, about: String, path: &PathBuf| Subject {
        name: name.to_owned(),
        about,
        command: Command::new("sample").path(path),
    };
    let mut subjects = vec![of("base", "what all copies began as".to_owned(), &models.base)];
    if let Some(control) = &models.control {
        subjects.push(of("control", "the base, trained on with all timesteps".to_owned(), control));
    }
    for (index, expert) in models.experts.iter().enumerate() {
        let (from, to) = models.range(index);
        subjects.push(of(&format!("range-{index}"), format!("the copy for timesteps {from} to {}", to - 1), expert));
    }
    let experts = Command::new("sample").paths(&models.experts);
    let about = "each copy at its own timesteps".to_owned();
    subjects.push(Subject { name: "ensemble".to_owned(), about, command: experts.word("--ensemble") });
    for (name, weights) in &models.merges {
        let command = story.with_output(Command::new("sample"), &merged(name))?;
        let about = format!("the merge by {}", list(weights));
        subjects.push(Subject { name: merged(name), about, command });
    }
    Ok(subjects)
}

/// Weights as the command line takes them.
fn list(weights: &[f64]) -> String {
    weights.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

/// The numbers of a list in a document.
fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The smallest and the largest.
fn ends(numbers: &[f64]) -> (f64, f64) {
    numbers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &n| (low.min(n), high.max(n)))
}

fn models(story: &mut Story<'_>) -> anyhow::Result<()> {
    let models = story.models;
    let parameters = |document: &Value| -> u64 {
        let dtypes = document["dtypes"].as_object().into_iter().flatten();
        dtypes.filter_map(|(_, dtype)| dtype["elements"].as_u64()).sum()
    };
    let base = story.run(&Command::new("inspect").path(&models.base))?.json;
    let of_base = parameters(&base);
    let tensors = base["tensor_count"].as_u64().unwrap_or_default();
    story.say(format!(
        "The base makes images of digits: {} parameters in {} tensors.",
        grouped(of_base),
        grouped(tensors)
    ))?;
    let mut of_experts = 0;
    for expert in &models.experts {
        of_experts = parameters(&story.run(&Command::new("inspect").path(expert))?.json);
    }
    let ranges: Vec<String> = (0..models.experts.len())
        .map(|index| {
            let (from, to) = models.range(index);
            format!("range-{index} on {from} to {}", to - 1)
        })
        .collect();
    story.say(format!(
        "{} copies of it were tuned, each mostly on its own share of the {} timesteps: {}.",
        ranges.len(),
        grouped(models.timesteps),
        ranges.join(", ")
    ))?;
    if let Some(more) = of_experts.checked_sub(of_base).filter(|more| *more > 0) {
        let projections = "channel-wise projections behind its blocks, which began as the identity";
        story.say(format!("A copy has {} parameters more: {projections}.", grouped(more)))?;
    }
    story.number("parameters", json!({"base": of_base, "copy": of_experts}));
    Ok(())
}

/// A command that draws a picture, light and dark.
fn drawn(story: &mut Story<'_>, command: Command, name: &str, caption: impl Into<String>) -> anyhow::Result<Value> {
    let [light, dark] = ["", "-dark"].map(|theme| format!("pictures/{name}{theme}.svg"));
    let line = story.with_output(command.clone().word("--plot"), &light)?;
    let said = story.run(&line)?;
    let line = story.with_output(command.words("--theme dark --plot"), &dark)?;
    story.run_unseen(&line)?;
    story.picture(&light, Some(&dark), caption);
    Ok(said.json)
}

/// Timesteps, and at most so many images, that gradients are taken at and of.
const POINTS: u32 = 10;
const IMAGES_OF_GRADIENTS: u32 = 128;

fn gradients(story: &mut Story<'_>) -> anyhow::Result<()> {
    let models = story.models;
    let command = Command::new("similarity").word("--gradients").path(&models.base).word("--data").path(&models.images);
    let command =
        command.word("--points").word(POINTS).word("--samples").word(IMAGES_OF_GRADIENTS.min(story.demo.images));
    let caption = "The cosine between the gradients of the base's loss at every two of ten timesteps, of the same images with the same noise.";
    let found = drawn(story, command, "gradients", caption)?;
    let rows: Vec<Vec<f64>> = found["cosine"].as_array().into_iter().flatten().map(numbers).collect();
    let beside: Vec<f64> = rows.iter().enumerate().filter_map(|(index, row)| row.get(index + 1).copied()).collect();
    let farthest = rows.first().and_then(|row| row.last()).copied();
    if let (false, Some(farthest)) = (beside.is_empty(), farthest) {
        let (times, mean) = (numbers(&found["timesteps"]), beside.iter().sum::<f64>() / beside.len() as f64);
        let (first, last) = ends(&times);
        let text = format!(
            "Gradients at neighbouring timesteps have a mean cosine of {mean:.2}, those at {first} and {last} one of {farthest:.2}."
        );
        story.say(text.replace('-', "−"))?;
    }
    story.number("timesteps", found["timesteps"].clone());
    story.number("cosine", found["cosine"].clone());
    Ok(())
}

/// At most so many images are looked at.
const IMAGES_OF_ACTIVATIONS: u32 = 64;

fn activations(story: &mut Story<'_>) -> anyhow::Result<()> {
    let models = story.models;
    let middles: Vec<u64> = (0..models.experts.len())
        .map(|index| {
            let (from, to) = models.range(index);
            u64::midpoint(from, to)
        })
        .collect();
    let timesteps = middles.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let images = IMAGES_OF_ACTIVATIONS.min(story.demo.images);
    let of = |expert: &PathBuf| {
        let command = Command::new("activations").path(&models.base).path(expert).word("--data").path(&models.images);
        command.word("-n").word(images).word("--timesteps").word(&timesteps)
    };
    let mut answers = Vec::new();
    for expert in &models.experts {
        let found = story.run(&of(expert))?.json;
        let output =
            found["blocks"].as_array().and_then(|blocks| blocks.last()).map(|block| numbers(&block["by_timestep"]));
        answers.push(output.unwrap_or_default());
    }
    let headings = std::iter::once("mean |Δ| of answers".to_owned()).chain(middles.iter().map(|t| format!("t = {t}")));
    let row = |(index, answers): (usize, &Vec<f64>)| {
        let numbers = answers.iter().map(|mean| significant(*mean, 3));
        (std::iter::once(format!("range-{index}")).chain(numbers).collect(), None)
    };
    story.table(Table { headings: headings.collect(), rows: answers.iter().enumerate().map(row).collect() })?;
    let copies = answers.len();
    let own = most_at_own(&answers);
    let text =
        "copies changed their answers most in the middle of their own timesteps, for what all copies changed at each";
    story.say(format!("{own} of {copies} {text}."))?;
    story.number("timesteps", middles);
    story.number("mean_difference", answers.clone());
    if let Some(last) = models.experts.last() {
        let name = format!("range-{}", copies.saturating_sub(1));
        let caption = format!("How far the activations of {name} are from the base's, by block and channel.");
        drawn(story, of(last), "activations", caption)?;
    }
    Ok(())
}

/// How many copies differ most, relative to the mean of all copies at a timestep, at their own: copy i at timestep i. At some timesteps
/// all answers differ more than at others.
fn most_at_own(answers: &[Vec<f64>]) -> usize {
    let of_all = |place: usize| answers.iter().filter_map(|answers| answers.get(place)).sum::<f64>();
    let relative = |(place, answer): (usize, &f64)| (place, answer / of_all(place));
    let most = |answers: &Vec<f64>| answers.iter().enumerate().map(relative).max_by(|a, b| a.1.total_cmp(&b.1));
    answers.iter().enumerate().filter(|(index, answers)| most(answers).is_some_and(|most| most.0 == *index)).count()
}

fn similarity(story: &mut Story<'_>) -> anyhow::Result<()> {
    let caption = "The cosine of the angle between every two changes: 1 is the same direction, 0 is independent.";
    let models = story.models;
    let command = Command::new("similarity").path(&models.base).paths(&models.experts);
    let found = drawn(story, command, "similarity", caption)?;
    let total = &found["total"];
    let (least, most) = ends(&numbers(&total["relative_norm"]));
    story.say(format!(
        "The copies went {:.2} % to {:.2} % of the base's length away from it.",
        100.0 * least,
        100.0 * most
    ))?;
    let rows = total["cosine"].as_array().map(Vec::as_slice).unwrap_or_default();
    let off = |(i, row): (usize, &Value)| numbers(row).into_iter().skip(i + 1).collect::<Vec<_>>();
    let cosines: Vec<f64> = rows.iter().enumerate().flat_map(off).collect();
    if !cosines.is_empty() {
        let (least, most) = ends(&cosines);
        let text = format!("The cosines between their changes are {least:.3} to {most:.3}.");
        story.say(text.replace('-', "−"))?;
    }
    story.number("cosine", total["cosine"].clone());
    story.number("relative_norm", total["relative_norm"].clone());
    Ok(())
}

fn changes(story: &mut Story<'_>) -> anyhow::Result<()> {
    let caption = "How the elements of each copy's change are spread, layer by layer: quartiles, median and tails.";
    let models = story.models;
    let command = Command::new("stats").path(&models.base).paths(&models.experts);
    let found = drawn(story, command, "stats", caption)?;
    let models = found["total"].as_array().map(Vec::as_slice).unwrap_or_default();
    let spread: Vec<f64> = models.iter().filter_map(|model| model["std"].as_f64()).collect();
    let of_each = spread.iter().enumerate().map(|(index, std)| format!("{} (range-{index})", significant(*std, 3)));
    let of_each: Vec<String> = of_each.collect();
    story.say(format!("The standard deviation of an element's change is {}.", of_each.join(", ")))?;
    story.number("std", spread);
    Ok(())
}

fn merge(story: &mut Story<'_>) -> anyhow::Result<()> {
    let models = story.models;
    for (name, weights) in &models.merges {
        let command = Command::new("merge").paths(&models.experts).word("--base").path(&models.base);
        let command = story.with_output(command.word("--weights").word(list(weights)).word("-o"), &merged(name))?;
        let said = story.run(&command)?.json;
        let formulas = said["formulas"].as_array().map(Vec::as_slice).unwrap_or_default();
        for formula in formulas.iter().filter_map(|formula| formula["formula"].as_str()) {
            story.say(format!("{}: every element is {formula}.", merged(name)))?;
        }
        story.number(&merged(name), weights.clone());
    }
    story.say("A merged model costs what one of its copies does.")?;
    Ok(())
}

/// Points along a plane's axes, and at most so many noisy images at each.
const GRID: u32 = 11;
const SAMPLES_OF_PLANE: u32 = 128;

fn plane(story: &mut Story<'_>) -> anyhow::Result<()> {
    let models = story.models;
    let ranges = models.experts.len();
    let samples = SAMPLES_OF_PLANE.min(story.demo.images * 2).max(2 * ranges as u32);
    let mut command = Command::new("landscape").path(&models.base).paths(&models.experts);
    for (name, _) in &models.merges {
        command = story.with_output(command.word("--mark"), &merged(name))?;
    }
    let directions = if ranges > 2 { "--directions pca " } else { "" };
    let command = command.words(&format!("{directions}--ranges {ranges} --samples {samples} --grid {GRID}"));
    let command = story.with_output(command.word("--data").path(&models.images).word("--journal"), "plane.jsonl")?;
    let caption = "The denoising loss over the plane that the copies' changes lie in for the most part: of all timesteps, and of each copy's own. Lines join points of the same loss.";
    let found = drawn(story, command, "plane", caption)?;
    let lowest = found["lowest"].as_array().map(Vec::as_slice).unwrap_or_default();
    let places: Vec<[f64; 2]> =
        lowest.iter().filter_map(|point| Some([point["x"].as_f64()?, point["y"].as_f64()?])).collect();
    if let Some(([x, y], others)) = places.split_first() {
        let farthest = others.iter().map(|at| (at[0] - x).hypot(at[1] - y)).fold(0.0, f64::max);
        let edges = lowest.iter().filter(|point| point["on_edge"] == true).count();
        let edges = match edges {
            0 => String::new(),
            edges => format!(" ({edges} of {} are on its edge, with lower ones beyond, perhaps)", lowest.len()),
        };
        let farthest = significant(farthest, 2);
        story.say(format!(
            "In this plane the ranges' losses are lowest up to {farthest} from where that of all timesteps is{edges}."
        ))?;
    }
    let members = found["models"].as_array().map(Vec::as_slice).unwrap_or_default();
    let loss = |member: &Value| member["values"][0].as_f64().unwrap_or(f64::NAN);
    let label = |member: &Value| {
        let path = PathBuf::from(member["model"].as_str().unwrap_or_default());
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let rows = members.iter().map(|member| (vec![label(member), significant(loss(member), 5)], None));
    story.table(Table { headings: vec!["model".to_owned(), "loss".to_owned()], rows: rows.collect() })?;
    story.number("lowest", found["lowest"].clone());
    story.number("models", found["models"].clone());
    story.number("energy", found["energy"].clone());
    Ok(())
}

fn samples(story: &mut Story<'_>) -> anyhow::Result<()> {
    let (images, steps, seed) = (story.demo.images, story.demo.steps, story.demo.seed);
    story.say(format!(
        "{} images of each model. Image i of every one begins with the same noise: what differs is the model.",
        grouped(images.into())
    ))?;
    let mut seconds = 0.0;
    for Subject { name, about, command } in subjects(story)? {
        let how = |command: Command, count: u32| {
            let command = command.word("-n").word(count).word("--steps").word(steps);
            if seed == 0 { command } else { command.word("--seed").word(seed) }
        };
        let line = story.with_output(how(command.clone(), images).word("-o"), &format!("samples/{name}.npz"))?;
        seconds += story.run(&line)?.json["seconds"].as_f64().unwrap_or_default();
        let picture = format!("pictures/{name}.png");
        let line = how(command, SHOWN.min(images)).word("--zoom").word(ZOOM).word("-o");
        let line = story.with_output(line, &picture)?;
        seconds += story.run(&line)?.json["seconds"].as_f64().unwrap_or_default();
        story.picture(&picture, None, format!("{name}: {about}"));
    }
    story.say(format!("They took {seconds:.0} s."))?;
    story.number("seconds", seconds);
    Ok(())
}

fn distance(story: &mut Story<'_>) -> anyhow::Result<()> {
    let reference = &story.models.reference;
    let mut found = Vec::new();
    for Subject { name, about, .. } in subjects(story)? {
        let line = Command::new("fid").path(reference);
        let line = story.with_output(line, &format!("samples/{name}.npz"))?.words("--features digits");
        let value = story.run(&line)?.json["value"].as_f64().unwrap_or(f64::NAN);
        found.push((name, about, value));
    }
    let most = found.iter().map(|(_, _, value)| *value).fold(0.0, f64::max);
    let rows = found.iter().map(|(name, about, value)| {
        let bar = if most > 0.0 { value / most } else { 0.0 };
        (vec![format!("{name}: {about}"), significant(*value, 4)], Some(bar))
    });
    story.table(Table { headings: vec!["model".to_owned(), "FD".to_owned()], rows: rows.collect() })?;
    let base = found.iter().find(|(name, ..)| name == "base").map_or(f64::NAN, |(_, _, value)| *value);
    for (name, _, value) in
        found.iter().filter(|(name, ..)| story.models.merges.iter().any(|(of, _)| merged(of) == *name))
    {
        let nearer = if *value < base { "nearer to real digits than" } else { "farther from real digits than" };
        let percent = 100.0 * (value - base).abs() / base;
        story.say(format!("The images of {name} are {nearer} the base's, by {percent:.1} % of its distance."))?;
    }
    let why = "FD is the Fréchet distance of features of a small classifier of digits, not FID.";
    let images = grouped(story.demo.images.into());
    story.say(format!(
        "{why} Of {images} images it is too large, and with another seed it is another: all begin with the same noise, but whether a model is better than another only several seeds and more images tell."
    ))?;
    for (name, _, value) in found {
        story.number(&name, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::most_at_own;

    #[test]
    fn changes_are_compared_with_those_of_all_copies_at_a_timestep() {
        // All differ most at the second timestep; the first copy does less so than the second.
        assert_eq!(most_at_own(&[vec![2.0, 10.0], vec![1.0, 12.0]]), 2);
        assert_eq!(most_at_own(&[vec![1.0, 12.0], vec![2.0, 10.0]]), 0);
    }
}
