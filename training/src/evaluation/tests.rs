//! Against alpaca_eval 0.6.6 (scripts/make_winrate_fixture.py), and tables by hand.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;

/// In percentage points. The steps are liblinear's, so only rounding is left.
const TOLERANCE: f64 = 1e-6;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/winrate")
        .join(name)
}

fn expected() -> Value {
    serde_json::from_str(&fs::read_to_string(fixture("expected.json")).unwrap()).unwrap()
}

#[track_caller]
fn close(found: f64, expected: &Value, what: &str) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() < TOLERANCE,
        "{what}: {found} is not {expected}"
    );
}

#[test]
fn alpaca_eval_gives_the_same_numbers() {
    let gamed = Gamed::read(&fixture("df_gamed.csv")).unwrap();
    let all = expected();
    let cases = all["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 6);
    for (name, expected) in cases {
        let annotations = Annotations::read(&fixture(name)).unwrap();
        let report = win_rate_report(&annotations, Some(&gamed));
        let rate = &report.win_rate;
        close(rate.win_rate, &expected["win_rate"], name);
        let error = rate.standard_error.unwrap();
        close(error, &expected["standard_error"], name);
        close(rate.discrete_win_rate, &expected["discrete_win_rate"], name);
        for (count, key) in [
            (rate.n_wins, "n_wins"),
            (rate.n_wins_base, "n_wins_base"),
            (rate.n_draws, "n_draws"),
            (rate.n_total, "n_total"),
        ] {
            assert_eq!(Some(count as f64), expected[key].as_f64(), "{name}: {key}");
        }
        let length = report.mean_length.unwrap().floor();
        assert_eq!(Some(length), expected["avg_length"].as_f64(), "{name}");
        assert_eq!(report.control, LengthControl::LengthControlledV1);
        let controlled = report.length_controlled.unwrap();
        close(
            controlled.win_rate,
            &expected["length_controlled_winrate"],
            name,
        );
        let error = controlled.standard_error.unwrap();
        close(error, &expected["lc_standard_error"], name);
    }
}

#[test]
fn without_the_gamed_baselines_it_is_the_minimal_formula() {
    for (name, expected) in expected()["cases"].as_object().unwrap() {
        let annotations = Annotations::read(&fixture(name)).unwrap();
        let report = win_rate_report(&annotations, None);
        assert_eq!(report.control, LengthControl::LengthControlledMinimal);
        let found = report.length_controlled.unwrap();
        close(found.win_rate, &expected["minimal"], name);
        let error = found.standard_error.unwrap();
        close(error, &expected["minimal_standard_error"], name);
    }
}

fn rows(rows: &[Value]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("annotations.json");
    fs::write(&path, Value::from(rows).to_string()).unwrap();
    (dir, path)
}

fn row(preference: Value, first: &str, second: &str) -> Value {
    json!({"instruction": "a", "output_1": first, "output_2": second, "generator_1": "b",
        "generator_2": "m", "annotator": "j", "preference": preference})
}

#[test]
fn what_has_no_number_says_why() {
    let reason = |given: &[Value]| {
        let (_dir, path) = rows(given);
        let annotations = Annotations::read(&path).unwrap();
        win_rate_report(&annotations, None)
            .length_controlled
            .unwrap_err()
    };
    assert!(reason(&[row(json!(2), "a", "b")]).contains("one row"));
    let same = vec![row(json!(2), "a", "b"); 6];
    assert!(reason(&same).contains("are the same"));
    let few = [row(json!(2), "a", "b"), row(json!(1), "aaa", "b")];
    assert!(reason(&few).contains("2 judged rows are fewer than the 5 parts"));
    let mut without = row(json!(2), "a", "b");
    without["output_1"] = Value::Null;
    let text = reason(&[without.clone(), row(json!(1), "aaa", "b")]);
    assert!(
        text.contains("row 1 has no `output_1`") && text.contains("--reference"),
        "{text}"
    );
    // More rows than the file knows instructions.
    let (_dir, path) = rows(&vec![row(json!(2), "a", "bb"); 301]);
    let annotations = Annotations::read(&path).unwrap();
    let gamed = Gamed::read(&fixture("df_gamed.csv")).unwrap();
    let mut longer = annotations.clone();
    longer.rows[0].length_1 = Some(9);
    let text = win_rate_report(&longer, Some(&gamed))
        .length_controlled
        .unwrap_err();
    assert!(text.contains("row 301 is instruction number 300"), "{text}");
}

#[test]
fn one_row_has_no_error_and_zero_is_a_tie() {
    let (_dir, path) = rows(&[row(json!(0), "a", "b")]);
    let annotations = Annotations::read(&path).unwrap();
    let found = win_rate_report(&annotations, None).win_rate;
    assert_eq!((found.win_rate, found.standard_error), (50.0, None));
    assert_eq!((found.n_draws, found.discrete_win_rate), (1, 50.0));
}

#[test]
fn several_judges_are_no_judge() {
    let mut other = row(json!(1), "a", "b");
    other["annotator"] = json!("k");
    let (_dir, path) = rows(&[row(json!(2), "a", "b"), other]);
    let text = Annotations::read(&path).unwrap_err().to_string();
    for part in [
        "annotations.json",
        "`annotator` has 2 values",
        "\"j\" (1 rows)",
        "select(.annotator == \"j\")",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn reference_outputs_give_missing_lengths() {
    let mut without = row(json!(2), "", "bbb");
    without.as_object_mut().unwrap().remove("output_1");
    without.as_object_mut().unwrap().remove("generator_1");
    let (dir, path) = rows(&[without]);
    let references = dir.path().join("references.json");
    fs::write(
        &references,
        r#"[{"instruction": "a", "output": "éé", "generator": "ref"}]"#,
    )
    .unwrap();
    let mut annotations = Annotations::read(&path).unwrap();
    annotations
        .complete(&References::read(&references).unwrap())
        .unwrap();
    assert_eq!(annotations.rows[0].length_1, Some(2));
    assert_eq!(
        (annotations.from_reference, annotations.baseline.as_deref()),
        (1, Some("ref"))
    );
    fs::write(&references, r#"[{"instruction": "z", "output": "éé"}]"#).unwrap();
    let mut annotations = Annotations::read(&path).unwrap();
    let text = annotations.complete(&References::read(&references).unwrap());
    let text = text.unwrap_err().to_string();
    assert!(
        text.contains("row 1") && text.contains("references.json"),
        "{text}"
    );
}

#[test]
fn bad_tables_name_line_and_column() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("df_gamed.csv");
    let header = "index,model,preference,std_delta_len,instruction_difficulty,not_gamed_baseline\n";
    for (text, part) in [
        ("".to_string(), "column `index` is missing"),
        ("a,b\n1,2\n".to_string(), "found \"a, b\""),
        (header.to_string(), "holds no rows"),
        (
            format!("{header}0,m,0.5,x,0,False\n"),
            "line 2, column `std_delta_len`",
        ),
        (
            format!("{header}0,m,0.5,0,NaN,False\n"),
            "column `instruction_difficulty` must be a finite number",
        ),
        (
            format!("{header}0,m,1.5,0,0,False\n"),
            "`preference` must be a number from 0 to 1",
        ),
        (
            format!("{header}0,m,0.5,0,0,False\n1,m,0.5,0\n"),
            "is no CSV file",
        ),
        (format!("{header}0,m,0.5,0,0,maybe\n"), "True or False"),
    ] {
        fs::write(&path, text).unwrap();
        let error = Gamed::read(&path).unwrap_err().to_string();
        assert!(
            error.contains(part) && error.contains("df_gamed.csv"),
            "{part}: {error}"
        );
    }
    let folder = Gamed::read(dir.path()).unwrap_err().to_string();
    assert!(folder.contains("directory"), "{folder}");
}

/// The results of a run with these measures of every task.
fn results(measures: &[(&str, &str, f64, u64)]) -> Value {
    let mut value = json!({"results": {}, "n-shot": {}, "model_name": "m", "date": 1.0,
        "lm_eval_version": "0.4.13", "chat_template": null});
    for (task, key, number, shots) in measures {
        let error = key.replacen(',', "_stderr,", 1);
        value["results"][task][key] = json!(number);
        value["results"][task][&error] = json!(0.03);
        value["n-shot"][task] = json!(shots);
    }
    value
}

fn read(files: &[(&str, Value)]) -> Result<Leaderboard, EvaluationError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("m")).unwrap();
    for (name, value) in files {
        fs::write(dir.path().join("m").join(name), value.to_string()).unwrap();
    }
    leaderboard(&LmEvalResults::read(dir.path())?)
}

fn all_of_v2() -> Vec<(String, &'static str, f64, u64)> {
    let mut all = Vec::new();
    for benchmark in tasks::v2() {
        for task in &benchmark.tasks {
            for keys in benchmark.measures {
                all.push((task.names[0].clone(), keys[0], 0.6, benchmark.shots));
            }
        }
    }
    all
}

fn borrowed(all: &[(String, &'static str, f64, u64)]) -> Value {
    let all = all.iter().map(|(a, b, c, d)| (a.as_str(), *b, *c, *d));
    results(&all.collect::<Vec<_>>())
}

#[test]
fn the_second_table_is_normalised_task_by_task() {
    let mut all = all_of_v2();
    for (task, key, value, _) in &mut all {
        match task.as_str() {
            "leaderboard_musr_murder_mysteries" => *value = 0.75,
            "leaderboard_musr_object_placements" => *value = 0.1,
            "leaderboard_musr_team_allocation" => *value = 2.0 / 3.0,
            "leaderboard_ifeval" => *value = if key.starts_with("prompt") { 0.4 } else { 0.5 },
            _ => {}
        }
    }
    let found = read(&[("results_a.json", borrowed(&all))]).unwrap();
    let score = |name: &str| {
        let cell = found.v2.rows.iter().find(|cell| cell.benchmark == name);
        cell.unwrap().score.unwrap()
    };
    // A score below a guess's counts as nothing.
    assert!((score("MuSR") - 100.0 * (0.5 + 0.0 + 0.5) / 3.0).abs() < 1e-9);
    assert!((score("IFEval") - 45.0).abs() < 1e-9);
    assert!((score("GPQA") - 100.0 * 0.35 / 0.75).abs() < 1e-9);
    assert!((score("MATH Lvl 5") - 60.0).abs() < 1e-9);
    assert!((score("MMLU-Pro") - 100.0 * 0.5 / 0.9).abs() < 1e-9);
    let bbh: f64 = tasks::v2()[1]
        .tasks
        .iter()
        .map(|task| (0.6 - task.guess) / (1.0 - task.guess))
        .sum();
    assert!((score("BBH") - 100.0 * bbh / 24.0).abs() < 1e-9);
    let mean = found
        .v2
        .rows
        .iter()
        .map(|cell| cell.score.unwrap())
        .sum::<f64>()
        / 6.0;
    assert!((found.v2.average.unwrap() - mean).abs() < 1e-9);
    // Of two measures of the same answers no error is known, so neither of the average.
    assert_eq!(found.v2.rows[0].standard_error, None);
    assert_eq!(found.v2.average_standard_error, None);
    let musr = found.v2.rows[4].standard_error.unwrap();
    let parts = [0.03 / 0.5, 0.03 / 0.8, 0.03 / (2.0 / 3.0)];
    let squares: f64 = parts.iter().map(|part: &f64| part * part).sum();
    assert!((musr - 100.0 * squares.sqrt() / 3.0).abs() < 1e-9);
    assert_eq!(found.v2.chat_template, Some(false));
}

#[test]
fn what_is_missing_is_named_and_not_averaged_over() {
    let mut all = all_of_v2();
    all.retain(|(task, ..)| task != "leaderboard_bbh_navigate" && task != "leaderboard_mmlu_pro");
    let found = read(&[("results_a.json", borrowed(&all))]).unwrap();
    let bbh = &found.v2.rows[1];
    assert_eq!(
        (bbh.score, &bbh.missing),
        (None, &vec!["leaderboard_bbh_navigate".to_string()])
    );
    assert_eq!(bbh.differences, ["23 of 24 tasks are there"]);
    assert_eq!(found.v2.rows[5].missing, ["leaderboard_mmlu_pro"]);
    assert_eq!(found.v2.average, None);
    assert!(found.v2.rows[2].score.is_some());
    // Nothing of the first table.
    assert_eq!(found.v1.rows[2].missing.len(), 57);
}

#[test]
fn the_first_table_knows_old_and_new_names() {
    let new = [
        ("arc_challenge", "acc_norm,none", 0.6, 25),
        ("hellaswag", "acc_norm,none", 0.8, 10),
        ("truthfulqa_mc2", "acc,none", 0.5, 0),
        ("winogrande", "acc,none", 0.7, 5),
        ("gsm8k", "exact_match,strict-match", 0.4, 5),
    ];
    let subjects = tasks::v1()[2]
        .tasks
        .iter()
        .map(|task| task.names.clone())
        .collect::<Vec<_>>();
    let mut all = new.map(|(a, b, c, d)| (a.to_string(), b, c, d)).to_vec();
    for (place, names) in subjects.iter().enumerate() {
        all.push((
            names[0].clone(),
            "acc,none",
            if place == 0 { 0.0 } else { 0.57 },
            5,
        ));
    }
    let found = read(&[("results_a.json", borrowed(&all))]).unwrap();
    let scores: Vec<f64> = found
        .v1
        .rows
        .iter()
        .map(|cell| cell.score.unwrap())
        .collect();
    assert!((scores[2] - 56.0).abs() < 1e-9, "{scores:?}");
    let mean = (60.0 + 80.0 + 56.0 + 50.0 + 70.0 + 40.0) / 6.0;
    assert!((found.v1.average.unwrap() - mean).abs() < 1e-9);
    assert!(found.v1.average_standard_error.is_some());
    // As the pinned commit of the old leaderboard wrote them: a file a task, no n-shot.
    let old = |task: &str, key: &str, value: f64, shots: u64| {
        json!({"results": {task: {key: value, format!("{key}_stderr"): 0.03}},
            "versions": {task: 0}, "config": {"model_args": "pretrained=x", "num_fewshot": shots}})
    };
    let mut mmlu = old("x", "acc", 0.5, 5);
    for names in &subjects {
        mmlu["results"][&names[1]] = json!({"acc": 0.5});
    }
    let found = read(&[
        ("arc.json", old("arc_challenge", "acc_norm", 0.6, 25)),
        ("tqa.json", old("truthfulqa_mc", "mc2", 0.5, 0)),
        ("gsm.json", old("gsm8k", "acc", 0.4, 8)),
        ("mmlu.json", mmlu),
    ])
    .unwrap();
    let cell = |i: usize| &found.v1.rows[i];
    assert_eq!(
        (cell(0).score, cell(2).score, cell(3).score),
        (Some(60.0), Some(50.0), Some(50.0))
    );
    assert_eq!(cell(2).standard_error, None);
    assert_eq!(cell(5).differences, ["gsm8k has 8 shots, not 5"]);
    assert_eq!(cell(1).missing, ["hellaswag"]);
}

#[test]
fn the_newest_of_several_files_counts() {
    let of = |value| results(&[("arc_challenge", "acc_norm,none", value, 25)]);
    let found = read(&[
        ("results_2024-05-02T10-00-00.5.json", of(0.6)),
        ("results_2024-05-01T23-00-00.5.json", of(0.4)),
        ("results_2024-04-30T23-00-00.5.json", of(0.3)),
    ])
    .unwrap();
    assert_eq!(found.v1.rows[0].score, Some(60.0));
    let replaced = &found.replaced[0];
    assert!(
        replaced
            .newest
            .ends_with("m/results_2024-05-02T10-00-00.5.json")
    );
    assert_eq!(replaced.older.len(), 2);
}

#[test]
fn other_shots_and_fewer_questions_are_differences() {
    let mut value = results(&[("arc_challenge", "acc_norm,none", 0.6, 0)]);
    value["n-samples"] = json!({"arc_challenge": {"original": 1172, "effective": 10}});
    let found = read(&[("results_a.json", value)]).unwrap();
    let cell = &found.v1.rows[0];
    assert_eq!(cell.score, Some(60.0));
    assert_eq!(
        cell.differences,
        [
            "arc_challenge has 0 shots, not 25",
            "arc_challenge was asked 10 of 1172 questions"
        ]
    );
}

#[test]
fn bad_results_are_refused() {
    let refused = |files: &[(&str, Value)], parts: &[&str]| {
        let text = read(files).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
    };
    let one = results(&[("arc_challenge", "acc_norm,none", 0.6, 25)]);
    let mut other = one.clone();
    other["model_name"] = json!("n");
    refused(
        &[("a.json", one.clone()), ("b.json", other)],
        &["results of 2 models", "m (", "n ("],
    );
    refused(
        &[("a.json", json!({"results": []}))],
        &["a.json", "`results` must be an object"],
    );
    refused(
        &[("a.json", json!({"results": {"arc_challenge": 3}}))],
        &["`results.arc_challenge`"],
    );
    let mut high = one.clone();
    high["results"]["arc_challenge"]["acc_norm,none"] = json!(60.0);
    refused(
        &[("a.json", high)],
        &[
            "results.arc_challenge.acc_norm,none",
            "from 0 to 1, found 60",
        ],
    );
    let mut text = one.clone();
    text["n-shot"]["arc_challenge"] = json!("25");
    refused(
        &[("a.json", text)],
        &["`n-shot.arc_challenge` must be a whole number, found \"25\""],
    );
    refused(
        &[("a.json", json!({"results": {"lambada": {"acc,none": 0.5}}}))],
        &["no task of either table", "lambada"],
    );
    refused(
        &[("a.json", json!({"x": 1}))],
        &["no results of lm_eval here"],
    );
    let dir = tempfile::tempdir().unwrap();
    for (bytes, part) in [
        (&b""[..], "is empty"),
        (b"{\"results\": {", "is no JSON"),
        (b"[1]", "must hold one JSON object"),
        (b"{\"results\": {\"a\": {\"acc\": NaN}}}", "NaN"),
        (b"\xff\xfe", "UTF-8"),
    ] {
        fs::write(dir.path().join("results_x.json"), bytes).unwrap();
        let text = LmEvalResults::read(dir.path()).unwrap_err().to_string();
        assert!(
            text.contains(part) && text.contains("results_x.json"),
            "{text}"
        );
    }
    let nowhere = LmEvalResults::read(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(nowhere.to_string().contains("/nowhere/at/all"));
}
