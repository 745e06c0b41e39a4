//! The report: one page of HTML with all pictures in it, for screens of any size, light and dark.

use super::story::{Picture, Section, Story, Table};
use crate::error::Error;
use crate::plot::escaped;
use std::path::Path;

const STYLE: &str = "
:root { color-scheme: light dark; --paper: #fff; --ink: #1a1a1a; --muted: #595959; --faint: #ececec; --bar: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #18181b; --ink: #ececec; --muted: #b0b0b4; --faint: #2a2a2f; --bar: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p { margin: .6rem 0; } .muted, figcaption { color: var(--muted); font-size: .9rem; }
pre { background: var(--faint); padding: .6rem .8rem; border-radius: .4rem; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre code { display: block; padding-left: 1.2em; text-indent: -1.2em; }
details summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
@media (max-width: 40rem) { .wide { overflow-x: auto; } .wide img { max-width: none; } }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
.grids figure { margin: 0; } .grids img { width: 100%; image-rendering: pixelated; border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; color: var(--muted); font-weight: normal; }
td, th { padding: .3rem .5rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--faint); }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
.bar { height: .35rem; margin-top: .2rem; background: var(--bar); border-radius: .2rem; }
";

/// More commands than this are folded.
const COMMANDS_SHOWN: usize = 3;

/// The whole page.
pub(super) fn html(story: &Story<'_>) -> Result<String, Error> {
    let (models, demo) = (story.models.folder.display().to_string(), story.demo);
    let sections = story.sections.iter().map(|part| section(story, part)).collect::<Result<String, _>>()?;
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Decouple, then merge</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Decouple, then merge: diffusion models of digits</h1>\n\
         <p>Denoising at different timesteps is a family of different tasks. Decouple-then-Merge (Ma et al., CVPR 2025) tunes copies of a \
         model on a range of timesteps each, and merges them into one that costs no more than the model it began as. This page \
         was written by <code>ckptmerge demo</code> of version {}, with the models of {}; every number is of this run.</p>\n\
         {sections}\
         <p class=\"muted\">{} images of each model, {} steps, seed {}. Pictures for dark screens are of the same commands with \
         <code>--theme dark</code>.</p>\n\
         </body>\n</html>\n",
        env!("CARGO_PKG_VERSION"),
        escaped(&models),
        demo.images,
        demo.steps,
        demo.seed,
    ))
}

fn section(story: &Story<'_>, section: &Section) -> Result<String, Error> {
    let mut html = format!("<section>\n<h2>{}</h2>\n", escaped(section.title));
    let commands: String = section.commands.iter().map(|line| format!("<code>{}</code>", escaped(line))).collect();
    match section.commands.len() {
        0 => {}
        1..=COMMANDS_SHOWN => html += &format!("<pre>{commands}</pre>\n"),
        count => {
            html += &format!("<details>\n<summary>{count} commands</summary>\n<pre>{commands}</pre>\n</details>\n")
        }
    }
    section.tables.iter().for_each(|shown| html += &table(shown));
    for sentence in &section.sentences {
        html += &format!("<p>{}</p>\n", escaped(sentence));
    }
    for remark in &section.remarks {
        html += &format!("<p class=\"muted\">{}</p>\n", escaped(remark));
    }
    // Many small pictures lie beside each other.
    let (grids, wide): (Vec<_>, Vec<_>) = section.pictures.iter().partition(|picture| picture.dark.is_none());
    for picture in wide {
        html += &figure(story, picture)?;
    }
    if !grids.is_empty() {
        html += "<div class=\"grids\">\n";
        for picture in grids {
            html += &figure(story, picture)?;
        }
        html += "</div>\n";
    }
    Ok(html + "</section>\n")
}

fn table(table: &Table) -> String {
    let cells = |tag: &str, cells: &[String], bar: Option<f64>| {
        let bar =
            bar.map(|share| format!("<div class=\"bar\" style=\"width:{:.1}%\"></div>", 100.0 * share.clamp(0.0, 1.0)));
        let cell = |(index, cell): (usize, &String)| {
            let bar = bar.as_deref().filter(|_| index == 0).unwrap_or_default();
            format!("<{tag}>{}{bar}</{tag}>", escaped(cell))
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    let rows: String = table.rows.iter().map(|(row, bar)| cells("td", row, *bar)).collect();
    format!("<table>\n{}{rows}</table>\n", cells("th", &table.headings, None))
}

fn figure(story: &Story<'_>, picture: &Picture) -> Result<String, Error> {
    let source = |file: &Path| -> Result<String, Error> {
        let path = story.place(file);
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let kind = if file.extension().is_some_and(|ending| ending == "svg") { "image/svg+xml" } else { "image/png" };
        Ok(format!("data:{kind};base64,{}", base64(&bytes)))
    };
    let caption = escaped(&picture.caption);
    let image = format!("<img src=\"{}\" alt=\"{caption}\">", source(&picture.file)?);
    let image = match &picture.dark {
        Some(dark) => {
            let dark = format!("<source media=\"(prefers-color-scheme: dark)\" srcset=\"{}\">", source(dark)?);
            format!("<picture>{dark}{image}</picture>")
        }
        None => image,
    };
    let class = if picture.dark.is_some() { " class=\"wide\"" } else { "" };
    Ok(format!("<figure{class}>{image}<figcaption>{caption}</figcaption></figure>\n"))
}

/// RFC 4648, §4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits =
            three.iter().enumerate().fold(0u32, |bits, (index, byte)| bits | u32::from(*byte) << (16 - 8 * index));
        for letter in 0..4 {
            let filled = letter <= three.len();
            text.push(if filled { char::from(LETTERS[(bits >> (18 - 6 * letter)) as usize & 63]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;
    use crate::plot::escaped;

    /// RFC 4648, §10.
    #[test]
    fn bytes_become_the_letters_of_the_standard() {
        let words = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let letters = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(words.map(|word| base64(word.as_bytes())), letters);
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    #[test]
    fn texts_cannot_leave_their_place() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
