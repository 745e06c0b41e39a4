//! Values for blocks: which tensor has which block's, in the models and under the names that there are, and what is
//! refused.

use crate::model::{Contents, Model, Outcome, Ran, fixture, read, run, write};
use ckptmerge::dtype::DType;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tempfile::tempdir;

/// The names of the blocks, in the order of their values.
fn blocks(family: &str) -> Vec<String> {
    let row = |stem: &str, count: usize| (0..count).map(|number| format!("{stem}{number:02}")).collect::<Vec<_>>();
    let word = |word: &str| vec![word.to_owned()];
    match family {
        "sd15" => [word("BASE"), row("IN", 12), row("M", 1), row("OUT", 12)].concat(),
        "sdxl" => [word("BASE"), row("IN", 9), row("M", 1), row("OUT", 9)].concat(),
        _ => [word("CLIP"), word("T5"), word("IN"), row("D", 19), row("S", 38), word("OUT")].concat(),
    }
}

/// A value for each block, all of them different, and exact in 32 bits.
fn values(count: usize) -> Vec<f64> {
    (1..=count).map(|number| number as f64 / 64.0).collect()
}

fn list(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

/// The blocks of tensors by names of one kind, `original` or `diffusers`; none if a tensor is in none.
fn table(family: &str, kind: &str) -> Outcome<BTreeMap<String, Option<String>>> {
    let mut text = String::new();
    GzDecoder::new(File::open(fixture(&format!("blocks/{family}.tsv.gz")))?).read_to_string(&mut text)?;
    let mut table = BTreeMap::new();
    for line in text.lines() {
        let [of, name, block] = line.split('\t').collect::<Vec<_>>()[..] else { return Err(line.into()) };
        if of == kind {
            table.insert(name.to_owned(), (block != "-").then(|| block.to_owned()));
        }
    }
    let found: BTreeSet<&String> = table.values().flatten().collect();
    assert_eq!(found, blocks(family).iter().collect(), "{family} {kind}: every block has a tensor");
    Ok(table)
}

/// A model of the given number in tensors of these names.
fn constant<'n>(names: impl IntoIterator<Item = &'n String>, value: f64) -> Model {
    names.into_iter().fold(Model::new(), |model, name| model.with(name, DType::F32, &[1], &[value]))
}

/// Writes `a.st` of zeros, and `b.st` of ones.
fn write_pair<'n>(folder: &Path, names: impl IntoIterator<Item = &'n String> + Clone) -> Outcome {
    constant(names.clone(), 0.0).write(folder.join("a.st"))?;
    constant(names, 1.0).write(folder.join("b.st"))?;
    Ok(())
}

/// Merges `b.st` into `a.st`, so that each tensor becomes its weight.
fn weights(folder: &Path, arguments: &str) -> Ran {
    run(folder, &format!("merge b.st --base a.st --no-sync -o out.safetensors {arguments}"))
}

