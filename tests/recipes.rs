//! `ckptmerge run`: mergekit's own outputs, the grammar, recipes that use each other's results, batches.

mod edges;

use crate::model::{Model, Outcome, Random, Tensor, fixture, names_in, read, run, snapshot, write};
use ckptmerge::dtype::DType;
use ckptmerge::merge::METHODS;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::tempdir;

fn json_of(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What mergekit wrote: files kept, and those that are byte for byte a model's.
fn expected(stem: &str) -> BTreeMap<String, PathBuf> {
    let folder = fixture("recipes").join("expected").join(stem);
    let mut files = BTreeMap::new();
    for name in names_in(&folder) {
        if name != "same.json" && folder.join(&name).is_file() {
            files.insert(name.clone(), folder.join(&name));
        }
    }
    for (name, path) in json_of(&folder.join("same.json")).as_object().into_iter().flatten() {
        // Intermediates are in folders of their own; nothing of them is written here.
        if !name.contains('/') {
            files.insert(name.clone(), fixture("recipes").join(path.as_str().unwrap_or_default()));
        }
    }
    files
}

/// How far two tensors may be apart: a share of the largest magnitude near, and steps of the type's own.
#[track_caller]
fn assert_same(name: &str, ours: &Tensor, theirs: &Tensor, share: f64) {
    assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape), "{name}");
    let (a, b) = (ours.values(), theirs.values());
    let largest = b.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    for (i, (a, b)) in a.into_iter().zip(b).enumerate() {
        assert!((a - b).abs() <= share * largest, "{name}[{i}]: {a} against {b}, of at most {largest}");
    }
}

/// Runs a published recipe and compares every file with mergekit's.
fn compare(stem: &str) -> Outcome {
    compare_with(stem, "")
}

/// As [`compare`], with options; where these change what is merged, the weights are another matter.
fn compare_with(stem: &str, options: &str) -> Outcome {
    let folder = tempdir()?;
    let recipe = fixture("recipes").join(format!("{stem}.yaml"));
    run(folder.path(), &format!("run {} -o out/ {options}", recipe.display())).ok();
    let out = folder.path().join("out");
    let mut names = names_in(&out);
    names.retain(|name| name != "README.md" && name != "mergekit_config.yml");
    let expected = expected(stem);
    assert_eq!(names, expected.keys().cloned().collect::<Vec<_>>(), "{stem}");
    if options.is_empty() {
        assert_eq!(std::fs::read(out.join("mergekit_config.yml"))?, std::fs::read(&recipe)?, "{stem}");
    }
    for (name, path) in &expected {
        if name == "model.safetensors" {
            let (ours, theirs) = (read(&out.join(name))?, read(path)?);
            assert_eq!(ours.names(), theirs.names(), "{stem}");
            if !options.is_empty() {
                continue;
            }
            // mergekit rounds inputs and every step where dtype is a 16-bit type; here one rounding is all.
            let share = match stem {
                "half" => 2f64.powi(-7),
                "bfloat16" => 2f64.powi(-8),
                _ => 1e-6,
            };
            for (tensor, value) in &ours.tensors {
                assert_same(&format!("{stem}: {tensor}"), value, &theirs.tensors[tensor], share);
            }
        } else if name.ends_with(".json") {
            assert_eq!(without_local(json_of(&out.join(name))), without_local(json_of(path)), "{stem}: {name}");
        } else if name == "chat_template.jinja" && stem == "chat_template" {
            // The template of this name is our own text for the same format.
            let text = std::fs::read_to_string(out.join(name))?;
            assert!(text.contains("<|im_start|>") && text.contains("<|im_end|>"), "{text}");
        } else {
            assert_eq!(std::fs::read(out.join(name))?, std::fs::read(path)?, "{stem}: {name}");
        }
    }
    Ok(())
}

