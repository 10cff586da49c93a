use super::*;
use crate::config::Pattern;
use crate::data::Prompt;

fn row(responses: &[&str], reference: Option<&str>) -> ResponseRow {
    ResponseRow {
        prompt_id: "p7".into(),
        prompt: Prompt::Text("Q".into()),
        reference: reference.map(str::to_string),
        responses: responses.iter().map(|text| text.to_string()).collect(),
        finish_reasons: None,
        tokens: None,
        logprobs: None,
        prompt_ids: None,
        response_ids: None,
    }
}

fn nothing() -> RubricConfig {
    RubricConfig {
        ending_weight: 0.0,
        length_weight: 0.0,
        repetition_weight: 0.0,
        ..RubricConfig::default()
    }
}

fn pattern(pattern: &str, weight: f64) -> WeightedPattern {
    WeightedPattern {
        pattern: Some(Pattern(pattern.parse().unwrap())),
        weight,
    }
}

fn score(config: RubricConfig, response: &str) -> f64 {
    Rubric::new(config).score(response, None, None)
}

#[test]
fn ending_counts_reason_and_text_by_halves() {
    assert_eq!(ending("Yes.", Some("stop")), 1.0);
    assert_eq!(ending("Yes.", Some("length")), 0.5);
    assert_eq!(ending("Yes and", Some("stop")), 0.5);
    assert_eq!(ending("Yes and", Some("length")), 0.0);
    assert_eq!(ending("She said \"yes.\")\n", None), 1.0);
    assert_eq!(ending("```\nx = 1\n```", None), 1.0);
    assert_eq!(ending("好。", None), 1.0);
    assert_eq!(ending("Yes,", None), 0.0);
}

#[test]
fn length_falls_off_as_a_gaussian() {
    let config = |unit| RubricConfig {
        length_weight: 2.0,
        length_target: 4.0,
        length_tolerance: 2.0,
        length_unit: unit,
        ..nothing()
    };
    assert_eq!(score(config(LengthUnit::Words), "a b  c d"), 2.0);
    let two = score(config(LengthUnit::Words), "aaaa bbbb");
    assert!((two - 2.0 * (-0.5f64).exp()).abs() < 1e-15);
    assert_eq!(score(config(LengthUnit::Characters), " äöü! "), 2.0);
}

#[test]
fn patterns_reward_and_punish() {
    let config = RubricConfig {
        required: vec![pattern("(?i)because", 2.0), pattern(r"\d", 0.5)],
        forbidden: vec![pattern("sorry", 3.0)],
        ..nothing()
    };
    assert_eq!(score(config.clone(), "Because of 2."), 2.5);
    assert_eq!(score(config.clone(), "sorry, because"), -1.0);
    assert_eq!(score(config, ""), -3.0);
}

#[test]
fn repetition_is_the_share_of_repeated_ngrams() {
    assert_eq!(repetition("a b c d", 2), 0.0);
    assert_eq!(repetition("A a a a", 1), 0.75);
    assert_eq!(repetition("a b a b a", 2), 0.5);
    assert_eq!(repetition("a b", 3), 0.0);
    let config = RubricConfig {
        repetition_weight: 2.0,
        repetition_ngram: 1,
        ..nothing()
    };
    assert_eq!(score(config, "no no"), -1.0);
}

#[test]
fn similarity_is_word_f1() {
    assert_eq!(similarity("The CAT, sat!", "the cat sat"), 1.0);
    assert_eq!(similarity("the the the", "the cat sat"), 1.0 / 3.0);
    assert_eq!(similarity("a b", "a c d e"), 2.0 / 6.0);
    assert_eq!(similarity("x", "y"), 0.0);
    assert_eq!(similarity("...", "!"), 0.0);
    assert_eq!(similarity("It is -5.", "5"), 0.0);
    assert_eq!(similarity("(3.14)", "3.14."), 1.0);
}

#[test]
fn a_blank_response_scores_lowest() {
    let config = RubricConfig {
        similarity_weight: 1.0,
        forbidden: vec![pattern("bad", 1.0)],
        repetition_ngram: 1,
        ..RubricConfig::default()
    };
    let worst = "bad bad bad bad bad bad,";
    let rubric = Rubric::new(config);
    let scores = rubric.judge_row(&row(&["", " \n", worst, "Fine."], Some("Fine")));
    let scores = scores.unwrap().rm_scores;
    assert_eq!(scores[0], -2.0);
    assert_eq!(scores[0], scores[1]);
    assert!(scores[1] < scores[2] && scores[2] < scores[3]);
}

#[test]
fn temperature_and_single_responses() {
    let config = RubricConfig {
        temperature: 0.5,
        ending_weight: 1.0,
        ..nothing()
    };
    let rubric = Rubric::new(config);
    let judged = rubric.judge_row(&row(&["Yes.", "Yes"], None)).unwrap();
    assert_eq!(judged.rm_scores, [1.0, 0.0]);
    assert_eq!(judged.probability[0][1], 1.0 / (1.0 + (-2.0f64).exp()));
    let single = rubric.judge_row(&row(&["Yes."], None)).unwrap();
    assert_eq!(single.probability, [[0.5]]);
}

#[test]
fn similarity_needs_references() {
    let config = RubricConfig {
        similarity_weight: 1.0,
        ..nothing()
    };
    let rubric = Rubric::new(config);
    let error = rubric
        .judge_row(&row(&["a"], None))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`p7`") && error.contains("no `reference`"),
        "{error}"
    );
    let judged = rubric.judge_row(&row(&["a", "b"], Some("b"))).unwrap();
    assert_eq!(judged.rm_scores, [0.0, 1.0]);
}
