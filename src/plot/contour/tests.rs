//! Planes of known losses, odd ones, and what is found in their pictures.

use super::bands::Lattice;
use super::levels::Bands;
use super::*;
use crate::plot::tests::{ALL, drawn, drawn_as};
use crate::plot::{Details, ImageKind, Place, Plot, Theme, Weight, interactive, render};

fn evenly(from: f64, to: f64, count: usize) -> Vec<f64> {
    (0..count).map(|index| from + (to - from) * index as f64 / (count - 1) as f64).collect()
}

fn panel(title: &str, xs: &[f64], ys: &[f64], loss: impl Fn(f64, f64) -> f64) -> Panel {
    let row = |y: &f64| xs.iter().map(|x| Some(loss(*x, *y))).collect();
    Panel { title: title.to_owned(), values: ys.iter().map(row).collect() }
}

/// A basin beside two models.
fn plane(points: usize, panels: usize) -> Contours {
    let (xs, ys) = (evenly(-0.5, 1.5, points), evenly(-0.5, 1.2, points));
    let basin = |index: usize| {
        let scale = 0.1f64.powi(index as i32);
        move |x: f64, y: f64| scale * (0.07 + (x - 0.5).powi(2) + 0.6 * (y - 0.4).powi(2))
    };
    let mark = |name: &str, at, kind| Mark { name: name.to_owned(), at, kind, beyond: false };
    Contours {
        title: "On the plane".to_owned(),
        x_label: "along u".to_owned(),
        y_label: "along v".to_owned(),
        unit: "denoising loss".to_owned(),
        panels: (0..panels).map(|index| panel(&format!("range {index}"), &xs, &ys, basin(index))).collect(),
        marks: vec![
            mark("start", (0.0, 0.0), MarkKind::Base),
            mark("first", (1.1, 0.0), MarkKind::Model),
            mark("second", (0.2, 0.9), MarkKind::Model),
            mark("both", (0.5, 0.4), MarkKind::Merge),
        ],
        arrows: vec![((0.0, 0.0), (1.1, 0.0)), ((0.0, 0.0), (0.2, 0.9))],
        xs,
        ys,
        ..Contours::default()
    }
}

fn rough(points: usize) -> Contours {
    let numbers = |x: usize, y: usize| ((x * 7919 + y * 104_729 + x * y * 31) % 1009) as f64 / 1009.0;
    let values = (0..points).map(|y| (0..points).map(|x| Some(numbers(x, y))).collect()).collect();
    let coordinates = evenly(0.0, 1.0, points);
    let panels = vec![Panel { title: String::new(), values }];
    Contours { xs: coordinates.clone(), ys: coordinates, panels, ..Contours::default() }
}

#[test]
fn a_plane_has_its_names_and_levels() -> Result<()> {
    let mut whole = plane(21, 1);
    whole.path = vec![(0.0, 0.0), (0.3, 0.5), (0.5, 0.4)];
    whole.marks.push(Mark { name: "off".to_owned(), at: (1.0, 1.0), kind: MarkKind::Merge, beyond: true });
    whole.marks.push(Mark { name: "outside".to_owned(), at: (7.0, 0.5), ..Mark::default() });
    let svg = drawn_as(&whole, &ALL)?;
    for text in [
        "On the plane",
        "along u",
        "along v",
        "denoising loss",
        "range 0",
        "start",
        "first",
        "second",
        "both",
        "off",
        "outside",
        "lowest: 0.0707",
        "0.0707",
        "marked model, off the plane",
        "task vector",
        "the search",
        "tuned model",
    ] {
        assert!(svg.contains(&format!("\n{text}")), "{text}");
    }
    assert!(!svg.contains("not known") && !svg.contains("not the same along"));
    for (kind, theme) in [ALL[0], ALL[3]] {
        assert_eq!(render(&whole, kind, theme)?, render(&whole.clone(), kind, theme)?, "{kind:?} {theme:?}");
    }
    whole.lowest = false;
    assert!(!drawn(&whole)?.contains("lowest"));
    Ok(())
}

