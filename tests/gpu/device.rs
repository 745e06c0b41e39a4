//! Devices: what goes up comes down, from many threads, within limits; and how they fail.

use super::device;
use crate::model::{Outcome as Test, root, run};
use ckptmerge::gpu::{
    Choice, Compute, Device, Held, Inputs, Job, KERNELS, Limits, Lost, Outcome, Pass, adapters, layout, open,
};
use std::process::Command;
use std::sync::Arc;

const COPY: &str = include_str!("../../shaders/copy.wgsl");

/// Some bytes of so many, different for each seed.
fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + seed * 101 + at / 251) as u8).collect()
}

/// As they lie side by side.
fn joined(inputs: &[Vec<u8>]) -> Vec<u8> {
    let (offsets, end) = layout(inputs.iter().map(|input| input.len() as u64));
    let mut joined = vec![0; end as usize];
    for (input, offset) in inputs.iter().zip(offsets) {
        joined[offset as usize..][..input.len()].copy_from_slice(input);
    }
    joined
}

/// Copies `length` bytes of inputs.
fn copy(device: &Device, inputs: Inputs<'_>, length: usize) -> Result<Vec<u8>, Lost> {
    let vectors = length.div_ceil(16) as u64;
    let pass = Pass { shader: Arc::from(COPY), groups: vectors.div_ceil(256) };
    let job =
        Job { passes: &[pass], params: &[vectors as u32], inputs, output: length as u64, scratch: 0, zeros: true };
    let mut out = vec![0xaa; length];
    assert_eq!(device.run(&job, &mut out)?, Outcome::Done);
    Ok(out)
}

fn copied(device: &Device, inputs: &[Vec<u8>]) -> Result<Vec<u8>, Lost> {
    let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    copy(device, Inputs::Bytes(&slices), joined(inputs).len())
}

/// Adds 1 to the first word of the output, as one thread.
fn counting(text: &str) -> Arc<str> {
    let bindings = "@group(0) @binding(2) var<storage, read_write> out: array<u32>;
        @group(0) @binding(3) var<storage, read_write> status: array<atomic<u32>, 4>;";
    Arc::from(format!("{bindings} @compute @workgroup_size(1) fn main() {{ {text} }}"))
}

/// Runs a shader that needs no inputs.
fn alone(device: &Device, shader: &Arc<str>, output: usize) -> Result<(Outcome, Vec<u8>), Lost> {
    let pass = Pass { shader: Arc::clone(shader), groups: 1 };
    let job = Job {
        passes: &[pass],
        params: &[],
        inputs: Inputs::Bytes(&[]),
        output: output as u64,
        scratch: 0,
        zeros: true,
    };
    let mut out = vec![0xaa; output];
    device.run(&job, &mut out).map(|outcome| (outcome, out))
}

fn opened(forced: Option<Limits>) -> Device {
    open(&Choice::Best, forced).expect("tests need an adapter")
}

#[test]
fn bytes_come_back_as_they_went() {
    let device = device();
    for lengths in [vec![1], vec![0, 3, 0], vec![16, 17, 15], vec![100_003, 5], (0..300).collect(), vec![3_000_001]] {
        let inputs: Vec<_> = lengths.iter().enumerate().map(|(seed, length)| bytes(*length, seed)).collect();
        assert_eq!(copied(device, &inputs), Ok(joined(&inputs)), "{} inputs", lengths.len());
    }
    assert_eq!(device.failure(), None);
}

#[test]
fn output_ends_within_a_word() {
    let input = bytes(1000, 1);
    for length in [1, 2, 3, 5, 17, 999] {
        assert_eq!(copy(device(), Inputs::Bytes(&[&input]), length), Ok(input[..length].to_vec()));
    }
}

#[test]
fn many_threads_run_jobs_at_once() {
    let device = device();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..12 {
                    let lengths = [1 + thread * 1000 + round * 77, 50_000 * (round % 3), 13];
                    let inputs: Vec<_> = lengths.iter().map(|length| bytes(*length, thread * 100 + round)).collect();
                    assert_eq!(copied(device, &inputs), Ok(joined(&inputs)), "thread {thread}, round {round}");
                }
            });
        }
    });
    assert_eq!(device.failure(), None);
}

