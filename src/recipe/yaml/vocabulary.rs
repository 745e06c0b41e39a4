//! The output's tokenizer and chat template, from a recipe's words and the models' files.

use super::RecipeFile;
use super::grammar::{Document, Token, TokenSource, Tokenizer, TokenizerSource};
use crate::checkpoint::{Checkpoint, SMALL_LIMIT, read_small};
use crate::error::{Error, Result};
use crate::recipe::beside::Beside;
use crate::recipe::supply::Supply;
use crate::recipe::tokens::{self, Alignment, MOST, Origin, Special, Vocabulary, template};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

/// Files of a tokenizer that say the same as `tokenizer.json` in other forms, and so are wrong beside another one.
const OTHER_FORMS: [&str; 5] = ["tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "added_tokens.json"];
/// Files that go with a tokenizer.
const WITH_IT: [&str; 4] = [template::CONFIG, "special_tokens_map.json", template::FILE, "chat_template.json"];

/// The tokenizer that a document asks for.
pub(super) struct Made {
    pub(super) alignment: Alignment,
    json: Value,
}

impl RecipeFile {
    /// Works out a document's vocabulary; `models` are its models, the base first, by what it calls them.
    pub(super) fn made_tokenizer(
        &self,
        document: &Document,
        models: &[(&str, Rc<Supply<'_>>)],
    ) -> Result<Option<Made>> {
        let Some(tokenizer) = &document.tokenizer else { return Ok(None) };
        let error = |message: String| tokenizer.place.error(&self.path, message);
        let fail = |message: String| Err(error(message));
        let is_last = self.used().next_back().is_some_and(|last| std::ptr::eq(last, document));
        if !is_last {
            return fail("only the document that is written can have a tokenizer of its own".to_owned());
        }
        let Some((_, base)) = models.first() else { return fail("there is no model".to_owned()) };
        let mut vocabularies: Vec<Rc<Vocabulary>> = Vec::new();
        for (_, supply) in models {
            // A model without a tokenizer of its own is taken to have the base's.
            let vocabulary = match (Vocabulary::of(supply.root)?, vocabularies.first()) {
                (Some(own), _) => Rc::new(own),
                (None, Some(base)) => Rc::clone(base),
                (None, None) => {
                    return fail(format!("{} has no tokenizer.json, from which its tokens could be told", base.label));
                }
            };
            vocabularies.push(vocabulary);
        }
        let stripped = || {
            let json = vocabularies[0].stripped();
            json.map_err(|problem| error(format!("the tokenizer of {} {problem}", base.label)))
        };
        let json = match &tokenizer.source {
            TokenizerSource::Union => {
                let all = vocabularies.iter().map(|vocabulary| &**vocabulary);
                tokens::union(stripped()?, all)
            }
            TokenizerSource::Base => Some(stripped()?),
            TokenizerSource::Model(reference) => {
                let index = models.iter().position(|(text, _)| *text == reference.text);
                index.and_then(|index| vocabularies.get(index)).map(|vocabulary| vocabulary.json.clone())
            }
        };
        let wanted = tokenizer.tokens.iter().map(|token| token.token.as_str());
        let json = json.and_then(|json| tokens::with_tokens(json, wanted));
        let made =
            json.and_then(|json| Some((Vocabulary { ids: tokens::ids(&json)?, size: 0, json: Value::Null }, json)));
        let Some((output, json)) = made else { return fail("its tokenizers cannot be read".to_owned()) };
        let tokens = output.ordered();
        let rows = tokens.iter().map(|(_, id)| id + 1).max().unwrap_or(0).max(tokens.len() as u64);
        let rows =
            rows.checked_next_multiple_of(tokenizer.pad_to_multiple_of.unwrap_or(1)).filter(|rows| *rows <= MOST);
        let Some(rows) = rows else { return fail(format!("an output has at most {MOST} rows of tokens")) };
        let by_text: HashMap<&str, usize> =
            models.iter().enumerate().map(|(index, (text, _))| (*text, index)).collect();
        let special = tokenizer.tokens.iter().map(|token| {
            let origin = self.origin(token, tokenizer, &by_text, models, &vocabularies)?;
            Ok((token.token.clone(), Special { origin, force: token.force }))
        });
        let special = special.collect::<Result<_>>()?;
        let labels = models.iter().map(|(_, supply)| supply.label.clone());
        let models = labels.zip(vocabularies).collect();
        Ok(Some(Made { alignment: Alignment { tokens, rows, special, models }, json }))
    }

    /// Where the row of a token comes from, if the recipe says so.
    fn origin(
        &self,
        token: &Token,
        tokenizer: &Tokenizer,
        by_text: &HashMap<&str, usize>,
        models: &[(&str, Rc<Supply<'_>>)],
        vocabularies: &[Rc<Vocabulary>],
    ) -> Result<Option<Origin>> {
        let fail = |message: String| Err(token.place.error(&self.path, message));
        let (reference, other) = match &token.source {
            None if token.force => return fail("a token whose row is forced has a `source`".to_owned()),
            None => return Ok(None),
            Some(TokenSource::Zero) => return Ok(Some(Origin::Zero)),
            Some(TokenSource::Model(reference)) => (reference, None),
            Some(TokenSource::Other(reference, other)) => (reference, Some(other)),
        };
        let index = by_text.get(reference.text.as_str());
        let Some((supply, vocabulary)) =
            index.and_then(|&index| Some((&models.get(index)?.1, vocabularies.get(index)?)))
        else {
            return Err(tokenizer.place.error(&self.path, format!("`{}` is not one of the models", reference.text)));
        };
        Ok(Some(match other {
            None => Origin::Model(supply.label.clone()),
            Some(Err(row)) => Origin::Row(supply.label.clone(), *row),
            Some(Ok(text)) => match vocabulary.ids.get(text) {
                Some(row) => Origin::Row(supply.label.clone(), *row),
                None => return fail(format!("{} has no token {text:?}", supply.label)),
            },
        }))
    }

    /// Adds to what goes with the output: the tokenizer's files, the chat template.
    pub(super) fn add_tokenizer(
        &self,
        document: &Document,
        made: Option<&Made>,
        models: &[(&str, Rc<Supply<'_>>)],
        frame: &Checkpoint,
        beside: &mut Beside,
    ) -> Result<()> {
        let root = &frame.layout().root;
        if let Some(Made { alignment, json }) = made {
            beside.tokens = Some(alignment.rows);
            // The file of the model that has this tokenizer, if one has: not a word of it changes.
            let same = |(_, supply): &&(&str, Rc<Supply<'_>>)| {
                alignment.models.get(&supply.label).is_some_and(|vocabulary| vocabulary.json == *json)
                    && supply.root.layout().root.join(tokens::FILE).is_file()
            };
            let donor = match document.tokenizer.as_ref().map(|tokenizer| &tokenizer.source) {
                Some(TokenizerSource::Model(reference)) => models.iter().find(|(text, _)| *text == reference.text),
                _ => None,
            };
            let text = match donor.filter(|donor| same(donor)).or(models.iter().find(same)) {
                Some((_, supply)) => read(&supply.root.layout().root.join(tokens::FILE))?,
                None => format!("{json:#}").into_bytes(),
            };
            let is_new = read(&root.join(tokens::FILE)).ok().as_ref() != Some(&text);
            if is_new {
                beside.files.insert(tokens::FILE.into(), text);
                beside.dropped.extend(OTHER_FORMS.map(Into::into));
            }
            if let Some(donor) = donor.map(|(_, supply)| &supply.root.layout().root).filter(|donor| *donor != root) {
                for name in WITH_IT {
                    beside.dropped.insert(name.into());
                    if donor.join(name).is_file() {
                        beside.files.insert(name.into(), read(&donor.join(name))?);
                    }
                }
            }
        }
        let Some((text, place)) = &document.chat_template else { return Ok(()) };
        let template = if text == "auto" {
            template::most_common(models.iter().map(|(_, supply)| supply.root))
        } else {
            let Some(template) = template::named(text) else {
                let known = template::names().chain(["auto"]);
                let error = Error::unknown("chat template", text, known);
                return Err(place.error(&self.path, format!("{error}; or write the template itself")));
            };
            Some(template.to_owned())
        };
        let Some(template) = template else { return Ok(()) };
        beside.files.insert(template::FILE.into(), template.into_bytes());
        beside.dropped.insert("chat_template.json".into());
        // It stood here before it had a file of its own, and would still be found.
        let config = beside.files.get(Path::new(template::CONFIG)).cloned();
        let config = config.or_else(|| read(&root.join(template::CONFIG)).ok());
        // Values stay as they are written: some of these numbers are longer than any type's.
        let entries = config.and_then(|text| serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&text).ok());
        if let Some(mut entries) = entries
            && entries.remove("chat_template").is_some()
        {
            let text = serde_json::to_string_pretty(&entries).map_err(|error| Error::Recipe(error.to_string()))?;
            beside.files.insert(template::CONFIG.into(), format!("{text}\n").into_bytes());
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    read_small(path, SMALL_LIMIT)
}