/// The last region around a point is that of its number's band.
#[test]
fn a_number_lies_in_its_band() -> Result<()> {
    let within = |corners: &[(f64, f64)], (x, y): (f64, f64)| {
        let next = corners.iter().cycle().skip(1);
        let crossings = corners.iter().zip(next).filter(|((_, y0), (_, y1))| (*y0 > y) != (*y1 > y));
        crossings.filter(|((x0, y0), (x1, y1))| x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)).count() % 2 == 1
    };
    for (plane, smooth) in [(rough(14), false), (rough(14), true), (plane(21, 1), true), (plane(6, 1), false)] {
        let panel = &plane.panels[0];
        let bands = Bands::new(&mut panel.numbers().collect::<Vec<_>>(), Levels::Linear, 9, None)?;
        let lattice = Lattice::of(&plane, &panel.values);
        let lattice = if smooth { lattice.smooth() } else { lattice };
        let (regions, lines) = lattice.cut(&bands)?;
        let mut seen = std::collections::BTreeSet::new();
        for (y, row) in plane.ys.iter().zip(&panel.values).skip(1).take(plane.ys.len() - 2) {
            for (x, number) in plane.xs.iter().zip(row).skip(1).take(plane.xs.len() - 2) {
                let number = number.expect("all are known");
                let expected = bands.thresholds.partition_point(|threshold| *threshold <= number);
                let shown = regions.iter().rev().find(|region| within(&region.corners, (*x, *y)));
                assert_eq!(shown.map_or(0, |region| region.band), expected, "{number} at ({x}, {y})");
                seen.insert(expected);
            }
        }
        assert!(seen.len() > 3 && lines.len() > 4, "{seen:?}");
    }
    Ok(())
}

#[test]
fn lines_lie_where_the_level_is() -> Result<()> {
    // Uneven steps; the loss is a coordinate, so that a line's place is its level.
    let (xs, ys) = (vec![0.0, 0.1, 0.5, 2.0, 2.2], vec![-3.0, -1.0, 0.0, 0.5]);
    for across in [true, false] {
        let panel = panel("", &xs, &ys, |x, y| if across { x } else { y });
        let plane = Contours { xs: xs.clone(), ys: ys.clone(), panels: vec![panel], ..Contours::default() };
        let bands = Bands::new(&mut plane.panels[0].numbers().collect::<Vec<_>>(), Levels::Linear, 7, None)?;
        let lattice = Lattice::of(&plane, &plane.panels[0].values);
        for lattice in [lattice.smooth(), lattice] {
            let (_, lines) = lattice.cut(&bands)?;
            assert_eq!(lines.len(), bands.thresholds.len());
            for line in lines {
                let level = bands.thresholds[line.band - 1];
                let places = line.points.iter().map(|(x, y)| if across { *x } else { *y });
                assert!(places.into_iter().all(|place| (place - level).abs() < 1e-9), "{level}: {line:?}");
            }
        }
    }
    Ok(())
}

/// A parabola stays one between the points, however uneven, and the points of any lattice stay themselves.
#[test]
fn smooth_lattices_keep_their_points() {
    let (xs, ys) = (vec![-1.0, -0.7, 0.1, 0.2, 1.5], vec![0.0, 1.0, 1.5, 4.0]);
    let loss = |x: f64, y: f64| 0.3 + (x - 0.4) * (x + 0.1) - 2.0 * x * y + 0.7 * y * y;
    let plane = Contours { panels: vec![panel("", &xs, &ys, loss)], xs, ys, ..Contours::default() };
    let smooth = Lattice::of(&plane, &plane.panels[0].values).smooth();
    let least = plane.panels[0].numbers().fold(f64::INFINITY, f64::min);
    let most = plane.panels[0].numbers().fold(f64::NEG_INFINITY, f64::max);
    assert!(smooth.xs.len() > 100 && smooth.ys.len() > 100);
    for (row, y) in smooth.numbers.chunks(smooth.xs.len()).zip(&smooth.ys) {
        for (number, x) in row.iter().zip(&smooth.xs) {
            assert!((number - loss(*x, *y).clamp(least, most)).abs() < 1e-9, "({x}, {y}): {number}");
        }
    }
    let rough = rough(12);
    let smooth = Lattice::of(&rough, &rough.panels[0].values).smooth();
    for (y, row) in rough.ys.iter().zip(&rough.panels[0].values) {
        for (x, number) in rough.xs.iter().zip(row) {
            let at = |places: &[f64], place: f64| places.iter().position(|other| (other - place).abs() < 1e-12);
            let (column, row) = (at(&smooth.xs, *x).expect("it is there"), at(&smooth.ys, *y).expect("it is there"));
            let found = smooth.numbers[row * smooth.xs.len() + column];
            assert!(number.is_some_and(|number| (number - found).abs() < 1e-12), "({x}, {y})");
        }
    }
}

