//! From a judge's scores to a pair: win probabilities, best and worst response (SPPO, arXiv
//! 2405.00675, and the published pipeline's aggregation of PairRM comparisons).

use serde::{Deserialize, Serialize};

use crate::data::{JudgedRow, PairContent, PairProbabilities, PairRow, ResponseRow, SampledIds};

/// Why no pair can be chosen.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PreferenceError {
    /// Scores or probabilities that are NaN or infinite.
    #[error("{what} is {value}; only finite numbers can be compared")]
    NotFinite {
        /// Name and index of the number, like `rm_scores[2]`.
        what: String,
        /// The number.
        value: f64,
    },
    /// A matrix that does not fit the scores.
    #[error("{what} has {found} entries where {expected} were expected, one for each response")]
    Shape {
        /// Name of the list, or of the matrix or a row of it.
        what: String,
        /// Number of responses.
        expected: usize,
        /// Number of its entries.
        found: usize,
    },
    /// Fewer than two responses.
    #[error("{found} response(s); a pair needs at least two (sppo generate --samples 2 or more)")]
    TooFew {
        /// Number of responses.
        found: usize,
    },
    /// More opponents than responses.
    #[error("judge.samples is {asked}, but there are {found} responses")]
    Opponents {
        /// Number of responses.
        found: usize,
        /// Number of opponents, `judge.samples`.
        asked: usize,
    },
    /// One of the above, in a row.
    #[error("prompt_id `{prompt_id}`: {source}")]
    Row {
        /// The row.
        prompt_id: String,
        /// What is wrong with it.
        source: Box<PreferenceError>,
    },
}

/// What becomes of a prompt whose best and worst response are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ties {
    /// The row is written all the same, as the published pipeline does.
    #[default]
    Keep,
    /// The row is left out: all scores equal, or chosen and rejected the same text.
    Drop,
}

/// Best and worst of K responses and the probabilities that the losses use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairSelection {
    /// Index of the highest score, the first on ties.
    pub chosen: usize,
    /// Index of the lowest score, the first on ties.
    pub rejected: usize,
    /// Means are over the opponents, the response itself included.
    pub probabilities: PairProbabilities,
}

/// σ(x) = 1 / (1 + e^−x).
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The `[K][K]` matrix P_ij = σ((s_i − s_j) / temperature); one half on the diagonal.
pub fn probabilities(scores: &[f64], temperature: f64) -> Vec<Vec<f64>> {
    scores
        .iter()
        .map(|a| {
            let row = scores.iter().map(|b| sigmoid((a - b) / temperature));
            row.collect()
        })
        .collect()
}

/// One score a response from a `[K][K]` matrix of comparison logits:
/// s_i = 1/K Σ_j (M_ij − M_ji).
pub fn scores_from_comparisons(logits: &[Vec<f64>]) -> Result<Vec<f64>, PreferenceError> {
    check_matrix("comparison_logits", logits, logits.len())?;
    let count = logits.len() as f64;
    Ok((0..logits.len())
        .map(|i| {
            let margins = (0..logits.len()).map(|j| logits[i][j] - logits[j][i]);
            margins.sum::<f64>() / count
        })
        .collect())
}

/// Chooses best and worst by score, the first where scores are equal; the first `opponents`
/// responses stand for the policy in the mean win probabilities.
pub fn select_pair(
    rm_scores: &[f64],
    probability: &[Vec<f64>],
    opponents: usize,
) -> Result<PairSelection, PreferenceError> {
    let count = rm_scores.len();
    if count < 2 {
        return Err(PreferenceError::TooFew { found: count });
    }
    check_finite("rm_scores", rm_scores)?;
    check_matrix("probability", probability, count)?;
    let (mut chosen, mut rejected) = (0, 0);
    for (i, score) in rm_scores.iter().enumerate() {
        if *score > rm_scores[chosen] {
            chosen = i;
        }
        if *score < rm_scores[rejected] {
            rejected = i;
        }
    }
    if opponents == 0 || opponents > count {
        return Err(PreferenceError::Opponents {
            found: count,
            asked: opponents,
        });
    }
    let mean = |i: usize| probability[i][..opponents].iter().sum::<f64>() / opponents as f64;
    Ok(PairSelection {
        chosen,
        rejected,
        probabilities: PairProbabilities::new(
            probability[chosen][rejected],
            mean(chosen),
            mean(rejected),
        ),
    })
}

