//! A plan in words: the effective formula of each group of tensors.

use super::{Operation, Plan};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
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

    fn label_of(&self, checkpoint: &Checkpoint) -> &str {
        let source = self.sources.iter().find(|(source, _)| std::ptr::eq(*source, checkpoint));
        source.map_or("", |(_, label)| label.as_str())
    }
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
        // Ten digits show any weight as it was typed, and none of a quotient's tail.
        let size = format!("{:.10}", coefficient.abs());
        let size = size.trim_end_matches('0').trim_end_matches('.');
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
