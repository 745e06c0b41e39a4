//! Channel-wise projections folded into the weights before them.
//!
//! Behind a block's last layer, `P·(W∗x + b) = (P·W)∗x + P·b`, with `P·W` over the output channels, so that the projection
//! need not be a layer of its own (Ma et al. 2025, §3.2). That is exact where all that the block gives comes out of
//! weights: of a convolution, or of a residual block whose two branches both end with one. Where something passes by
//! unweighted, as around attention, or goes elsewhere as well, as the skip connections of the way down, the projection
//! stays. Which it is, the names of the tensors tell.

use super::planner::{Made, Making};
use super::projections::{channels, numbered};
use super::survey::Surveys;
use crate::checkpoint::{DataFile, TensorView};
use crate::dtype::{self, DType};
use crate::error::{Error, Result};
use crate::merge::{self, Input, Node, Terms};
use crate::stream::{Control, Kernel, Settings};
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap};

/// What became of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projection {
    /// Its name.
    pub name: String,
    /// The tensors that it was multiplied into, or why it stays.
    pub folded: std::result::Result<Vec<String>, String>,
}

/// A product of two merged tensors: a projection, channels × channels, and a weight with as many rows.
#[derive(Clone, Debug)]
pub struct Folded<'a> {
    /// The projection's name.
    pub name: String,
    /// What the projection is made of.
    pub projection: Node<'a>,
    /// What the weight is made of.
    pub weight: Node<'a>,
}

impl<'a> Folded<'a> {
    /// Both nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        [&self.projection, &self.weight].into_iter()
    }

    /// Bytes of both, as they are read and as numbers, and of their product.
    pub(super) fn memory(&self) -> u64 {
        let elements = |node: &Node<'_>| node.terms.shape.iter().product::<u64>();
        let read: u64 = self.weight.leaves().iter().map(|view| view.tensor.bytes).sum();
        read + (elements(&self.projection) + 2 * elements(&self.weight)) * size_of::<f64>() as u64
    }

    /// The elements of the product, in f64.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming a factor that has numbers which are not finite.
    pub(super) fn evaluate(&self, surveys: &Surveys, settings: &Settings, control: Control<'_>) -> Result<Vec<f64>> {
        let projection = numbers(&surveys.apply(&self.projection), settings, control)?;
        let weight = numbers(&surveys.apply(&self.weight), settings, control)?;
        for (node, values) in [(&self.projection, &projection), (&self.weight, &weight)] {
            if values.iter().any(|value| !value.is_finite()) {
                let (name, into) = (&node.terms.tensor, &self.weight.terms.tensor);
                let message = format!(
                    "the merged `{name}` has numbers that are not finite, which folding `{}` would spread over `{into}`: leave --fold-projections out, or merge other models (`ckptmerge inspect MODEL --stats` tells which hold NaN)",
                    self.name
                );
                return Err(Error::Recipe(message));
            }
        }
        let rows = (self.weight.terms.shape.first().copied().unwrap_or(0) as usize).max(1);
        let columns = (weight.len() / rows).max(1);
        let mut product = vec![0.0; weight.len()];
        product.par_chunks_mut(columns).zip(projection.par_chunks(rows)).for_each(|(out, factors)| {
            for (row, factor) in weight.chunks_exact(columns).zip(factors) {
                out.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
            }
        });
        Ok(product)
    }
}

/// All elements that a node comes to.
fn numbers(node: &Node<'_>, settings: &Settings, control: Control<'_>) -> Result<Vec<f64>> {
    let program = node.solve(DType::F64, settings, control)?;
    let mut buffers = vec![Vec::new(); program.leaves().len()];
    let leaves: Vec<TensorView<'_>> = program.leaves().to_vec();
    let read = |(view, buffer)| TensorView::read(view, 0..view.tensor.bytes, buffer);
    let inputs = leaves.iter().zip(&mut buffers).map(read).collect::<Result<Vec<&[u8]>>>()?;
    let count = node.terms.shape.iter().product::<u64>() as usize;
    let mut bytes = vec![0; count * size_of::<f64>()];
    match program.as_sum() {
        Some(sum) => sum.run(0, &inputs, &mut bytes)?,
        None => program.run(0, &inputs, &mut bytes)?,
    }
    leaves.iter().flat_map(TensorView::files).try_for_each(DataFile::check_fault)?;
    let mut values = vec![0.0; count];
    dtype::decode_f64(DType::F64, &bytes, &mut values);
    Ok(values)
}

/// Elements that were computed whole, to be written in a type.
pub(super) struct Values {
    pub(super) values: Vec<f64>,
    pub(super) output: DType,
}

