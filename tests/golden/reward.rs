//! A tiny reward model: token ids and scores, against transformers (scripts/make_reward_fixture.py).

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::DType;
use serde_json::{Value, json};
use sppo_model::chat_template::Message;
use sppo_model::chat_text::ChatText;
use sppo_model::llama::RewardModel;
use sppo_model::ops::ModelOps;
use sppo_training::data::{ResponseRow, read_rows};
use sppo_training::judge::{Estimate, Judge, JudgeSession, Judgement, RewardJudge};

use super::{ids, numbers, path};
use crate::close::assert_close;

/// The folder of the tiny reward model.
pub fn folder() -> PathBuf {
    path("../reward")
}

/// Conversations with their expected ids and scores.
pub fn cases() -> Vec<Value> {
    let cases = super::json("../reward/expected.json")["cases"].clone();
    let cases = cases.as_array().unwrap().clone();
    assert_eq!(cases.len(), 5);
    cases
}

/// The cases as rows of responses.
pub fn response_rows() -> Vec<Value> {
    let row = |(number, case): (usize, Value)| {
        json!({
            "prompt_id": number.to_string(),
            "prompt": case["prompt"],
            "responses": case["responses"],
        })
    };
    cases().into_iter().enumerate().map(row).collect()
}

fn rows() -> Vec<ResponseRow> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("responses.jsonl");
    let lines: Vec<String> = response_rows().iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(&file, lines.concat()).unwrap();
    read_rows(&file).unwrap()
}

/// Judges all rows under a budget; after the first judgement the session may be interrupted.
fn judged<B: ModelOps>(device: &B::Device, batch_tokens: usize, interrupt: bool) -> Vec<Judgement> {
    let model = RewardModel::<B>::load(&folder(), DType::F32, device).unwrap();
    let text = ChatText::open(&folder()).unwrap();
    let mut judge = RewardJudge::new(model, "", text, Estimate::default(), batch_tokens);
    let rows = rows();
    judge.check(&rows).unwrap();
    let stop = AtomicBool::new(false);
    let mut judgements = Vec::new();
    let mut take = |judgement| {
        judgements.push(judgement);
        stop.store(interrupt, Ordering::Relaxed);
        Ok(())
    };
    let rows: Vec<&ResponseRow> = rows.iter().collect();
    let mut session = JudgeSession::new(&mut take, &stop);
    judge.judge(&rows, &mut session).unwrap();
    judgements
}

fn conversation_ids<B: ModelOps>(_: &B::Device) {
    let text = ChatText::open(&folder()).unwrap();
    for (row, case) in rows().iter().zip(cases()) {
        for (response, expected) in row.responses.iter().zip(case["ids"].as_array().unwrap()) {
            let mut turns = row.prompt.messages().into_owned();
            turns.push(Message::new("assistant", response));
            assert_eq!(
                text.turn_ids(&turns).unwrap(),
                ids(expected),
                "{response:?}"
            );
        }
    }
}

fn scores_whatever_the_budget<B: ModelOps>(device: &B::Device) {
    let alone = judged::<B>(device, 1, false);
    for batch_tokens in [1, 100, 100_000] {
        let judgements = judged::<B>(device, batch_tokens, false);
        assert_eq!(judgements.len(), cases().len());
        for ((case, judgement), alone) in cases().iter().zip(&judgements).zip(&alone) {
            let expected = numbers(&case["scores"]);
            assert_eq!(judgement.rm_scores.len(), expected.len());
            for (i, found) in judgement.rm_scores.iter().enumerate() {
                assert_close(*found, expected[i], 1e-4, "score");
                assert_close(*found, alone.rm_scores[i], 1e-5, "score alone");
            }
            let won = 1.0 / (1.0 + (expected[1] - expected[0]).exp());
            assert_close(judgement.probability[0][1], won, 1e-4, "probability");
        }
        // Identical responses share one score to the bit.
        assert_eq!(judgements[0].rm_scores[0], judgements[0].rm_scores[3]);
    }
}

/// transformers reads the last token that is not pad_token_id, padded or not.
fn scores_where_padding_is_the_end_of_a_turn<B: ModelOps>(device: &B::Device) {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, copy.path().join(from.file_name().unwrap())).unwrap();
    }
    let config = copy.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = text.replace("\"pad_token_id\": 425", "\"pad_token_id\": 424");
    assert_ne!(text, changed);
    std::fs::write(&config, changed).unwrap();
    let model = RewardModel::<B>::load(copy.path(), DType::F32, device).unwrap();
    assert_eq!(model.scored_length(&[424, 424]), 1);
    for case in cases() {
        let sequences: Vec<Vec<u32>> = case["ids"].as_array().unwrap().iter().map(ids).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(|ids| &ids[..]).collect();
        let expected = numbers(&case["scores_pad_is_eot"]);
        for (found, expected) in model.scores(&sequences).unwrap().into_iter().zip(expected) {
            assert_close(found.into(), expected, 1e-4, "score");
        }
    }
}

fn an_interrupt_keeps_the_first_rows<B: ModelOps>(device: &B::Device) {
    let whole = judged::<B>(device, 1, false);
    let part = judged::<B>(device, 1, true);
    assert!(!part.is_empty() && part.len() < whole.len());
    assert_eq!(part, whole[..part.len()]);
}

crate::on_every_backend!(
    conversation_ids,
    scores_whatever_the_budget,
    scores_where_padding_is_the_end_of_a_turn,
    an_interrupt_keeps_the_first_rows
);