/// That every tensor has become its block's value.
#[track_caller]
fn assert_has(contents: &Contents, table: &BTreeMap<String, Option<String>>, blocks: &[String], values: &[f64]) {
    let by_block: BTreeMap<&String, f64> = blocks.iter().zip(values.iter().copied()).collect();
    let expected: BTreeMap<&String, f64> =
        table.iter().filter_map(|(name, block)| Some((name, *by_block.get(block.as_ref()?)?))).collect();
    assert!(expected.len() > 600, "{}", expected.len());
    let differing: Vec<_> =
        expected.iter().filter(|(name, value)| contents.values(name) != [**value]).take(5).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn every_tensor_has_the_value_of_its_block() -> Outcome {
    let prefix = "model.diffusion_model.";
    for family in ["sd15", "sdxl", "flux"] {
        let (blocks, original) = (blocks(family), table(family, "original")?);
        let values = values(blocks.len());
        let bare =
            original.iter().filter_map(|(name, block)| Some((name.strip_prefix(prefix)?.to_owned(), block.clone())));
        for (kind, table) in
            [("original", original.clone()), ("diffusers", table(family, "diffusers")?), ("bare", bare.collect())]
        {
            let folder = tempdir()?;
            let path = folder.path();
            write_pair(path, table.keys())?;
            let exclude = if family == "flux" && kind != "bare" { "--exclude ^vae" } else { "" };
            let ran = weights(path, &format!("--blocks weight={} {exclude}", list(&values))).ok();
            assert_eq!(ran.stderr, "", "{family} {kind}");
            assert_has(&read(&path.join("out.safetensors"))?, &table, &blocks, &values);
        }
    }
    Ok(())
}

#[test]
fn a_unet_of_diffusers_alone_has_its_blocks() -> Outcome {
    for (family, part) in [("sd15", "unet/"), ("sdxl", "unet/"), ("flux", "transformer/")] {
        let folder = tempdir()?;
        let path = folder.path();
        let all = table(family, "diffusers")?;
        let own = all.iter().filter_map(|(name, block)| Some((name.strip_prefix(part)?.to_owned(), block.clone())));
        let own: BTreeMap<_, _> = own.collect();
        write_pair(path, own.keys())?;
        let (blocks, values) = (blocks(family), values(blocks(family).len()));
        weights(path, &format!("--blocks weight={}", list(&values))).ok();
        assert_has(&read(&path.join("out.safetensors"))?, &own, &blocks, &values);
    }
    Ok(())
}

#[test]
fn lists_for_1x_go_without_the_blocks_that_xl_lacks() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let table = table("sdxl", "original")?;
    write_pair(path, table.keys())?;
    let ran = weights(path, &format!("--blocks weight={}", list(&values(26)))).ok();
    for words in ["26 values of Stable Diffusion 1.x", "IN09–IN11, OUT09–OUT11 are not"] {
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    assert_has(&read(&path.join("out.safetensors"))?, &table, &blocks("sd15"), &values(26));
    Ok(())
}

#[test]
fn parameters_and_models_have_values_of_their_own() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let table = table("sd15", "original")?;
    write_pair(path, table.keys())?;
    constant(table.keys(), 4.0).write(path.join("c.st"))?;
    let (blocks, values) = (blocks("sd15"), values(26));
    let list = list(&values);

    // a + alpha · (c − a): a shared parameter.
    run(path, &format!("merge a.st c.st a.st --method add-difference --blocks alpha={list} -o alpha.safetensors")).ok();
    let times = |factor: f64| values.iter().map(|value| value * factor).collect::<Vec<_>>();
    assert_has(&read(&path.join("alpha.safetensors"))?, &table, &blocks, &times(4.0));

    // b at 0.5 for all, c by its blocks; a pattern goes before the blocks.
    let two = "merge b.st c.st --base a.st --no-sync";
    run(
        path,
        &format!("{two} --weights 0.5,0 --blocks weight:2={list} --weights-for ^first_stage=1,1 -o two.safetensors"),
    )
    .ok();
    let contents = read(&path.join("two.safetensors"))?;
    let (stage, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        table.into_iter().partition(|(name, _)| name.starts_with("first_stage"));
    assert!(!stage.is_empty() && stage.keys().all(|name| contents.values(name) == [5.0]));
    let expected: Vec<f64> = values.iter().map(|value| 0.5 + 4.0 * value).collect();
    assert_has(&contents, &rest, &blocks, &expected);
    Ok(())
}

#[test]
fn recipes_take_lists_names_and_single_blocks() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let table = table("sd15", "original")?;
    write_pair(path, table.keys())?;
    std::fs::copy(fixture("blocks/presets.txt"), path.join("presets.txt"))?;
    let recipe = |value: &str| {
        format!(
            "merge_method: task_arithmetic\nbase_model: a.st\nblock_presets: presets.txt\nmodels:\n  - model: b.st\n    parameters:\n      weight: {value}\n"
        )
    };
    let merged = |value: &str, arguments: &str| -> Outcome<Contents> {
        write(&path.join("recipe.yaml"), recipe(value))?;
        run(path, &format!("run recipe.yaml --no-sync -o out.safetensors {arguments}")).ok();
        read(&path.join("out.safetensors"))
    };
    let blocks = blocks("sd15");
    let steps: Vec<f64> = (0..26).map(|number| f64::from(number) / 32.0).collect();
    let list = format!("{{blocks: [{}]}}", list(&steps));
    let (by_list, by_name) = (merged(&list, "")?, merged("{blocks: STEPS*2}", "")?);
    let set = merged("{blocks: ALL_A}", "--set models.0.parameters.weight.blocks=STEPS*2")?;
    for contents in [&by_list, &by_name, &set] {
        assert_has(contents, &table, &blocks, &steps);
    }
    // The metadata has the values of what is only named in the recipe.
    let record: Value = serde_json::from_str(&by_name.metadata["ckptmerge.recipe"])?;
    assert_eq!(record["block_presets"], json!({"STEPS*2": steps}));

    let single = |block: &str| match block {
        "IN04" => 0.5,
        "M00" => 0.25,
        _ => 0.125,
    };
    let expected: Vec<f64> = blocks.iter().map(|block| single(block)).collect();
    for value in [
        "{blocks: {IN04: 0.5, M00: 0.25}, otherwise: 0.125}",
        "[{blocks: {IN04: 0.5}}, {blocks: {M00: 0.25}}, {value: 0.125}]",
    ] {
        assert_has(&merged(value, "")?, &table, &blocks, &expected);
    }
    // A filter before the blocks goes before them.
    let contents = merged("[{filter: first_stage_model, value: 2}, {blocks: STEPS*2}]", "")?;
    let (stage, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        table.into_iter().partition(|(name, _)| name.starts_with("first_stage"));
    assert!(stage.keys().all(|name| contents.values(name) == [2.0]));
    assert_has(&contents, &rest, &blocks, &steps);
    Ok(())
}

#[test]
fn modules_have_blocks_of_their_own_and_slices_none() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let table = table("flux", "diffusers")?;
    write_pair(path, table.keys())?;
    let head = "merge_method: task_arithmetic\nbase_model: a.st\n";
    let values = values(61);
    let recipe = format!(
        "{head}modules:\n  transformer:\n    models: [{{model: b.st}}]\n    parameters: {{weight: {{blocks: [{}]}}}}\n  default:\n    models: [{{model: b.st}}]\n    parameters: {{weight: 0.5}}\n",
        list(&values)
    );
    write(&path.join("recipe.yaml"), recipe)?;
    run(path, "run recipe.yaml --no-sync -o out.safetensors").ok();
    let contents = read(&path.join("out.safetensors"))?;
    let (own, rest): (BTreeMap<_, _>, BTreeMap<_, _>) =
        table.into_iter().partition(|(name, _)| name.starts_with("transformer/"));
    assert_has(&contents, &own, &blocks("flux"), &values);
    assert_eq!(rest.len(), 3);
    assert!(rest.keys().all(|name| contents.values(name) == [0.5]));

    let slices = "slices: [{sources: [{model: a.st, layer_range: [0, 19]}, {model: b.st, layer_range: [0, 19]}]}]\n";
    write(&path.join("recipe.yaml"), format!("{head}{slices}parameters: {{weight: {{blocks: {{IN: 1}}}}}}\n"))?;
    run(path, "run recipe.yaml --no-sync -o o.safetensors")
        .fails(2, &["recipe.yaml:3:10: values for blocks are for whole models"]);
    Ok(())
}

