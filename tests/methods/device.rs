//! Every method on a device: the numbers of the CPU, and those of the definitions.

use super::contract::variants;
use super::files::{FILES, Files, largest, numbers};
use super::{DEVICE, Numbers, Setup, method, oracle, set, setups};
use crate::gpu::device;
use crate::gpu::shaders::validate;
use crate::model::{Contents, Model, Outcome, Random, read};
use ckptmerge::IoMode;
use ckptmerge::dtype::DType;
use ckptmerge::gpu::{
    Choice, Compute, Device, Features, Held, Inputs, Job, Limits, Lost, Outcome as Ending, layout, open,
};
use ckptmerge::merge::{Input, Node, Terms};
use ckptmerge::stream::{Control, Kernel, Offloading, Settings};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A device that counts what it did, and what it left to the CPU.
#[derive(Debug)]
struct Counting {
    inner: &'static dyn Compute,
    features: Features,
    done: AtomicUsize,
    strange: AtomicUsize,
}

impl Counting {
    fn new(inner: &'static dyn Compute) -> Arc<Self> {
        Self::with(inner, inner.features())
    }

    fn with(inner: &'static dyn Compute, features: Features) -> Arc<Self> {
        Arc::new(Self { inner, features, done: AtomicUsize::new(0), strange: AtomicUsize::new(0) })
    }
}

impl Compute for Counting {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn features(&self) -> Features {
        self.features
    }

    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> Result<Ending, Lost> {
        let ending = self.inner.run(job, out);
        let count = if ending == Ok(Ending::Done) { &self.done } else { &self.strange };
        count.fetch_add(1, Ordering::Relaxed);
        ending
    }

    fn hold(&self, inputs: &[&[u8]]) -> Result<Held, Lost> {
        self.inner.hold(inputs)
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }
}

/// Runs `test` with a device for all of its tensors, which has to do something and to leave nothing.
fn on_device(what: &str, test: impl FnOnce() -> Outcome) -> Outcome {
    let counting = Counting::new(device());
    DEVICE.set(Some(Offloading::of_all(Arc::<Counting>::clone(&counting))));
    let result = test();
    DEVICE.set(None);
    let (done, strange) = (counting.done.load(Ordering::Relaxed), counting.strange.load(Ordering::Relaxed));
    assert_eq!(counting.failure(), None, "{what}");
    assert!(done > 0 && strange == 0, "{what}: the device did {done} jobs and left {strange}");
    result
}

/// Methods that the CPU computes alone, and why.
const WHOLE: [(&str, &str); 2] =
    [("rotate", "needs all elements of a tensor for its singular vectors"), ("smooth-add", "smooths whole tensors")];

/// Tensors of many rows, of long ones, of few elements.
fn model(random: &mut Random, file: usize, dtype: DType) -> Model {
    let shapes: [&[u64]; 5] = [&[675, 200], &[3, 5000], &[50_001], &[40, 24, 3, 3], &[1, 9]];
    shapes.iter().fold(Model::new(), |model, shape| {
        let values = numbers(random, file, shape.iter().product::<u64>() as usize);
        model.with(&format!("{shape:?}"), dtype, shape, &values)
    })
}

fn settings(threads: Option<NonZeroUsize>) -> Settings {
    Settings { threads, memory: None, sync: false, device: None }
}

fn is_whole(setup: &Setup) -> bool {
    WHOLE.iter().any(|(name, why)| *name == setup.name() && !why.is_empty())
}

/// The distance between neighbours near a number.
fn ulp(dtype: DType, x: f64) -> f64 {
    let digits = match dtype {
        DType::BF16 => 8,
        DType::F16 => 11,
        DType::F8E4M3 => 4,
        DType::F8E5M2 => 3,
        _ => 24,
    };
    2f64.powi(x.abs().max(1e-30).log2().floor() as i32 + 1 - digits)
}

