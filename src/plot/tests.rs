//! Pictures of ordinary, large and odd tables.

use super::*;
use crate::error::Result;

fn names(count: usize, prefix: &str) -> Vec<String> {
    (0..count).map(|index| format!("{prefix}{index}")).collect()
}

fn heatmap(rows: usize, columns: usize, scale: Scale) -> Heatmap {
    let cell = |row: usize, column: usize| {
        let number = ((row * 7 + column * 3) % 11) as f64 / 10.0;
        Some(if scale == Scale::Diverging { number * 2.0 - 1.0 } else { number })
    };
    Heatmap {
        title: "One against another".to_owned(),
        unit: "‖a − b‖ / ‖b‖".to_owned(),
        scale,
        limit: None,
        rows: names(rows, "model.layers."),
        columns: names(columns, "self_attn.q_proj.weight."),
        cells: (0..rows).map(|row| (0..columns).map(|column| cell(row, column)).collect()).collect(),
    }
}

fn boxes(groups: usize, series: usize) -> BoxPlot {
    let five = |group: usize, index: usize| {
        let middle = 1.0 + ((group * 5 + index * 3) % 7) as f64;
        Some(FiveNumbers { low: middle * 0.5, lower: middle * 0.8, median: middle, upper: middle * 1.2, high: 12.0 })
    };
    let named = |index| (format!("model-{index}.safetensors"), (0..groups).map(|g| five(g, index)).collect());
    BoxPlot {
        title: "Task vectors".to_owned(),
        unit: "|τ|".to_owned(),
        groups: names(groups, "layers."),
        series: (0..series).map(named).collect(),
        log: false,
    }
}

fn histogram(bins: usize, series: usize) -> Histogram {
    let counts = |index: usize| (0..bins).map(|bin| ((bin * 13 + index * 5) % 50) as u64).collect();
    Histogram {
        title: "Task vectors".to_owned(),
        unit: "τ".to_owned(),
        edges: (0..=bins).map(|edge| edge as f64 / bins as f64 - 0.5).collect(),
        series: (0..series).map(|index| (format!("model {index}"), counts(index))).collect(),
        log_counts: false,
    }
}

/// A loss that falls, with noise on it.
fn lines(points: usize, series: usize) -> Lines {
    let noise = |index: usize| ((index * 7919 + 13) % 101) as f64 / 101.0;
    let point =
        |at: usize, of: usize| (at as f64, 0.03 + 0.9 / (1.0 + at as f64 * 0.01 * (of + 1) as f64) * (0.5 + noise(at)));
    let named = |of: usize| Series { name: format!("run {of}"), points: (0..points).map(|at| point(at, of)).collect() };
    Lines {
        title: "Fine-tuning on [0, 250)".to_owned(),
        x_label: "step".to_owned(),
        y_label: "loss".to_owned(),
        series: (0..series).map(named).collect(),
        log_y: false,
        smoothing: None,
    }
}

pub(super) const ALL: [(ImageKind, Theme); 4] = [
    (ImageKind::Svg, Theme::Light),
    (ImageKind::Png, Theme::Light),
    (ImageKind::Svg, Theme::Dark),
    (ImageKind::Png, Theme::Dark),
];

/// Draws it as both kinds; that no text is outside, and that the files are whole.
pub(super) fn drawn(plot: &impl Plot) -> Result<String> {
    drawn_as(plot, &[(ImageKind::Svg, Theme::Light), (ImageKind::Png, Theme::Dark)])
}

pub(super) fn drawn_as(plot: &impl Plot, kinds: &[(ImageKind, Theme)]) -> Result<String> {
    let mut text = String::new();
    for &(kind, theme) in kinds {
        let scene = plot.scene(kind, theme)?;
        assert_eq!(scene.texts_outside(), [""; 0], "{:?}", scene.size());
        let (width, height) = scene.pixels();
        assert!(scene.size().0 <= LARGEST && scene.size().1 <= LARGEST, "{:?}", scene.size());
        let bytes = render(plot, kind, theme)?;
        match kind {
            ImageKind::Png => check_png(&bytes, (width, height), theme),
            ImageKind::Svg => {
                text = String::from_utf8(bytes).expect("SVG is text");
                let (wide, high) = scene.size();
                let start = format!("<svg width=\"{wide}\" height=\"{high}\" viewBox=\"0 0 {width} {height}\"");
                assert!(text.starts_with(&start) && text.ends_with("</svg>\n"), "{}", &text[..200]);
                assert!(text.len() < 15_000_000, "{}", text.len());
            }
        }
    }
    Ok(text)
}

