//! Adapters over models: what PEFT and kohya's scripts make of them, every way of naming them, and what is refused.

use crate::merge::{merge, settings};
use crate::model::{Contents, Model, Outcome, Random, binary, fixture, read, run, write};
use ckptmerge::adapter::{Adapters, Unplaced, is_adapter, split_path};
use ckptmerge::dtype::DType;
use ckptmerge::merge::{Base, METHODS};
use ckptmerge::recipe::{Conversion, Models, Plan, Recipe, Target};
use ckptmerge::stream::{Control, Settings};
use ckptmerge::{Checkpoint, Error, IoMode};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

/// A case of the goldens.
struct Case {
    name: String,
    adapter: PathBuf,
    base: PathBuf,
    facts: Value,
}

fn cases() -> Outcome<Vec<Case>> {
    let folder = fixture("lora");
    let cases: Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json"))?)?;
    let cases = cases["cases"].as_array().ok_or("cases are a list")?;
    assert!(cases.len() > 20, "only {} cases were found", cases.len());
    let path = |case: &Value, key: &str| folder.join(case[key].as_str().unwrap_or_default());
    let case = |case: &Value| Case {
        name: case["name"].as_str().unwrap_or_default().to_owned(),
        adapter: path(case, "adapter"),
        base: path(case, "base"),
        facts: case.clone(),
    };
    Ok(cases.iter().map(case).collect())
}

/// `BASE+ADAPTER`
fn with(base: &Path, adapters: &[&Path]) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    for adapter in adapters {
        path.push("+");
        path.push(adapter);
    }
    path.into()
}

/// Writes models merged, with adapters' tensors left out that have no place.
fn merge_leaving_out(recipe: &Recipe, models: &[PathBuf], base: Option<&Path>, out: &Path) -> ckptmerge::Result<()> {
    let models = Models::open_with(models, &[], base, &IoMode::Auto.into(), Unplaced::LeaveOut)?;
    let plan = Plan::new(recipe, &models, &settings(), Control::none())?;
    plan.emit(&Target::new(out), &settings(), Control::none()).map(drop)
}

/// That a merged model is what the goldens say of a case.
fn assert_is(case: &Case, merged: &Contents, expected: &Contents) -> Outcome {
    let base = read(&case.base)?;
    let changed: Vec<&str> =
        case.facts["changed"].as_array().ok_or("a list")?.iter().filter_map(Value::as_str).collect();
    assert!(!changed.is_empty(), "{}", case.name);
    assert_eq!(merged.names(), base.names(), "{}", case.name);
    for (name, tensor) in &base.tensors {
        let found = &merged.tensors[name];
        if !changed.contains(&name.as_str()) {
            assert!(found == tensor, "{}: {name} was changed", case.name);
            continue;
        }
        let expected = &expected.tensors[&format!("{}/{name}", case.name)];
        assert_eq!((found.dtype, &found.shape), (tensor.dtype, &tensor.shape), "{}: {name}", case.name);
        let largest = expected.values().iter().fold(0.0f64, |most, value| most.max(value.abs()));
        for (i, (found, expected)) in found.values().iter().zip(expected.values()).enumerate() {
            let distance = (found - expected).abs();
            assert!(distance <= 1e-6 * largest, "{}: {name}[{i}]: {found} against {expected}", case.name);
        }
    }
    Ok(())
}