/// Compares what a device wrote with what the CPU did. What is chosen differently is further away than rounding.
fn compare(what: &str, inputs: &[Contents], cpu: &Contents, device: &Contents) {
    for (name, expected) in &cpu.tensors {
        let found = &device.tensors[name];
        assert_eq!((expected.dtype, &expected.shape), (found.dtype, &found.shape), "{what}: {name}");
        let terms: Vec<Vec<f64>> = inputs.iter().map(|input| input.tensors[name].values()).collect();
        let (expected_values, found_values) = (expected.values(), found.values());
        let mut same = 0;
        for (i, (x, y)) in expected_values.iter().zip(&found_values).enumerate() {
            let sum: f64 = terms.iter().map(|term| term[i].abs()).sum();
            let bound = ulp(expected.dtype, *x) + 4.0 * terms.len() as f64 * 2f64.powi(-24) * sum;
            assert!((x - y).abs() <= bound, "{what}: {name}[{i}] is {y}, not {x}: more than {bound} apart");
            same += usize::from(x == y);
        }
        let share = same as f64 / expected_values.len() as f64;
        assert!(expected.dtype == DType::F32 || share >= 0.995, "{what}: {share} of {name} are the same");
    }
}

/// Merges by each method, on the CPU and on a device, whose limits change nothing.
fn numbers_are_the_cpus(dtype: DType, features: Features, methods: impl Fn(&str) -> bool) -> Outcome {
    let low = Limits { binding: 256 << 10, memory: 32 << 20, groups: 64 };
    let mut random = Random(21);
    let models: Vec<Model> = (0..FILES).map(|file| model(&mut random, file, dtype)).collect();
    let files = Files::new(&models)?;
    let inputs = files.paths.iter().map(|path| read(path)).collect::<Outcome<Vec<Contents>>>()?;
    for setup in largest().iter().filter(|setup| methods(setup.name())) {
        let what = format!("{} in {dtype}", setup.name());
        let counting = Counting::with(device(), features);
        let run = |compute: Option<Arc<dyn Compute>>| -> Outcome<Contents> {
            let device = compute.map(Offloading::of_all);
            files.merge(setup, None, IoMode::Mmap, Settings { device, ..settings(NonZeroUsize::new(2)) })?;
            read(&files.folder.path().join("out.safetensors"))
        };
        let on_cpu = run(None)?;
        let on_device = run(Some(Arc::<Counting>::clone(&counting)))?;
        compare(&what, &inputs, &on_cpu, &on_device);
        let done = counting.done.load(Ordering::Relaxed);
        let is_copy = setup.name() == "passthrough";
        assert!(done > 0 || is_copy || is_whole(setup), "{what}: the device did {done} jobs");
        let with_less = run(Some(Arc::new(Limited(Arc::<Counting>::clone(&counting), low))))?;
        assert!(with_less == on_device, "{what}: low limits change what is written");
    }
    assert_eq!(device().failure(), None);
    Ok(())
}

#[test]
fn every_method_gives_the_numbers_of_the_cpu_in_bf16() -> Outcome {
    numbers_are_the_cpus(DType::BF16, device().features(), |_| true)
}

#[test]
fn every_method_gives_the_numbers_of_the_cpu_in_f16_with_all_features() -> Outcome {
    numbers_are_the_cpus(DType::F16, device().offered(), |_| true)
}

#[test]
fn every_method_gives_the_numbers_of_the_cpu_in_f32() -> Outcome {
    numbers_are_the_cpus(DType::F32, device().features(), |_| true)
}

#[test]
fn types_of_8_bits_are_read_and_written_as_on_the_cpu() -> Outcome {
    for dtype in [DType::F8E4M3, DType::F8E5M2] {
        let few = |method: &str| ["linear", "ties", "della", "slerp"].contains(&method);
        numbers_are_the_cpus(dtype, device().features(), few)?;
    }
    Ok(())
}

/// A device that seems to have less of everything.
#[derive(Debug)]
struct Limited(Arc<dyn Compute>, Limits);

impl Compute for Limited {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn limits(&self) -> Limits {
        self.1
    }

    fn features(&self) -> Features {
        self.0.features()
    }

    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> Result<Ending, Lost> {
        let Inputs::Bytes(inputs) = job.inputs else { return Err(Lost) };
        let (_, arena) = layout(inputs.iter().map(|input| input.len() as u64));
        let buffers = [arena, job.output + job.scratch, 4 * job.params.len() as u64];
        assert!(buffers.iter().all(|bytes| *bytes <= self.1.binding), "{buffers:?} B do not fit");
        assert!(2 * buffers.iter().sum::<u64>() <= self.1.memory, "{buffers:?} B do not fit");
        self.0.run(job, out)
    }

    fn hold(&self, inputs: &[&[u8]]) -> Result<Held, Lost> {
        self.0.hold(inputs)
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }
}

