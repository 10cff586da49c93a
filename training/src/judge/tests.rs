use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use sppo_model::chat_template::TemplateSource;
use sppo_model::chat_text::ChatText;
use sppo_model::llama::RewardModel;
use tempfile::TempDir;

use super::*;
use crate::cluster::SingleProcess;
use crate::config::{Address, JudgeHttp, Probability, RubricConfig};
use crate::data::{Prompt, read_rows};

fn file(path: &Path) -> JudgedFile<'_> {
    JudgedFile::open(&SingleProcess, path, MadeFrom::new("judge"), Existing::Keep).unwrap()
}

fn row(id: &str, responses: &[&str]) -> ResponseRow {
    ResponseRow {
        prompt_id: id.into(),
        prompt: Prompt::Text("Q".into()),
        reference: None,
        responses: responses.iter().map(|text| text.to_string()).collect(),
        finish_reasons: None,
        tokens: None,
        logprobs: None,
        prompt_ids: None,
        response_ids: None,
    }
}

fn rubric() -> Rubric {
    Rubric::new(RubricConfig::default())
}

fn estimate(temperature: f64) -> Estimate {
    Estimate {
        temperature,
        ..Estimate::default()
    }
}

fn scores(folder: &TempDir, text: &str) -> PathBuf {
    let path = folder.path().join("scores.jsonl");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn an_interrupted_file_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        row("a", &["x", "y."]),
        row("b", &["z"]),
        row("c", &["", "w!"]),
    ];
    let whole = folder.path().join("whole.jsonl");
    let part = folder.path().join("part.jsonl");
    let quiet = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut note = |done, all| seen.push((done, all));
    let state = judge_file(&rows, &mut rubric(), file(&whole), &mut note, &quiet).unwrap();
    assert_eq!(seen, [(0, 3), (1, 3), (2, 3), (3, 3)]);
    assert_eq!(
        (state.resumed, state.judged, state.interrupted),
        (0, 3, false)
    );

    let interrupt = AtomicBool::new(false);
    let mut stop = |done, _| interrupt.store(done == 1, Ordering::Relaxed);
    let state = judge_file(&rows, &mut rubric(), file(&part), &mut stop, &interrupt).unwrap();
    assert_eq!((state.judged, state.interrupted), (1, true));
    let state = judge_file(&rows, &mut rubric(), file(&part), &mut |_, _| {}, &quiet).unwrap();
    assert_eq!(
        (state.resumed, state.judged, state.interrupted),
        (1, 2, false)
    );
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&part).unwrap());
    let judged: Vec<JudgedRow> = read_rows(&whole).unwrap();
    assert_eq!(judged[1].probability, [[0.5]]);
}

#[test]
fn another_judgement_is_not_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let quiet = AtomicBool::new(false);
    let judge = |row: ResponseRow, config: RubricConfig| {
        let mut rubric = Rubric::new(config);
        judge_file(&[row], &mut rubric, file(&out), &mut |_, _| {}, &quiet)
    };
    judge(row("a", &["x"]), RubricConfig::default()).unwrap();
    judge(row("a", &["x"]), RubricConfig::default()).unwrap();
    let error = judge(row("a", &["y"]), RubricConfig::default()).unwrap_err();
    assert!(
        error.to_string().contains("already holds other responses"),
        "{error}"
    );
    let other = RubricConfig {
        length_target: 7.0,
        ..RubricConfig::default()
    };
    let error = judge(row("a", &["x"]), other).unwrap_err();
    assert!(
        error.to_string().contains("a judgement made otherwise"),
        "{error}"
    );
}

#[test]
fn scores_are_joined_by_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = scores(
        &folder,
        concat!(
            r#"{"prompt_id": "b", "comparison_logits": [[0, 2], [-1, 0]]}"#,
            "\n",
            r#"{"prompt_id": "a", "rm_scores": [1, 3]}"#,
        ),
    );
    let judge = ScoresJudge::open(&path, estimate(2.0)).unwrap();
    let a = judge.judge_row(&row("a", &["x", "y"])).unwrap();
    assert_eq!(a.rm_scores, [1.0, 3.0]);
    assert_eq!(a.probability[1][0], 1.0 / (1.0 + (-1.0f64).exp()));
    let b = judge.judge_row(&row("b", &["x", "y"])).unwrap();
    assert_eq!(b.rm_scores, [1.5, -1.5]);
    assert_eq!(b.comparison_logits.unwrap()[0][1], 2.0);
    let error =
        |judge: &ScoresJudge, row: &ResponseRow| judge.judge_row(row).unwrap_err().to_string();
    let absent = error(&judge, &row("c", &["x"]));
    assert!(
        absent.contains("`c`") && absent.contains("has no scores for it"),
        "{absent}"
    );
    let short = error(&judge, &row("a", &["x", "y", "z"]));
    assert!(
        short.contains("`rm_scores` is for 2 responses, but the row has 3"),
        "{short}"
    );
    let short = error(&judge, &row("b", &["x"]));
    assert!(
        short.contains("`comparison_logits` is for 2 responses"),
        "{short}"
    );
}

