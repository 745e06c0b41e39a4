//! Vocabularies: one for the output, and for each model the rows of its embeddings in that order.
//!
//! As mergekit does it: a union is the base's tokenizer, to which the tokens that only others have are added without
//! merges, first ordinary ones, then added ones. A row that a model lacks is the one given for its token, else that of the
//! only model that has the token, else the base's, else the mean of those that have it, else zero. Padding rows are the
//! mean of the others.
//!
//! Which tensors have a row for each token is told without a table of architectures: those in no layer whose first
//! dimension is the model's number of tokens and whose name says so (see [`is_by_token`]).

pub(super) mod rows;
pub(super) mod template;
mod vocabulary;

pub(super) use vocabulary::{FILE, MOST, Vocabulary, ids, union, with_tokens};

use super::supply::{Given, Supply};
use crate::merge::Input;
use rows::{Row, RowSource, Rows};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

/// Words in the names of tensors that have a row, or a number, for each token.
const BY_TOKEN: [&str; 10] =
    ["embed", "wte", "lm_head", "output", "word_emb", "tok_", "embd", "decoder", "predictions", "score"];

/// Whether a tensor of this name may have a row for each of a model's tokens: it is in no layer and its name says so.
pub(super) fn is_by_token(name: &str) -> bool {
    let in_a_layer = name.split('.').any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    !in_a_layer && BY_TOKEN.iter().any(|word| name.contains(word))
}

/// What the row of a token is, where a recipe says so.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Zero,
    /// The same token of the model with this name.
    Model(String),
    /// Another row of the model with this name.
    Row(String, u64),
}

/// A token of which a recipe says something.
#[derive(Clone, Debug)]
pub(super) struct Special {
    pub(super) origin: Option<Origin>,
    /// Whether models that have the token get this row as well.
    pub(super) force: bool,
}

/// How models' rows become the output's.
pub(super) struct Alignment {
    /// The output's tokens, by their numbers.
    pub(super) tokens: Vec<(String, u64)>,
    /// How many rows the output has, padding included.
    pub(super) rows: u64,
    /// What is said of tokens.
    pub(super) special: HashMap<String, Special>,
    /// Of each model, by its name in messages: its vocabulary.
    pub(super) models: HashMap<String, Rc<Vocabulary>>,
}

impl Alignment {
    /// The number that a token has in a model, if it has a row there.
    fn row_in(&self, supply: &Supply<'_>, token: &str) -> Option<u64> {
        let vocabulary = self.models.get(&supply.label)?;
        vocabulary.ids.get(token).copied().filter(|id| *id < vocabulary.size)
    }