/// A configuration without what says only from where transformers loaded it.
fn without_local(mut config: Value) -> Value {
    if let Some(entries) = config.as_object_mut() {
        entries.remove("is_local");
        entries.remove("local_files_only");
    }
    config
}

#[test]
fn merges_are_mergekits() -> Outcome {
    for stem in [
        "linear",
        "ties",
        "dare",
        "slerp",
        "model_stock",
        "bfloat16",
        "half",
        "frankenmerge",
        "modules",
        "multi",
        "task_arithmetic_lora",
        "heads",
    ] {
        compare(stem)?;
    }
    Ok(())
}

#[test]
fn vocabularies_are_mergekits() -> Outcome {
    for stem in ["union", "tokens", "template_only"] {
        compare(stem)?;
    }
    let has_method = METHODS.iter().any(|method| method.about().name == "nuslerp");
    compare_with("chat_template", if has_method { "" } else { "--set merge_method=task_arithmetic" })
}

/// A tiny model with a tokenizer: its rows are numbers that tell them apart.
fn with_tokens(folder: &Path, tokens: &[&str], first: f64) -> Outcome {
    let rows: Vec<f64> = (0..tokens.len()).flat_map(|row| [first + row as f64, -first]).collect();
    let count = tokens.len() as u64;
    let model = Model::new().with("embed.weight", DType::F32, &[count, 2], &rows);
    let model = model.with("layers.0.w", DType::F32, &[count, 2], &rows[..2].repeat(tokens.len()));
    model.write(folder.join("model.safetensors"))?;
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let tokenizer = json!({"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    write(&folder.join("tokenizer.json"), tokenizer.to_string())?;
    write(&folder.join("config.json"), json!({"vocab_size": count}).to_string())
}

#[test]
fn rows_of_tokens_that_models_lack() -> Outcome {
    let bench = Bench::new()?;
    for (name, tokens, first) in
        [("m0", &["a", "b", "c"][..], 10.0), ("m1", &["b", "a", "d"], 20.0), ("m2", &["e", "d", "a"], 30.0)]
    {
        with_tokens(&bench.path().join(name), tokens, first)?;
    }
    let text = "
merge_method: passthrough
slices:
  - sources: [{model: MODEL, layer_range: [0, 1]}]
tokenizer: {source: union, pad_to_multiple_of: 4}
base_model: m0
";
    // One model alone has rows for its own tokens only, and zeros for the others, in the base's order and then theirs.
    let rows = |model: &str| -> Outcome<Vec<f64>> {
        let text = text.replace("MODEL", model).replace("base_model: m0", &format!("base_model: {model}"));
        bench.recipe("r.yaml", &text)?;
        run(bench.path(), "run r.yaml -o out/").ok();
        Ok(read(&bench.path().join("out/model.safetensors"))?.values("embed.weight"))
    };
    // A vocabulary of one model: three tokens and a row of padding, their mean.
    assert_eq!(rows("m0")?, [10.0, -10.0, 11.0, -10.0, 12.0, -10.0, 11.0, -10.0]);

    let text = "
merge_method: linear
models:
  - {model: m0, parameters: {weight: 1}}
  - {model: m1, parameters: {weight: 0}}
  - {model: m2, parameters: {weight: 0}}
base_model: m0
tokenizer: {source: union}
";
    // Of m0: its own a, b, c; d as the mean of its owners m1 and m2; e of its only owner m2.
    bench.recipe("r.yaml", text)?;
    run(bench.path(), "run r.yaml -o out/").ok();
    let out = bench.path().join("out");
    let expected = [10.0, -10.0, 11.0, -10.0, 12.0, -10.0, 26.5, -25.0, 30.0, -30.0];
    assert_eq!(read(&out.join("model.safetensors"))?.values("embed.weight"), expected);
    assert_eq!(json_of(&out.join("config.json"))["vocab_size"], json!(5));
    let added = json_of(&out.join("tokenizer.json"))["added_tokens"].clone();
    assert_eq!((&added[0]["content"], &added[0]["id"], &added[1]["content"]), (&json!("d"), &json!(3), &json!("e")));
    // Of m2, with the base's tokens: a is its own, b and c the base's.
    let set = "--set tokenizer.source=base --set models.0.parameters.weight=0 --set models.2.parameters.weight=1";
    run(bench.path(), &format!("run r.yaml -o out/ {set}")).ok();
    let values = read(&out.join("model.safetensors"))?.values("embed.weight");
    assert_eq!(values, [32.0, -30.0, 11.0, -10.0, 12.0, -10.0]);

    let told = |tokens: &str| text.replace("{source: union}", &format!("{{source: union, tokens: {{{tokens}}}}}"));
    bench.refused(&told("a: {source: {kind: model_token, model: m1, token: zz}}"), 2, &["m1 has no token \"zz\""]);
    bench.refused(&told("e: {source: m1}"), 2, &["\"e\" is to come from m1, which lacks it"]);
    bench.refused(
        &told("a: {source: {kind: model_token, model: m1, token_id: 9}, force: true}"),
        2,
        &["m1 has no row 9"],
    );
    bench.refused(
        text.replace("tokenizer: {source: union}", "tokenizer_source: union\ntokenizer: {source: base}").as_str(),
        2,
        &["not both"],
    );
    bench.refused(text, 1, &["give the output a name without an ending"]);
    // Numbers from files and recipes that no memory would hold.
    let wide = text.replace("source: union", "source: union, pad_to_multiple_of: 9999999999999999999");
    bench.refused(&wide, 2, &["r.yaml:8:12:", "at most 16777216 rows"]);
    let hostile = json!({"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": u64::MAX}, "merges": []}});
    write(&bench.path().join("m1/tokenizer.json"), hostile.to_string())?;
    bench.refused(text, 1, &["m1/tokenizer.json", "is not a tokenizer"]);
    Ok(())
}

