//! A run over several ranks: memory, traffic and time for each number of them.

use serde::Serialize;
use sppo_model::generate::CachePlan;

use super::card::Card;
use super::rows::{IterationFlops, Rows, most_that};
use super::shape::Assumed;
use crate::config::{Config, Recompute, parts_for_ranks};
use crate::cost::memory::{GenerationMemory, JudgingMemory, Training, TrainingMemory};
use crate::cost::{Batch, Sizes};

/// Parts of a nominal rate that are assumed where nothing is given: of matrix products (MFU) and of
/// reading memory.
const MFU: f64 = 0.3;
const READING: f64 = 0.6;
/// What a node sends to others in GB/s: one port of 400 Gb/s at 0.8, or 10 Gb/s for CPUs.
const NETWORK: f64 = 40.0;
const NETWORK_OF_CPUS: f64 = 1.0;
/// Rows dealt to ranks one by one end this much later than on the average rank.
const STRIDED: f64 = 1.13;
/// The most ranks that are proposed.
const MOST_RANKS: usize = 64;
/// What a proposal should leave free: one in so many.
const ROOM: u64 = 10;

/// What the times of a plan assume, and the plan for each number of ranks.
#[derive(Clone, Debug, Serialize)]
pub struct Cluster {
    /// Processes of the job, each with a device.
    pub ranks: usize,
    /// Machines that they run on.
    pub nodes: usize,
    /// The device.
    pub card: &'static str,
    /// Its dense matrix products, nominal, in TFLOP/s.
    pub tflops: f64,
    /// Which part of that is assumed to be used (MFU).
    pub mfu: f64,
    /// Reading its memory, nominal, in GB/s; 0.6 of it is assumed to be used.
    pub memory_gbs: f64,
    /// Between ranks of a node, in GB/s each way.
    pub link_gbs: f64,
    /// From a node to the others, in GB/s each way.
    pub network_gbs: f64,
    /// For 1, 2, 4, … and `ranks` ranks.
    pub by_ranks: Vec<OfRanks>,
}

/// The plan of some number of ranks.
#[derive(Clone, Debug, Serialize)]
pub struct OfRanks {
    /// Processes, each with a device.
    pub ranks: usize,
    /// Machines that they take.
    pub nodes: usize,
    /// Parts of a step that the busiest rank computes.
    pub parts_per_rank: usize,
    /// Memory of a rank's training, whose longest rows come together.
    pub training: TrainingMemory,
    /// Memory of a rank's fine-tuning.
    pub fine_tuning: Option<TrainingMemory>,
    /// What of the training's is there whatever the batch.
    pub fixed_bytes: u64,
    /// Its peak with rows of the usual lengths.
    pub usual_peak_bytes: u64,
    /// The highest of training, generation, judging and fine-tuning.
    pub peak_bytes: u64,
    /// Whether that fits, where the memory is known.
    pub fits: Option<bool>,
    /// What a rank sends for a step.
    pub bytes_sent_per_step: f64,
    /// A step whose communication waits for its computation.
    pub step_seconds: f64,
    /// A step whose gradients travel while the backward pass goes on.
    pub step_seconds_overlapped: f64,
    /// Of an iteration.
    pub hours: Hours,
    /// Why such a job is refused.
    pub refused: Option<String>,
}

/// Hours of an iteration; fine-tuning, held-out answers and checkpoints aside.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Hours {
    /// Rows are dealt to ranks one by one, and these end 1.13 times as late as the average rank.
    pub generation: f64,
    /// The same.
    pub judging: f64,
    /// Log-probabilities under the starting model.
    pub reference: f64,
    /// Steps whose communication is overlapped.
    pub training: f64,
}

impl Hours {
    /// All of them.
    pub fn sum(&self) -> f64 {
        self.generation + self.judging + self.reference + self.training
    }
}

/// What would make a training fit that does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// Pairs at a time that fit.
    pub batch_size: Option<usize>,
    /// Parts of a step, so that it has as many pairs as before and each rank a part.
    pub gradient_accumulation: Option<usize>,
    /// The fewest ranks on which they do, where more are needed.
    pub ranks: Option<usize>,
    /// False where no number of ranks helps: what is not sharded is too much by itself.
    pub more_ranks_help: bool,
}

/// What the plans of all numbers of ranks have in common.
pub(super) struct Job<'a> {
    pub config: &'a Config,
    pub assumed: &'a Assumed,
    /// Bytes of a device.
    pub memory: Option<u64>,
    pub training: &'a Training,
    pub fine_tuning: Option<&'a (Training, Batch)>,
    pub generation: Option<&'a (GenerationMemory, CachePlan)>,
    pub judging: Option<&'a JudgingMemory>,
    pub rows: &'a Rows,
    pub pairs_at_a_time: usize,
    pub flops: IterationFlops,
    pub flops_per_step: f64,
    pub steps: usize,
}