/// Every pixel of a field without marks has the colour of a band, or one between two of them: none is the paper's.
#[test]
fn fields_have_no_seams() -> Result<()> {
    for plane in [
        Contours { marks: Vec::new(), arrows: Vec::new(), lowest: false, ..plane(21, 1) },
        Contours { lowest: false, ..rough(9) },
    ] {
        let (_, field) = plane.laid_out_alone(0, ImageKind::Png, Theme::Light)?;
        let alone = Contours {
            title: String::new(),
            panels: vec![Panel { title: String::new(), ..plane.panels[0].clone() }],
            ..plane
        };
        let bytes = render(&alone, ImageKind::Png, Theme::Light)?;
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("it is a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("it has a size")];
        let width = reader.next_frame(&mut pixels).expect("it is whole").width as usize;
        let inside = |from: f64, to: f64| (from * 2.0) as usize + 2..(to * 2.0) as usize - 2;
        for y in inside(field.from.1, field.to.1) {
            for x in inside(field.from.0, field.to.0) {
                let pixel = &pixels[(y * width + x) * 3..][..3];
                assert!(pixel.iter().any(|channel| *channel < 160), "{pixel:?} at {x}, {y}");
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_known_is_covered_and_said() -> Result<()> {
    let mut plane = plane(21, 2);
    let hatches = |svg: &str| svg.matches("<line ").count();
    assert_eq!(hatches(&drawn(&plane)?), 0);
    plane.panels[1].values[3][4] = None;
    plane.panels[1].values[4][4] = Some(f64::INFINITY);
    plane.panels[1].values[20] = vec![Some(f64::NAN); 21];
    let svg = drawn_as(&plane, &ALL)?;
    assert!(svg.contains("not known") && hatches(&svg) > 10);
    // One number is a field of one colour, under a cover with a hole.
    plane.panels[1].values.iter_mut().flatten().skip(1).for_each(|cell| *cell = None);
    assert!(drawn(&plane)?.contains("everywhere 0.1556"));
    Ok(())
}

#[test]
fn panels_share_what_they_can() -> Result<()> {
    let count = |svg: &str, text: &str| svg.matches(&format!("\n{text}\n")).count();
    let svg = drawn(&plane(21, 5))?;
    assert_eq!((count(&svg, "along u"), count(&svg, "along v")), (2, 1));
    assert!(svg.len() < 300_000, "{}", svg.len());
    assert!(
        svg.contains("colours: denoising loss, in each panel from its own lowest number on") && svg.contains("\n× 10⁻")
    );
    // The first has the height of two and their titles, and is the only one with names, each with its halo.
    let fields =
        |count: usize| -> Result<Vec<Field>> { Ok(plane(3, count).laid_out(None, ImageKind::Svg, Theme::Light)?.1) };
    let five = fields(5)?;
    let height = |field: &Field| field.to.1 - field.from.1;
    assert!(height(&five[0]) > 2.0 * height(&five[1]) && five[0].to.0 < five[1].from.0);
    assert_eq!((five[1].from.1, five[4].to.1), (five[0].from.1, five[0].to.1));
    assert_eq!(count(&svg, "second"), 2);
    for panels in [1, 2, 3, 4, 5, 6, 7, 9, 12, 17] {
        let fields = fields(panels)?;
        assert_eq!(fields.len(), panels);
        for (index, a) in fields.iter().enumerate() {
            let ratio = (a.to.0 - a.from.0) / height(a) / (2.0 / 1.7);
            assert!((ratio - 1.0).abs() < 0.02, "lengths differ: {ratio}");
            for b in &fields[index + 1..] {
                let apart = a.to.0 < b.from.0 || b.to.0 < a.from.0 || a.to.1 < b.from.1 || b.to.1 < a.from.1;
                assert!(apart, "{panels}: {a:?} {b:?}");
            }
        }
        drawn_as(&plane(4, panels), &ALL[..1])?;
    }
    let shared = drawn(&Contours { shared: true, ..plane(21, 4) })?;
    assert!(!shared.contains("its own") && count(&shared, "denoising loss") == 1);
    assert!(fields(400).is_err_and(|error| error.to_string().contains("400 panels are too many")));
    Ok(())
}

#[test]
fn odd_planes_are_drawn_or_refused() -> Result<()> {
    let flat = drawn(&Contours {
        panels: vec![Panel { title: "same".to_owned(), values: vec![vec![Some(0.5); 2]; 2] }],
        ..plane(2, 1)
    })?;
    assert!(flat.contains("everywhere 0.5000") && !flat.contains("<polygon fill=\"#FDEA45"));
    let long = drawn(&Contours { xs: evenly(0.0, 10.0, 4), ..plane(4, 1) })?;
    assert!(long.contains("a length is not the same along both axes"));
    let cut = Contours { most: Some(0.2), ..plane(9, 1) };
    let svg = drawn(&cut)?;
    assert!(svg.contains("\n≥ 0.200\n") && svg.contains("the last colour is that of all numbers"));
    let odd = [f64::MAX, f64::MIN, 5e-324, 1e-300, -1.0, 0.0, 1e300];
    for a in odd {
        for b in odd {
            let values = vec![vec![Some(a), Some(b)], vec![None, Some(a)]];
            let panels = vec![Panel { title: "\u{0}<&".to_owned(), values }];
            match drawn_as(&Contours { panels, ..plane(2, 1) }, &ALL[..1]) {
                Ok(_) | Err(Error::Recipe(_)) => {}
                Err(other) => return Err(other),
            }
        }
    }
    for place in [f64::NAN, f64::INFINITY, f64::MAX, -1e300] {
        let mut marked = plane(3, 1);
        marked.marks[0].at = (place, 0.1);
        (marked.arrows, marked.path) = (vec![((0.0, 0.0), (place, place))], vec![(0.0, 0.0), (0.1, place)]);
        drawn(&marked)?;
    }
    let mut named = plane(5, 1);
    named.marks.iter_mut().for_each(|mark| mark.name = "w".repeat(10_000));
    named.marks = named.marks.iter().cycle().take(30).cloned().collect();
    (named.title, named.x_label) = ("w ".repeat(5000), "w".repeat(10_000));
    (named.y_label, named.unit, named.panels[0].title) =
        (named.x_label.clone(), named.x_label.clone(), named.x_label.clone());
    drawn(&named)?;

    let whole = plane(3, 1);
    let with = |values: Vec<Vec<Option<f64>>>| Contours {
        panels: vec![Panel { title: "p".to_owned(), values }],
        ..whole.clone()
    };
    let refused = [
        (Contours { xs: vec![0.0], ..whole.clone() }, "along x there are fewer than two"),
        (Contours { ys: Vec::new(), ..whole.clone() }, "along y there are fewer than two"),
        (Contours { xs: vec![0.0, 0.0, 1.0], ..whole.clone() }, "along x do not rise"),
        (Contours { ys: vec![0.0, f64::NAN, 1.0], ..whole.clone() }, "along y do not rise"),
        (Contours { ys: vec![f64::MIN, 0.0, f64::MAX], ..whole.clone() }, "along y do not rise"),
        (Contours { panels: Vec::new(), ..whole.clone() }, "there are no numbers"),
        (with(vec![vec![Some(1.0); 3]; 2]), "`p` has not 3 rows of 3 numbers"),
        (with(vec![vec![Some(1.0); 2]; 3]), "`p` has not 3 rows of 3 numbers"),
        (with(vec![vec![None; 3]; 3]), "`p` has no numbers"),
        (with(vec![vec![Some(f64::NAN); 3]; 3]), "`p` has no numbers"),
        (Contours { count: 1, ..whole.clone() }, "1 bands were asked for"),
        (Contours { most: Some(f64::NAN), ..whole.clone() }, "no end for a colour bar"),
        (Contours { most: Some(0.0), ..whole.clone() }, "all its numbers are 0 or more"),
    ];
    for (plane, why) in refused {
        match plane.scene(ImageKind::Svg, Theme::Light) {
            Err(Error::Recipe(said)) => {
                assert!(said.starts_with("the plane cannot be drawn") && said.contains(why), "{said}");
            }
            other => panic!("{why}: {:?}", other.map(|scene| scene.size())),
        }
    }
    Ok(())
}

#[test]
fn large_and_small_lattices_are_drawn() -> Result<()> {
    for points in [2, 3, 50, 201] {
        for levels in [Levels::Log, Levels::Linear] {
            let svg = drawn_as(&Contours { levels, ..plane(points, 1) }, &ALL[..1])?;
            assert!(svg.len() < 150_000, "{points}: {}", svg.len());
        }
    }
    let svg = drawn(&Contours { smooth: false, ..rough(60) })?;
    assert!(svg.len() < 2_000_000, "{}", svg.len());
    Ok(())
}

#[test]
fn a_page_has_all_in_it() -> Result<()> {
    let mut plane = plane(9, 2);
    plane.title = "<script>alert('x')</script> & \"y\"".to_owned();
    plane.notes = vec!["512 <images>".to_owned()];
    plane.panels[1].title = "</script><b>".to_owned();
    plane.panels[1].values[2][3] = Some(f64::NAN);
    let details = Details {
        weights: vec![Weight { name: "</script>".to_owned(), u: 0.5, v: -2.0 }],
        places: vec![Place { name: "<td>".to_owned(), at: (0.1, 0.2), distance: 3e-5, losses: vec![Some(0.25), None] }],
        facts: vec![("seed\u{1b}".to_owned(), "<7>".to_owned())],
    };
    let page = interactive(&plane, &details)?;
    assert_eq!(page, interactive(&plane, &details)?);
    // What is given is text everywhere; nothing is fetched.
    assert_eq!((page.matches("<script").count(), page.matches("</script>").count()), (2, 2));
    for text in [
        "&lt;script&gt;alert(&#39;x&#39;)",
        "512 &lt;images&gt;",
        "<td>&lt;td&gt;</td>",
        "<td>3.000 × 10⁻⁵</td><td>0.2500</td><td>–</td>",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("&lt;7&gt;") && !page.contains('\u{1b}') && page.contains("default-src 'none'"));
    let links: Vec<&str> = page.match_indices("://").map(|(at, _)| &page[at - 4..at + 13]).collect();
    assert!(links.iter().all(|link| *link == "http://www.w3.org"), "{links:?}");
    assert_eq!((page.matches("class=\"light\"").count(), page.matches("class=\"dark\"").count()), (2, 2));
    let data =
        page.split("id=\"numbers\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("it has data");
    let data: serde_json::Value = serde_json::from_str(data).expect("they are JSON");
    assert_eq!(data["weights"][0], serde_json::json!({"name": "</script>", "u": 0.5, "v": -2.0}));
    assert_eq!(data["xs"].as_array().map(Vec::len), Some(9));
    assert_eq!(
        (&data["panels"][1]["values"][2][3], &data["panels"][1]["values"][0].as_array().map(Vec::len)),
        (&serde_json::Value::Null, &Some(9))
    );
    let number = data["panels"][0]["values"][4][5].as_f64().expect("it is known");
    let exact = plane.panels[0].values[4][5].expect("it is known");
    assert!((number / exact - 1.0).abs() < 1e-6, "{number} for {exact}");
    // The field of the one panel's picture, as shares of it.
    let (scene, field) = plane.laid_out_alone(1, ImageKind::Svg, Theme::Dark)?;
    let left = data["panels"][1]["field"][0].as_f64().expect("it has a place");
    assert!((left - field.from.0 / scene.size().0).abs() < 1e-12 && left > 0.0, "{left}");

    let odd = Details { weights: vec![Weight { u: f64::NAN, ..Weight::default() }], ..Details::default() };
    assert!(interactive(&plane, &odd).is_err_and(|error| error.to_string().contains("not finite")));
    assert!(interactive(&Contours { panels: Vec::new(), ..plane.clone() }, &details).is_err());
    assert!(!interactive(&plane, &Details::default())?.contains("<h2>"));
    Ok(())
}