#[test]
fn modules_are_parts_by_the_begin_of_their_names() -> Outcome {
    let bench = Bench::new()?;
    let text = "
merge_method: linear
modules:
  norm:
    models: [a.st]
    parameters: {weight: 1}
  default:
    models: [a.st, b.st]
parameters: {weight: 0.5}
";
    let merged = bench.merged(text, "")?;
    assert_eq!(merged.len(), 8);
    assert_eq!(merged["norm.weight"].values(), bench.values("a", "norm.weight")?);
    assert_near("embed", &merged["embed.weight"], &sum(&bench, "embed.weight", &[("a", 0.5), ("b", 0.5)])?, 1e-6);
    let text = text.replace("default:", "layers:");
    bench.refused(&text, 1, &["`embed.weight`: is in none of the recipe's modules", "`default`"]);
    bench.refused(
        &text.replace("layers:", "text:"),
        2,
        &["r.yaml:7:3:", "no tensor's name begins with `text`", "layers"],
    );
    Ok(())
}

/// A folder with models `a`, `b` and `base` of a few layers, and recipes.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Outcome<Self> {
        let folder = tempdir()?;
        let mut random = Random(7);
        for name in ["a", "b", "base"] {
            let mut model = Model::new().with("embed.weight", DType::F32, &[4, 3], &random.values(12));
            for layer in 0..3 {
                for part in ["attn", "mlp"] {
                    let name = format!("layers.{layer}.{part}.weight");
                    model = model.with(&name, DType::F32, &[3, 5], &random.values(15));
                }
            }
            model
                .with("norm.weight", DType::F32, &[3], &random.values(3))
                .write(folder.path().join(format!("{name}.st")))?;
        }
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn recipe(&self, name: &str, text: &str) -> Outcome {
        write(&self.path().join(name), text)
    }

    /// What a recipe comes to.
    fn merged(&self, text: &str, options: &str) -> Outcome<BTreeMap<String, Tensor>> {
        self.recipe("r.yaml", text)?;
        run(self.path(), &format!("run r.yaml -o out.safetensors {options}")).ok();
        Ok(read(&self.path().join("out.safetensors"))?.tensors)
    }

    /// What a recipe is refused for; nothing is written then.
    #[track_caller]
    fn refused(&self, text: &str, code: i32, says: &[&str]) {
        self.recipe("r.yaml", text).expect("it can be written");
        let before = snapshot(self.path());
        run(self.path(), "run r.yaml -o out.safetensors").fails(code, says);
        assert!(snapshot(self.path()) == before, "a refused recipe changed something");
    }

    fn values(&self, model: &str, tensor: &str) -> Outcome<Vec<f64>> {
        Ok(read(&self.path().join(format!("{model}.st")))?.values(tensor))
    }
}

