//! Parameters that depend on the tensor: by name, by block, and by how deep in the model it is.

use regex::Regex;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// A value of a parameter, which may be another for each tensor.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The first whose filter lets a tensor's name through counts.
    pub rules: Vec<(Filter, Anchors)>,
}

/// Which tensors a value is for.
#[derive(Clone, Debug)]
pub enum Filter {
    /// All.
    Any,
    /// Those whose name contains the text.
    Contains(String),
    /// Those whose name matches.
    Matches(Regex),
    /// Those in a block of a diffusion model.
    Block(Block),
}

/// A block of a diffusion model by its name, such as `IN04`.
#[derive(Clone, Debug)]
pub struct Block {
    /// The name.
    pub name: String,
    /// The tensors in it; none until it is known of which model.
    pub(super) tensors: Arc<HashSet<String>>,
}

/// A value, or several spread evenly over the layers, with straight lines between them.
#[derive(Clone, Debug, PartialEq)]
pub struct Anchors {
    /// From the first layer to the last.
    pub values: Vec<f64>,
    /// Whether each value holds up to the next, as switches do.
    pub stepped: bool,
}

impl Filter {
    fn lets_through(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Contains(text) => name.contains(text),
            Self::Matches(pattern) => pattern.is_match(name),
            Self::Block(block) => block.tensors.contains(name),
        }
    }
}

impl From<Vec<f64>> for Anchors {
    fn from(values: Vec<f64>) -> Self {
        Self { values, stepped: false }
    }
}

impl Anchors {
    /// The value at a place from 0, the first layer, to 1, the last.
    #[must_use]
    pub fn at(&self, place: f64) -> Option<f64> {
        let values = &self.values;
        let position = place.clamp(0.0, 1.0) * values.len().saturating_sub(1) as f64;
        let (low, share) = (position.floor(), position.fract());
        let here = *values.get(low as usize)?;
        let next = values.get(low as usize + 1).copied().unwrap_or(here);
        Some(if share == 0.0 || self.stepped { here } else { (1.0 - share) * here + share * next })
    }
}

impl Setting {
    /// The same for all tensors.
    #[must_use]
    pub fn constant(value: f64) -> Self {
        Self::gradient(vec![value])
    }

    /// Values spread over the layers.
    #[must_use]
    pub fn gradient(values: Vec<f64>) -> Self {
        Self { rules: vec![(Filter::Any, values.into())] }
    }

    /// The value for a tensor; none if no rule is for it.
    #[must_use]
    pub fn at(&self, name: &str, place: f64) -> Option<f64> {
        self.anchors(name).and_then(|anchors| anchors.at(place))
    }

    /// The values that the first rule which is for a tensor spreads over the layers.
    pub(super) fn anchors(&self, name: &str) -> Option<&Anchors> {
        self.rules.iter().find(|(filter, _)| filter.lets_through(name)).map(|(_, anchors)| anchors)
    }

    /// All numbers in it.
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.rules.iter().flat_map(|(_, anchors)| anchors.values.iter().copied())
    }
}

/// Words in the names of tensors that come before a model's layers: embeddings, and what takes an image or a latent in.
const BEFORE_LAYERS: [&str; 11] =
    ["embed", "wte", "wpe", "word_emb", "position_ids", "conv_in", "img_in", "txt_in", "time_in", "proj_in", "patch"];
/// Words of those among them that come behind the layers all the same.
const BEHIND_LAYERS: [&str; 4] = ["embed_out", "unembed", "embedding_out", "output_embed"];

/// Whether a tensor that is in no layer comes before them, by its name; else it comes behind.
#[must_use]
pub fn is_before_layers(name: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    has(&BEFORE_LAYERS) && !has(&BEHIND_LAYERS)
}

/// The layers of a model, told from the numbers in the names of its tensors.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// What comes before the number in the names of most numbered tensors.
    prefix: String,
    /// How many there are.
    count: u64,
    /// The same of other stacks of layers, such as those of an encoder.
    others: BTreeMap<String, u64>,
}

/// What a stack is called, last in what comes before its numbers, if its layers follow each other. Other numbers may be
/// those of parts that are in no row, such as the two matrices of a projector.
const STACKS: [&str; 5] = ["layers", "layer", "blocks", "block", "h"];