    /// The models of a slice with the output's rows.
    ///
    /// # Errors
    /// A message if a row cannot be had.
    pub(super) fn apply<'a>(
        &self,
        inputs: &[Rc<Supply<'a>>],
        base: Option<usize>,
    ) -> Result<Vec<Rc<Supply<'a>>>, String> {
        let size = |supply: &Supply<'a>| self.models.get(&supply.label).map_or(0, |vocabulary| vocabulary.size);
        let mut names = BTreeSet::new();
        for supply in inputs {
            let has_rows = |given: &&Given<'a>| given.shape.first() == Some(&size(supply)) && is_by_token(&given.name);
            let by_token = supply.tensors().iter().filter(has_rows);
            names.extend(by_token.map(|given| given.name.clone()));
        }
        let mut replaced: Vec<HashMap<String, Given<'a>>> = vec![HashMap::new(); inputs.len()];
        for name in &names {
            // A model that lacks the tensor lends no rows; that it lacks it is reported where tensors are matched.
            let present: Vec<usize> = (0..inputs.len()).filter(|&index| inputs[index].get(name).is_some()).collect();
            let sources: Vec<RowSource<'a>> = present
                .iter()
                .filter_map(|&index| inputs[index].get(name))
                .map(|given| source(given))
                .collect::<Result<_, _>>()?;
            let lenders: Vec<&Supply<'a>> = present.iter().map(|&index| &*inputs[index]).collect();
            let base = base.and_then(|base| present.iter().position(|&index| index == base));
            let sources = Arc::new(sources);
            for (lender, &index) in present.iter().enumerate() {
                let rows = self.rows_of(lender, &lenders, base, &sources, name)?;
                let Some(given) = inputs[index].get(name) else { continue };
                if rows.iter().enumerate().all(|(at, row)| row == &Row::Of(lender, at as u64))
                    && given.shape.first() == Some(&self.rows)
                {
                    continue;
                }
                let mut given = given.clone();
                if let Some(first) = given.shape.first_mut() {
                    *first = self.rows;
                }
                given.input = Input::Generated(Arc::new(Rows::new(Arc::clone(&sources), rows, self.count())));
                replaced[index].insert(name.clone(), given);
            }
        }
        let with_rows = |(supply, mut replaced): (&Rc<Supply<'a>>, HashMap<String, Given<'a>>)| {
            if replaced.is_empty() {
                return Rc::clone(supply);
            }
            let given =
                supply.tensors().iter().map(|given| replaced.remove(&given.name).unwrap_or_else(|| given.clone()));
            Rc::new(Supply::new(supply.label.clone(), supply.root, given.collect()))
        };
        Ok(inputs.iter().zip(replaced).map(with_rows).collect())
    }

    /// Rows that are tokens, not padding.
    fn count(&self) -> u64 {
        self.tokens.iter().map(|(_, id)| id + 1).max().unwrap_or(0)
    }

    /// Where each row of a model comes from.
    fn rows_of(
        &self,
        model: usize,
        lenders: &[&Supply<'_>],
        base: Option<usize>,
        sources: &[RowSource<'_>],
        tensor: &str,
    ) -> Result<Vec<Row>, String> {
        let mut rows = vec![Row::Zero; self.count() as usize];
        for (token, id) in &self.tokens {
            let special = self.special.get(token);
            let own = self.row_in(lenders[model], token).filter(|_| !special.is_some_and(|special| special.force));
            let row = match own {
                Some(row) => Row::Of(model, row),
                None => self.default_row(token, special.and_then(|special| special.origin.as_ref()), lenders, base)?,
            };
            let beyond = |lender: usize, row: u64| sources.get(lender).is_none_or(|source| row >= source.rows);
            if let Row::Of(lender, at) = row
                && beyond(lender, at)
            {
                return Err(format!(
                    "{} has no row {at} in `{tensor}`, for the token {token:?}",
                    lenders[lender].label
                ));
            }
            if let Some(place) = rows.get_mut(*id as usize) {
                *place = row;
            }
        }
        rows.resize(self.rows as usize, Row::Padding);
        Ok(rows)
    }

    /// The row of a token where a model has none of its own.
    fn default_row(
        &self,
        token: &str,
        origin: Option<&Origin>,
        lenders: &[&Supply<'_>],
        base: Option<usize>,
    ) -> Result<Row, String> {
        let lender = |name: &str| {
            let found = lenders.iter().position(|lender| lender.label == name);
            found.ok_or_else(|| format!("the row of {token:?} is to come from {name}, which is not one of the models"))
        };
        match origin {
            Some(Origin::Zero) => return Ok(Row::Zero),
            Some(Origin::Row(name, row)) => return Ok(Row::Of(lender(name)?, *row)),
            Some(Origin::Model(name)) => {
                let lender = lender(name)?;
                let row = self.row_in(lenders[lender], token);
                let row = row.ok_or_else(|| format!("the row of {token:?} is to come from {name}, which lacks it"))?;
                return Ok(Row::Of(lender, row));
            }
            None => {}
        }
        let has = |lender: usize| Some((lender, self.row_in(lenders[lender], token)?));
        let owners: Vec<(usize, u64)> = (0..lenders.len()).filter_map(has).collect();
        Ok(match (&owners[..], base.and_then(has)) {
            ([], _) => Row::Zero,
            (&[(lender, row)], _) | (_, Some((lender, row))) => Row::Of(lender, row),
            (_, None) => Row::Mean(owners.into()),
        })
    }
}

/// A tensor as a source of rows.
fn source<'a>(given: &Given<'a>) -> Result<RowSource<'a>, String> {
    let rows = given.shape.first().copied().unwrap_or(0);
    let width = given.shape.iter().skip(1).try_fold(1u64, |all, length| all.checked_mul(*length));
    // With the most rows that there may be, its bytes can still be counted.
    let width = width.filter(|width| (1..=u64::from(u32::MAX)).contains(width));
    let width = width.ok_or_else(|| format!("`{}` has rows of no usable length: {:?}", given.name, given.shape))?;
    RowSource::new(&given.input, rows, width).map_err(|problem| format!("`{}` {problem}", given.name))
}