/// `Σ wᵢ·xᵢ` of a tensor of models.
fn sum(bench: &Bench, tensor: &str, terms: &[(&str, f64)]) -> Outcome<Vec<f64>> {
    let mut total = Vec::new();
    for (model, weight) in terms {
        let values = bench.values(model, tensor)?;
        total.resize(values.len(), 0.0);
        total.iter_mut().zip(values).for_each(|(total, value)| *total += weight * value);
    }
    Ok(total)
}

#[track_caller]
fn assert_near(name: &str, tensor: &Tensor, expected: &[f64], tolerance: f64) {
    let values = tensor.values();
    assert_eq!(values.len(), expected.len(), "{name}");
    for (a, b) in values.iter().zip(expected) {
        assert!((a - b).abs() <= tolerance, "{name}: {a} against {b}");
    }
}

#[test]
fn values_come_from_the_nearest_level_with_one() -> Outcome {
    let bench = Bench::new()?;
    let text = "
merge_method: linear
models:
  - model: a.st
    parameters:
      weight:
        - filter: attn
          value: [1, 0]
        - filter: layers.1
          value: 0.25
  - model: b.st
parameters:
  weight: {value: 0.5}
  normalize: false
";
    let merged = bench.merged(text, "")?;
    let cases = [
        ("embed.weight", 0.5),
        ("layers.0.attn.weight", 1.0),
        ("layers.1.attn.weight", 0.5),
        ("layers.2.attn.weight", 0.0),
        ("layers.1.mlp.weight", 0.25),
        ("layers.2.mlp.weight", 0.5),
        ("norm.weight", 0.5),
    ];
    for (tensor, weight) in cases {
        assert_near(tensor, &merged[tensor], &sum(&bench, tensor, &[("a", weight), ("b", 0.5)])?, 1e-6);
    }
    // mergekit's linear merge divides by the sum of weights unless told otherwise.
    let merged = bench.merged(&text.replace("  normalize: false\n", ""), "")?;
    let expected = sum(&bench, "layers.1.mlp.weight", &[("a", 1.0 / 3.0), ("b", 2.0 / 3.0)])?;
    assert_near("normalized", &merged["layers.1.mlp.weight"], &expected, 1e-6);
    // A value can be set in place, and one that was not there as well.
    let merged = bench.merged(text, "--set models.1.parameters.weight=2 --set parameters.normalize=true")?;
    let expected = sum(&bench, "norm.weight", &[("a", 0.2), ("b", 0.8)])?;
    assert_near("set", &merged["norm.weight"], &expected, 1e-6);
    Ok(())
}

