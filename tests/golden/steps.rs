//! One optimizer step on the golden pairs, four at a time in their order.

use burn::module::Module;
use sppo_model::llama::Llama;
use sppo_model::ops::ModelOps;
use sppo_model::ops::TrainingOps;
use sppo_training::config::Loss;
use sppo_training::data::PairProbabilities;
use sppo_training::learner::{Learner, sequence_logps};
use sppo_training::loss::PairLogps;
use sppo_training::optimizer::{Optimizer, RmsProp};
use sppo_training::tokenise::{TokenisedPair, TokenisedSequence};

/// The rows of one step: all chosen, then all rejected.
pub struct Step {
    sequences: Vec<TokenisedSequence>,
    reference: Vec<f64>,
    probabilities: Vec<PairProbabilities>,
}

impl Step {
    pub fn new(pairs: &[TokenisedPair], reference: &[[f64; 2]], number: usize) -> Self {
        let rows: Vec<usize> = (0..4).map(|i| (number * 4 + i) % pairs.len()).collect();
        let chosen = rows.iter().map(|&i| pairs[i].chosen.clone());
        let rejected = rows.iter().map(|&i| pairs[i].rejected.clone());
        let known = |side: usize| rows.iter().map(move |&i| reference[i][side]);
        Self {
            sequences: chosen.chain(rejected).collect(),
            reference: known(0).chain(known(1)).collect(),
            probabilities: rows.iter().map(|&i| pairs[i].probabilities).collect(),
        }
    }

    /// What the loss sees, given the policy's log-probabilities.
    pub fn logps(&self, policy: &[f64]) -> PairLogps {
        PairLogps {
            policy_chosen: policy[..4].to_vec(),
            policy_rejected: policy[4..].to_vec(),
            reference_chosen: self.reference[..4].to_vec(),
            reference_rejected: self.reference[4..].to_vec(),
            probabilities: self.probabilities.clone(),
        }
    }

    /// Gathers the gradients; gives the policy's log-probabilities.
    pub fn backward<B: TrainingOps>(
        &self,
        learner: &mut Learner<B>,
        loss: Loss,
        beta: f64,
    ) -> Vec<f64> {
        let sequences: Vec<_> = self.sequences.iter().collect();
        let weights = |policy: &[f64]| {
            let output = self.logps(policy).loss(loss, beta);
            [output.grad_chosen, output.grad_rejected].concat()
        };
        learner.backward(&sequences, weights).unwrap()
    }
}

/// Log-probabilities of chosen and rejected under a model as it is.
pub fn reference<B: ModelOps>(model: &Llama<B>, pairs: &[TokenisedPair]) -> Vec<[f64; 2]> {
    let model = model.clone().no_grad();
    let both = |pair: &TokenisedPair| {
        let logps = sequence_logps(&model, &pair.sides()).unwrap();
        [logps[0], logps[1]]
    };
    pairs.iter().map(both).collect()
}

/// With torch's defaults.
pub fn rmsprop() -> Optimizer {
    Optimizer::RmsProp(RmsProp {
        alpha: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
    })
}