/// Checks what it is given to run, and leaves it to the CPU.
#[derive(Debug)]
struct Validating {
    features: Features,
    seen: Mutex<HashSet<Arc<str>>>,
}

impl Compute for Validating {
    fn name(&self) -> &str {
        "a check of shaders"
    }

    fn limits(&self) -> Limits {
        Limits { binding: 1 << 27, memory: 1 << 30, groups: 65_535 }
    }

    fn features(&self) -> Features {
        self.features
    }

    fn run(&self, job: &Job<'_>, _out: &mut [u8]) -> Result<Ending, Lost> {
        let mut seen = self.seen.lock().unwrap_or_else(|poison| poison.into_inner());
        for pass in job.passes {
            if seen.insert(Arc::clone(&pass.shader)) {
                validate("a method's shader", &pass.shader, self.features);
            }
        }
        Ok(Ending::Strange)
    }

    fn hold(&self, _inputs: &[&[u8]]) -> Result<Held, Lost> {
        Err(Lost)
    }

    fn failure(&self) -> Option<String> {
        None
    }
}

#[test]
fn shaders_of_all_methods_are_valid_without_an_adapter() -> Outcome {
    for features in [Features::default(), Features { f16: true, subgroup: 32 }] {
        let validating = Arc::new(Validating { features, seen: Mutex::default() });
        DEVICE.set(Some(Offloading::of_all(Arc::<Validating>::clone(&validating))));
        every_shader_is_asked_for()?;
        DEVICE.set(None);
        let seen = validating.seen.lock().map(|seen| seen.len()).unwrap_or(0);
        assert!(seen > 100, "{seen} shaders were seen");
    }
    Ok(())
}

fn every_shader_is_asked_for() -> Outcome {
    let mut random = Random(23);
    for setup in setups().iter().filter(|setup| !is_whole(setup)) {
        for shape in [&[1000][..], &[10, 100], &[3, 5, 70]] {
            let inputs = setup.numbers(&mut random, shape.iter().product::<u64>() as usize);
            for mut terms in variants(setup, shape) {
                for (density, rescale) in [(1.0, 0.0), (0.5, 1.0), (0.5, 2.0)] {
                    set(&mut terms, "density", density);
                    set(&mut terms, "select_topk", density);
                    set(&mut terms, "rescale", rescale);
                    setup.run(&terms, &inputs)?;
                }
            }
        }
    }
    Ok(())
}

/// A merge of merges, of which one measures.
fn tree(inputs: &[Vec<f32>]) -> Node<'static> {
    let shape = [100, 300];
    let leaf = |i: usize| Input::Generated(Arc::new(Numbers(inputs[i].clone())));
    let node = |name: &str, models: usize, has_base: bool, inputs: Vec<Input<'static>>| {
        let mut terms = Terms::new(method(name).about(), "w", &shape, models, has_base);
        set(&mut terms, "density", 0.5);
        Node { method: method(name), terms, inputs }
    };
    let trimmed = node("ties", 2, true, vec![leaf(0), leaf(1), leaf(2)]);
    let arc = node("slerp", 2, false, vec![Input::Node(Box::new(trimmed)), leaf(3)]);
    node("dare-ties", 2, true, vec![Input::Node(Box::new(arc)), leaf(1), leaf(2)])
}

fn run(node: &Node<'_>, output: DType) -> Outcome<Vec<u8>> {
    let settings = super::settings();
    let program = node.solve(output, &settings, Control::none())?;
    let offloaded = settings.device.as_ref().map(|device| program.offloaded(device).ok_or("it has no shader"));
    let offloaded = offloaded.transpose()?;
    let kernel: &dyn Kernel = offloaded.as_ref().map_or(&program, |offloaded| offloaded);
    let elements = node.terms.shape.iter().product::<u64>();
    let mut out = vec![0; (elements / output.block_elements() * output.block_bytes()) as usize];
    kernel.run(0, &[], &mut out)?;
    Ok(out)
}