impl Layers {
    /// Of the model that has tensors of these names.
    #[must_use]
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut tensors: BTreeMap<&str, usize> = BTreeMap::new();
        let mut numbers: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
        for (prefix, number, _) in names.into_iter().filter_map(split) {
            *tensors.entry(prefix).or_default() += 1;
            numbers.entry(prefix).or_default().insert(number);
        }
        // The first of equals, as names sort.
        let most = tensors.iter().max_by_key(|(prefix, count)| (**count, std::cmp::Reverse(**prefix)));
        let Some((prefix, _)) = most else { return Self::default() };
        let is_stack = |prefix: &str| {
            let name = prefix.trim_end_matches('.').rsplit(['.', '/']).next();
            name.is_some_and(|name| STACKS.contains(&name))
        };
        let counts = numbers.iter().map(|(prefix, numbers)| (*prefix, numbers.last().map_or(0, |last| last + 1)));
        let others = counts.clone().filter(|(other, _)| other != prefix && is_stack(other));
        Self {
            prefix: (*prefix).to_owned(),
            count: counts.clone().find(|(other, _)| other == prefix).map_or(0, |(_, count)| count),
            others: others.map(|(prefix, count)| (prefix.to_owned(), count)).collect(),
        }
    }

    /// How many layers there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The name of the tensor in layer `layer` that has this behind its number.
    #[must_use]
    pub fn name(&self, layer: u64, behind: &str) -> String {
        format!("{}{layer}{behind}", self.prefix)
    }

    /// How many layers of this kind a model with these names has.
    #[must_use]
    pub fn count_in<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> u64 {
        names.into_iter().filter_map(|name| self.layer(name)).map(|(_, layer, _)| layer + 1).max().unwrap_or(0)
    }

    /// The layer that a tensor is in, and what its name has before and behind the number.
    #[must_use]
    pub fn layer<'n>(&self, name: &'n str) -> Option<(&'n str, u64, &'n str)> {
        split(name).filter(|(prefix, ..)| *prefix == self.prefix)
    }

    /// Where a tensor is in its stack, from 0, the first layer, to 1, the last; 0 for what is in no layer, and 1 for an
    /// only layer.
    #[must_use]
    pub fn place(&self, name: &str) -> f64 {
        let Some((prefix, layer, _)) = split(name) else { return 0.0 };
        match if prefix == self.prefix { Some(&self.count) } else { self.others.get(prefix) } {
            None => 0.0,
            Some(0 | 1) => 1.0,
            Some(count) => layer as f64 / (count - 1) as f64,
        }
    }

    /// What comes before the number of a tensor that is numbered, but in none of the stacks.
    #[must_use]
    pub fn loose<'n>(&self, name: &'n str) -> Option<&'n str> {
        stack_of(name).filter(|prefix| *prefix != self.prefix && !self.others.contains_key(*prefix))
    }
}

/// What comes before the number of a tensor that is numbered.
pub(super) fn stack_of(name: &str) -> Option<&str> {
    split(name).map(|(prefix, ..)| prefix)
}

/// A name as what is before its first number, the number, and what is behind it: `model.layers.`, 3, `.mlp.weight`.
fn split(name: &str) -> Option<(&str, u64, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && start > 0 {
            return Some((&name[..start], part.parse().ok()?, &name[start + part.len()..]));
        }
        start += part.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_joined_by_lines() {
        let anchors = Anchors::from(vec![0.0, 1.0, 0.5]);
        let at: Vec<_> = [0.0, 0.25, 0.5, 0.75, 1.0].iter().map(|place| anchors.at(*place)).collect();
        assert_eq!(at, [Some(0.0), Some(0.5), Some(1.0), Some(0.75), Some(0.5)]);
        assert_eq!(Anchors::from(vec![0.3]).at(0.7), Some(0.3));
        assert_eq!(Anchors::from(Vec::new()).at(0.0), None);
        let steps = Anchors { stepped: true, ..anchors };
        assert_eq!([0.0, 0.25, 0.5, 1.0].map(|place| steps.at(place)), [Some(0.0), Some(0.0), Some(1.0), Some(0.5)]);
    }

    #[test]
    fn layers_are_found_in_names() {
        let names = ["model.embed.weight", "model.layers.0.a", "model.layers.0.b", "model.layers.2.a", "other.0.x"];
        let layers = Layers::of(names);
        assert_eq!(layers.count(), 3);
        assert_eq!(layers.layer("model.layers.2.a"), Some(("model.layers.", 2, ".a")));
        let places: Vec<f64> =
            ["model.layers.1.a", "model.layers.2.b", "other.0.x", "x"].map(|n| layers.place(n)).into();
        assert_eq!(places, [0.5, 1.0, 0.0, 0.0]);
        assert_eq!(Layers::of(["h.0.w"]).place("h.0.w"), 1.0);
    }

    #[test]
    fn each_stack_has_its_own_first_and_last_layer() {
        let mut names: Vec<String> = (0..5).map(|layer| format!("text.layers.{layer}.w")).collect();
        names.extend((0..3).map(|layer| format!("vision.blocks.{layer}.w")));
        names.extend(["projector.0.w", "projector.2.w"].map(str::to_owned));
        let layers = Layers::of(names.iter().map(String::as_str));
        assert_eq!(layers.count(), 5);
        let places = ["text.layers.1.w", "vision.blocks.1.w", "vision.blocks.2.w", "projector.2.w"];
        assert_eq!(places.map(|name| layers.place(name)), [0.25, 0.5, 1.0, 0.0]);
        let loose = places.map(|name| layers.loose(name));
        assert_eq!(loose, [None, None, None, Some("projector.")]);
    }

    #[test]
    fn the_first_filter_that_fits_counts() {
        let rule = |filter, value| (filter, Anchors::from(vec![value]));
        let setting = Setting { rules: vec![rule(Filter::Contains("attn".into()), 0.1), rule(Filter::Any, 0.2)] };
        assert_eq!(setting.at("a.attn.w", 0.0), Some(0.1));
        assert_eq!(setting.at("a.mlp.w", 0.0), Some(0.2));
        let setting = Setting { rules: vec![rule(Filter::Contains("attn".into()), 0.1)] };
        assert_eq!(setting.at("a.mlp.w", 0.0), None);
    }
}