impl Job<'_> {
    fn ranks(&self) -> usize {
        self.assumed.ranks.unwrap_or(1)
    }

    fn nodes(&self) -> usize {
        self.assumed.nodes.unwrap_or(1)
    }

    fn on_a_node(&self) -> usize {
        self.ranks().div_ceil(self.nodes())
    }

    /// Bytes that each of `ranks` ranks may take; on CPUs those of a node share its memory.
    pub fn memory(&self, ranks: usize) -> Option<u64> {
        let sharing = match self.assumed.host {
            true => ranks.min(self.on_a_node()),
            false => 1,
        };
        Some(self.memory? / sharing as u64)
    }

    pub(super) fn pairs_per_step(&self) -> usize {
        self.config.train.batch_size * self.config.train.gradient_accumulation
    }

    /// The device of each of `ranks` ranks.
    pub(super) fn card(&self, ranks: usize) -> Card {
        if !self.assumed.host {
            return self.assumed.card.unwrap_or(Card::assumed());
        }
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        Card::cpu(cores as f64 / ranks.min(self.on_a_node()) as f64)
    }

    fn link(&self) -> f64 {
        self.assumed.link_gbs.unwrap_or(self.card(1).link_gbs)
    }

    fn network(&self) -> f64 {
        let usual = match self.assumed.host {
            true => NETWORK_OF_CPUS,
            false => NETWORK,
        };
        self.assumed.network_gbs.unwrap_or(usual)
    }

    fn mfu(&self) -> f64 {
        self.assumed.mfu.unwrap_or(MFU)
    }

    fn training(&self, ranks: usize) -> Training {
        Training {
            ranks: ranks as u64,
            ..self.training.clone()
        }
    }

    /// The plan for 1, 2, 4, … and all ranks.
    pub fn plan(&self) -> Cluster {
        let ranks = self.ranks();
        let powers = (0..usize::BITS).map(|power| 1 << power);
        let counts = powers.take_while(|count| *count < ranks).chain([ranks]);
        let card = self.card(ranks);
        Cluster {
            ranks,
            nodes: self.nodes(),
            card: card.name,
            tflops: card.tflops,
            mfu: self.mfu(),
            memory_gbs: card.memory_gbs,
            link_gbs: self.link(),
            network_gbs: self.network(),
            by_ranks: counts.map(|count| self.of(count)).collect(),
        }
    }

    /// The plan for so many ranks.
    pub fn of(&self, ranks: usize) -> OfRanks {
        let training = self.training(ranks);
        let memory = training.memory(&self.rows.largest(self.pairs_at_a_time));
        let fine_tuning = self.fine_tuning.map(|(training, batch)| {
            let training = Training {
                ranks: ranks as u64,
                ..training.clone()
            };
            training.memory(batch)
        });
        let generation = self.generation.map(|(memory, _)| memory.peak);
        let judging = self.judging.map(|memory| memory.peak);
        let fine_tuned = fine_tuning.map(|memory| memory.peak);
        let peaks = [Some(memory.peak), generation, judging, fine_tuned];
        let peak_bytes = peaks.into_iter().flatten().max().unwrap_or(0);
        let parts = self.pairs_per_step().div_ceil(self.pairs_at_a_time);
        let parts_per_rank = parts.div_ceil(ranks);
        let (alone, overlapped) = self.step_seconds(&training, parts, parts_per_rank);
        let usual = self.rows.usual(self.pairs_at_a_time);
        OfRanks {
            ranks,
            nodes: ranks.div_ceil(self.on_a_node()),
            parts_per_rank,
            training: memory,
            fine_tuning,
            fixed_bytes: Training::fixed(&memory),
            usual_peak_bytes: training.memory(&usual).peak,
            peak_bytes,
            fits: self.memory(ranks).map(|memory| peak_bytes <= memory),
            bytes_sent_per_step: training.sent(parts_per_rank as u64),
            step_seconds: alone,
            step_seconds_overlapped: overlapped,
            hours: self.hours(ranks, overlapped),
            refused: self.refused(ranks),
        }
    }

    /// Why a job of so many ranks would not begin.
    fn refused(&self, ranks: usize) -> Option<String> {
        let (train, sft) = (&self.config.train, &self.config.sft);
        let parts = parts_for_ranks(
            "train",
            train.batch_size,
            train.gradient_accumulation,
            ranks,
        );
        let of_sft = || match &sft.data {
            Some(_) => parts_for_ranks("sft", sft.batch_size, sft.gradient_accumulation, ranks),
            None => Ok(()),
        };
        let error = parts.and_then(|()| of_sft()).err()?;
        Some(error.to_string())
    }

    /// A step of the busiest rank, without and with overlap: gradients of a group travel while the
    /// next are computed, but those of the last group of a pass and the new weights do not.
    fn step_seconds(&self, training: &Training, parts: usize, busiest: usize) -> (f64, f64) {
        let ranks = training.ranks as usize;
        let a_part = self.flops_per_step / parts as f64 / self.rate(ranks);
        let bandwidth = match ranks > self.on_a_node() {
            true => self.link().min(self.network()),
            false => self.link(),
        };
        let seconds = |bytes: f64| bytes / (bandwidth * 1e9);
        let (weights, all) = (training.sent(0), training.sent(1));
        let a_pass = seconds(all - weights);
        let groups = Sizes::of(&training.config, training.lora.as_ref()).groups();
        let last = groups.iter().find(|(number, _)| *number > 0);
        let last = last.map_or(0.0, |(_, count)| *count as f64) / training.trained() as f64;
        let backward = match training.recompute {
            Recompute::None => 2.0 / 3.0,
            Recompute::Layer => 3.0 / 4.0,
        };
        let hidden = (a_pass * (1.0 - last)).min(a_part * backward);
        let busiest = busiest as f64;
        let alone = busiest * (a_part + a_pass) + seconds(weights);
        (alone, alone - busiest * hidden)
    }

    /// Operations a second of each of `ranks` ranks.
    fn rate(&self, ranks: usize) -> f64 {
        self.card(ranks).tflops * 1e12 * self.mfu()
    }

    fn hours(&self, ranks: usize, step: f64) -> Hours {
        let of_rank = |flops: f64| flops / self.rate(ranks) / ranks as f64 / 3600.0;
        let strided = if ranks > 1 { STRIDED } else { 1.0 };
        let generation = of_rank(self.flops.generation).max(self.reading(ranks) / 3600.0);
        Hours {
            generation: generation * strided,
            judging: of_rank(self.flops.judging) * strided,
            reference: of_rank(self.flops.reference),
            training: self.steps as f64 * step / 3600.0,
        }
    }

    /// Seconds in which a rank's sampling reads weights, keys and values, token by token.
    fn reading(&self, ranks: usize) -> f64 {
        let Some((memory, slots)) = self.generation else {
            return 0.0;
        };
        let of_token = slots.bytes as f64 / (slots.slots * slots.tokens) as f64;
        let cached = self.rows.prompt as f64 + self.rows.response as f64 / 2.0;
        let of_step = memory.weights as f64 + of_token * cached * slots.slots as f64;
        let sequences = (self.rows.prompts * self.config.generate.samples) as f64 / ranks as f64;
        let steps = sequences / slots.slots as f64 * self.rows.response as f64;
        steps * of_step / (self.card(ranks).memory_gbs * 1e9 * READING)
    }

    /// What would make the training fit into its memory; None where it does.
    pub fn remedy(&self) -> Option<Remedy> {
        let ranks = self.ranks();
        let peak = |ranks, pairs| self.training(ranks).memory(&self.rows.largest(pairs)).peak;
        if peak(ranks, self.pairs_at_a_time) <= self.memory(ranks)? {
            return None;
        }
        let all = self.pairs_per_step();
        let doubled = std::iter::successors(Some(ranks), |ranks| ranks.checked_mul(2));
        for count in doubled.take_while(|count| *count <= MOST_RANKS.max(ranks)) {
            let memory = self.memory(count)?;
            // Whole steps as before, with a part for each rank.
            let limit = self.pairs_at_a_time.min(all / count).max(1);
            let most = |bytes| most_that(limit, |pairs| peak(count, pairs) <= bytes);
            let most = match most(memory - memory / ROOM) {
                0 => most(memory),
                most => most,
            };
            if let Some(pairs) = (1..=most).rev().find(|pairs| all.is_multiple_of(*pairs)) {
                return Some(Remedy {
                    batch_size: Some(pairs),
                    gradient_accumulation: Some((all / pairs).max(count)),
                    ranks: (count > ranks).then_some(count),
                    more_ranks_help: true,
                });
            }
        }
        Some(Remedy {
            batch_size: None,
            gradient_accumulation: None,
            ranks: None,
            more_ranks_help: false,
        })
    }
}
