//! `ckptmerge man`

use super::report::print;
use super::{Common, Run, command};
use crate::error::Error;
use clap::Args;
use std::process::ExitCode;

/// Print a manual page
#[derive(Args)]
#[command(after_help = "Example: ckptmerge man merge | man -l -")]
pub(super) struct Man {
    /// The subcommand; without it, the page of the whole
    subcommand: Option<String>,
}

impl Run for Man {
    fn run(self, _common: &Common) -> anyhow::Result<ExitCode> {
        let mut whole = command();
        whole.build();
        let page = match &self.subcommand {
            None => whole,
            Some(name) => {
                let names: Vec<String> = whole.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
                let unknown = || Error::unknown("subcommand", name, names.iter().map(String::as_str));
                whole.find_subcommand(name).ok_or_else(unknown)?.clone().display_name(format!("ckptmerge-{name}"))
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        print(&String::from_utf8(text)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