/// The pair of a judged row; None for a tie that is to be dropped.
pub fn judged_to_pair(row: &JudgedRow, ties: Ties) -> Result<Option<PairRow>, PreferenceError> {
    let in_row = |source| PreferenceError::Row {
        prompt_id: row.responses.prompt_id.clone(),
        source: Box::new(source),
    };
    let responses = &row.responses.responses;
    if responses.len() != row.rm_scores.len() {
        return Err(in_row(PreferenceError::Shape {
            what: "rm_scores".to_string(),
            expected: responses.len(),
            found: row.rm_scores.len(),
        }));
    }
    let samples = row.judge.as_ref().and_then(|judge| judge.get("samples"));
    let opponents = match samples.and_then(serde_json::Value::as_u64) {
        Some(samples) => usize::try_from(samples).unwrap_or(usize::MAX),
        None => responses.len(),
    };
    let pair = select_pair(&row.rm_scores, &row.probability, opponents).map_err(in_row)?;
    let (chosen, rejected) = (&responses[pair.chosen], &responses[pair.rejected]);
    if ties == Ties::Drop && chosen == rejected {
        return Ok(None);
    }
    Ok(Some(PairRow {
        prompt_id: row.responses.prompt_id.clone(),
        content: PairContent::Text {
            prompt: row.responses.prompt.messages().into_owned(),
            chosen: chosen.clone(),
            rejected: rejected.clone(),
        },
        sampled: sampled(&row.responses, pair.chosen, pair.rejected),
        probabilities: pair.probabilities,
    }))
}

/// The ids of two responses, where the row holds ids.
fn sampled(row: &ResponseRow, chosen: usize, rejected: usize) -> Option<SampledIds> {
    let ids = row.response_ids.as_ref()?;
    let ended = |i: usize| Some(row.finish_reasons.as_ref()?[i] == "stop");
    Some(SampledIds {
        prompt_ids: row.prompt_ids.clone()?,
        chosen_ids: ids[chosen].clone(),
        rejected_ids: ids[rejected].clone(),
        chosen_ended: ended(chosen),
        rejected_ended: ended(rejected),
    })
}

fn check_finite(what: &str, values: &[f64]) -> Result<(), PreferenceError> {
    match values.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        None => Ok(()),
        Some((i, &value)) => Err(PreferenceError::NotFinite {
            what: format!("{what}[{i}]"),
            value,
        }),
    }
}