#[test]
fn wrong_scores_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (text, part) in [
        (r#"{"rm_scores": [1]}"#, "key `prompt_id` is missing"),
        (r#"{"prompt_id": "a"}"#, "key `rm_scores` is missing"),
        (
            r#"{"prompt_id": "a", "rm_scores": [null]}"#,
            "key `rm_scores[0]` must be a finite number",
        ),
        (
            r#"{"prompt_id": "a", "comparison_logits": [[0, 1]]}"#,
            "the matrix is square",
        ),
        (
            "{\"prompt_id\": \"a\", \"rm_scores\": [NaN]}\n",
            "JSON has no NaN",
        ),
    ] {
        let Err(error) = ScoresJudge::open(&scores(&folder, text), estimate(1.0)) else {
            panic!("accepted {text}");
        };
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn scores_that_do_not_fit_are_refused_before_the_first_row() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [row("a", &["x", "y"]), row("b", &["x", "y"])];
    let check = |text: &str, estimate: Estimate| {
        let judge = ScoresJudge::open(&scores(&folder, text), estimate).unwrap();
        judge.check(&rows).map_err(|error| error.to_string())
    };
    let a = r#"{"prompt_id": "a", "rm_scores": [1, 2]}"#;
    let b = r#"{"prompt_id": "b", "rm_scores": [1, 2]}"#;
    check(&format!("{a}\n{b}"), estimate(1.0)).unwrap();
    let absent = check(a, estimate(1.0)).unwrap_err();
    assert!(
        absent.contains("`b`") && absent.contains("has no scores for it"),
        "{absent}"
    );
    let stranger = r#"{"prompt_id": "z", "rm_scores": [1, 2]}"#;
    let error = check(&format!("{a}\n{b}\n{stranger}"), estimate(1.0)).unwrap_err();
    assert!(
        error.contains("`z`") && error.contains("there are no responses to it"),
        "{error}"
    );
    let other = r#"{"prompt_id": "b", "rm_scores": [1, 2], "responses": ["x", "z"]}"#;
    let error = check(&format!("{a}\n{other}"), estimate(1.0)).unwrap_err();
    assert!(error.contains("scores other responses"), "{error}");
    let compared = Estimate {
        probability: Probability::Comparisons,
        ..Estimate::default()
    };
    let error = check(&format!("{a}\n{b}"), compared).unwrap_err();
    assert!(
        error.contains("has no `comparison_logits` for it"),
        "{error}"
    );
    let three = Estimate {
        samples: Some(3),
        ..Estimate::default()
    };
    let error = check(&format!("{a}\n{b}"), three).unwrap_err();
    assert!(
        error.contains("judge.samples = 3, but the row has 2"),
        "{error}"
    );
}

#[test]
fn comparisons_may_be_averaged_over_both_orders() {
    let logits = vec![vec![0.0, 2.0], vec![1.0, 0.0]];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let from = |probability| Estimate {
        probability,
        temperature: 2.0,
        samples: None,
    };
    let official = from(Probability::Scores)
        .from_comparisons(logits.clone())
        .unwrap();
    assert_eq!(official.rm_scores, [0.5, -0.5]);
    assert!((official.probability[0][1] - sigmoid(0.5)).abs() < 1e-15);
    let paper = from(Probability::Comparisons)
        .from_comparisons(logits)
        .unwrap();
    assert_eq!(paper.rm_scores, official.rm_scores);
    let expected = (sigmoid(1.0) + sigmoid(-0.5)) / 2.0;
    assert!((paper.probability[0][1] - expected).abs() < 1e-15);
    assert!((paper.probability[0][1] + paper.probability[1][0] - 1.0).abs() < 1e-15);
    assert_eq!(
        (paper.probability[0][0], paper.probability[1][1]),
        (0.5, 0.5)
    );
}

/// r026: a worker that panicked, here over a time that no clock can count, was waited for forever.
#[test]
fn a_panic_of_a_worker_ends_judging() {
    let config = JudgeHttp {
        base_url: Some(Address::new("http://127.0.0.1:9/v1?key=hunter2")),
        model: Some("m".into()),
        timeout_seconds: 9.3e18,
        concurrency: 3,
        ..JudgeHttp::default()
    };
    let mut judge = HttpJudge::new(config, Estimate::default(), false).unwrap();
    let rows = [row("a", &["x", "y"]), row("b", &["x", "z"])];
    let rows: Vec<&ResponseRow> = rows.iter().collect();
    let interrupt = AtomicBool::new(false);
    let mut take = |_| panic!("nothing was judged");
    let error = judge.judge(&rows, &mut JudgeSession::new(&mut take, &interrupt));
    let error = error.unwrap_err();
    assert!(!error.is_input());
    let text = error.to_string();
    // Three workers ask at once; any of them may be the first to panic.
    let start = "the http judge failed on prompt_id `";
    let asking =
        "`: asking http://127.0.0.1:9/v1/chat/completions?key=[hidden] failed by a fault of sppo: ";
    assert!(text.starts_with(start) && text.contains(asking), "{text}");
    assert!(
        text.contains("overflow") && text.ends_with("; please report it"),
        "{text}"
    );
}

/// Judges `rows` into `out` on `size` ranks, each with a judge of its own; rank 1 is interrupted
/// behind `stop` rows. How many rows each judged.
fn judge_on(
    size: usize,
    rows: &[ResponseRow],
    out: &Path,
    stop: Option<usize>,
    judge: &(dyn Fn() -> Box<dyn Judge> + Sync),
) -> Vec<usize> {
    let states = crate::cluster::threads::run(size, |rank| {
        let made_from = MadeFrom::new("judge");
        let file = JudgedFile::open(&rank, out, made_from, Existing::Keep).unwrap();
        let interrupt = AtomicBool::new(false);
        let mut first = None;
        let mut progress = |done, _| {
            let judged = done - *first.get_or_insert(done);
            if rank.rank() == 1 && stop.is_some_and(|stop| judged >= stop) {
                interrupt.store(true, Ordering::Relaxed);
            }
        };
        judge_file(rows, judge().as_mut(), file, &mut progress, &interrupt).unwrap()
    });
    let interrupted = stop.is_some();
    assert!(
        states.iter().all(|s| s.interrupted == interrupted),
        "{states:?}"
    );
    states.iter().map(|state| state.judged).collect()
}

/// Rows of many lengths.
fn many_rows() -> Vec<ResponseRow> {
    let text =
        |number: usize| "a cat sat on a mat ".repeat(number % 5 + 1)[number % 3..].to_string();
    let rows = (0..23).map(|number| {
        let responses: Vec<String> = (0..3).map(|i| text(7 * number + i * i)).collect();
        let responses: Vec<&str> = responses.iter().map(String::as_str).collect();
        row(&format!("p{number}"), &responses)
    });
    rows.collect()
}

/// One file whatever the ranks and the stops.
fn ranks_agree(judge: &(dyn Fn() -> Box<dyn Judge> + Sync)) {
    let rows = many_rows();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.jsonl");
    judge_on(1, &rows, &whole, None, judge);
    let whole = fs::read(whole).unwrap();
    for size in [2, 3] {
        let out = folder.path().join(format!("{size}.jsonl"));
        let judged = judge_on(size, &rows, &out, None, judge);
        assert_eq!(judged.iter().sum::<usize>(), rows.len());
        assert!(judged.iter().all(|&judged| judged > 0));
        assert!(fs::read(out).unwrap() == whole, "{size} ranks");
        let stopped = folder.path().join(format!("stopped-{size}.jsonl"));
        let before = judge_on(size, &rows, &stopped, Some(1), judge)
            .iter()
            .sum::<usize>();
        let after = judge_on(4 - size, &rows, &stopped, None, judge)
            .iter()
            .sum::<usize>();
        assert_eq!(before + after, rows.len());
        assert!(fs::read(stopped).unwrap() == whole, "{size} ranks, stopped");
    }
}

#[test]
fn ranks_share_rows() {
    ranks_agree(&|| Box::new(rubric()));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

/// Small batches round otherwise than large ones.
#[test]
fn ranks_compute_rows_in_the_batches_of_one_process() {
    type Flex = burn_flex::Flex<f32, i32>;
    let device = Default::default();
    let pairrm = fixture("golden/pairrm");
    ranks_agree(&|| {
        let model = sppo_model::pairrm::PairRm::<Flex>::load(&pairrm, DType::F32, &device).unwrap();
        let prompts = PromptText::of(None, None).unwrap();
        Box::new(PairRmJudge::new(model, "", prompts, estimate(1.0), 150))
    });
    let reward = fixture("reward");
    ranks_agree(&|| {
        let model = RewardModel::<Flex>::load(&reward, DType::F32, &device).unwrap();
        let text = ChatText::find_with(&reward, TemplateSource::Folder).unwrap();
        Box::new(RewardJudge::new(
            model,
            "",
            text.unwrap(),
            estimate(1.0),
            50,
        ))
    });
}

/// What only one process may do is rank 0's.
#[test]
fn a_judge_of_one_process_judges_on_rank_0() {
    struct Alone(Rubric);

    impl Judge for Alone {
        fn name(&self) -> &str {
            "alone"
        }
        fn judge(
            &mut self,
            rows: &[&ResponseRow],
            session: &mut JudgeSession<'_>,
        ) -> Result<(), JudgeError> {
            self.0.judge(rows, session)
        }
        fn sharing(&self) -> Sharing {
            Sharing::OneProcess
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.jsonl");
    let judged = judge_on(3, &many_rows(), &out, None, &|| Box::new(Alone(rubric())));
    assert_eq!(judged, [23, 0, 0]);
}
