//! Colours of numbers, of series and of what stands around them, on light and dark paper.
//!
//! Numbers from zero on: cividis, which looks the same to people with and without colour-blindness and keeps its order
//! in grey. Numbers of both signs: blue to red through white, or on dark paper sky blue to orange through near black.
//! Series: the eight colours of Okabe and Ito (<https://jfly.uni-koeln.de/color/>).

use super::Theme;

/// Red, green and blue in sRGB.
pub type Rgb = (u8, u8, u8);

/// Which numbers there are, and so how colours run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// From 0 to a largest number.
    #[default]
    Sequential,
    /// From a negative number through 0 to its opposite.
    Diverging,
}

/// What is not a number's or a series' colour.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    /// The background.
    pub paper: Rgb,
    /// Titles, labels and axes.
    pub ink: Rgb,
    /// Remarks.
    pub muted: Rgb,
    /// Lines of a grid.
    pub faint: Rgb,
    /// Cells without a number.
    pub empty: Rgb,
    /// Such cells where there are many.
    pub blank: Rgb,
    /// Hatches of such cells.
    pub hatch: Rgb,
}

impl Palette {
    /// The palette of a theme.
    #[must_use]
    pub fn of(theme: Theme) -> Self {
        match theme {
            Theme::Light => Self {
                paper: (255, 255, 255),
                ink: (26, 26, 26),
                muted: (89, 89, 89),
                faint: (222, 222, 222),
                empty: (216, 216, 216),
                blank: (244, 244, 244),
                hatch: (165, 165, 165),
            },
            Theme::Dark => Self {
                paper: (24, 24, 27),
                ink: (236, 236, 236),
                muted: (176, 176, 180),
                faint: (58, 58, 64),
                empty: (66, 66, 72),
                blank: (64, 64, 70),
                hatch: (104, 104, 112),
            },
        }
    }
}

/// The colour of a share of the largest number: 0 to 1, or −1 to 1 if diverging. Shares beyond have the end's colour.
#[must_use]
pub fn of_share(share: f64, scale: Scale, theme: Theme) -> Rgb {
    let share = if share.is_nan() { 0.0 } else { share };
    match (scale, theme) {
        (Scale::Sequential, _) => rgb(colorous::CIVIDIS, share.clamp(0.0, 1.0)),
        // colorous' map begins with red.
        (Scale::Diverging, Theme::Light) => rgb(colorous::RED_BLUE, 0.5 - share.clamp(-1.0, 1.0) / 2.0),
        (Scale::Diverging, Theme::Dark) => {
            let [middle, half, end] = if share < 0.0 { DARK_NEGATIVE } else { DARK_POSITIVE };
            let place = share.abs().min(1.0) * 2.0;
            if place < 1.0 { mixed(middle, half, place) } else { mixed(half, end, place - 1.0) }
        }
    }
}

/// The colours of 0, half and all of the way to the end, on dark paper.
const DARK_NEGATIVE: [Rgb; 3] = [(38, 38, 43), (44, 116, 184), (160, 216, 255)];
const DARK_POSITIVE: [Rgb; 3] = [(38, 38, 43), (190, 92, 26), (255, 204, 140)];

fn rgb(map: colorous::Gradient, share: f64) -> Rgb {
    let colorous::Color { r, g, b } = map.eval_continuous(share);
    (r, g, b)
}

pub(super) fn mixed(from: Rgb, to: Rgb, share: f64) -> Rgb {
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * share).round() as u8;
    (mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// Black or white, whichever can be read better on a colour. The worse of all colours still has a contrast of 4.58.
#[must_use]
pub fn ink_on(fill: Rgb) -> Rgb {
    let (black, white) = ((0, 0, 0), (255, 255, 255));
    if contrast(black, fill) >= contrast(white, fill) { black } else { white }
}

/// The contrast of two colours, 1 to 21, as the Web Content Accessibility Guidelines 2.2 define it; text needs 4.5.
#[must_use]
pub fn contrast(a: Rgb, b: Rgb) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

fn luminance((r, g, b): Rgb) -> f64 {
    let linear = |channel: u8| {
        let share = f64::from(channel) / 255.0;
        if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
    };
    0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
}

const BLUE: Rgb = (0, 114, 178);
const VERMILION: Rgb = (213, 94, 0);
const GREEN: Rgb = (0, 158, 115);
const ORANGE: Rgb = (230, 159, 0);
const SKY: Rgb = (86, 180, 233);
const PURPLE: Rgb = (204, 121, 167);
const YELLOW: Rgb = (240, 228, 66);

/// The colour of series `index` of `count`. More series than there are distinct colours take theirs from cividis, by
/// their order.
#[must_use]
pub fn of_series(index: usize, count: usize, theme: Theme) -> Rgb {
    let (colours, shares) = match theme {
        Theme::Light => ([BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, (0, 0, 0), YELLOW], 0.0..0.9),
        Theme::Dark => ([SKY, ORANGE, GREEN, VERMILION, YELLOW, PURPLE, (255, 255, 255), BLUE], 0.25..1.0),
    };
    match colours.get(index) {
        Some(colour) if count <= colours.len() => *colour,
        _ => {
            let share = index as f64 / count.saturating_sub(1).max(1) as f64;
            rgb(colorous::CIVIDIS, shares.start + share.min(1.0) * (shares.end - shares.start))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> impl Iterator<Item = f64> {
        (-1000..=1000).map(|step| f64::from(step) / 1000.0)
    }

    #[test]
    fn numbers_can_be_read_on_every_colour() {
        for theme in [Theme::Light, Theme::Dark] {
            for scale in [Scale::Sequential, Scale::Diverging] {
                for share in shares().chain([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300]) {
                    let fill = of_share(share, scale, theme);
                    assert!(contrast(ink_on(fill), fill) >= 4.5, "{theme:?} {scale:?} {share}: {fill:?}");
                }
            }
            let palette = Palette::of(theme);
            for ink in [palette.ink, palette.muted] {
                assert!(contrast(ink, palette.paper) >= 4.5, "{theme:?}");
            }
            assert!(contrast(palette.ink, palette.empty) >= 4.5, "{theme:?}");
        }
    }

    #[test]
    fn colours_keep_the_order_of_numbers_in_grey() {
        for theme in [Theme::Light, Theme::Dark] {
            let grey = |scale, share| luminance(of_share(share, scale, theme));
            for share in shares().filter(|share| *share >= 0.02) {
                let before = share - 0.02;
                assert!(grey(Scale::Sequential, share) > grey(Scale::Sequential, before), "{theme:?} {share}");
                // The middle, which is near the colour of the paper, may be as light as what is next to it.
                for sign in [1.0, -1.0].into_iter().filter(|_| share > 0.2) {
                    let further = grey(Scale::Diverging, sign * share) - grey(Scale::Diverging, sign * before);
                    assert_eq!(further > 0.0, theme == Theme::Dark, "{theme:?} {share}");
                }
            }
        }
    }

    #[test]
    fn series_have_colours_of_their_own() {
        for theme in [Theme::Light, Theme::Dark] {
            for count in [1, 8, 9, 40] {
                let colours: std::collections::BTreeSet<_> = (0..count).map(|i| of_series(i, count, theme)).collect();
                assert_eq!(colours.len(), count);
                let paper = Palette::of(theme).paper;
                for colour in colours.into_iter().filter(|colour| *colour != YELLOW) {
                    assert!(contrast(colour, paper) > 1.5, "{theme:?} {colour:?}");
                }
            }
            // A number beyond the count is no reason to fail.
            assert_eq!(of_series(9, 0, theme), of_series(9, 1, theme));
        }
    }
}
