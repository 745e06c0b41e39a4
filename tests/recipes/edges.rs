//! Models that do not quite agree, and recipes that are not quite right.

use super::{Bench, assert_near, json_of};
use crate::model::{Model, Outcome, Tensor, read, run, write};
use ckptmerge::dtype::DType;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// A folder with a model of one layer: its embedding is all `embed`, its head all `head` if it has one.
fn with_head(folder: &Path, tied: bool, embed: f64, head: Option<f64>) -> Outcome {
    let mut model = Model::new().with("model.embed_tokens.weight", DType::F32, &[3, 2], &[embed; 6]).with(
        "model.layers.0.w",
        DType::F32,
        &[2, 2],
        &[embed; 4],
    );
    if let Some(head) = head {
        model = model.with("lm_head.weight", DType::F32, &[3, 2], &[head; 6]);
    }
    model.write(folder.join("model.safetensors"))?;
    write(&folder.join("config.json"), json!({"tie_word_embeddings": tied, "num_hidden_layers": 1}).to_string())
}

#[test]
fn an_embedding_stands_for_a_head_that_others_have() -> Outcome {
    let bench = Bench::new()?;
    let (tied, own) = (bench.path().join("tied"), bench.path().join("own"));
    with_head(&tied, true, 1.0, None)?;
    with_head(&bench.path().join("tied2"), true, 2.0, None)?;
    with_head(&own, false, 4.0, Some(10.0))?;
    let merged = |text: &str| -> Outcome<(BTreeMap<String, Tensor>, bool, String)> {
        bench.recipe("r.yaml", text)?;
        let said = run(bench.path(), "run r.yaml -o out/").ok().stderr;
        let out = bench.path().join("out");
        let config = json_of(&out.join("config.json"))["tie_word_embeddings"] == json!(true);
        Ok((read(&out.join("model.safetensors"))?.tensors, config, said))
    };
    let text = "merge_method: linear\nmodels: [A, B]\nparameters: {weight: 0.5}\n";
    for (first, second) in [("tied", "own"), ("own", "tied")] {
        let (tensors, is_tied, said) = merged(&text.replace('A', first).replace('B', second))?;
        assert_near("head", &tensors["lm_head.weight"], &[5.5; 6], 0.0);
        assert_near("embedding", &tensors["model.embed_tokens.weight"], &[2.5; 6], 0.0);
        // Or else the head that is written would never be used.
        assert!(!is_tied, "{first}");
        let note = "tied has no `lm_head.weight`: its `model.embed_tokens.weight` stands for it";
        assert_eq!(said.matches(note).count(), 1, "{said}");
    }
    // Where no model has one, none is written.
    let (tensors, is_tied, said) = merged(&text.replace('A', "tied").replace('B', "tied2"))?;
    assert!(tensors.len() == 2 && is_tied && !said.contains("stands for it"), "{said}");
    // A model of slices whose last is tied has another's embedding, which is not its head.
    let slices = "merge_method: passthrough\nslices:\n  - sources: [{model: own, layer_range: [0, 1]}]\n  - sources: [{model: tied, layer_range: [0, 1]}]\n";
    let (tensors, is_tied, _) = merged(slices)?;
    assert_near("head of slices", &tensors["lm_head.weight"], &[1.0; 6], 0.0);
    assert!(!is_tied);
    // In documents each merge has its own models: what comes of two tied ones is tied.
    let documents = format!(
        "name: first\n{}---\n{}",
        text.replace('A', "tied").replace('B', "tied2"),
        text.replace('A', "first").replace('B', "own")
    );
    let (tensors, is_tied, said) = merged(&documents)?;
    assert_near("head of documents", &tensors["lm_head.weight"], &[5.75; 6], 0.0);
    assert!(!is_tied && said.contains("first has no `lm_head.weight`"), "{said}");
    // The command line does the same.
    let said = run(bench.path(), "merge tied own -o out2/ --weights 0.5,0.5").ok().stderr;
    assert!(said.contains("tied has no `lm_head.weight`"), "{said}");
    assert_eq!(read(&bench.path().join("out2/model.safetensors"))?.values("lm_head.weight"), [5.5; 6]);
    assert_eq!(json_of(&bench.path().join("out2/config.json"))["tie_word_embeddings"], json!(false));
    // A model that says it is not tied lacks its head.
    with_head(&tied, false, 1.0, None)?;
    bench.refused(&text.replace('A', "tied").replace('B', "own"), 1, &["`lm_head.weight`: is missing in tied"]);
    Ok(())
}

