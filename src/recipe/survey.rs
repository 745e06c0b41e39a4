//! What methods measure over a whole model before any of its tensors is solved.

use super::Plan;
use crate::error::{Error, Result};
use crate::merge::Node;
use crate::stream::{Control, Settings};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

/// What was measured, by merge.
#[derive(Default)]
pub(super) struct Surveys(HashMap<usize, Vec<f64>>);

impl Surveys {
    /// The node with what was measured for it and those below it.
    pub(super) fn apply<'n, 'a>(&self, node: &'n Node<'a>) -> Cow<'n, Node<'a>> {
        if self.0.is_empty() {
            return Cow::Borrowed(node);
        }
        let mut node = node.clone();
        node.visit_mut(&mut |node| {
            if let Some(survey) = self.0.get(&node.terms.group).filter(|_| node.method.surveys(&node.terms)) {
                node.terms.survey.clone_from(survey);
            }
        });
        Cow::Owned(node)
    }
}

impl Plan<'_> {
    /// Measures, for each merge whose method asks for it, over all tensors that it makes.
    ///
    /// # Errors
    /// [`Error::Recipe`] if parameters are not the same for all of these tensors; as the passes over the data.
    pub(super) fn survey(&self, settings: &Settings, control: Control<'_>) -> Result<Surveys> {
        // A tensor may stand in the plan several times: as a model and as a base of other merges.
        let mut seen = HashSet::new();
        let mut groups: BTreeMap<usize, Vec<&Node<'_>>> = BTreeMap::new();
        for planned in &self.tensors {
            for node in planned.operation.nodes() {
                node.visit(&mut |node| {
                    let terms = &node.terms;
                    if node.method.surveys(terms) && seen.insert((terms.group, terms.tensor.clone())) {
                        groups.entry(terms.group).or_default().push(node);
                    }
                });
            }
        }
        let mut surveys = Surveys::default();
        if groups.is_empty() {
            return Ok(surveys);
        }
        settings.pool()?.install(|| {
            // Merges that others build on have lower numbers.
            for (group, nodes) in groups {
                let Some(first) = nodes.first() else { continue };
                if let Some(other) = nodes.iter().find(|node| node.terms.parameters != first.terms.parameters) {
                    return Err(Error::Recipe(format!(
                        "{} measures over the whole model here, so its parameters must be the same for all tensors, but `{}` and `{}` have different ones",
                        first.method.about().name,
                        first.terms.tensor,
                        other.terms.tensor,
                    )));
                }
                let surveyed: Vec<_> = nodes.iter().map(|node| surveys.apply(node)).collect();
                let data = surveyed.iter().map(|node| node.data(settings, control)).collect::<Result<Vec<_>>>()?;
                let terms: Vec<_> = nodes.iter().map(|node| node.terms.clone()).collect();
                let found = first.method.survey(&terms, &data)?;
                surveys.0.insert(group, found);
            }
            Ok(surveys)
        })
    }
}