#[test]
fn slices_number_layers_anew() -> Outcome {
    let bench = Bench::new()?;
    let text = "
merge_method: passthrough
slices:
  - sources: [{model: a.st, layer_range: [0, 2]}]
  - sources: [{model: b.st, layer_range: [1, 3], parameters: {scale: [{filter: attn, value: [1, 0.5]}]}}]
";
    let merged = bench.merged(text, "")?;
    assert_eq!(merged.len(), 10);
    let of = |model: &str, tensor: &str| bench.values(model, tensor);
    for (output, model, tensor, scale) in [
        ("embed.weight", "a", "embed.weight", 1.0),
        ("layers.0.mlp.weight", "a", "layers.0.mlp.weight", 1.0),
        ("layers.1.attn.weight", "a", "layers.1.attn.weight", 1.0),
        ("layers.2.attn.weight", "b", "layers.1.attn.weight", 1.0),
        ("layers.3.attn.weight", "b", "layers.2.attn.weight", 0.5),
        ("layers.3.mlp.weight", "b", "layers.2.mlp.weight", 1.0),
        ("norm.weight", "b", "norm.weight", 1.0),
    ] {
        let expected: Vec<f64> = of(model, tensor)?.iter().map(|value| value * scale).collect();
        assert_near(output, &merged[output], &expected, 0.0);
    }
    bench.refused(&text.replace("[1, 3]", "[1, 4]"), 1, &["layers.3", "b.st has 3 layers"]);
    bench.refused(&text.replace("[1, 3]", "[0, 99999999999]"), 2, &["r.yaml:5:", "none above"]);
    bench.refused(&text.replace("[1, 3]", "[3, 3]"), 2, &["r.yaml:5:", "`layer_range`"]);
    Ok(())
}

#[test]
fn documents_use_each_others_results_without_rounding_between() -> Outcome {
    let bench = Bench::new()?;
    let first = "merge_method: slerp\nbase_model: a.st\nmodels: [a.st, b.st]\nparameters: {t: 0.3}\n";
    let second = "merge_method: ties\nbase_model: base.st\nmodels:\n  - {model: b.st, parameters: {weight: 0.7, density: 0.6}}\n  - {model: FIRST, parameters: {weight: 0.5, density: 0.4}}\n";
    let third = "merge_method: task_arithmetic\nbase_model: FIRST\nmodels:\n  - {model: SECOND, parameters: {weight: [0.4, 0.9]}}\n";
    bench.merged(first, "")?;
    std::fs::rename(bench.path().join("out.safetensors"), bench.path().join("first.st"))?;
    bench.merged(&second.replace("FIRST", "first.st"), "")?;
    std::fs::rename(bench.path().join("out.safetensors"), bench.path().join("second.st"))?;
    let apart = bench.merged(&third.replace("FIRST", "first.st").replace("SECOND", "second.st"), "")?;
    // The order of documents does not matter.
    let together = format!("{third}---\nname: SECOND\n{second}---\nname: FIRST\n{first}");
    let merged = bench.merged(&together, "")?;
    assert_eq!(merged.len(), 8);
    for (name, tensor) in &merged {
        assert_near(name, tensor, &apart[name].values(), 4e-7);
    }
    let plain = bench.merged(&third.replace("FIRST", "base.st").replace("SECOND", "a.st"), "")?;
    assert!(merged.iter().any(|(name, tensor)| tensor.values() != plain[name].values()));
    // A value of a named document.
    let set = bench.merged(&together, "--set FIRST.parameters.t=0")?;
    assert!(set != merged);
    assert_eq!(snapshot(bench.path()).len(), 7, "nothing in between is written");
    Ok(())
}