#[test]
fn each_stack_has_its_gradient_and_the_rest_is_named() -> Outcome {
    let bench = Bench::new()?;
    let numbered =
        [("text.layers.", 0..5), ("vision.encoder.layers.", 0..3), ("projector.", 0..2), ("in_blocks.", 0..2)];
    let names: Vec<String> = numbered
        .into_iter()
        .flat_map(|(stack, numbers)| numbers.map(move |number| format!("{stack}{number}.weight")))
        .chain(["norm.weight".to_owned()])
        .collect();
    for (file, value) in [("x.st", 1.0), ("y.st", 0.0)] {
        let model = names.iter().fold(Model::new(), |model, name| model.f32(name, &[value]));
        model.write(bench.path().join(file))?;
    }
    let text = "
merge_method: linear
models:
  - {model: x.st, parameters: {weight: [0.25, 0.75, 1]}}
  - {model: y.st, parameters: {weight: 0.5}}
parameters: {normalize: false}
";
    let merged = bench.merged(text, "")?;
    for (tensor, weight) in [
        ("text.layers.0.weight", 0.25),
        ("text.layers.1.weight", 0.5),
        ("text.layers.4.weight", 1.0),
        // As mergekit 0.1.5 does for the layers of both parts of CLIP and BART.
        ("vision.encoder.layers.0.weight", 0.25),
        ("vision.encoder.layers.1.weight", 0.75),
        ("vision.encoder.layers.2.weight", 1.0),
        ("projector.1.weight", 0.25),
        ("in_blocks.1.weight", 0.25),
        ("norm.weight", 0.25),
    ] {
        assert_near(tensor, &merged[tensor], &[weight], 0.0);
    }
    let said = run(bench.path(), "run r.yaml --dry-run").ok().stderr;
    let note = "gradients follow the layers of `text.layers.`; tensors that are numbered behind `in_blocks.`, `projector.` have the first value: weight 0.25";
    assert_eq!(said.matches(note).count(), 1, "{said}");
    // Who has no gradient there is told nothing.
    for other in ["weight: 0.5", "weight: [{filter: layers, value: [0, 1]}, {value: 1}]"] {
        bench.recipe("r.yaml", &text.replace("weight: [0.25, 0.75, 1]", other))?;
        let said = run(bench.path(), "run r.yaml --dry-run").ok().stderr;
        assert!(!said.contains("gradients follow"), "{said}");
    }
    // Of slices, only the layers that are numbered anew have places.
    let slices = "merge_method: passthrough\nslices:\n  - sources: [{model: x.st, layer_range: [0, 2], parameters: {scale: [1, 2]}}]\n";
    let merged = bench.merged(slices, "")?;
    assert_near("slice", &merged["text.layers.1.weight"], &[2.0], 0.0);
    assert_near("beside", &merged["vision.encoder.layers.2.weight"], &[1.0], 0.0);
    let said = run(bench.path(), "run r.yaml --dry-run").ok().stderr;
    assert!(said.contains("`vision.encoder.layers.` have the first value: scale 1"), "{said}");
    let said = run(bench.path(), "merge x.st y.st -o z.safetensors --method slerp -p t=0.5,1").ok().stderr;
    assert!(said.contains("`projector.` have the first value: t 0.5"), "{said}");
    Ok(())
}

#[test]
fn all_keys_that_are_wrong_are_said_at_once() -> Outcome {
    let bench = Bench::new()?;
    let text = "
merge_method: linear
models:
  - {model: a.st, weight: 0.3, parameters: {wieght: 1}}
  - {model: b.st, layer_range: [0, 1]}
parameters: {dtype: float32, weight: 1, nothing_like_it: 2}
dtpye: float32
out_path: merged
";
    bench.refused(
        text,
        2,
        &[
            "the recipe is wrong in 7 places:\n  r.yaml:4:19: there is no key `weight` of a model; it stands under `parameters`\n",
            "\n  r.yaml:4:45: there is no parameter `wieght` of a merge by linear; the nearest is `weight`\n",
            "\n  r.yaml:5:19: there is no key `layer_range` of a model; layers are taken by the `sources` of `slices`\n",
            "\n  r.yaml:6:14: there is no parameter `dtype` of a merge by linear; it stands beside `parameters`",
            "\n  r.yaml:6:41: there is no parameter `nothing_like_it`",
            "\n  r.yaml:7:1: there is no key `dtpye` of a recipe; the nearest is `dtype`\n",
            "\n  r.yaml:8:1: there is no key `out_path` of a recipe; give the output on the command line, with `-o`\n",
        ],
    );
    // What is missing may be what was misspelled.
    bench.refused(
        "merge_metod: linear\nmodels: [a.st]\n",
        2,
        &["wrong in 2 places", "the nearest is `merge_method`", "has no `merge_method`"],
    );
    // One alone is an error as any other.
    bench.refused(
        "merge_method: linear\nmodels: [a.st]\nexperts: []\n",
        2,
        &["error: r.yaml:3:1: there is no key `experts` of a recipe; it is mergekit-moe's"],
    );
    bench.refused(
        "merge_method: linear\nmodels: [a.st]\ntokenizer_source: model:a.st\n",
        2,
        &["r.yaml:3:19: ", "name the model alone, `a.st`"],
    );
    Ok(())
}

