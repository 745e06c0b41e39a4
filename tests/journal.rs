//! Journals of evaluations: what was torn, what is another run's, and what counts as the same.

use crate::model::Outcome;
use ckptmerge::search::{Journal, key};
use serde_json::json;

#[test]
fn a_torn_line_is_cut_off_and_the_rest_counts() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("j.jsonl");
    let setup = json!({"seed": 1});
    let (mut journal, lines) = Journal::open(&path, &setup)?;
    assert!(lines.is_empty());
    journal.append(&json!({"weights": [0.1], "values": [1.0 / 3.0]}))?;
    let busy = Journal::open(&path, &setup).expect_err("it is refused").to_string();
    assert!(busy.contains("another run"), "{busy}");
    drop(journal);
    let whole = std::fs::read_to_string(&path)?;
    for torn in ["{", "{\"weights\": [0.2], \"val"] {
        std::fs::write(&path, format!("{whole}{torn}"))?;
        let (mut journal, lines) = Journal::open(&path, &setup)?;
        assert_eq!(lines, [json!({"weights": [0.1], "values": [1.0 / 3.0]})]);
        journal.append(&json!(2))?;
        drop(journal);
        assert_eq!(std::fs::read_to_string(&path)?, format!("{whole}2\n"));
    }
    Ok(())
}

#[test]
fn another_setup_is_refused_by_name() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("j.jsonl");
    drop(Journal::open(&path, &json!({"seed": 1, "samples": 5}))?);
    let error = Journal::open(&path, &json!({"seed": 1, "samples": 6})).expect_err("it is refused").to_string();
    assert!(error.contains("samples: 5, not 6"), "{error}");
    let nested = folder.path().join("nested.jsonl");
    drop(Journal::open(&nested, &json!({"judged": {"seed": 1, "network": {"size": [8, 8]}}}))?);
    let other = Journal::open(&nested, &json!({"judged": {"seed": 1, "network": {"size": [8, 16]}}}));
    let error = other.expect_err("it is refused").to_string();
    assert!(error.contains("(size: [8,8], not [8,16]): name another"), "{error}");
    std::fs::write(&path, "a,b\n1,2\n")?;
    assert!(Journal::open(&path, &json!({})).expect_err("it is refused").to_string().contains("line 1"));
    std::fs::write(&path, "some text")?;
    assert!(Journal::open(&path, &json!({})).expect_err("it is refused").to_string().contains("no journal"));
    // A first line that was torn is begun anew.
    std::fs::write(&path, "{\"setup\":{\"se")?;
    assert!(Journal::open(&path, &json!({"seed": 1}))?.1.is_empty());
    Ok(())
}

#[test]
fn zeros_have_one_key() {
    assert_eq!(key(&[0.5, -0.0]), key(&[0.5, 0.0]));
    assert_ne!(key(&[0.1 + 0.2]), key(&[0.3]));
}
