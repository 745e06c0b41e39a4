//! A plan in words: the effective formula of each group of tensors.

use super::{Operation, Plan};
use crate::adapter;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::merge::{Input, Node, Weight};
use std::fmt::Write;

/// Tensors that are made in the same way.
#[derive(Clone, Debug)]
pub struct Formula {
    /// What is computed, with the numbers in it.
    pub text: String,
    /// The types of the sources.
    pub inputs: Vec<DType>,
    /// The type that is written.
    pub output: DType,
    /// The names of the tensors.
    pub tensors: Vec<String>,
}

impl Plan<'_> {
    /// The effective formulas, most tensors first.
    #[must_use]
    pub fn formulas(&self) -> Vec<Formula> {
        let mut formulas: Vec<Formula> = Vec::new();
        for planned in &self.tensors {
            let (text, inputs) = match &planned.operation {
                Operation::Alias(_) => ("tied to another tensor, and stays so".to_owned(), vec![planned.dtype]),
                Operation::Copy(view) => {
                    (format!("copied from {}", self.label_of(view.checkpoint)), vec![view.tensor.dtype])
                }
                Operation::Merge(node) => (self.described(node), dtypes_of(node)),
                Operation::Fold(folded) => {
                    let (name, weight) = (&folded.name, self.in_words(&folded.weight));
                    (format!("P·x, P the merged `{name}`, x = {weight}"), folded.nodes().flat_map(dtypes_of).collect())
                }
                Operation::Scale(kernel, view) => {
                    (format!("{} times its scales", self.label_of(view.checkpoint)), vec![kernel.input()])
                }
                Operation::Blend(kernel, views) => {
                    let labels: Vec<&str> = views.iter().map(|view| self.label_of(view.checkpoint)).collect();
                    let coefficients = &kernel.blend.coefficients;
                    (formula(coefficients, kernel.blend.from_base, &labels), kernel.inputs.clone())
                }
            };
            let same = formulas.iter_mut().find(|f| f.text == text && f.inputs == inputs && f.output == planned.dtype);
            match same {
                Some(formula) => formula.tensors.push(planned.name.clone()),
                None => {
                    formulas.push(Formula { text, inputs, output: planned.dtype, tensors: vec![planned.name.clone()] })
                }
            }
        }
        formulas.sort_by_key(|formula| std::cmp::Reverse(formula.tensors.len()));
        formulas
    }

    /// A merge, by its coefficients if they are known.
    fn in_words(&self, node: &Node<'_>) -> String {
        let Some((blend, views)) = node.fixed() else { return self.described(node) };
        let labels: Vec<&str> = views.iter().map(|view| self.label_of(view.checkpoint)).collect();
        formula(&blend.coefficients, blend.from_base, &labels)
    }

    /// A method that looks at the data: its formula, and the numbers that go into it.
    fn described(&self, node: &Node<'_>) -> String {
        let (about, terms) = (node.method.about(), &node.terms);
        let mut text = format!("{}: {}", about.name, about.formula);
        let inputs = node.inputs.iter().enumerate().map(|(index, input)| {
            let name = match input {
                Input::Tensor(view) => self.label_of(view.checkpoint).to_owned(),
                Input::Generated(_) => "computed".to_owned(),
                Input::Node(node) => match &node.inputs[..] {
                    // A model's tensor with its adapters goes by the model's name, which has theirs in it.
                    [Input::Tensor(view), ..] if node.method.about().name == adapter::METHOD => {
                        self.label_of(view.checkpoint).to_owned()
                    }
                    _ => format!("({})", self.described(node)),
                },
            };
            if terms.has_base && index + 1 == node.inputs.len() {
                format!("b = {name}")
            } else if index >= terms.models() {
                format!("companion{} = {name}", subscript(index - terms.models() + 1))
            } else {
                format!("x{} = {name}", subscript(index + 1))
            }
        });
        let mut facts: Vec<String> = inputs.collect();
        if about.weight != Weight::Unused {
            let division = if terms.normalize { ", divided by their sum" } else { "" };
            facts.push(format!("w = {}{division}", numbers(&terms.weights)));
        }
        facts.extend(terms.parameters.iter().map(|(name, values)| format!("{name} = {}", numbers(values))));
        text += &format!("\n    with {}", facts.join("; "));
        text
    }

    fn label_of(&self, checkpoint: &Checkpoint) -> &str {
        let source = self.sources.iter().find(|(source, _)| std::ptr::eq(*source, checkpoint));
        source.map_or("", |(_, label)| label.as_str())
    }
}

/// The types that a merge reads.
fn dtypes_of(node: &Node<'_>) -> Vec<DType> {
    node.leaves().iter().map(|view| view.tensor.dtype).collect()
}

/// Numbers as they were typed, the same ones once.
fn numbers(values: &[f64]) -> String {
    let texts: Vec<String> = values.iter().map(|value| short(*value)).collect();
    match &texts[..] {
        [first, rest @ ..] if rest.iter().all(|text| text == first) => first.clone(),
        _ => texts.join(", "),
    }
}

/// Ten digits show any weight as it was typed, and none of a quotient's tail.
fn short(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-6 {
        return format!("{value:e}");
    }
    let text = format!("{value:.10}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A number in small figures, as in x₁.
fn subscript(number: usize) -> String {
    number.to_string().chars().filter_map(|digit| char::from_u32('₀' as u32 + digit.to_digit(10)?)).collect()
}

/// `0.6·a + 0.4·b`, or `base + 0.3·(a − base) − 0.1·(b − base)`; the base is the last label.
fn formula(coefficients: &[f64], from_base: bool, labels: &[&str]) -> String {
    let base = labels.last().copied().unwrap_or_default();
    let mut text = if from_base { base.to_owned() } else { String::new() };
    for (coefficient, label) in coefficients.iter().zip(labels) {
        let sign = match (text.is_empty(), *coefficient < 0.0) {
            (true, true) => "−",
            (true, false) => "",
            (false, true) => " − ",
            (false, false) => " + ",
        };
        let term = if from_base { format!("({label} − {base})") } else { (*label).to_owned() };
        let size = short(coefficient.abs());
        // Writing to a String cannot fail.
        let _ = write!(text, "{sign}{size}·{term}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_read_as_they_are_written() {
        assert_eq!(formula(&[0.6, 0.4], false, &["a", "b"]), "0.6·a + 0.4·b");
        assert_eq!(formula(&[0.3, -1.0], true, &["a", "b", "base"]), "base + 0.3·(a − base) − 1·(b − base)");
        assert_eq!(formula(&[-1.0 / 3.0], false, &["a"]), "−0.3333333333·a");
    }
}