#[test]
fn adapters_are_what_their_own_tools_make_of_them() -> Outcome {
    let folder = tempdir()?;
    let out = folder.path().join("out.safetensors");
    let expected = read(&fixture("lora/expected.safetensors"))?;
    let mut checked = 0;
    for case in cases()?.iter().filter(|case| case.facts["error"] != true) {
        // The change, times the strength, over the base.
        let strength = case.facts["strength"].as_f64().ok_or("a number")?;
        let recipe = Recipe::new("task-arithmetic")?.weights(&[strength]);
        merge_leaving_out(&recipe, &[with(&case.base, &[&case.adapter])], Some(&case.base), &out)?;
        assert_is(case, &read(&out)?, &expected)?;
        // An adapter alone is one over the base.
        merge_leaving_out(&recipe, std::slice::from_ref(&case.adapter), Some(&case.base), &out)?;
        assert_is(case, &read(&out)?, &expected)?;
        if strength == 1.0 {
            merge_leaving_out(&Recipe::new("linear")?, &[with(&case.base, &[&case.adapter])], None, &out)?;
            assert_is(case, &read(&out)?, &expected)?;
            let base = Checkpoint::open(&case.base)?;
            let over = std::slice::from_ref(&case.adapter);
            let adapters = Adapters::open(over, &base, &IoMode::Auto.into(), Unplaced::LeaveOut)?;
            let renamed = Conversion::default().rename(base)?;
            let plan = Conversion::default().plan_with(&renamed, Some(&adapters))?;
            plan.emit(&Target::new(&out), &settings(), Control::none())?;
            assert_is(case, &read(&out)?, &expected)?;
        }
        checked += 1;
    }
    assert!(checked >= 20, "only {checked} cases were checked");
    Ok(())
}

#[test]
fn what_cannot_be_applied_is_refused_whole() -> Outcome {
    let folder = tempdir()?;
    let out = folder.path().join("out.safetensors");
    let says = [
        ("peft_grouped", "of different ranks 2 and 4"),
        ("peft_dora", "use_dora"),
        ("kohya_ambiguous", "mid_block.net.0.proj.weight, mid_block.net_0.proj.weight"),
        ("kohya_stranger", "`lora_unet_nowhere_to_q.lora_up.weight`"),
        ("kohya_half_a_pair", "lora_up is missing"),
        ("kohya_other_shape", "[9, 2] and [2, 8], whose product does not fit [8, 8]"),
        ("kohya_other_rank", "different ranks 3 and 2"),
        ("kohya_dora", "dora_scale`: is of DoRA"),
        ("kohya_loha", "hada_w1_a`: is of LoHa"),
    ];
    let cases = cases()?;
    let refused: Vec<_> = cases.iter().filter(|case| case.facts["error"] == true).collect();
    assert_eq!(refused.len(), says.len());
    for case in refused {
        let (_, says) = says.iter().find(|(name, _)| *name == case.name).ok_or(case.name.as_str())?;
        let path = [with(&case.base, &[&case.adapter])];
        let error = merge(&Recipe::new("linear")?, &path, None, &out).expect_err(&case.name).to_string();
        assert!(error.contains(says), "{}: {error}", case.name);
        let adapter = case.adapter.file_name().ok_or("a name")?.to_string_lossy().into_owned();
        assert!(error.contains(&adapter), "{}: {error}", case.name);
        assert!(!out.exists(), "{}", case.name);
    }
    // Another component's tensors are refused as well, unless they are to be left out.
    let mut elsewhere = 0;
    for case in cases.iter().filter(|case| case.facts["elsewhere"].is_array()) {
        let path = [with(&case.base, &[&case.adapter])];
        let Err(Error::Mismatch(all)) = merge(&Recipe::new("linear")?, &path, None, &out) else {
            panic!("{}: tensors without a place were taken", case.name)
        };
        let prefix = case.facts["elsewhere"][0].as_str().ok_or("a prefix")?;
        assert!(all.iter().all(|mismatch| mismatch.tensor.starts_with(prefix)), "{}: {all:?}", case.name);
        let lost = read(&case.adapter)?.names().iter().filter(|name| name.starts_with(prefix)).count();
        assert_eq!(all.len(), lost, "{}: each tensor is named", case.name);
        elsewhere += 1;
    }
    assert!(elsewhere >= 4);
    Ok(())
}