#[test]
fn what_was_given_is_told() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    let table = table("sd15", "original")?;
    write_pair(path, table.keys())?;
    std::fs::copy(fixture("blocks/presets.txt"), path.join("presets.txt"))?;
    let ran = weights(path, "--blocks weight:1=STEPS*2 --block-presets presets.txt --explain").ok();
    let of_m00 = table.values().flatten().filter(|block| *block == "M00").count();
    assert!(ran.stdout.contains(&format!("a.st + 0.40625·(b.st − a.st)\n    {of_m00} tensors")), "{}", ran.stdout);
    assert_eq!(ran.stdout.matches("·(b.st − a.st)").count(), 26, "a formula for each value");
    let record: Value = serde_json::from_str(&read(&path.join("out.safetensors"))?.metadata["ckptmerge.recipe"])?;
    let given = &record["blocks"][0];
    assert_eq!((&given["parameter"], &given["model"]), (&json!("weight"), &json!(1)));
    assert_eq!(given["values"].as_object().map(|values| values.len()), Some(26));
    assert_eq!((&given["values"]["BASE"], &given["values"]["M00"]), (&json!(0.0), &json!(0.40625)));
    Ok(())
}

#[test]
fn what_does_not_fit_is_refused() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    std::fs::copy(fixture("blocks/presets.txt"), path.join("presets.txt"))?;
    let flux = table("flux", "original")?;
    for (family, names) in
        [("sd15", table("sd15", "original")?), ("sdxl", table("sdxl", "original")?), ("flux", flux.clone())]
    {
        write_pair(&path.join(family), names.keys())?;
    }
    write_pair(&path.join("llama"), &(0..12).map(|n| format!("model.layers.{n}.x")).collect::<Vec<_>>())?;
    let hunyuan: Vec<String> = flux.keys().cloned().chain(["single_blocks.39.linear1.weight".to_owned()]).collect();
    write_pair(&path.join("hunyuan"), &hunyuan)?;
    let [of_1x, of_xl, of_flux] = [26, 20, 61].map(|count| format!("weight={}", list(&values(count))));
    let count = |count: usize| format!("weight={}", list(&values(count)));
    for (models, blocks, says) in [
        ("sd15", &of_xl, "20 values of Stable Diffusion XL, but a.st has 26 blocks of Stable Diffusion 1.x and 2.x"),
        ("sd15", &of_flux, "61 values of Flux, but a.st has 26 blocks"),
        ("flux", &of_1x, "has 61 blocks of Flux: CLIP, T5, IN, D00–D18, S00–S37, OUT"),
        ("flux", &of_flux, "such as `vae.decoder.mid.attn_1.q.weight`: exclude them"),
        ("hunyuan", &of_flux, "a.st has 63 blocks: CLIP, T5, IN, D00–D18, S00–S39, OUT"),
        ("llama", &of_1x, "a.st has none of the blocks of Stable Diffusion or Flux"),
        ("sd15", &count(12), "12 values are no list of blocks, which has 26 for"),
        ("sd15", &count(25), "BASE, which may be lacking"),
        (
            "sd15",
            &"weight=GRAD_V".to_owned(),
            "`GRAD_V` is the name of a list: give the file it is in with --block-presets",
        ),
        ("sd15", &"weight:0=1,2".to_owned(), "counted from 1"),
        ("sd15", &"weight:3=".to_owned(), "the name of a list"),
        ("sd15", &format!("weight:2={}", list(&values(26))), "model 2, but there are 1 models"),
        ("sd15", &format!("wait={}", list(&values(26))), "wait"),
        ("sd15", &"weight=1,R,2".to_owned(), "letter for a random number"),
    ] {
        let arguments = format!("merge b.st --base a.st --no-sync -o out.safetensors --blocks {blocks}");
        run(&path.join(models), &arguments).fails(2, &[says]);
        assert!(!path.join(models).join("out.safetensors").exists());
    }
    let sd = path.join("sd15");
    let presets = "--block-presets ../presets.txt";
    for (arguments, says) in [
        (format!("--blocks weight=ALLB {presets}"), "ALL_B"),
        (format!("--blocks weight=SHORT {presets}"), "25 values"),
        (format!("--blocks weight=ALL_R {presets}"), "letter for a random number"),
        (format!("--blocks weight=preset_name {presets}"), "preset_name"),
        (format!("--blocks weight=ALL_A --blocks weight:1=ALL_B {presets}"), "given twice"),
    ] {
        weights(&sd, &arguments).fails(2, &[says]);
    }
    weights(&sd, presets).fails(2, &["--blocks"]);
    // Half of a sum: nobody means it.
    let linear = format!("merge a.st b.st --no-sync -o out.safetensors --blocks weight:2={}", list(&values(26)));
    run(&sd, &linear).fails(2, &["weights of some models only"]);
    run(&sd, &format!("{linear} --weights 1,0")).ok();
    let all = "merge a.st b.st --no-sync -o o.st --blocks weight=ALL_A";
    run(&sd, &format!("{all} {presets}")).fails(2, &["all models the same weight", "weight:2=", "--base A B"]);
    // Nothing to divide by.
    let nothing = "merge a.st b.st --normalize --no-sync -o o.st --blocks weight:1=ALL_A --blocks weight:2=ALL_A";
    run(&sd, &format!("{nothing} {presets}")).fails(1, &["weights that add up to 0"]);
    run(&sd, &format!("merge a.st b.st a.st --method add-difference --blocks alpha:1={} -o o.st", list(&values(26))))
        .fails(2, &["one alpha for all models"]);
    Ok(())
}