#[test]
fn output_and_status_are_zeros_at_first() {
    let shader = counting("out[0] += 1u; out[1] += 5u;");
    for _ in 0..3 {
        let (outcome, out) = alone(device(), &shader, 12).expect("it runs");
        assert_eq!((outcome, &out[..]), (Outcome::Done, &[1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0][..]));
    }
    let strange = counting("atomicOr(&status[0], 1u);");
    assert_eq!(alone(device(), &strange, 4).map(|(outcome, _)| outcome), Ok(Outcome::Strange));
    // Of the next job that is forgotten.
    assert_eq!(alone(device(), &shader, 8).map(|(outcome, _)| outcome), Ok(Outcome::Done));
}

#[test]
fn passes_see_what_those_before_them_wrote() {
    // Behind the output, of one word, stands the scratch.
    let passes = ["out[1] = 7u;", "out[2] = out[1] * 6u;", "out[0] = out[2] + 1u;"];
    let passes = passes.map(|text| Pass { shader: counting(text), groups: 1 });
    let job = Job { passes: &passes, params: &[], inputs: Inputs::Bytes(&[]), output: 4, scratch: 8, zeros: true };
    let mut out = [0; 4];
    assert_eq!(device().run(&job, &mut out), Ok(Outcome::Done));
    assert_eq!(u32::from_le_bytes(out), 43);
    let taken = device().time(&job, 3).expect("it runs");
    assert!(taken.as_nanos() > 0, "{taken:?}");
}

#[test]
fn workgroups_go_over_two_dimensions() {
    let text = "@group(0) @binding(2) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(1) fn main(
            @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>
        ) {
            let number = id.y * groups.x + id.x;
            if number < 1001u { out[number] = number + 1u; }
        }";
    let device = opened(Some(Limits { binding: 1 << 20, memory: 1 << 24, groups: 100 }));
    let pass = |groups| Pass { shader: Arc::from(text), groups };
    let mut out = [0; 4004];
    let job =
        Job { passes: &[pass(1001)], params: &[], inputs: Inputs::Bytes(&[]), output: 4004, scratch: 0, zeros: true };
    assert_eq!(device.run(&job, &mut out), Ok(Outcome::Done));
    let words: Vec<u32> = out.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    assert_eq!(words, (1..=1001).collect::<Vec<_>>());
    // 100 × 100 are the most.
    let job = Job { passes: &[pass(10_001)], ..job };
    assert_eq!(device.run(&job, &mut out), Err(Lost));
    assert!(device.failure().is_some_and(|reason| reason.contains("10001 workgroups")), "{:?}", device.failure());
}

#[test]
fn threads_wait_where_memory_is_short() {
    // A slot of these jobs takes six times 64 KiB, so that two fit, or none.
    for memory in [800_000, 1] {
        let device = opened(Some(Limits { binding: 1 << 16, memory, groups: 1000 }));
        assert_eq!(device.limits(), Limits { binding: 1 << 16, memory, groups: 1000 });
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let device = &device;
                scope.spawn(move || {
                    for round in 0..10 {
                        let inputs = [bytes(10_000 + thread, round), bytes(50_000, thread)];
                        assert_eq!(copied(device, &inputs), Ok(joined(&inputs)));
                        let taken = device.taken();
                        assert!(taken <= memory.max(400_000), "{taken} B of {memory}");
                    }
                });
            }
        });
        assert_eq!(device.failure(), None, "{memory} B");
        let taken = device.taken();
        // What is held is not theirs.
        let held = device.hold(&[&[0; 1000]]).expect("there is memory");
        assert_eq!(device.taken(), taken + 1008);
        drop(held);
        assert_eq!(device.taken(), taken);
    }
}

#[test]
fn held_inputs_serve_several_jobs() {
    let device = device();
    let inputs = [bytes(5, 1), bytes(40_000, 2), bytes(33, 3)];
    let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let held: Held = device.hold(&slices).expect("there is memory");
    let other = device.hold(&[]).expect("there is memory");
    let whole = joined(&inputs);
    std::thread::scope(|scope| {
        for thread in 1..5 {
            let (held, whole) = (held.clone(), &whole);
            scope.spawn(move || {
                for length in [whole.len(), whole.len() / thread] {
                    assert_eq!(copy(device, Inputs::Held(&held), length), Ok(whole[..length].to_vec()));
                }
            });
        }
    });
    drop((held, other));
    assert_eq!(copied(device, &inputs), Ok(whole));
}