/// A base of some types and shapes, and two adapters for it.
fn family(folder: &Path) -> Outcome<(PathBuf, [PathBuf; 2])> {
    let mut random = Random(5);
    let shapes: [(&str, &[u64]); 4] =
        [("a.q.weight", &[40, 70]), ("a.k.weight", &[70, 40]), ("conv.weight", &[6, 4, 3, 3]), ("b.weight", &[1, 3])];
    let mut base = Model::new().f32("norm.weight", &random.values(40));
    for (name, shape) in shapes {
        base = base.with(name, DType::F32, shape, &random.values(shape.iter().product::<u64>() as usize));
    }
    let base = base.write(folder.join("base.st"))?;
    let mut adapters = Vec::new();
    for index in 0..2u64 {
        let mut adapter = Model::new();
        for (name, shape) in shapes {
            let rank = 2 + index;
            let module = name.trim_end_matches(".weight").replace('.', "_");
            let mut down = shape.to_vec();
            down[0] = rank;
            let columns: u64 = shape[1..].iter().product();
            adapter = adapter
                .with(
                    &format!("lora_unet_{module}.lora_down.weight"),
                    [DType::F16, DType::BF16][index as usize],
                    &down,
                    &random.values((rank * columns) as usize),
                )
                .with(
                    &format!("lora_unet_{module}.lora_up.weight"),
                    DType::F32,
                    &[shape[0], rank],
                    &random.values((shape[0] * rank) as usize),
                )
                .with(&format!("lora_unet_{module}.alpha"), DType::I64, &[], &[1.0 + index as f64]);
        }
        adapters.push(adapter.write(folder.join(format!("lora{index}.st")))?);
    }
    Ok((base, adapters.try_into().map_err(|_| "two were made")?))
}

#[test]
fn every_method_reads_adapters_as_if_they_were_merged_before() -> Outcome {
    let folder = tempdir()?;
    let (base, loras) = family(folder.path())?;
    let mut baked = Vec::new();
    for (index, lora) in loras.iter().enumerate() {
        let out = folder.path().join(format!("baked{index}.safetensors"));
        merge(&Recipe::new("linear")?, &[with(&base, &[lora])], None, &out)?;
        baked.push(out);
    }
    let lazy = loras.each_ref().map(|lora| with(&base, &[lora])).to_vec();
    assert!(METHODS.len() > 5);
    // What a method reads beside the models is no adapter's business.
    let methods = METHODS.iter().filter(|method| method.companions().is_none());
    for method in methods.map(|method| method.about()) {
        let count = method.models.1.clamp(1, 2);
        let mut recipe = Recipe::new(method.name)?;
        if method.parameters.iter().any(|parameter| parameter.name == "density") {
            recipe = recipe.parameter("density", 0.5);
        }
        if method.parameters.iter().any(|parameter| parameter.name == "t") {
            recipe = recipe.parameter("t", 0.3);
        }
        let base = matches!(method.base, Base::Required | Base::Last).then_some(base.as_path());
        let [eager, late] = ["eager", "late"].map(|name| folder.path().join(format!("{name}.safetensors")));
        merge(&recipe, &baked[..count], base, &eager).map_err(|error| format!("{}: {error}", method.name))?;
        merge(&recipe, &lazy[..count], base, &late)?;
        let (eager, late) = (read(&eager)?, read(&late)?);
        assert!(eager.tensors == late.tensors, "{} differs", method.name);
    }
    Ok(())
}