#[test]
fn what_is_wrong_in_a_recipe_is_said_with_its_place() -> Outcome {
    let bench = Bench::new()?;
    let models = "models: [a.st, b.st]\nparameters: {weight: 1}\n";
    let cases: [(String, &[&str]); 19] = [
        (
            format!("merge_method: linear\n{models}dtpye: float32\n"),
            &["r.yaml:4:1:", "`dtpye`", "the nearest is `dtype`"],
        ),
        (format!("merge_method: linaer\n{models}"), &["r.yaml:1:15:", "the nearest is `linear`"]),
        (format!("merge_method: linear\n{models}dtype: bfloat61\n"), &["r.yaml:4:8:", "bfloat61"]),
        (
            format!("merge_method: linear\n{models}models: [a.st]\n"),
            &["r.yaml:4:1:", "`models` stands twice", "line 2"],
        ),
        ("models: [a.st]\n".to_owned(), &["has no `merge_method`"]),
        ("merge_method: linear\n".to_owned(), &["exactly one of `models`, `slices` and `modules`"]),
        (format!("merge_method: linear\n{models}slices: []\n"), &["exactly one of"]),
        (
            "merge_method: linear\nmodels: [a.st, {model: c.st}]\nparameters: {weight: 1}\n".to_owned(),
            &["r.yaml:2:24:", "no model `c.st`"],
        ),
        (
            "merge_method: linear\nmodels: [a.st@main]\nparameters: {weight: 1}\n".to_owned(),
            &["r.yaml:2:10:", "no revision `main`"],
        ),
        ("merge_method: slerp\nmodels: [a.st, b.st]\nparameters: {tt: 1}\n".to_owned(), &["r.yaml:3:14:", "`tt`"]),
        (
            "merge_method: slerp\nmodels: [a.st, b.st]\nparameters: {t: x}\n".to_owned(),
            &["r.yaml:3:17:", "`x` is not a number"],
        ),
        (
            "merge_method: slerp\nmodels: [a.st, b.st]\nparameters: {t: [0, 1e99]}\n".to_owned(),
            &["r.yaml:3:21:", "not a finite number"],
        ),
        (
            "merge_method: ties\nmodels: [a.st, b.st]\nparameters: {weight: 1}\n".to_owned(),
            &["r.yaml:2:9:", "ties needs a `base_model`"],
        ),
        (
            "merge_method: slerp\nmodels: [a.st]\nparameters: {t: 1}\n".to_owned(),
            &["r.yaml:2:9:", "slerp takes 2 models", "there are 1"],
        ),
        (
            "name: x\nmerge_method: linear\nmodels: [x]\nparameters: {weight: 1}\n".to_owned(),
            &["r.yaml:", "every document uses another"],
        ),
        (
            format!("merge_method: linear\n{models}---\nmerge_method: linear\n{models}"),
            &["r.yaml:5:1:", "only one document"],
        ),
        ("merge_method: linear\nmodels: [a.st\n".to_owned(), &["r.yaml:"]),
        (format!("merge_method: linear\n{models}missing: maybe\n"), &["r.yaml:4:10:", "error, base or skip"]),
        (format!("merge_method: linear\n{models}exclude: nothing.like\n"), &["exclude: no tensor's name matches"]),
    ];
    for (text, says) in cases {
        bench.refused(&text, 2, says);
    }
    // What mergekit has no default for is asked for, for all tensors at once.
    bench.refused(
        "merge_method: linear\nmodels: [a.st, b.st]\n",
        1,
        &["embed.weight", "norm.weight", "no `weight` for a.st"],
    );
    bench.refused("merge_method: slerp\nmodels: [a.st, b.st]\n", 1, &["has no `t`"]);
    // Keys that are none can be let through.
    bench.recipe("r.yaml", &format!("merge_method: linear\n{models}dtpye: float32\n"))?;
    let ran = run(bench.path(), "run r.yaml -o out.safetensors --lenient").ok();
    assert!(ran.stderr.contains("warning: r.yaml:4:1:") && ran.stderr.contains("`dtpye`"), "{}", ran.stderr);
    // A parameter of other methods is none of this one, and harmless.
    bench.recipe(
        "r.yaml",
        &format!("merge_method: linear\n{models}parameters: {{weight: 1, int8_mask: true}}\n")
            .replace("parameters: {weight: 1}\n", ""),
    )?;
    let ran = run(bench.path(), "run r.yaml -o out.safetensors").ok();
    assert!(ran.stderr.contains("linear has no parameter `int8_mask`"), "{}", ran.stderr);
    Ok(())
}