fn check_matrix(what: &str, matrix: &[Vec<f64>], count: usize) -> Result<(), PreferenceError> {
    let check = |what: String, found| {
        if found == count {
            return Ok(());
        }
        Err(PreferenceError::Shape {
            what,
            expected: count,
            found,
        })
    };
    check(what.to_string(), matrix.len())?;
    for (i, row) in matrix.iter().enumerate() {
        check(format!("{what}[{i}]"), row.len())?;
        check_finite(&format!("{what}[{i}]"), row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Prompt;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Case {
        rm_scores: Vec<f64>,
        probability: Vec<Vec<f64>>,
        chosen: String,
        rejected: String,
        chosen_probs: f64,
        chosen_probs_win: f64,
        chosen_probs_lose: f64,
    }

    fn golden(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/");
        std::fs::read_to_string(format!("{folder}{name}")).unwrap()
    }

    fn judged(texts: &[&str], scores: &[f64]) -> JudgedRow {
        JudgedRow {
            responses: ResponseRow {
                prompt_id: "p".into(),
                prompt: Prompt::Text("Hello?".into()),
                reference: None,
                responses: texts.iter().map(|text| text.to_string()).collect(),
                finish_reasons: None,
                tokens: None,
                logprobs: None,
                prompt_ids: None,
                response_ids: None,
            },
            rm_scores: scores.to_vec(),
            probability: probabilities(scores, 1.0),
            comparison_logits: None,
            judge: None,
        }
    }

    #[test]
    fn golden_probabilities() {
        let cases: Vec<Case> = serde_json::from_str(&golden("probabilities.json")).unwrap();
        assert_eq!(cases.len(), 23);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        for (k, case) in cases.iter().enumerate() {
            let matrix = probabilities(&case.rm_scores, 1.0);
            for (row, expected) in matrix.iter().zip(&case.probability) {
                row.iter().zip(expected).for_each(|(a, b)| close(*a, *b));
            }
            let texts: Vec<String> = (0..5).map(|i| format!("r{k}.{i}")).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let row = judged(&texts, &case.rm_scores);
            let pair = judged_to_pair(&row, Ties::default()).unwrap().unwrap();
            let PairContent::Text {
                chosen, rejected, ..
            } = pair.content
            else {
                panic!("not text");
            };
            assert_eq!((&chosen, &rejected), (&case.chosen, &case.rejected));
            close(pair.probabilities.chosen.unwrap(), case.chosen_probs);
            close(pair.probabilities.win.unwrap(), case.chosen_probs_win);
            close(pair.probabilities.lose.unwrap(), case.chosen_probs_lose);
        }
    }

    #[test]
    fn temperature_divides_differences() {
        let hot = probabilities(&[1.0, 0.0], 2.0);
        assert_eq!(hot[0][1], 1.0 / (1.0 + (-0.5f64).exp()));
        assert_eq!(hot[0][0], 0.5);
        assert!((hot[0][1] + hot[1][0] - 1.0).abs() < 1e-15);
    }

    #[test]
    fn fewer_samples_may_estimate_the_mean() {
        let mut row = judged(&["a", "b", "c"], &[0.0, 2.0, 1.0]);
        row.judge = Some(serde_json::json!({ "kind": "pairrm", "samples": 2 }));
        let pair = judged_to_pair(&row, Ties::Keep).unwrap().unwrap();
        let p = probabilities(&[0.0, 2.0], 1.0);
        assert_eq!(pair.probabilities.win, Some((p[1][0] + 0.5) / 2.0));
        assert_eq!(pair.probabilities.lose, Some((0.5 + p[0][1]) / 2.0));
        row.judge = Some(serde_json::json!({ "samples": 4 }));
        let error = judged_to_pair(&row, Ties::Keep).unwrap_err().to_string();
        assert!(
            error.contains("judge.samples is 4, but there are 3"),
            "{error}"
        );
    }

    #[test]
    fn golden_comparisons() {
        let cases: serde_json::Value =
            serde_json::from_str(&golden("pairrm/expected.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let logits: Vec<Vec<f64>> =
                serde_json::from_value(case["comparison_logits"].clone()).unwrap();
            let expected: Vec<f64> = serde_json::from_value(case["scores"].clone()).unwrap();
            let scores = scores_from_comparisons(&logits).unwrap();
            assert_eq!(scores.len(), expected.len());
            for (a, b) in scores.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-6, "{a} {b}");
            }
        }
    }

    #[test]
    fn comparisons_become_scores() {
        let scores = scores_from_comparisons(&[
            vec![0.0, 2.0, 3.0],
            vec![-1.0, 0.0, 1.0],
            vec![-3.0, 0.5, 0.0],
        ]);
        assert_eq!(scores.unwrap(), [3.0, -2.5 / 3.0, -6.5 / 3.0]);
        let ragged = scores_from_comparisons(&[vec![0.0], vec![0.0, 1.0]]);
        assert!(matches!(ragged, Err(PreferenceError::Shape { .. })));
    }

    #[test]
    fn ties_are_kept_or_dropped() {
        let equal = judged(&["a", "b"], &[1.0, 1.0]);
        assert!(judged_to_pair(&equal, Ties::Keep).unwrap().is_some());
        assert_eq!(judged_to_pair(&equal, Ties::Drop), Ok(None));
        let same_text = judged(&["a", "a", "b"], &[2.0, 0.0, 1.0]);
        assert!(judged_to_pair(&same_text, Ties::Keep).unwrap().is_some());
        assert_eq!(judged_to_pair(&same_text, Ties::Drop), Ok(None));
        let apart = judged(&["a", "b"], &[1.0, 2.0]);
        assert!(judged_to_pair(&apart, Ties::Drop).unwrap().is_some());
    }

    #[test]
    fn unusable_scores_are_refused() {
        let error = |row: &JudgedRow| judged_to_pair(row, Ties::Keep).unwrap_err().to_string();
        assert_eq!(
            error(&judged(&["a", "b"], &[f64::NAN, 1.0])),
            "prompt_id `p`: rm_scores[0] is NaN; only finite numbers can be compared"
        );
        assert!(error(&judged(&["a"], &[1.0])).contains("at least two"));
        let mut row = judged(&["a", "b"], &[0.0, 1.0]);
        row.rm_scores.pop();
        assert!(error(&row).contains("rm_scores has 1 entries where 2"));
        row.rm_scores.push(2.0);
        row.probability[1].pop();
        assert!(error(&row).contains("probability[1] has 1 entries where 2"));
    }
}
