//! Merge methods: against mergekit's numbers, against their definitions, and the contract that each of the table keeps.

mod chance;
mod companions;
mod contract;
mod device;
mod files;
mod goldens;
mod oracle;
mod selection;

use crate::model::{Outcome, Random};
use ckptmerge::checkpoint::TensorView;
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Base, Generator, Input, METHODS, Method, Node, Terms};
use ckptmerge::stream::{Control, Kernel, Offloading, Settings};
use std::cell::RefCell;
use std::sync::Arc;

/// Numbers in memory, as an input of a node.
struct Numbers(Vec<f32>);

impl Generator for Numbers {
    fn fill(&self, start: u64, out: &mut [f32]) -> ckptmerge::Result<()> {
        let start = start as usize;
        out.copy_from_slice(&self.0[start..start + out.len()]);
        Ok(())
    }

    fn reads(&self) -> Vec<TensorView<'_>> {
        Vec::new()
    }
}

/// A node over numbers in memory, the base's last if there is one.
fn node(method: &'static dyn Method, terms: &Terms, inputs: &[Vec<f32>]) -> Node<'static> {
    let inputs = inputs.iter().map(|values| Input::Generated(Arc::new(Numbers(values.clone())))).collect();
    Node { method, terms: terms.clone(), inputs }
}

thread_local! {
    /// The device that computes what [`evaluate`] asks for on this thread.
    static DEVICE: RefCell<Option<Offloading>> = const { RefCell::new(None) };
}

/// Settings with the device of this thread.
fn settings() -> Settings {
    Settings { device: DEVICE.with_borrow(Clone::clone), ..Settings::default() }
}

/// What a method makes of numbers, computed in `pieces`.
fn evaluate_in(pieces: u64, method: &'static dyn Method, terms: &Terms, inputs: &[Vec<f32>]) -> Outcome<Vec<f32>> {
    method.check(terms)?;
    let mut node = node(method, terms, inputs);
    // What is measured over a whole model, here of one tensor.
    if method.surveys(terms) {
        let data = node.data(&settings(), Control::none())?;
        let survey = method.survey(std::slice::from_ref(terms), &[data])?;
        node.terms.survey = survey;
    }
    let program = node.solve(DType::F32, &settings(), Control::none())?;
    let device = settings().device;
    let offloaded = device.as_ref().and_then(|device| program.offloaded(device));
    let kernel: &dyn Kernel = offloaded.as_ref().map_or(&program, |offloaded| offloaded);
    let elements: u64 = terms.shape.iter().product();
    let units = elements / program.unit();
    let mut out = vec![0; elements as usize * 4];
    for piece in 0..pieces.min(units) {
        let (first, last) = (units * piece / pieces.min(units), units * (piece + 1) / pieces.min(units));
        let bytes = |unit: u64| (unit * program.unit()) as usize * 4;
        kernel.run(first, &[], &mut out[bytes(first)..bytes(last)])?;
    }
    Ok(out.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

fn evaluate(method: &'static dyn Method, terms: &Terms, inputs: &[Vec<f32>]) -> Outcome<Vec<f32>> {
    evaluate_in(1, method, terms, inputs)
}

/// A way in which a method can be run.
#[derive(Clone, Copy)]
struct Setup {
    method: &'static dyn Method,
    models: usize,
    has_base: bool,
}

impl Setup {
    fn name(&self) -> &'static str {
        self.method.about().name
    }

    /// Terms at their defaults, with weights that add up to 1.
    fn terms(&self, shape: &[u64]) -> Terms {
        let mut terms = Terms::new(self.method.about(), "layers.0.weight", shape, self.models, self.has_base);
        terms.weights = vec![1.0 / self.models as f64; self.models];
        terms
    }

    /// How many of the inputs are companions of models.
    fn companions(&self) -> usize {
        if self.method.companions().is_some() { self.models } else { 0 }
    }

    /// How many inputs there are.
    fn inputs(&self) -> usize {
        self.models + self.companions() + usize::from(self.has_base)
    }

    /// Inputs of `n` numbers in −1..1; those of companions are not negative.
    fn numbers(&self, random: &mut Random, n: usize) -> Vec<Vec<f32>> {
        let mut inputs: Vec<Vec<f32>> =
            (0..self.inputs()).map(|_| random.values(n).iter().map(|x| *x as f32).collect()).collect();
        let companions = &mut inputs[self.models..self.models + self.companions()];
        companions.iter_mut().flatten().for_each(|x| *x = x.abs());
        inputs
    }

    fn run(&self, terms: &Terms, inputs: &[Vec<f32>]) -> Outcome<Vec<f32>> {
        evaluate(self.method, terms, inputs)
            .map_err(|error| format!("{} of {} models: {error}", self.name(), self.models).into())
    }
}

/// Every method of the table with every number of models up to three, with a base and without where it may do both.
fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for method in METHODS.iter().copied() {
        let (least, most) = method.about().models;
        let bases: &[bool] = match method.about().base {
            Base::Required | Base::Last => &[true],
            Base::Optional => &[false, true],
            Base::None | Base::Counts => &[false],
        };
        for models in least..=most.min(least.max(3)) {
            setups.extend(bases.iter().map(|&has_base| Setup { method, models, has_base }));
        }
    }
    assert!(METHODS.iter().all(|method| setups.iter().any(|setup| setup.name() == method.about().name)));
    setups
}

/// A parameter of the terms, for all models; none if the method has no such parameter.
fn set(terms: &mut Terms, name: &str, value: f64) -> bool {
    let found = terms.parameters.iter_mut().find(|(known, _)| *known == name);
    found.map(|(_, values)| values.fill(value)).is_some()
}

/// The method of that name.
fn method(name: &str) -> &'static dyn Method {
    ckptmerge::merge::method(name).expect("the table has it")
}
