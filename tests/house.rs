//! The repository's own rules: which way imports point, tables that are whole, what lies where.

use crate::model::{Outcome, names_in, root, run};
use ckptmerge::checkpoint::FORMATS;
use ckptmerge::diffusion::schedulers::SCHEDULERS;
use ckptmerge::gpu::KERNELS;
use ckptmerge::merge::METHODS;
use ckptmerge::names::NAME_MAPS;
use regex::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each module of `src/` may use, beside [`ANYWHERE`].
const LAYERS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "search",
            "recipe",
            "adapter",
            "names",
            "eval",
            "train",
            "diffusion",
            "images",
            "merge",
            "analysis",
            "plot",
            "stream",
            "checkpoint",
            "output",
            "gpu",
            "dtype",
        ],
    ),
    (
        "search",
        &["recipe", "eval", "train", "diffusion", "images", "merge", "analysis", "stream", "checkpoint", "dtype"],
    ),
    ("eval", &["diffusion", "images", "merge", "stream", "checkpoint", "output", "dtype"]),
    ("train", &["diffusion", "images", "merge", "stream", "checkpoint", "output", "dtype"]),
    ("diffusion", &["images", "merge", "stream", "checkpoint", "output", "dtype"]),
    ("images", &["stream", "checkpoint", "output", "dtype"]),
    ("recipe", &["adapter", "names", "merge", "analysis", "stream", "checkpoint", "output", "gpu", "dtype"]),
    ("adapter", &["names", "merge", "stream", "checkpoint", "output", "dtype"]),
    ("names", &["checkpoint"]),
    ("merge", &["stream", "checkpoint", "gpu", "dtype"]),
    ("analysis", &["stream", "checkpoint", "output", "dtype"]),
    ("plot", &[]),
    ("stream", &["checkpoint", "output", "gpu", "dtype"]),
    ("checkpoint", &["dtype"]),
    ("output", &["dtype"]),
    ("gpu", &["dtype"]),
    ("dtype", &[]),
    ("error", &[]),
    ("os", &[]),
];
const ANYWHERE: [&str; 2] = ["error", "os"];

/// What may stand at the top of the repository, beside what is hidden.
const TOP: [&str; 16] = [
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "docs",
    "fixtures",
    "plugins",
    "rustfmt.toml",
    "shaders",
    "src",
    "target",
    "tests",
];
const LONGEST: usize = 700;