fn check_png(bytes: &[u8], size: (u32, u32), theme: Theme) {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("it is a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it has a size")];
    let info = reader.next_frame(&mut pixels).expect("it is whole");
    assert_eq!((info.width, info.height), size);
    let palette = Palette::of(theme);
    let count = |(r, g, b): Rgb| pixels.chunks(3).filter(|pixel| *pixel == [r, g, b]).count();
    assert!(count(palette.ink) > 10, "there is no ink");
    assert!(count(palette.paper) > pixels.len() / 3 / 20, "there is no paper");
    let others =
        pixels.chunks(3).filter(|pixel| ![palette.ink, palette.paper].contains(&(pixel[0], pixel[1], pixel[2])));
    assert!(others.count() > 100, "there is no colour");
}

#[test]
fn a_heatmap_has_every_label_and_number() -> Result<()> {
    let map = Heatmap {
        title: "changes".to_owned(),
        unit: "share".to_owned(),
        rows: vec!["layers.0".to_owned(), "a < b".to_owned()],
        columns: vec!["weight".to_owned()],
        cells: vec![vec![Some(0.5)], vec![None]],
        ..Heatmap::default()
    };
    let svg = drawn(&map)?;
    for text in ["changes", "share", "layers.0", "a &lt; b", "weight", "0.500", "–\n", "not defined"] {
        assert!(svg.contains(text), "{text}");
    }
    let svg = drawn(&heatmap(3, 3, Scale::Diverging))?;
    assert!(svg.contains("−1.00\n") && !svg.contains("not defined") && !svg.contains(" opacity=\"1\""));
    Ok(())
}

#[test]
fn tables_of_any_size_are_pictures_of_some_size() -> Result<()> {
    for (rows, columns) in [(1, 1), (2, 2), (4, 4), (32, 9), (200, 12), (12, 200), (10, 500), (1, 3000), (700, 1)] {
        for scale in [Scale::Sequential, Scale::Diverging] {
            let kinds = if rows == 32 || rows == 4 { ALL.to_vec() } else { ALL[..2].to_vec() };
            let svg = drawn_as(&heatmap(rows, columns, scale), &kinds)?;
            assert!(svg.contains("model.layers.0\n"), "{rows}×{columns}");
            assert!(!svg.contains("the one farthest from 0 of"), "{rows}×{columns}");
        }
    }
    let large = heatmap(1000, 1000, Scale::Diverging);
    assert!(drawn(&large)?.contains("each cell is the one farthest from 0 of 4×4"));
    let mut long = heatmap(9000, 2, Scale::Sequential);
    long.rows.iter_mut().for_each(|name| name.insert_str(0, "base_model.model.a.rather.long.name.of.a.layer."));
    assert!(drawn(&long)?.contains("each cell is the one farthest from 0 of 3×1"));
    Ok(())
}

#[test]
fn odd_tables_are_drawn_or_refused() -> Result<()> {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, -0.0, 5e-324, 1.0];
    let labels = ["", "\u{1b}[31m\u{0}\n", "\u{202e}abc", "層の名前", "<&\"'>", "a", "a", "é", " "];
    for scale in [Scale::Sequential, Scale::Diverging] {
        let mut map = heatmap(9, 9, scale);
        map.rows = labels.map(str::to_owned).to_vec();
        map.columns = vec!["x".repeat(10_000); 9];
        map.columns[0] = "層".repeat(10_000);
        map.title = "A title of many words ".repeat(500);
        map.unit = "界".repeat(1000);
        map.cells = vec![odd.map(Some).to_vec(); 9];
        map.cells.iter_mut().for_each(|row| row.retain(|cell| cell.is_none_or(|n| n.abs() != f64::MAX)));
        let svg = drawn_as(&map, &ALL)?;
        assert!(svg.contains("infinite") && svg.contains("not defined") && !svg.contains('\u{1b}'));
        assert!(svg.contains("層の名前\n"), "what the font lacks is text in SVG");
        // Each alone: constants, nothing but NaN, and so on; and rows that are too short.
        for number in odd {
            for limit in [None, Some(1.0), Some(f64::MAX), Some(5e-324)] {
                map.limit = limit;
                map.cells = vec![vec![Some(number); 3]; 4];
                match drawn_as(&map, &[(ImageKind::Svg, Theme::Dark)]) {
                    Ok(_) => {}
                    Err(Error::Recipe(why)) => assert!(why.contains("no axis reaches"), "{why}"),
                    Err(other) => return Err(other),
                }
            }
        }
        map.limit = None;
        map.cells = vec![vec![None; 9]; 9];
        assert!(drawn(&map)?.contains("not defined"));
        map.cells = Vec::new();
        drawn(&map)?;
    }
    let refused = |map: &Heatmap| match drawn(map) {
        Err(Error::Recipe(why)) => why.starts_with("the heatmap cannot be drawn: "),
        _ => false,
    };
    let whole = heatmap(2, 2, Scale::Sequential);
    assert!(refused(&Heatmap { rows: Vec::new(), cells: Vec::new(), ..whole.clone() }));
    assert!(refused(&Heatmap { columns: Vec::new(), cells: Vec::new(), ..whole.clone() }));
    assert!(refused(&Heatmap { rows: names(1, ""), ..whole.clone() }));
    for limit in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(&Heatmap { limit: Some(limit), ..whole.clone() }), "{limit}");
    }
    Ok(())
}