#[test]
fn keys_of_older_recipes_that_mergekit_ignores_change_nothing() -> Outcome {
    let bench = Bench::new()?;
    let text = "merge_method: linear\nmodels: [a.st, b.st]\nparameters: {weight: 0.5}\n";
    let plain = bench.merged(text, "")?;
    let older = text.replace("0.5}", "0.5, embed_slerp: true}\nrandom_seed: 0");
    assert_eq!(bench.merged(&older, "")?, plain);
    let said = run(bench.path(), "run r.yaml --dry-run").ok().stderr;
    for part in
        ["warning: r.yaml:3:", "`embed_slerp` has no effect", "`random_seed` has no effect", "the key is `seed`"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    Ok(())
}

#[test]
fn a_batch_names_each_recipe_that_failed_once() -> Outcome {
    let bench = Bench::new()?;
    bench.recipe("bad1.yaml", "merge_method: linear\nmodels: [none.st]\n")?;
    bench.recipe("bad2.yaml", "merge_metod: linear\nmodles: [a.st]\n")?;
    bench.recipe("bad3.yaml", "merge_method: linear\nmodels: [bad1.yaml]\nparameters: {weight: 1}\n")?;
    bench.recipe("bad4.yaml", "merge_method: linear\nmodels: [a.st, b.st]\n")?;
    let ran = run(bench.path(), "run bad1.yaml bad2.yaml bad3.yaml bad4.yaml bad5.yaml -o out --keep-going");
    let ran = ran.fails(
        1,
        &[
            "error: bad1.yaml:2:10: there is no model",
            "error: the recipe is wrong in 3 places:\n  bad2.yaml:1:1: ",
            "error: bad3.yaml: bad1.yaml: its content",
            "error: bad4.yaml: the models do not fit together",
            "error: cannot open bad5.yaml: No such file or directory (os error 2)\n",
        ],
    );
    assert_eq!(ran.stderr.matches("error: ").count(), 5, "{}", ran.stderr);
    assert_eq!(ran.stdout.matches("failed").count(), 5, "{}", ran.stdout);
    Ok(())
}

#[test]
fn values_that_make_no_sense_are_refused() -> Outcome {
    let bench = Bench::new()?;
    for (method, wrong, says) in [
        ("ties", "density: 1.5", "ties takes a density that is from 0 to 1, not 1.5"),
        ("dare_ties", "density: [0.5, -0.1]", "dare-ties takes a density that is from 0 to 1, not -0.1"),
        ("breadcrumbs", "gamma: 2", "breadcrumbs takes a gamma that is from 0 to 1, not 2"),
        ("ties", "lambda: .nan", "`.nan` is not a number"),
        ("ties", "lambda: NaN", "not a finite number"),
        ("ties", "normalize: 0.3", "`normalize` is true or false, not 0.3"),
        ("ties", "rescale: 3", "ties takes a rescale that is a whole number from 0 to 2, not 3"),
        ("sce", "select_topk: 50", "sce takes a select_topk that is from 0 to 1, not 50"),
        ("model_stock", "filter_wise: 0.3", "model-stock takes a filter_wise that is 0 or 1, not 0.3"),
        ("karcher", "max_iter: 2.5", "karcher takes a max_iter that is a whole number from 0 to 100000, not 2.5"),
        ("multislerp", "eps: -1", "multislerp takes an eps that is at least 0, not -1"),
        ("ram", "epsilon: -1", "ram takes an epsilon that is at least 0, not -1"),
    ] {
        let text = format!(
            "merge_method: {method}\nbase_model: base.st\nmodels: [a.st, b.st]\nparameters:\n  weight: 1\n  {wrong}\n"
        );
        bench.refused(&text, 2, &[&format!("r.yaml:6:{}: ", wrong.find(": ").unwrap_or(0) + 5)[..9], says]);
    }
    for (options, says) in [
        ("--base base.st --method ties -p density=1.5", "a density that is from 0 to 1, not 1.5"),
        ("--method geometric-median -p eps=0", "an eps that is above 0, not 0"),
        ("--method slerp -p t=nan", "a t that is a finite number of 32 bits, not NaN"),
    ] {
        run(bench.path(), &format!("merge a.st b.st -o out.st {options}")).fails(2, &[says]);
    }
    // What lies beyond the models is meant at times.
    for (method, right) in [("slerp", "t: 1.5"), ("slerp", "t: -0.5"), ("ties", "lambda: -1")] {
        let text = format!(
            "merge_method: {method}\nbase_model: a.st\nmodels: [a.st, b.st]\nparameters:\n  weight: -0.5\n  {right}\n"
        );
        bench.merged(&text, "")?;
    }
    // Numbers between those of a switch are none.
    let text =
        "merge_method: model_stock\nbase_model: base.st\nmodels: [a.st, b.st]\nparameters: {filter_wise: [0, 1]}\n";
    bench.refused(text, 1, &["`layers.1.attn.weight`: model-stock takes a filter_wise that is 0 or 1, not 0.5"]);
    let listed = run(bench.path(), "methods").ok().stdout;
    assert!(
        listed.contains("-p density=1: the share of each change that is kept; from 0 to 1, one or one for each model")
    );
    Ok(())
}
