//! `ckptmerge completions`

use super::report::print;
use super::{Common, Run, command};
use clap::Args;
use clap_complete::Shell;
use std::process::ExitCode;

/// Print completions for a shell
#[derive(Args)]
#[command(after_help = "Example: ckptmerge completions bash > ~/.local/share/bash-completion/completions/ckptmerge")]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Run for Completions {
    fn run(self, _common: &Common) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command(), "ckptmerge", &mut script);
        print(&String::from_utf8(script)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