#[test]
fn numbers_beyond_the_colours_are_pointed_out() -> Result<()> {
    let mut map = heatmap(2, 2, Scale::Sequential);
    assert!(!drawn(&map)?.contains("have"));
    map.cells[0][0] = Some(-0.5);
    assert!(drawn(&map)?.contains("numbers below 0 have the colour of 0"));
    map.limit = Some(0.1);
    assert!(drawn(&map)?.contains("numbers beyond an end of the colour"));
    Ok(())
}

#[test]
fn boxes_of_any_number_are_drawn() -> Result<()> {
    for (groups, series) in [(1, 1), (1, 4), (32, 4), (200, 4), (1000, 2), (3, 60), (1, 1000)] {
        let svg = drawn(&boxes(groups, series))?;
        assert!(svg.contains("layers.0\n") && svg.contains("|τ|\n"), "{groups} {series}");
        assert!(svg.contains("model-0.safetensors\n"), "{groups} {series}");
        assert!(!svg.contains("is shown"));
    }
    assert!(drawn(&boxes(20_000, 2))?.contains("groups is shown"));
    let mut plot = boxes(4, 2);
    plot.log = true;
    assert!(drawn(&plot)?.contains("|τ|"));
    plot.series[0].1[0] = Some(FiveNumbers { low: -1.0, ..FiveNumbers::default() });
    plot.series[0].1[1] = Some(FiveNumbers { low: f64::NEG_INFINITY, ..FiveNumbers::default() });
    let svg = drawn(&plot)?;
    assert!(svg.contains("at the axis&apos; lower end") && svg.contains("left out"), "{svg}");
    Ok(())
}

#[test]
fn odd_boxes_are_drawn_or_refused() -> Result<()> {
    let all =
        |number: f64| Some(FiveNumbers { low: number, lower: number, median: number, upper: number, high: number });
    for number in [0.0, -0.0, 1.0, -3.0, 5e-324, f64::MAX, f64::MIN, f64::NAN, f64::INFINITY] {
        for log in [false, true] {
            let mut plot = boxes(3, 2);
            plot.log = log;
            plot.series.iter_mut().for_each(|(_, boxes)| *boxes = vec![all(number), None]);
            let drawn = drawn_as(&plot, &[(ImageKind::Svg, Theme::Light)]);
            let may_fail = !number.is_finite() || number.abs() > 1e300 || (log && number < 1e-300);
            assert!(drawn.is_ok() || (may_fail && matches!(drawn, Err(Error::Recipe(_)))), "{number} {log}");
        }
    }
    let mut plot = boxes(3, 2);
    plot.groups = names(2, "");
    assert!(drawn(&plot).is_err(), "more boxes than groups");
    assert!(drawn(&boxes(0, 1)).is_err() && drawn(&boxes(1, 0)).is_err() && drawn(&boxes(1, 5000)).is_err());
    plot.groups = vec!["\u{0}".repeat(10_000); 3];
    plot.title = "w".repeat(10_000);
    plot.unit = plot.title.clone();
    plot.series[0].0 = plot.title.clone();
    drawn(&plot)?;
    Ok(())
}

#[test]
fn histograms_are_drawn_or_refused() -> Result<()> {
    for (bins, series) in [(1, 1), (50, 1), (50, 4), (64, 12), (100_000, 2), (1241, 1)] {
        for log_counts in [false, true] {
            let svg = drawn(&Histogram { log_counts, ..histogram(bins, series) })?;
            assert!(svg.contains("model 0\n") && svg.contains("τ\n") && svg.contains("count"), "{bins} {series}");
            assert_eq!(svg.contains("is the sum of"), bins > 620);
        }
    }
    let whole = histogram(3, 1);
    let refused = |edges: &[f64]| match drawn(&Histogram { edges: edges.to_vec(), ..whole.clone() }) {
        Err(Error::Recipe(why)) => why.contains("histogram") || why.contains("axis"),
        _ => false,
    };
    for edges in [&[][..], &[1.0], &[0.0, 1.0], &[0.0, 1.0, 1.0, 2.0], &[0.0, 1.0, f64::NAN, 3.0]] {
        assert!(refused(edges), "{edges:?}");
    }
    assert!(refused(&[f64::MIN, 0.0, 1.0, f64::MAX]) && refused(&[0.0, 1.0, 2.0, f64::INFINITY]));
    let counts = |number| vec![("\u{7}".to_owned(), vec![number; 3])];
    for number in [0, 1, u64::MAX] {
        for log_counts in [false, true] {
            drawn(&Histogram { series: counts(number), log_counts, ..whole.clone() })?;
        }
    }
    drawn(&Histogram { edges: vec![1.0, 1.0 + 1e-15, 1.0 + 2e-15, 1.0 + 3e-15], ..whole })?;
    Ok(())
}