impl Kernel for Values {
    fn run(&self, start: u64, _: &[&[u8]], out: &mut [u8]) -> Result<()> {
        let block = self.output.block_elements() as usize;
        let count = out.len() / self.output.block_bytes() as usize * block;
        dtype::encode_f64(self.output, &self.values[start as usize * block..][..count], out);
        Ok(())
    }
}

/// Folds the projections among the tensors where that is exact, and leaves those out that were folded. Tells of each what
/// became of it, in the order of their numbers.
///
/// # Errors
/// None but those of the table of methods.
pub(super) fn fold(made: &mut Vec<Made<'_>>) -> Result<Vec<Projection>> {
    let mut found: Vec<((String, usize), String)> = Vec::new();
    for tensor in made.iter() {
        let place = numbered(&tensor.name).map(|(prefix, number)| (prefix.to_owned(), number));
        found.extend(place.map(|place| (place, tensor.name.clone())));
    }
    found.sort();
    let mut told = Vec::new();
    for ((prefix, number), name) in found {
        let folded = match targets(made, &prefix, number, &name) {
            Ok(targets) => {
                apply(made, &name, &targets)?;
                Ok(targets)
            }
            Err(why) => Err(why),
        };
        told.push(Projection { name, folded });
    }
    Ok(told)
}

/// The tensors that a projection can be multiplied into, or why there are none.
fn targets(made: &[Made<'_>], prefix: &str, number: usize, name: &str) -> Result<Vec<String>, String> {
    let names = Names(made.iter().filter_map(|tensor| tensor.name.strip_prefix(prefix)).collect());
    let modules = names.before_projection(number)?;
    let by_name: HashMap<&str, &Made<'_>> = made.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let computed = |tensor: &Made<'_>| {
        let tied = made.iter().any(|other| matches!(&other.making, Making::Tied(to) if *to == tensor.name));
        matches!(tensor.making, Making::From(_)) && !tied && tensor.dtype.is_real() && dtype::can_encode(tensor.dtype)
    };
    let projection = by_name.get(name).copied().filter(|tensor| computed(tensor));
    let Some(of) = projection.and_then(|tensor| channels(&tensor.shape)) else {
        return Err("it is no matrix of numbers, as many rows as columns".to_owned());
    };
    let mut targets = Vec::new();
    for tensor in modules.iter().flat_map(|module| ["weight", "bias"].map(|leaf| format!("{prefix}{module}.{leaf}"))) {
        match by_name.get(tensor.as_str()) {
            Some(weight) if !computed(weight) || weight.shape.first() != Some(&of) => {
                return Err(format!("`{tensor}` before it does not have {of} rows of numbers of its own"));
            }
            Some(_) => targets.push(tensor),
            None => {}
        }
    }
    Ok(targets)
}

/// Puts the products in the place of the weights, and takes the projection out.
fn apply(made: &mut Vec<Made<'_>>, name: &str, targets: &[String]) -> Result<()> {
    let Some(index) = made.iter().position(|tensor| tensor.name == name) else { return Ok(()) };
    let taken = made.remove(index);
    let Making::From(input) = taken.making else { return Ok(()) };
    let projection = node(input, &taken.name, &taken.shape)?;
    for tensor in made.iter_mut().filter(|tensor| targets.contains(&tensor.name)) {
        let Making::From(input) = &tensor.making else { continue };
        let weight = node(input.clone(), &tensor.name, &tensor.shape)?;
        let folded = Folded { name: name.to_owned(), projection: projection.clone(), weight };
        tensor.making = Making::Folded(Box::new(folded));
    }
    Ok(())
}

fn node<'a>(input: Input<'a>, name: &str, shape: &[u64]) -> Result<Node<'a>> {
    match input {
        Input::Node(node) => Ok(*node),
        other => {
            let method = merge::method("linear")?;
            Ok(Node { method, terms: Terms::new(method.about(), name, shape, 1, false), inputs: vec![other] })
        }
    }
}

/// The names of a network's tensors.
pub(super) struct Names<'n>(pub(super) BTreeSet<&'n str>);

impl<'n> Names<'n> {
    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// What stands behind a beginning of names.
    fn behind(&self, prefix: &str) -> Vec<&'n str> {
        self.0.iter().filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// How many blocks of a kind there are.
    fn blocks(&self, kind: &str) -> usize {
        (0..).take_while(|number| !self.behind(&format!("{kind}.{number}.")).is_empty()).count()
    }

    /// How many projections the network can have: one behind each block.
    pub(super) fn projections(&self) -> usize {
        self.blocks("down_blocks") + usize::from(self.has_middle()) + self.blocks("up_blocks")
    }