#[test]
fn bytes_do_not_depend_on_threads_or_memory() -> Outcome {
    let folder = tempdir()?;
    let mut random = Random(8);
    let (rows, columns, rank) = (1500, 300, 5);
    let base = Model::new()
        .with("q.weight", DType::BF16, &[rows, columns], &random.values((rows * columns) as usize))
        .unaligned()
        .write(folder.path().join("base.st"))?;
    let lora = Model::new()
        .with("lora_unet_q.lora_down.weight", DType::F32, &[rank, columns], &random.values((rank * columns) as usize))
        .with("lora_unet_q.lora_up.weight", DType::F16, &[rows, rank], &random.values((rows * rank) as usize))
        .with("lora_unet_q.alpha", DType::F32, &[1], &[2.5])
        .unaligned()
        .write(folder.path().join("lora.st"))?;
    let mut outputs = Vec::new();
    for (io, threads, memory) in
        [(IoMode::Mmap, 1, None), (IoMode::Mmap, 3, None), (IoMode::Pread, 2, Some(40 << 20)), (IoMode::Pread, 1, None)]
    {
        let models = Models::open(&[with(&base, &[&lora])], Some(&base), &io.into())?;
        let settings = Settings { threads: NonZeroUsize::new(threads), memory, sync: false, device: None };
        let recipe = Recipe::new("ties")?.parameter("density", 0.7);
        let plan = Plan::new(&recipe, &models, &settings, Control::none())?;
        let out = folder.path().join("out.safetensors");
        plan.emit(&Target::new(&out), &settings, Control::none())?;
        outputs.push(std::fs::read(&out)?);
    }
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    Ok(())
}

#[test]
fn adapters_stack_and_paths_may_have_a_plus() -> Outcome {
    let folder = tempdir()?;
    let inner = folder.path().join("a+b");
    std::fs::create_dir(&inner)?;
    let (base, loras) = family(&inner)?;
    let stacked = with(&base, &[&loras[0], &loras[1]]);
    assert_eq!(split_path(&stacked), [base.clone(), loras[0].clone(), loras[1].clone()]);
    assert_eq!(split_path(Path::new("x+y")), [PathBuf::from("x"), PathBuf::from("y")]);
    let out = folder.path().join("out.safetensors");
    merge(&Recipe::new("linear")?, &[stacked], None, &out)?;
    let stacked = read(&out)?;
    // The sum of both changes, and so is an adapter alone beside an adapted base.
    merge(&Recipe::new("task-arithmetic")?, &loras, Some(&base), &out)?;
    let summed = read(&out)?;
    merge(&Recipe::new("task-arithmetic")?, &loras[1..], Some(&with(&base, &[&loras[0]])), &out)?;
    let above = read(&out)?;
    for (name, tensor) in &stacked.tensors {
        for other in [&summed, &above] {
            for (a, b) in tensor.values().iter().zip(other.values(name)) {
                assert!((a - b).abs() < 2e-6, "{name}: {a} against {b}");
            }
        }
    }
    assert_ne!(stacked.values("a.q.weight"), read(&base)?.values("a.q.weight"));
    assert!(is_adapter(&Checkpoint::open(&loras[0])?) && !is_adapter(&Checkpoint::open(&base)?));
    Ok(())
}

