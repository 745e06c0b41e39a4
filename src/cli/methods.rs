//! `ckptmerge methods`

use super::{Common, Run};
use crate::merge::METHODS;
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// List the merge methods
///
/// With their formulas and parameters. x are the models, w their weights, b is the base.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge methods")]
pub(super) struct Methods {}

impl Run for Methods {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let text = || {
            let describe = |method: &&dyn crate::merge::Method| {
                let mut text = format!(
                    "{}\n    {}{}\n    {}\n    {}\n",
                    method.name(),
                    method.about(),
                    if method.needs_base() { " (needs --base)" } else { "" },
                    method.formula(),
                    method.source(),
                );
                for parameter in method.parameters() {
                    text += &format!("    -p {}={}: {}\n", parameter.name, parameter.default, parameter.about);
                }
                text
            };
            METHODS.iter().map(describe).collect::<Vec<_>>().join("\n")
        };
        let json = || {
            let describe = |method: &&dyn crate::merge::Method| {
                let parameters: Vec<_> = method
                    .parameters()
                    .iter()
                    .map(|p| json!({"name": p.name, "default": p.default, "about": p.about}))
                    .collect();
                json!({
                    "name": method.name(),
                    "about": method.about(),
                    "formula": method.formula(),
                    "source": method.source(),
                    "needs_base": method.needs_base(),
                    "parameters": parameters,
                })
            };
            METHODS.iter().map(describe).collect()
        };
        common.report().answer(text, json)?;
        Ok(ExitCode::SUCCESS)
    }
}