#[test]
fn results_that_multiply_are_refused_before_they_are_made() -> Outcome {
    let bench = Bench::new()?;
    let document = |index: usize, models: &str| {
        format!("name: d{index}\nmerge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{models}]\n")
    };
    let chain = |count: usize, models: &dyn Fn(usize) -> String| {
        let first = document(0, "{model: a.st}, {model: b.st}");
        let others = (1..count).map(|index| document(index, &models(index - 1)));
        std::iter::once(first).chain(others).collect::<Vec<_>>().join("---\n")
    };
    let twice = |last: usize| format!("{{model: d{last}}}, {{model: d{last}}}");
    let once = |last: usize| format!("{{model: d{last}}}, {{model: a.st}}");
    bench.refused(
        &chain(40, &twice),
        2,
        &["each tensor would go through", "at most 1000", "write some results to files"],
    );
    bench.refused(&chain(2000, &once), 2, &["33 of them one after the other"]);
    bench.merged(&chain(6, &twice), "")?;
    bench.merged(&chain(32, &once), "")?;
    Ok(())
}

#[test]
fn shapes_that_differ_are_reported_together() -> Outcome {
    let bench = Bench::new()?;
    let wide = Model::new().f32("x", &[1.0, 2.0]).f32("y", &[1.0]).f32("only", &[1.0]);
    wide.write(bench.path().join("wide.st"))?;
    Model::new().f32("x", &[1.0]).f32("y", &[1.0, 2.0]).write(bench.path().join("narrow.st"))?;
    let text = "name: n\nmerge_method: linear\nmodels: [wide.st, narrow.st]\nparameters: {weight: 1}\n---\nmerge_method: linear\nmodels: [n, a.st]\nparameters: {weight: 1}\n";
    bench.refused(
        text,
        1,
        &["`x (of n)`: has different shapes: [2] in wide.st, [1] in narrow.st", "`y (of n)`", "`only (of n)`"],
    );
    Ok(())
}

#[test]
fn a_magnitude_of_the_whole_model_trims_all_tensors() -> Outcome {
    let bench = Bench::new()?;
    let recipe = "merge_method: ties\nbase_model: base.st\nmodels:\n  - {model: a.st, parameters: {weight: 1, density: 0.3}}\nparameters: {global: 1}\n";
    let merged = bench.merged(recipe, "")?;
    let changes: BTreeMap<String, Vec<(f32, f32)>> = merged
        .keys()
        .map(|name| {
            let pair = bench.values("a", name)?.into_iter().zip(bench.values("base", name)?);
            Ok((name.clone(), pair.map(|(a, base)| (a as f32 - base as f32, base as f32)).collect()))
        })
        .collect::<Outcome<_>>()?;
    let mut all: Vec<f32> = changes.values().flatten().map(|(change, _)| change.abs()).collect();
    all.sort_by(f32::total_cmp);
    let kept = (0.3 * all.len() as f64) as usize;
    let least = all[all.len() - kept];
    let mut shares = Vec::new();
    for (name, tensor) in &merged {
        let expected: Vec<f64> = changes[name]
            .iter()
            .map(|(change, base)| f64::from(if change.abs() >= least { base + change } else { *base }))
            .collect();
        assert_near(name, tensor, &expected, 1e-6);
        let of = changes[name].iter().filter(|(change, _)| change.abs() >= least).count();
        shares.push(of as f64 / changes[name].len() as f64);
    }
    // Of each tensor another share is kept, which no trimming per tensor would give.
    assert!(shares.iter().any(|share| (share - 0.3).abs() > 0.08), "{shares:?}");
    // The command line has it as well.
    run(bench.path(), "merge a.st --base base.st --method ties -p density=0.3 -p global=1 -o cli.st").ok();
    assert_eq!(read(&bench.path().join("cli.st"))?.tensors, merged);
    let text = recipe.replace("density: 0.3", "density: [0.3, 0.5]");
    bench.refused(&text, 2, &["ties measures over the whole model", "must be the same for all tensors"]);
    Ok(())
}