#[test]
fn ties_and_replacements() -> Outcome {
    let folder = tempdir()?;
    let values = |n: usize| Random(n as u64).values(n);
    // By the convention of `save_model`, text ties names.
    let base = Model::new()
        .with("embed.weight", DType::F32, &[4, 3], &values(12))
        .with("out.weight", DType::BF16, &[2, 3], &values(6))
        .text("head.weight", "embed.weight")
        .write(folder.path().join("base/model.safetensors"))?;
    let factors = |model: Model, module: &str, rows: u64| {
        model.with(&format!("base_model.model.{module}.lora_A.weight"), DType::F32, &[1, 3], &[1.0, 2.0, 3.0]).with(
            &format!("base_model.model.{module}.lora_B.weight"),
            DType::F32,
            &[rows, 1],
            &vec![1.0; rows as usize],
        )
    };
    let adapter = |name: &str, model: Model| -> Outcome<PathBuf> {
        write(&folder.path().join(name).join("adapter_config.json"), json!({"r": 1, "lora_alpha": 1}).to_string())?;
        model.write(folder.path().join(name).join("adapter_model.safetensors"))?;
        Ok(folder.path().join(name))
    };
    let out = folder.path().join("out.safetensors");
    let merged = |adapter: &Path| -> Outcome<Contents> {
        merge(&Recipe::new("linear")?, &[with(&base, &[adapter])], None, &out)?;
        read(&out)
    };
    // What is added to one of two tied tensors is added to both, as PEFT does, and they stay tied.
    let before = values(12);
    for module in ["embed", "head"] {
        let tied = merged(&adapter(module, factors(Model::new(), module, 4))?)?;
        assert_eq!(tied.names(), ["embed.weight", "out.weight"]);
        assert_eq!(tied.metadata.get("head.weight").map(String::as_str), Some("embed.weight"));
        let shift: Vec<f64> = tied.values("embed.weight").iter().zip(&before).map(|(a, b)| (a - b).round()).collect();
        assert_eq!(shift, [1.0, 2.0, 3.0].repeat(4));
    }
    // A module that is saved whole is its own, in the type that the base has.
    let whole = Model::new().with("base_model.model.head.weight", DType::F32, &[4, 3], &[7.0; 12]);
    let whole = whole.with("base_model.model.out.weight", DType::F32, &[2, 3], &[0.1; 6]);
    let saved = merged(&adapter("whole", factors(whole, "embed", 4))?)?;
    assert_eq!(saved.names(), ["embed.weight", "head.weight", "out.weight"]);
    assert_eq!(
        saved.values("head.weight"),
        [7.0; 12].iter().zip([1.0, 2.0, 3.0].repeat(4)).map(|(a, b)| a + b).collect::<Vec<_>>()
    );
    assert_eq!(saved.tensors["out.weight"].dtype, DType::BF16);
    Ok(())
}

