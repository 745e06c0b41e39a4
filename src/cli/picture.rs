//! The options of commands that draw: which picture, and on what.

use super::report::Report;
use crate::plot::{ImageKind, Plot, Theme, render};
use clap::Args;
use std::path::{Path, PathBuf};

/// A picture that may be wanted.
#[derive(Args)]
pub(super) struct Picture {
    /// Draw a picture of it, as SVG or PNG by the file's ending
    #[arg(long, value_name = "FILE", value_parser = picture)]
    plot: Option<PathBuf>,
    /// What the picture is drawn on: light or dark
    #[arg(long, value_name = "THEME", default_value = "light", requires = "plot", value_parser = super::named(&Theme::NAMES))]
    theme: Theme,
}

fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    ImageKind::of(&path).map(|_| path).map_err(|error| error.to_string())
}

impl Picture {
    /// Where it is to go.
    pub(super) fn path(&self) -> Option<&Path> {
        self.plot.as_deref()
    }

    /// Whether there is anything to draw for.
    pub(super) fn is_wanted(&self) -> bool {
        self.plot.is_some()
    }

    /// Writes the picture, if one is wanted.
    pub(super) fn draw(&self, report: &Report, plot: &impl Plot) -> anyhow::Result<()> {
        let Some(path) = &self.plot else { return Ok(()) };
        let picture = render(plot, ImageKind::of(path)?, self.theme)?;
        report.write(path, &picture)
    }
}