#[test]
fn what_is_held_goes_up_in_parts() {
    // Parts of 64 KiB, whose bounds are within an input, between two, and among the zeros behind one.
    let device = opened(Some(Limits { binding: 1 << 20, memory: 1 << 18, groups: 1000 }));
    for lengths in [vec![200_000], vec![65_536, 65_536, 1], vec![65_527, 7, 65_529, 0, 0, 3], vec![1; 5000]] {
        let inputs: Vec<_> = lengths.iter().enumerate().map(|(seed, length)| bytes(*length, seed)).collect();
        let slices: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
        let held = device.hold(&slices).expect("there is memory");
        let whole = joined(&inputs);
        assert_eq!(copy(&device, Inputs::Held(&held), whole.len()), Ok(whole));
    }
}

#[test]
fn what_exceeds_limits_is_refused_with_a_reason() {
    let limits = Limits { binding: 1 << 16, memory: 1 << 24, groups: 1000 };
    let large = vec![0; (1 << 16) + 1];
    let job = Job { passes: &[], params: &[], inputs: Inputs::Bytes(&[]), output: 0, scratch: 0, zeros: true };
    let jobs = [
        Job { inputs: Inputs::Bytes(&[&large]), ..job },
        Job { output: large.len() as u64, ..job },
        Job { output: 4, scratch: u64::MAX, ..job },
        Job { params: &[0; 1 << 15], ..job },
        // The output has another length than what is to hold it.
        Job { output: 3, ..job },
    ];
    for job in jobs {
        let device = opened(Some(limits));
        let mut out = vec![0; if job.output == 3 { 4 } else { job.output as usize }];
        assert_eq!(device.run(&job, &mut out), Err(Lost));
        assert!(device.failure().is_some_and(|reason| reason.contains(" B ")), "{:?}", device.failure());
    }
    let device = opened(Some(limits));
    assert!(device.hold(&[&large]).is_err());
    assert!(device.failure().is_some_and(|reason| reason.contains("65552 B of inputs")), "{:?}", device.failure());
}

#[test]
fn long_expressions_need_no_deep_stack() {
    // As a sum over thousands of inputs has them.
    let sum = vec!["x"; 12_000].join("+");
    let shader = counting(&format!("let x = out[1] + 1u; out[0] = {sum};"));
    assert_eq!(alone(device(), &shader, 8), Ok((Outcome::Done, vec![0xe0, 0x2e, 0, 0, 0, 0, 0, 0])));
    let device = opened(None);
    let sum = vec!["x"; 300_000].join("+");
    assert_eq!(alone(&device, &counting(&format!("let x = 1u; out[0] = {sum};")), 4), Err(Lost));
    assert!(device.failure().is_some_and(|reason| reason.contains("too long")), "{:?}", device.failure());
}

#[test]
fn a_shader_that_is_wrong_loses_the_device() {
    let wrong = [
        "this is no shader".to_owned(),
        counting("out[0] = 1.5;").to_string(),
        // It has no `main`.
        COPY.replace("fn main", "fn other"),
        // It has a fifth binding.
        counting("other = 1u;")
            .replace("@compute", "@group(0) @binding(4) var<storage, read_write> other: u32; @compute"),
    ];
    for text in wrong {
        let device = opened(None);
        let shader: Arc<str> = Arc::from(text);
        // Several threads ask for it, and only one compiles it.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| assert_eq!(alone(&device, &shader, 4), Err(Lost)));
            }
        });
        let failure = device.failure().expect("it has failed");
        assert!(failure.starts_with("cannot compile a shader: ") && !failure.contains('\n'), "{failure}");
        // Nor does it anything else.
        assert_eq!(alone(&device, &counting("out[0] = 1u;"), 4), Err(Lost));
        assert!(device.hold(&[&[1]]).is_err());
        assert_eq!(device.failure(), Some(failure));
    }
}

#[test]
fn a_lost_device_stays_lost() {
    let device = opened(None);
    let inputs = [bytes(1_000_000, 1)];
    let held = device.hold(&[&inputs[0]]).expect("there is memory");
    assert_eq!(copied(&device, &inputs), Ok(joined(&inputs)));
    std::thread::scope(|scope| {
        let runs = (0..4).map(|_| scope.spawn(|| while copied(&device, &inputs) == Ok(joined(&inputs)) {}));
        let runs: Vec<_> = runs.collect();
        std::thread::sleep(std::time::Duration::from_millis(50));
        device.lose();
        for run in runs {
            run.join().expect("it ends without a panic");
        }
    });
    assert_eq!(copied(&device, &inputs), Err(Lost));
    assert_eq!(copy(&device, Inputs::Held(&held), 16), Err(Lost));
    assert!(device.hold(&[&inputs[0]]).is_err());
    assert_eq!(
        device.time(
            &Job { passes: &[], params: &[], inputs: Inputs::Held(&held), output: 0, scratch: 0, zeros: true },
            1
        ),
        Err(Lost)
    );
    assert!(device.failure().is_some_and(|reason| reason.contains("lost")), "{:?}", device.failure());
}