#[test]
fn any_format_will_do_and_what_is_assumed_is_said() -> Outcome {
    let folder = tempdir()?;
    let base = fixture("lora/base.safetensors");
    let peft = fixture("lora/peft/patterns");
    let binary_adapter = folder.path().join("adapter_model.bin");
    std::fs::copy(peft.join("adapter_config.json"), folder.path().join("adapter_config.json"))?;
    let convert = |from: &Path, to: &Path| {
        let ran = binary().args(["convert", "--json"]).arg(from).arg(to).output().expect("it starts");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    // An adapter alone is converted as any file is.
    convert(&peft, &binary_adapter);
    let [one, two] = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
    let silent = convert(&with(&base, &[&peft]), &one);
    assert_eq!(silent, "");
    convert(&with(&base, &[folder.path()]), &two);
    assert_eq!(std::fs::read(&one)?, std::fs::read(&two)?);
    convert(&with(&base, &[&binary_adapter]), &two);
    assert_eq!(std::fs::read(&one)?, std::fs::read(&two)?);

    let warned =
        convert(&with(&fixture("lora/unet.safetensors"), &[&fixture("lora/kohya/no_alpha.safetensors")]), &two);
    assert!(warned.contains("warning: no_alpha.safetensors: no alpha") && warned.contains("scale 1"), "{warned}");

    let ran = binary().arg("merge").arg(&peft).arg("-o").arg(&two).output()?;
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(!ran.status.success() && said.contains("is an adapter") && said.contains("--base"), "{said}");
    let ran = binary().arg("merge").arg(with(&base, &[&base])).arg("-o").arg(&two).output()?;
    assert!(String::from_utf8_lossy(&ran.stderr).contains("is no adapter"), "{ran:?}");
    Ok(())
}

#[test]
fn a_merge_says_which_adapters_it_read() -> Outcome {
    let folder = tempdir()?;
    let (_, _) = family(folder.path())?;
    let explained = run(folder.path(), "merge lora0.st base.st+lora1.st --base base.st --method ties --explain").ok();
    assert!(explained.stdout.contains("x₁ = lora0.st; x₂ = base.st+lora1.st; b = base.st"), "{}", explained.stdout);
    run(folder.path(), "merge base.st+lora0.st+lora1.st -o out.st -q").ok();
    let inputs = read(&folder.path().join("out.st"))?.metadata["ckptmerge.inputs"].clone();
    let inputs: Value = serde_json::from_str(&inputs)?;
    assert_eq!(inputs[0]["name"], "base.st+lora0.st+lora1.st");
    assert_eq!(inputs[0]["adapters"][1]["name"], "lora1.st");
    Ok(())
}

/// Files that are wrong in every way are errors and never panics.
#[test]
fn hostile_adapters_are_refused() -> Outcome {
    let folder = tempdir()?;
    let base = Model::new().with("q.weight", DType::F32, &[2, 3], &[0.0; 6]).f32("i.weight", &[1.0]);
    let base = base.raw("n.weight", DType::U8, &[2, 3], vec![0; 6]).write(folder.path().join("base.st"))?;
    let out = folder.path().join("out.st");
    let f32s = |name: &str, shape: &[u64]| {
        Model::new().with(name, DType::F32, shape, &vec![1.0; shape.iter().product::<u64>() as usize])
    };
    let both = |down: &[u64], up: &[u64]| {
        let n = |shape: &[u64]| vec![1.0; shape.iter().product::<u64>() as usize];
        f32s("lora_unet_q.lora_down.weight", down).with("lora_unet_q.lora_up.weight", DType::F32, up, &n(up))
    };
    let good = || both(&[1, 3], &[2, 1]);
    for (what, adapter, says) in [
        ("scalars", both(&[], &[]), "does not fit"),
        ("empty", both(&[0, 3], &[2, 0]), "different ranks"),
        ("alpha of several", good().f32("lora_unet_q.alpha", &[1.0, 2.0]), "alpha that is no number"),
        ("alpha not finite", good().with("lora_unet_q.alpha", DType::F32, &[], &[f64::NAN]), "no finite number"),
        ("only alpha", good().with("lora_unet_n.alpha", DType::F32, &[], &[1.0]), "neither of the two"),
        ("stranger", good().f32("lora_unet_q.diff", &[1.0]), "no part of a LoRA"),
        ("core misfit", good().f32("lora_unet_q.lora_mid.weight", &[1.0]), "does not fit"),
        (
            "to bytes",
            f32s("lora_unet_n.lora_down.weight", &[1, 3]).with(
                "lora_unet_n.lora_up.weight",
                DType::F32,
                &[2, 1],
                &[1.0; 2],
            ),
            "is U8 and cannot be computed with",
        ),
        (
            "twice",
            good().with("q.lora_A.weight", DType::F32, &[1, 3], &[1.0; 3]).with(
                "q.lora_B.weight",
                DType::F32,
                &[2, 1],
                &[1.0; 2],
            ),
            "is for as well",
        ),
        ("integers", good().raw("unet.i.lora_A.weight", DType::U8, &[1], vec![1]), "has only the first factor"),
        ("whole misfit", good().f32("base_model.model.q.weight", &[1.0]), "resize the base"),
    ] {
        let adapter = adapter.write(folder.path().join("lora.st"))?;
        let error = merge(&Recipe::new("linear")?, &[with(&base, &[&adapter])], None, &out).expect_err(what);
        assert!(error.to_string().contains(says), "{what}: {error}");
    }
    good().write(folder.path().join("lora.st"))?;
    for config in ["[]", "{", r#"{"r": 2}"#, r#"{"r": 1, "lora_alpha": "x"}"#, r#"{"peft_type": 3}"#] {
        write(&folder.path().join("adapter_config.json"), config)?;
        let adapter = with(&base, &[&folder.path().join("lora.st")]);
        let error = merge(&Recipe::new("linear")?, &[adapter], None, &out).expect_err(config);
        assert!(error.to_string().contains("adapter_config") || error.to_string().contains("configuration"), "{error}");
    }
    Ok(())
}