#[test]
fn lines_of_any_length_are_drawn() -> Result<()> {
    for (points, series) in [(1, 1), (2, 3), (500, 1), (400, 4), (200_000, 2), (10, 60)] {
        for (log_y, smoothing) in [(false, None), (true, Some(0.98)), (false, Some(0.0))] {
            let svg = drawn(&Lines { log_y, smoothing, ..lines(points, series) })?;
            assert!(svg.contains("run 0\n") && svg.contains("step") && svg.contains("loss"), "{points} {series}");
            assert_eq!(svg.contains("moving averages"), smoothing.is_some());
            let (paths, of_each) = (svg.matches("<polyline").count(), if smoothing.is_some() { 2 } else { 1 });
            assert_eq!(paths, if points > 1 { series * of_each } else { 0 }, "{points} {series}");
            assert!(svg.len() < 1_000_000, "{}", svg.len());
        }
    }
    Ok(())
}

#[test]
fn odd_lines_are_drawn_or_refused() -> Result<()> {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, 0.0, -0.0, -3.0, 5e-324, 1e-300, 1.0];
    let mut plot = lines(3, 2);
    for number in odd {
        for log_y in [false, true] {
            for points in [vec![(0.0, number)], vec![(0.0, number); 3], vec![(0.0, 1.0), (1.0, number), (2.0, 2.0)]] {
                for smoothing in [None, Some(0.9)] {
                    plot.series[0].points.clone_from(&points);
                    plot.series.truncate(1);
                    match drawn(&Lines { log_y, smoothing, ..plot.clone() }) {
                        Ok(_) => {}
                        Err(Error::Recipe(why)) => {
                            assert!(why.contains("no numbers") || why.contains("no axis"), "{why}")
                        }
                        Err(other) => return Err(other),
                    }
                }
            }
        }
    }
    plot.series[0].points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.0), (3.0, f64::INFINITY), (4.0, 2.0)];
    let svg = drawn(&Lines { log_y: true, ..plot.clone() })?;
    assert!(svg.contains("2 numbers that are not finite") && svg.contains("at the axis&apos; lower end"), "{svg}");
    let refused = |plot: &Lines, says: &str| match drawn(plot) {
        Err(Error::Recipe(why)) => why.starts_with("the lines cannot be drawn: ") && why.contains(says),
        _ => false,
    };
    assert!(refused(&Lines { series: Vec::new(), ..plot.clone() }, "no numbers"));
    for weight in [1.0, -0.1, f64::NAN] {
        assert!(refused(&Lines { smoothing: Some(weight), ..plot.clone() }, "share"), "{weight}");
    }
    plot.series[0].points = vec![(1.0, 1.0), (0.0, 1.0)];
    assert!(refused(&plot, "not in order"));
    plot.series[0].points = vec![(0.0, 1.0), (f64::NAN, 1.0), (2.0, 1.0)];
    assert!(refused(&plot, "not in order"));
    plot.series[0] = Series { name: "\u{0}".repeat(10_000), points: vec![(0.0, 1.0), (1e308, 2.0)] };
    plot.title = "w".repeat(10_000);
    (plot.x_label, plot.y_label) = (plot.title.clone(), plot.title.clone());
    drawn(&plot)?;
    Ok(())
}

#[test]
fn endings_tell_the_kind() {
    for (path, kind) in [("a.svg", ImageKind::Svg), ("b/c.PNG", ImageKind::Png), ("a.b.Svg", ImageKind::Svg)] {
        assert_eq!(ImageKind::of(path.as_ref()).ok(), Some(kind));
    }
    for path in ["a", "a.pdf", "svg", ".png", "a.svg.gz", ""] {
        let error = ImageKind::of(path.as_ref()).expect_err(path).to_string();
        assert!(error.starts_with("pictures are .svg or .png"), "{error}");
    }
}