/// The Rust files below a folder of the repository with their text, by their path within it.
fn sources(folder: &str) -> BTreeMap<String, String> {
    fn visit(folder: &Path, files: &mut Vec<PathBuf>) {
        for name in names_in(folder) {
            let path = folder.join(&name);
            if path.is_dir() && name != "target" {
                visit(&path, files);
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    let folder = root().join(folder);
    let mut files = Vec::new();
    visit(&folder, &mut files);
    assert!(!files.is_empty(), "{} holds no Rust files", folder.display());
    let entry = |path: PathBuf| {
        let name = path.strip_prefix(&folder).expect("it is in the folder").display().to_string();
        (name, std::fs::read_to_string(&path).expect("sources are UTF-8"))
    };
    files.into_iter().map(entry).collect()
}

/// The text without lines that are comments.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

fn is_kebab(name: &str) -> bool {
    !name.is_empty()
        && name.split('-').all(|word| {
            !word.is_empty() && word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
        })
}

/// The first parts of the paths in the braces that `text` begins behind: `a::b, c::{d, e}` gives `a` and `c`.
fn heads(text: &str) -> Vec<String> {
    let mut depth = 0;
    let mut heads = vec![String::new()];
    for letter in text.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            _ if depth == 0 => heads.last_mut().expect("there is always one").push(letter),
            _ => {}
        }
    }
    let first = |path: String| path.split("::").next().unwrap_or_default().trim().to_owned();
    heads.into_iter().map(first).filter(|head| !head.is_empty()).collect()
}

#[test]
fn imports_point_downward() -> Outcome {
    let files = sources("src");
    assert!(files.len() > 20, "only {} files were found", files.len());
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.iter().copied().collect();
    let plain = Regex::new(r"\bcrate::(\w+)")?;
    let braced = Regex::new(r"\bcrate::\{")?;
    // `crate::Error` is the `error` module's, by what lib.rs hands on.
    let handed_on = Regex::new(r"pub use (\w+)::(?:\{([^}]*)\}|(\w+));")?;
    let library = code(&files["lib.rs"]);
    let owners: BTreeMap<&str, &str> = handed_on
        .captures_iter(&library)
        .flat_map(|found| {
            let (_, [owner, names]) = found.extract();
            names.split(',').map(move |name| (name.trim(), owner))
        })
        .collect();

    let mut edges = BTreeSet::new();
    let mut wrong = Vec::new();
    for (file, text) in &files {
        let module = file.split('/').next().expect("a path has parts").trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(may_use) = allowed.get(module) else {
            wrong.push(format!("src/{file} is of the module `{module}`, which has no layer"));
            continue;
        };
        let text = code(text);
        assert!(!text.contains("super::super::"), "src/{file}: write `crate::…`, so that this test sees it");
        let mut used: Vec<String> = plain.captures_iter(&text).map(|found| found[1].to_owned()).collect();
        used.extend(braced.find_iter(&text).flat_map(|found| heads(&text[found.end()..])));
        for target in used {
            let target = owners.get(target.as_str()).copied().unwrap_or(&target).to_owned();
            if target == module || ANYWHERE.contains(&target.as_str()) {
                continue;
            }
            edges.insert((module.to_owned(), target.clone()));
            if !may_use.contains(&target.as_str()) {
                wrong.push(format!("src/{file} uses `crate::{target}`, which `{module}` may not"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (from, to) in [("cli", "recipe"), ("recipe", "merge"), ("stream", "checkpoint"), ("merge", "dtype")] {
        assert!(edges.contains(&(from.to_owned(), to.to_owned())), "the edge {from} → {to} was not seen in {edges:?}");
    }
    Ok(())
}

#[test]
fn the_layers_have_no_circle() {
    let position = |name: &str| LAYERS.iter().position(|(module, _)| *module == name).expect("a module with a layer");
    for (module, used) in LAYERS {
        for other in *used {
            assert!(position(other) > position(module), "{module} stands below {other}");
        }
    }
    assert_eq!(heads("a::{b, c}, d,\n e::f}; use g"), ["a", "d", "e"]);
}

#[test]
fn plugins_depend_only_on_the_interface() -> Outcome {
    let local = Regex::new(r"^([\w-]+)(?:\.workspace\s*=\s*true|\s*=\s*\{.*(?:path|workspace)\s*=.*\})")?;
    let ours = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let is_ours = |name: &str| ours.lines().any(|line| line.starts_with(&format!("{name} = {{ path")));
    assert!(is_ours("ckptmerge-format"), "the workspace's own crates were not seen");
    let mut seen = 0;
    for plugin in names_in(&root().join("plugins")) {
        let manifest = std::fs::read_to_string(root().join("plugins").join(&plugin).join("Cargo.toml"))?;
        let mut section = String::new();
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line.to_owned();
            } else if section.contains("dependencies") {
                let Some(found) = local.captures(line) else {
                    assert!(!line.contains("path"), "plugins/{plugin}: {line}");
                    continue;
                };
                let dependency = &found[1];
                seen += 1;
                let allowed = if is_ours(dependency) {
                    plugin != "api" && dependency == "ckptmerge-format"
                } else {
                    !line.contains("path")
                };
                assert!(allowed, "plugins/{plugin} may not depend on {dependency}");
            }
        }
        // Tests may open their fixtures.
        for (file, text) in sources(&format!("plugins/{plugin}/src")).into_iter().filter(|(file, _)| file != "tests.rs")
        {
            let text = code(&text);
            for word in ["std::fs", "File::", "std::net", "std::process", "std::env", "unsafe "] {
                assert!(!text.contains(word), "plugins/{plugin}/src/{file} has {word}; formats do no I/O");
            }
        }
    }
    assert!(seen >= 3, "only {seen} dependencies were seen");
    Ok(())
}

#[test]
fn every_method_is_in_the_table() {
    let files = sources("src/merge/methods");
    let about = Regex::new(r#"name: "([^"]+)""#).expect("the pattern is written here");
    let row = Regex::new(r#"= row\(\s*"([^"]+)""#).expect("the pattern is written here");
    let mut written = BTreeSet::new();
    // Of a method in several files the first has its description.
    let is_first = |file: &str| file != "mod.rs" && (file.ends_with("/mod.rs") || !file.contains('/'));
    for (file, text) in files.iter().filter(|(file, _)| is_first(file)) {
        let text = code(text);
        let names = about.captures_iter(&text).chain(row.captures_iter(&text)).map(|found| found[1].to_owned());
        let names: Vec<String> = names.collect();
        assert!(!names.is_empty(), "src/merge/methods/{file} has no method");
        written.extend(names);
    }
    let names: Vec<&str> = METHODS.iter().map(|method| method.about().name).collect();
    let table: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(table.len(), names.len(), "a name stands twice in {names:?}");
    assert_eq!(written, table, "a method is a file and a line of METHODS");
    assert!(names.iter().all(|name| is_kebab(name)), "{names:?}");
    for about in METHODS.iter().map(|method| method.about()) {
        assert!(about.source.starts_with("https://"), "{} does not say where it is from", about.name);
        assert!(about.parameters.iter().all(|parameter| !parameter.about.is_empty()));
    }
}

#[test]
fn every_scheduler_is_in_the_table() {
    let files = sources("src/diffusion/schedulers");
    let of = Regex::new(r#"const ENTRY: Entry = Entry \{\s*name: "([^"]+)""#).expect("the pattern is written here");
    let mut written = BTreeSet::new();
    for (file, text) in files.iter().filter(|(_, text)| code(text).contains("impl Scheduler for")) {
        let found = of.captures(text).unwrap_or_else(|| panic!("src/diffusion/schedulers/{file} has no entry"));
        written.insert(found[1].to_owned());
    }
    let names: Vec<&str> = SCHEDULERS.iter().map(|entry| entry.name).collect();
    let table: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(table.len(), names.len(), "a name stands twice in {names:?}");
    assert_eq!(written, table, "a scheduler is a file and a line of SCHEDULERS");
    assert!(SCHEDULERS.iter().all(|entry| entry.about.ends_with(')')), "a scheduler names its paper");
}

#[test]
fn every_name_map_is_in_the_table() {
    let files = sources("src/names");
    let maps: BTreeSet<String> = files
        .iter()
        .filter(|(_, text)| text.contains("impl NameMap for"))
        .map(|(file, _)| file.trim_end_matches(".rs").replace('_', "-"))
        .collect();
    let ids: Vec<&str> = NAME_MAPS.iter().map(|map| map.id()).collect();
    let table: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    assert_eq!(table.len(), ids.len(), "a name stands twice in {ids:?}");
    assert_eq!(maps, table, "a name map is a file of its name and a line of NAME_MAPS");
    assert!(ids.iter().all(|id| is_kebab(id)), "{ids:?}");
    let help = run(root(), "convert --help").ok().stdout;
    for map in NAME_MAPS {
        assert!(!map.about().is_empty() && help.contains(map.id()), "{} is not in the help", map.id());
    }
}

#[cfg(feature = "diffusion")]
#[test]
fn every_extractor_is_in_the_table() {
    let files = sources("src/eval/extractors");
    let kind = Regex::new(r#"static KIND: Kind = Kind \{\s*name: "([^"]+)""#).expect("the pattern is written here");
    let mut written = BTreeSet::new();
    for (file, text) in files.iter().filter(|(file, _)| *file != "mod.rs") {
        let found = kind.captures(text).unwrap_or_else(|| panic!("src/eval/extractors/{file} has no extractor"));
        assert_eq!(found[1], *file.trim_end_matches(".rs"), "an extractor has its file's name");
        written.insert(found[1].to_owned());
    }
    let names: Vec<&str> = ckptmerge::eval::EXTRACTORS.iter().map(|kind| kind.name).collect();
    let table: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(table.len(), names.len(), "a name stands twice in {names:?}");
    assert_eq!(written, table, "an extractor is a file and a line of EXTRACTORS");
    let help = run(root(), "fid --help").ok().stdout;
    assert!(names.iter().all(|name| help.contains(&format!("- {name}"))), "{help}");
    assert!(names.iter().all(|name| is_kebab(name)), "{names:?}");
}

#[test]
fn every_format_is_in_the_table() {
    let mut plugins = names_in(&root().join("plugins"));
    plugins.retain(|name| name != "api");
    let table = std::fs::read_to_string(root().join("src/checkpoint/formats.rs")).expect("the table is there");
    let mut implemented = 0;
    for plugin in &plugins {
        assert!(table.contains(&format!("ckptmerge_format_{plugin}::")), "plugins/{plugin} is not in the table");
        let files = sources(&format!("plugins/{plugin}/src"));
        let formats: usize = files.values().map(|text| code(text).matches("impl Format for").count()).sum();
        assert!(formats > 0, "plugins/{plugin} implements no format");
        assert!(is_kebab(plugin), "{plugin}");
        implemented += formats;
    }
    let ids: BTreeSet<&str> = FORMATS.iter().map(|format| format.id()).collect();
    assert_eq!([ids.len(), FORMATS.len()], [implemented; 2], "{ids:?}: each format is a line of FORMATS");
}

#[test]
fn every_shader_is_in_the_table() {
    // What is no kernel is put before or behind one.
    let parts = ["prelude", "power", "native_f16"];
    let generator = std::fs::read_to_string(root().join("src/gpu/shaders.rs")).expect("the table is there");
    let mut files = names_in(&root().join("shaders"));
    files.retain(|name| name != "README.md");
    let mut kernels = BTreeSet::new();
    for file in &files {
        let name = file.strip_suffix(".wgsl").unwrap_or_else(|| panic!("shaders/{file} is no shader"));
        let text = std::fs::read_to_string(root().join("shaders").join(file)).expect("shaders are UTF-8");
        assert!(text.starts_with("// "), "shaders/{file} does not say what it is for");
        assert!(text.lines().count() <= LONGEST, "shaders/{file} is too long");
        if parts.contains(&name) {
            assert!(generator.contains(&format!("shaders/{name}.wgsl")), "shaders/{file} is put to none");
        } else {
            assert!(
                text.contains("Bindings:") && text.contains("Workgroups:"),
                "shaders/{file} does not say how it is run"
            );
            kernels.insert(name);
        }
    }
    let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
    let table: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(table.len(), names.len(), "a name stands twice in {names:?}");
    assert_eq!(kernels, table, "a kernel is a file and a line of KERNELS");
}

#[test]
fn every_subcommand_is_in_the_help() -> Outcome {
    let files: BTreeSet<String> = sources("src/cli")
        .into_iter()
        .filter(|(file, text)| file != "mod.rs" && text.contains("Run for "))
        .map(|(file, _)| file.trim_end_matches(".rs").replace('_', "-"))
        .collect();
    let help = run(root(), "--help").ok().stdout;
    let row = Regex::new(r"(?m)^  ([a-z][a-z-]*) +\S")?;
    let commands = help.split("Commands:").nth(1).ok_or("the help lists no commands")?;
    let commands = commands.split("\n\n").next().unwrap_or_default();
    let mut listed: Vec<&str> = row.captures_iter(commands).map(|found| found.extract::<1>().1[0]).collect();
    listed.retain(|name| *name != "help");
    let distinct: BTreeSet<String> = listed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(distinct.len(), listed.len(), "a name stands twice in {listed:?}");
    assert_eq!(distinct, files, "a subcommand is a file of its name and a line of `subcommands!`");
    Ok(())
}

#[test]
fn files_are_short_and_say_what_they_are_for() -> Outcome {
    let unfinished = Regex::new(r"\b(TODO|FIXME|XXX|todo!|unimplemented!|dbg!)")?;
    let mut wrong = Vec::new();
    for folder in ["src", "plugins", "tests"] {
        for (file, text) in sources(folder) {
            let lines = text.lines().count();
            if lines > LONGEST {
                wrong.push(format!("{folder}/{file} has {lines} lines; {LONGEST} are the most"));
            }
            let opening = text.lines().next().unwrap_or_default();
            // The library's documentation is the README.
            let says = opening.starts_with("//! ") || opening == r#"#![doc = include_str!("../README.md")]"#;
            if !says || opening.len() < "//! x y".len() {
                wrong.push(format!("{folder}/{file} does not begin with a line of documentation: {opening:?}"));
            }
            if folder != "tests" && unfinished.is_match(&text) {
                wrong.push(format!("{folder}/{file} is not finished"));
            }
            let stem = file.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
            if ["common", "util", "utils", "helper", "helpers", "misc"].contains(&stem) {
                wrong.push(format!("{folder}/{file} has a name that says nothing"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

#[test]
fn the_top_of_the_repository_is_tidy() {
    let names = names_in(root());
    let ignore = std::fs::read_to_string(root().join(".gitignore")).expect("there is a .gitignore");
    // What people make here by following the README is theirs: `/name` or `/*.ending`.
    let ignored = |name: &str| {
        ignore.lines().filter_map(|line| line.strip_prefix('/')).any(|pattern| match pattern.strip_prefix('*') {
            Some(ending) => name.ends_with(ending),
            None => name == pattern,
        })
    };
    let strangers: Vec<_> = names
        .iter()
        .filter(|name| !name.starts_with('.') && !TOP.contains(&name.as_str()) && !ignored(name.as_str()))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!(names.iter().any(|name| name == "Cargo.toml"), "this is not the repository: {names:?}");
}
