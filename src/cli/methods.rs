//! `ckptmerge methods`

use super::{Common, Run};
use crate::merge::{About, Allowed, Base, METHODS, Method, Scope};
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// List the merge methods
///
/// With their formulas and parameters. x are the models, w their weights, b is the base. Any parameter may have another
/// value for each block of Stable Diffusion or Flux: see `merge --blocks`.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge methods")]
pub(super) struct Methods {}

impl Run for Methods {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let text = || {
            let describe = |method: &&dyn Method| {
                let about = method.about();
                let base = match about.base {
                    Base::Required => " (needs --base)",
                    Base::Optional => " (with --base, of the changes)",
                    Base::Last => " (b is --base, or the last model)",
                    Base::None | Base::Counts => "",
                };
                let with = method.companions().map(|what| format!(" (needs --companion: {what})")).unwrap_or_default();
                let About { name, what, formula, source, .. } = about;
                let mut text = format!("{name}\n    {what}{base}{with}\n    {formula}\n    {source}\n");
                for parameter in about.parameters {
                    let each = if parameter.scope == Scope::PerModel { ", one or one for each model" } else { "" };
                    let default = match parameter.default {
                        small if small != 0.0 && small.abs() < 1e-4 => format!("{small:e}"),
                        default => default.to_string(),
                    };
                    let allowed = match parameter.allowed {
                        Allowed::Any => String::new(),
                        allowed => format!("; {allowed}"),
                    };
                    text += &format!("    -p {}={default}: {}{allowed}{each}\n", parameter.name, parameter.about);
                }
                text
            };
            METHODS.iter().map(describe).collect::<Vec<_>>().join("\n")
        };
        let json = || {
            let describe = |method: &&dyn Method| {
                let about = method.about();
                let parameters: Vec<_> = about
                    .parameters
                    .iter()
                    .map(|p| {
                        let per_model = p.scope == Scope::PerModel;
                        let allowed = p.allowed.to_string();
                        json!({"name": p.name, "default": p.default, "allowed": allowed, "per_model": per_model, "about": p.about})
                    })
                    .collect();
                json!({
                    "name": about.name,
                    "about": about.what,
                    "formula": about.formula,
                    "source": about.source,
                    "needs_base": about.base == Base::Required,
                    "companions": method.companions(),
                    "normalizes": about.normalizes,
                    "parameters": parameters,
                })
            };
            METHODS.iter().map(describe).collect()
        };
        common.report().answer(text, json)?;
        Ok(ExitCode::SUCCESS)
    }
}