#[test]
fn merges_of_merges_and_what_is_computed_run_on_a_device() -> Outcome {
    let mut random = Random(24);
    let inputs: Vec<Vec<f32>> = (0..4).map(|_| random.values(30_000).iter().map(|x| *x as f32).collect()).collect();
    let node = tree(&inputs);
    for output in [DType::F32, DType::BF16, DType::Q8_0] {
        let expected = run(&node, output)?;
        let mut found = Vec::new();
        on_device("a tree", || {
            found = run(&node, output)?;
            Ok(())
        })?;
        let same = expected.iter().zip(&found).filter(|(x, y)| x == y).count() as f64 / expected.len() as f64;
        assert!(expected.len() == found.len() && same > 0.99, "{output}: {same} of the bytes are the same");
    }
    Ok(())
}

/// A device that is lost after so many jobs.
#[derive(Debug)]
struct Failing {
    inner: Device,
    left: AtomicUsize,
}

impl Compute for Failing {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn features(&self) -> Features {
        self.inner.features()
    }

    fn run(&self, job: &Job<'_>, out: &mut [u8]) -> Result<Ending, Lost> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            self.inner.lose();
        }
        self.inner.run(job, out)
    }

    fn hold(&self, inputs: &[&[u8]]) -> Result<Held, Lost> {
        self.inner.hold(inputs)
    }

    fn failure(&self) -> Option<String> {
        self.inner.failure()
    }
}

#[test]
fn the_cpu_goes_on_where_a_device_is_lost() -> Outcome {
    let mut random = Random(25);
    let models: Vec<Model> = (0..FILES).map(|file| model(&mut random, file, DType::BF16)).collect();
    let files = Files::new(&models)?;
    let inputs = files.paths.iter().map(|path| read(path)).collect::<Outcome<Vec<Contents>>>()?;
    let limits = Limits { binding: 64 << 10, memory: 32 << 20, groups: 64 };
    for setup in largest().iter().filter(|setup| ["linear", "ties", "slerp", "della"].contains(&setup.name())) {
        let run = |device: Option<Offloading>| -> Outcome<Contents> {
            let settings = Settings { device, ..settings(NonZeroUsize::new(3)) };
            files.merge(setup, None, IoMode::Mmap, settings)?;
            read(&files.folder.path().join("out.safetensors"))
        };
        let on_cpu = run(None)?;
        for jobs in [0, 1, 7] {
            let failing = Arc::new(Failing { inner: open(&Choice::Best, Some(limits))?, left: AtomicUsize::new(jobs) });
            let found = run(Some(Offloading::of_all(Arc::<Failing>::clone(&failing))))?;
            compare(setup.name(), &inputs, &on_cpu, &found);
            assert!(failing.failure().is_some(), "{}: it was lost after {jobs} jobs", setup.name());
        }
    }
    Ok(())
}

/// Numbers that devices need not know.
#[test]
fn what_devices_need_not_know_is_as_on_the_cpu() -> Outcome {
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40, -1e-30, f32::MIN_POSITIVE, 3e38];
    let mut random = Random(26);
    for setup in setups().iter().filter(|setup| !is_whole(setup)) {
        for number in strange {
            let shape = [40, 100];
            let mut inputs = setup.numbers(&mut random, 4000);
            inputs[0][1234] = number;
            let terms = setup.terms(&shape);
            let expected = setup.run(&terms, &inputs)?;
            let counting = Counting::new(device());
            DEVICE.set(Some(Offloading::of_all(Arc::<Counting>::clone(&counting))));
            let found = setup.run(&terms, &inputs);
            DEVICE.set(None);
            let same = |x: &f32, y: &f32| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
            let found = found?;
            // Where nothing is strange after all, it is the device's rounding.
            let bound = if number == 3e38 { 1e-6 } else { 0.0 };
            for (i, (x, y)) in expected.iter().zip(&found).enumerate() {
                let is_near = same(x, y) || (x - y).abs() <= bound;
                assert!(is_near, "{} with {number}: [{i}] is {y}, not {x}", setup.name());
            }
        }
    }
    Ok(())
}

/// What the CPU and a device make of the same.
fn both(setup: &Setup, terms: &Terms, inputs: &[Vec<f32>]) -> Outcome<(Vec<f32>, Vec<f32>)> {
    let expected = setup.run(terms, inputs)?;
    DEVICE.set(Some(Offloading::of_all(Counting::new(device()))));
    let found = setup.run(terms, inputs);
    DEVICE.set(None);
    Ok((expected, found?))
}