/// Runs only in a process of its own, whose memory is limited: see below.
#[test]
#[ignore = "needs a limit of memory"]
fn out_of_memory() {
    let device = opened(Some(Limits { binding: 1 << 26, memory: u64::MAX, groups: 1000 }));
    let input = vec![1; 1 << 26];
    let held: Vec<_> = std::iter::repeat_with(|| device.hold(&[&input])).take(1000).take_while(Result::is_ok).collect();
    assert!(!held.is_empty() && held.len() < 1000, "{} times 64 MiB", held.len());
    let failure = device.failure().unwrap_or_default();
    assert!(failure.to_lowercase().contains("out of memory"), "{failure}");
    assert_eq!(copied(&device, &[vec![1]]), Err(Lost));
}

#[test]
fn failures_say_nothing_on_their_own() -> Test {
    let program = std::env::current_exe()?;
    for (name, limit) in [
        ("a_shader_that_is_wrong_loses_the_device", "unlimited"),
        ("a_lost_device_stays_lost", "unlimited"),
        ("out_of_memory", "1600000"),
    ] {
        let script =
            format!("ulimit -v {limit}; exec \"$0\" --exact gpu::device::{name} --nocapture --include-ignored");
        // Mesa's layer that sorts devices says so where there is no desktop.
        let output = Command::new("sh").args(["-c", &script]).arg(&program).env("NODEVICE_SELECT", "1").output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{name}: {said}{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{name} did not run");
    }
    Ok(())
}

#[test]
fn devices_are_found_by_name_or_number() {
    let all = adapters();
    let first = all.first().expect("tests need an adapter");
    assert!(all.is_sorted_by_key(|adapter| adapter.kind), "{all:?}");
    assert!(first.limits.binding >= 1 << 25 && first.limits.groups >= 65_535, "{first:?}");
    assert_eq!(first.limits.binding % 256, 0);
    for name in [first.name.to_uppercase(), "0".to_owned()] {
        let device = open(&Choice::Named(name), None).expect("it is there");
        assert_eq!((device.name(), device.limits()), (first.name.as_str(), first.limits));
        assert_eq!(device.adapter(), first);
    }
    let error = open(&Choice::Named("abacus".to_owned()), None).expect_err("it is not there").to_string();
    assert!(error.starts_with("there is no graphics processor `abacus`; there are: "), "{error}");
    assert!(error.contains(&first.name), "{error}");
}

#[test]
fn the_yardsticks_are_in_the_table_of_kernels() {
    for name in ["check", "copy"] {
        assert!(KERNELS.iter().any(|kernel| kernel.name == name), "{name}");
    }
}

#[test]
fn rates_are_measured() {
    let rates = device().rates().expect("it computes");
    for rate in [rates.upload, rates.copy, rates.download] {
        assert!(rate > 1e6 && rate < 1e14, "{rates:?}");
    }
    // However small the buffers.
    let small = opened(Some(Limits { binding: 1 << 15, memory: 1 << 18, groups: 10 }));
    assert!(small.rates().is_ok(), "{:?}", small.failure());
}

#[test]
fn the_command_lists_devices() -> Test {
    let first = adapters().swap_remove(0);
    let text = run(root(), "devices").ok().stdout;
    assert!(text.starts_with(&format!("0: {}\n", first.name)) && text.contains("upload"), "{text}");
    let list: serde_json::Value = serde_json::from_str(&run(root(), "devices --json").ok().stdout)?;
    let entry = &list[0];
    assert_eq!((entry["number"].as_u64(), entry["name"].as_str()), (Some(0), Some(first.name.as_str())));
    assert_eq!(entry["limits"]["binding"].as_u64(), Some(first.limits.binding));
    for rate in ["upload", "copy", "blend", "download"] {
        assert!(entry["bytes_per_second"][rate].as_u64().is_some_and(|rate| rate > 0), "{entry}");
    }
    Ok(())
}