#[test]
fn recipes_say_where_a_value_for_blocks_is_wrong() -> Outcome {
    let folder = tempdir()?;
    let path = folder.path();
    write_pair(path, table("sd15", "original")?.keys())?;
    std::fs::copy(fixture("blocks/presets.txt"), path.join("presets.txt"))?;
    let head = "merge_method: task_arithmetic\nbase_model: a.st\nmodels: [{model: b.st, parameters: {weight: 1}}]\n";
    for (weight, says) in [
        (
            "{blocks: STEPS}",
            "recipe.yaml:4:31: `STEPS` is the name of a list: give the file it is in as `block_presets`",
        ),
        ("{blocks: STEPS}}\nblock_presets: presets.txt", "`STEPS"),
        ("{blocks: ALL_B}}\nblock_presets: nowhere.txt", "recipe.yaml:5:16: there is no file `nowhere.txt`"),
        ("{blocks: [0.5, 0.5]}", "recipe.yaml:4:31: 2 values are no list of blocks"),
        ("{blocks: [R, 0.5]}", "recipe.yaml:4:32: `R` is supermerger's letter"),
        ("{blocks: {IN12: 1}}", "has a value for the block IN12, but a.st has BASE, IN00–IN11, M00, OUT00–OUT11"),
        ("{blocks: {IN00: 1}, otherwize: 0}", "otherwise"),
    ] {
        // As of all models, in a block of its own behind the rest.
        let end = if weight.contains("}}\n") { "" } else { "}" };
        let text = head.replace(", parameters: {weight: 1}", "") + &format!("parameters: {{weight: {weight}{end}\n");
        write(&path.join("recipe.yaml"), text)?;
        run(path, "run recipe.yaml --no-sync -o out.safetensors").fails(2, &[says]);
    }
    Ok(())
}