#[test]
fn small_numbers_and_zeros_are_as_on_the_cpu() -> Outcome {
    let mut random = Random(27);
    for setup in setups().iter().filter(|setup| !is_whole(setup)) {
        let mut terms = setup.terms(&[40, 100]);
        set(&mut terms, "density", 0.5);
        set(&mut terms, "clamp_to_ab", 1.0);
        let mut inputs = setup.numbers(&mut random, 4000);
        let few: Vec<Vec<f32>> = inputs.iter().map(|x| x.iter().map(|x| (x * 2.0).trunc() / 2.0).collect()).collect();
        let (expected, found) = both(setup, &terms, &few)?;
        let is_zero = |(x, y): &(&f32, &f32)| **x == 0.0 || **y == 0.0;
        let signs = expected.iter().zip(&found).filter(is_zero).filter(|(x, y)| x.to_bits() != y.to_bits()).count();
        assert_eq!(signs, 0, "{}: zeros of the other sign", setup.name());
        if setup.name() == "multislerp" {
            // It refuses directions of such length.
            continue;
        }
        inputs.iter_mut().flatten().for_each(|x| *x *= 2f32.powi(-70));
        let (expected, found) = both(setup, &terms, &inputs)?;
        for (i, (x, y)) in expected.iter().zip(&found).enumerate() {
            let sum: f32 = inputs.iter().map(|input| input[i].abs()).sum();
            assert!((x - y).abs() <= 4e-6 * sum, "{}: [{i}] of small numbers is {y}, not {x}", setup.name());
        }
    }
    Ok(())
}

#[test]
fn what_overflows_on_the_way_is_the_cpus() -> Outcome {
    let mut random = Random(28);
    let mut inputs: Vec<Vec<f32>> =
        (0..4).map(|_| random.values(3000).iter().map(|x| -x.abs() as f32).collect()).collect();
    inputs[0].iter_mut().for_each(|x| *x *= -1e10);
    inputs[3].fill(0.0);
    let setup = Setup { method: method("ties"), models: 3, has_base: true };
    let mut terms = setup.terms(&[30, 100]);
    terms.weights = vec![1e30, 1.0, 1.0];
    set(&mut terms, "elect", 2.0);
    let (expected, found) = both(&setup, &terms, &inputs)?;
    assert!(expected.iter().any(|x| x.is_nan()));
    let same = |(x, y): (&f32, &f32)| x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan());
    assert!(expected.iter().zip(&found).all(same));
    Ok(())
}

/// Shaders of many models and tables of many rows are not worth compiling and uploading.
#[test]
fn what_is_too_much_for_a_device_is_the_cpus() -> Outcome {
    let mut random = Random(29);
    let mut numbers = |n: usize| -> Vec<f32> { random.values(n).iter().map(|x| *x as f32).collect() };
    let many = Setup { method: method("dare-ties"), models: 60, has_base: true };
    let inputs: Vec<Vec<f32>> = (0..61).map(|_| numbers(500)).collect();
    let (expected, found) = both(&many, &many.terms(&[5, 100]), &inputs)?;
    assert!(expected == found);
    let rows = Setup { method: method("nuslerp"), models: 2, has_base: false };
    let mut terms = rows.terms(&[20_000, 3]);
    set(&mut terms, "nuslerp_flatten", 0.0);
    let inputs: Vec<Vec<f32>> = (0..2).map(|_| numbers(60_000)).collect();
    let (expected, found) = both(&rows, &terms, &inputs)?;
    assert!(expected == found);
    assert_eq!(device().failure(), None);
    Ok(())
}

type Test = fn() -> Outcome;

#[test]
fn definitions_hold_on_a_device() -> Outcome {
    let tests: [(&str, Test); 7] = [
        ("trimmed_changes_are_those_that_sorting_keeps", oracle::trimmed_changes_are_those_that_sorting_keeps),
        ("means_on_the_sphere_are_those_of_vectors", oracle::means_on_the_sphere_are_those_of_vectors),
        ("arcs_are_those_of_their_vectors", oracle::arcs_are_those_of_their_vectors),
        ("model_stock_goes_as_far_as_the_angle_says", oracle::model_stock_goes_as_far_as_the_angle_says),
        ("what_differs_most_is_selected", oracle::what_differs_most_is_selected),
        ("fusion_takes_what_scores_high", oracle::fusion_takes_what_scores_high),
        ("elementwise_methods_do_as_their_formulas", oracle::elementwise_methods_do_as_their_formulas),
    ];
    for (what, test) in tests {
        on_device(what, test)?;
    }
    Ok(())
}