#[test]
fn a_batch_ends_with_a_table() -> Outcome {
    let bench = Bench::new()?;
    let good = "merge_method: linear\nmodels: [../a.st, ../b.st]\nparameters: {weight: 1}\n";
    bench.recipe("recipes/one.yaml", good)?;
    bench.recipe("recipes/two.yaml", &good.replace("../b.st", "../none.st"))?;
    bench.recipe("recipes/three.yaml", &good.replace("linear", "slerp").replace("weight", "t"))?;
    let ran = run(bench.path(), "run recipes/*.yaml -o out --keep-going --explain")
        .fails(1, &["two.yaml", "no model `../none.st`"]);
    for part in ["recipe", "one.yaml", "written", "failed", "slerp"] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert_eq!(names_in(&bench.path().join("out")), ["one.safetensors", "three.safetensors"]);
    let json = run(bench.path(), "run recipes/*.yaml -o out --keep-going --json").fails(1, &[]).json();
    assert_eq!((&json["failed"], json["recipes"].as_array().map(Vec::len)), (&json!(1), Some(3)));
    assert_eq!(json["recipes"][0]["written"], json!(true));
    // The first failure ends a batch that is not to go on.
    let json =
        run(bench.path(), "run recipes/two.yaml recipes/one.yaml -o out --json").fails(1, &["1 recipe not run"]).json();
    assert_eq!(json["not_run"], json!(1));
    // Nothing is written without need.
    std::fs::remove_dir_all(bench.path().join("out"))?;
    let ran = run(bench.path(), "run recipes/o*.yaml recipes/three.yaml --dry-run").ok();
    assert!(ran.stdout.contains("planned") && !bench.path().join("out").exists(), "{}", ran.stdout);
    run(bench.path(), "run recipes/q*.yaml --dry-run").fails(2, &["no file matches"]);
    run(bench.path(), "run recipes/one.yaml sub/../recipes/one.yaml --dry-run").fails(2, &["same place"]);
    Ok(())
}

#[test]
fn a_folder_says_how_it_was_made_and_nobodys_text_is_lost() -> Outcome {
    let bench = Bench::new()?;
    std::fs::create_dir(bench.path().join("folder"))?;
    std::fs::copy(bench.path().join("a.st"), bench.path().join("folder/model.safetensors"))?;
    write(&bench.path().join("folder/README.md"), "somebody's words")?;
    write(&bench.path().join("folder/config.json"), "{\"num_hidden_layers\": 3}")?;
    let text = "merge_method: linear\nmodels: [folder, b.st]\nparameters: {weight: 1}\n";
    bench.recipe("r.yaml", text)?;
    run(bench.path(), "run r.yaml -o out/").ok();
    let out = bench.path().join("out");
    assert_eq!(names_in(&out), ["README.md", "config.json", "mergekit_config.yml", "model.safetensors"]);
    assert_eq!(std::fs::read_to_string(out.join("mergekit_config.yml"))?, text);
    let card = std::fs::read_to_string(out.join("README.md"))?;
    for part in ["# out\n", "[linear](https://", "`folder`", "models: [folder, b.st]"] {
        assert!(card.contains(part), "{part:?} is not in {card}");
    }
    // With values set, what is kept is what was run.
    run(bench.path(), "run r.yaml -o out/ --set parameters.weight=[0.5,1]").ok();
    let kept = std::fs::read_to_string(out.join("mergekit_config.yml"))?;
    assert!(kept.contains("weight: [0.5, 1]"), "{kept}");
    write(&bench.path().join("again.yaml"), kept)?;
    run(bench.path(), "run again.yaml -o again/").ok();
    assert_eq!(
        read(&out.join("model.safetensors"))?.tensors,
        read(&bench.path().join("again/model.safetensors"))?.tensors
    );
    write(&out.join("README.md"), "my notes")?;
    run(bench.path(), "run r.yaml -o out/").fails(1, &["README.md that ckptmerge did not write"]);
    let shown = run(bench.path(), "inspect out").ok().stdout;
    assert!(shown.contains("merge_method: linear"), "{shown}");
    Ok(())
}
