//! `ckptmerge formats`

use super::report::table;
use super::{Common, Run};
use crate::checkpoint::FORMATS;
use clap::Args;
use serde_json::json;
use std::process::ExitCode;

/// List the checkpoint formats
///
/// A file's format is told by its content when it is read, and by its name's ending when it is written.
#[derive(Args)]
#[command(after_help = "Example: ckptmerge formats")]
pub(super) struct Formats {}

impl Run for Formats {
    fn run(self, common: &Common) -> anyhow::Result<ExitCode> {
        let rows = FORMATS.iter().map(|format| {
            let endings: Vec<_> = format.extensions().iter().map(|ending| format!(".{ending}")).collect();
            vec![format.id().to_owned(), endings.join(" "), format.about().to_owned()]
        });
        let json = || {
            let describe = |format: &&dyn ckptmerge_format::Format| json!({"id": format.id(), "about": format.about(), "extensions": format.extensions()});
            FORMATS.iter().map(describe).collect()
        };
        common.report().answer(|| table(&["format", "written as", "about"], &[], rows), json)?;
        Ok(ExitCode::SUCCESS)
    }
}
