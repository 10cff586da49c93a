//! A tiny PairRM: packed ids, comparison logits and scores, against LLM-Blender's own code.

use std::sync::atomic::AtomicBool;

use burn::tensor::DType;
use serde_json::Value;
use sppo_model::ops::ModelOps;
use sppo_model::pairrm::{Packed, Packer, PairRm};
use sppo_training::data::{Prompt, ResponseRow};
use sppo_training::judge::{Estimate, Judge, JudgeSession, Judgement, PairRmJudge, PromptText};

use super::{ids, json, numbers, path};
use crate::close::assert_close;

fn cases() -> Vec<Value> {
    let cases = json("pairrm/expected.json");
    let cases = cases.as_array().unwrap().clone();
    assert_eq!(cases.len(), 6);
    cases
}

fn texts(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// All ordered pairs of a case, packed, and the matrix places they belong to.
fn packed(packer: &Packer, case: &Value) -> Vec<((usize, usize), Packed)> {
    let source = packer.source(case["source"].as_str().unwrap()).unwrap();
    let candidates: Vec<_> = texts(&case["candidates"])
        .iter()
        .map(|text| packer.candidate(text, &source).unwrap())
        .collect();
    let mut all = Vec::new();
    for (i, left) in candidates.iter().enumerate() {
        for (j, right) in candidates.iter().enumerate() {
            if i != j {
                all.push(((i, j), Packed::new(&source, left, right)));
            }
        }
    }
    all
}

fn logits_of<B: ModelOps>(model: &PairRm<B>, batch_size: usize, packer: &Packer) {
    let cases = cases();
    let tasks: Vec<_> = cases
        .iter()
        .flat_map(|case| {
            packed(packer, case)
                .into_iter()
                .map(move |task| (case, task))
        })
        .collect();
    for batch in tasks.chunks(batch_size) {
        let sequences: Vec<&Packed> = batch.iter().map(|(_, (_, packed))| packed).collect();
        let found = model.compare(&sequences).unwrap();
        for ((case, ((i, j), _)), found) in batch.iter().zip(found) {
            let expected = numbers(&case["comparison_logits"][i])[*j];
            assert_close(found.into(), expected, 1e-4, &format!("({i}, {j})"));
        }
    }
}

fn packing<B: ModelOps>(device: &B::Device) {
    let (packer, _) = PairRm::<B>::load(&path("pairrm"), DType::F32, device).unwrap();
    for case in cases() {
        for ((i, j), packed) in packed(&packer, &case) {
            if i + j == 1 {
                let expected = ids(&case[format!("packed_ids_{i}_{j}")]);
                assert_eq!(packed.ids, expected, "({i}, {j})");
            }
        }
    }
}

fn comparison_logits<B: ModelOps>(device: &B::Device) {
    let (packer, model) = PairRm::<B>::load(&path("pairrm"), DType::F32, device).unwrap();
    for batch_size in [1, 7, 100] {
        logits_of(&model, batch_size, &packer);
    }
}

fn scores_whatever_the_budget<B: ModelOps>(device: &B::Device) {
    let cases = cases();
    let row = |(number, case): (usize, &Value)| ResponseRow {
        prompt_id: number.to_string(),
        prompt: Prompt::Text(case["source"].as_str().unwrap().into()),
        reference: None,
        responses: texts(&case["candidates"]),
        finish_reasons: None,
        tokens: None,
        logprobs: None,
        prompt_ids: None,
        response_ids: None,
    };
    let rows: Vec<ResponseRow> = cases.iter().enumerate().map(row).collect();
    let rows: Vec<&ResponseRow> = rows.iter().collect();
    for batch_tokens in [1, 300, 100_000] {
        let loaded = PairRm::<B>::load(&path("pairrm"), DType::F32, device).unwrap();
        let prompts = PromptText::from_dir(None).unwrap();
        let mut judge = PairRmJudge::new(loaded, "", prompts, Estimate::default(), batch_tokens);
        let mut judgements: Vec<Judgement> = Vec::new();
        let mut take = |judgement| {
            judgements.push(judgement);
            Ok(())
        };
        let quiet = AtomicBool::new(false);
        judge
            .judge(&rows, &mut JudgeSession::new(&mut take, &quiet))
            .unwrap();
        assert_eq!(judgements.len(), cases.len());
        for (case, judgement) in cases.iter().zip(&judgements) {
            for (found, expected) in judgement.rm_scores.iter().zip(numbers(&case["scores"])) {
                assert_close(*found, expected, 1e-4, "score");
            }
        }
    }
}

crate::on_every_backend!(packing, comparison_logits, scores_whatever_the_budget);