    fn has_middle(&self) -> bool {
        !self.behind("mid_block.").is_empty()
    }

    /// The modules that make all of what the projection of this number is applied to.
    fn before_projection(&self, number: usize) -> Result<Vec<String>, String> {
        let (down, up) = (self.blocks("down_blocks"), self.blocks("up_blocks"));
        if number < down {
            return Err(format!(
                "what it projects, the output of `down_blocks.{number}`, is a skip connection as well, which is not projected"
            ));
        }
        match (number - down).checked_sub(usize::from(self.has_middle())) {
            None => self.last_of("mid_block"),
            Some(number) if number < up => self.last_of(&format!("up_blocks.{number}")),
            Some(_) => Err("there is no block before it".to_owned()),
        }
    }

    /// The modules whose weights make all of a block's output.
    fn last_of(&self, block: &str) -> Result<Vec<String>, String> {
        const KNOWN: [&str; 3] = ["attentions", "resnets", "upsamplers"];
        let mut last = [None; KNOWN.len()];
        for name in self.behind(&format!("{block}.")) {
            let mut parts = name.split('.');
            let kind = parts.next().unwrap_or_default();
            let number: Option<usize> = parts.next().and_then(|number| number.parse().ok());
            let place = KNOWN.iter().position(|known| *known == kind).zip(number);
            let Some((kind, number)) = place else {
                return Err(format!("`{block}` has `{name}`, of which it is not known whether it comes last"));
            };
            last[kind] = last[kind].max(Some(number));
        }
        let [attention, resnet, upsampler] = last;
        if let Some(number) = upsampler {
            let at = format!("{block}.upsamplers.{number}");
            let conv = format!("{at}.conv");
            return if self.has(&format!("{conv}.weight")) { Ok(vec![conv]) } else { self.branches(&at) };
        }
        match (attention, resnet) {
            (attention, Some(number)) if attention < Some(number) => {
                self.branches(&format!("{block}.resnets.{number}"))
            }
            (Some(_), _) => Err(format!("`{block}` ends with attention, around which its input passes unweighted")),
            _ => Err(format!("`{block}` has no layers that are known")),
        }
    }

    /// The last modules of a residual block's two branches.
    fn branches(&self, block: &str) -> Result<Vec<String>, String> {
        let modules = ["conv2", "conv_shortcut"].map(|module| format!("{block}.{module}"));
        if modules.iter().all(|module| self.has(&format!("{module}.weight"))) {
            return Ok(modules.to_vec());
        }
        Err(format!(
            "`{block}`, before it, has no `conv_shortcut`: what goes around its convolutions passes unweighted"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::Names;

    fn found(names: &[&str], number: usize) -> Result<Vec<String>, String> {
        Names(names.iter().copied().collect()).before_projection(number)
    }

    #[test]
    fn names_tell_what_comes_last() {
        let mut names = vec![
            "down_blocks.0.resnets.0.conv2.weight",
            "mid_block.attentions.0.to_q.weight",
            "mid_block.resnets.0.conv2.weight",
            "mid_block.resnets.1.conv2.weight",
            "up_blocks.0.resnets.0.conv2.weight",
            "up_blocks.0.attentions.0.to_q.weight",
            "up_blocks.0.upsamplers.0.conv.weight",
            "up_blocks.1.resnets.0.conv2.weight",
            "up_blocks.1.resnets.10.conv2.weight",
            "up_blocks.1.resnets.10.conv_shortcut.weight",
            "up_blocks.1.resnets.9.conv2.weight",
            "up_blocks.2.resnets.0.conv2.weight",
            "up_blocks.2.resnets.0.conv_shortcut.weight",
            "up_blocks.2.attentions.0.to_q.weight",
        ];
        assert!(found(&names, 0).is_err_and(|why| why.contains("skip connection")));
        assert!(found(&names, 1).is_err_and(|why| why.contains("`mid_block.resnets.1`")));
        assert_eq!(found(&names, 2), Ok(vec!["up_blocks.0.upsamplers.0.conv".to_owned()]));
        let branches = ["conv2", "conv_shortcut"].map(|module| format!("up_blocks.1.resnets.10.{module}"));
        assert_eq!(found(&names, 3), Ok(branches.to_vec()));
        assert!(found(&names, 4).is_err_and(|why| why.contains("attention")));
        assert!(found(&names, 5).is_err_and(|why| why.contains("no block")));
        names.push("up_blocks.0.motion_modules.0.weight");
        assert!(found(&names, 2).is_err_and(|why| why.contains("motion_modules")));
    }
}
