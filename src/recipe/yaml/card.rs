//! What goes with the output: the recipe in the metadata and as a file, and a card for people.

use super::grammar::Document;
use super::{RecipeFile, Sources, references};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::recipe::beside::Beside;
use crate::recipe::supply::Supply;
use ckptmerge_format::{Metadata, printable};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The name under which mergekit keeps a recipe, and finds it again.
const RECIPE: &str = "mergekit_config.yml";

impl Sources {
    /// The models as merges take them, in their order.
    pub(super) fn supplies(&self) -> impl Iterator<Item = Supply<'_>> {
        self.models.iter().map(|model| Supply::of(&model.label, &model.checkpoint, &model.adapters))
    }

    /// The model whose small files the output of a merge around `root` gets: that one, or else the first that is a
    /// folder.
    pub(super) fn frame<'a>(&'a self, root: &'a Checkpoint) -> &'a Checkpoint {
        let mut all = std::iter::once(root).chain(self.checkpoints());
        all.find(|checkpoint| checkpoint.layout().is_folder).unwrap_or(root)
    }

    /// Every checkpoint that is read, and what messages call it.
    pub(super) fn named(&self) -> impl Iterator<Item = (&Checkpoint, String)> {
        let adapters = self.models.iter().flat_map(|model| model.adapters.sources());
        let models = self.models.iter().map(|model| (&model.checkpoint, model.label.clone()));
        models.chain(adapters.map(|adapter| (adapter, adapter.name().to_owned())))
    }
}

impl RecipeFile {
    /// The text of the output: what all models agree on, the recipe and the models' fingerprints.
    pub(super) fn metadata(&self, sources: &Sources, reference: &Checkpoint) -> Result<Metadata> {
        let mut metadata = reference.metadata().clone();
        metadata.retain(|key, value| {
            !key.starts_with("ckptmerge.")
                && sources.checkpoints().all(|model| model.metadata().get(key) == Some(value))
        });
        let mut inputs = Vec::new();
        for (model, label) in sources.named() {
            inputs.push(json!({"name": label, "fingerprint": model.fingerprint()?}));
        }
        let mut recipe = json!({"ckptmerge": env!("CARGO_PKG_VERSION")});
        if let Some(last) = self.used().next_back() {
            let about = last.method.about();
            (recipe["method"], recipe["formula"]) = (about.name.into(), about.formula.into());
        }
        if !self.presets.is_empty() {
            recipe["block_presets"] = json!(self.presets);
        }
        recipe["yaml"] = self.text.as_str().into();
        metadata.insert("ckptmerge.recipe".to_owned(), recipe.to_string());
        metadata.insert("ckptmerge.inputs".to_owned(), Value::from(inputs).to_string());
        Ok(metadata)
    }

    /// The files that go with the output, beside what is in `beside` already.
    pub(super) fn beside(&self, sources: &Sources, mut beside: Beside) -> Beside {
        beside.files.insert(RECIPE.into(), self.text.clone().into_bytes());
        beside.card = Some(self.card(sources));
        beside
    }

    /// What a card says below its title.
    fn card(&self, sources: &Sources) -> String {
        let mut text = String::from("A merge of models, made by `ckptmerge`.\n");
        for document in self.used() {
            let about = document.method.about();
            let of = document.name.as_ref().map_or(String::new(), |name| format!(" of `{}`", printable(name)));
            text += &format!("\n## Method{of}\n\n[{}]({}): {}.\n", about.name, about.source, about.what);
            text += &format!("\n    {}\n", about.formula);
            text += &models(document);
        }
        let fence = if self.text.contains("```") { "~~~~~~" } else { "```" };
        text += &format!("\n## Recipe\n\n{fence}yaml\n{}\n{fence}\n", self.text.trim_end());
        let formats: BTreeSet<&str> = sources.checkpoints().map(Checkpoint::format).collect();
        text += &format!("\nThe models were read from {}.\n", formats.into_iter().collect::<Vec<_>>().join(", "));
        text
    }
}

/// The models of a document, as a list.
fn models(document: &Document) -> String {
    let base = document.base.as_ref().map(|base| base.text.as_str());
    let mut seen = BTreeSet::new();
    let mut text = String::from("\n");
    for reference in references(document) {
        if seen.insert(reference.text.as_str()) {
            let role = if base == Some(reference.text.as_str()) { ", the base" } else { "" };
            text += &format!("- `{}`{role}\n", printable(&reference.text));
        }
    }
    text
}
