//! A plan as text.

use std::fmt::{self, Display, Formatter};

use super::memory::{GenerationMemory, TrainingMemory};
use super::{Fit, Plan};

/// Bytes as MiB or GiB.
fn size(bytes: u64) -> String {
    let mib = bytes as f64 / (1 << 20) as f64;
    match mib < 10_000.0 {
        true => format!("{mib:.1} MiB"),
        false => format!("{:.1} GiB", mib / 1024.0),
    }
}

/// A number with its power of ten as a letter.
fn short(number: f64) -> String {
    const STEPS: [(f64, &str); 6] = [
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ];
    match STEPS.iter().find(|(step, _)| number >= *step) {
        Some((step, letter)) => format!("{:.2} {letter}", number / step),
        None => format!("{number:.0}"),
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "model        {}", self.model)?;
        writeln!(
            f,
            "parameters   {}, of which {} are trained, in {}",
            short(self.parameters as f64),
            short(self.trained_parameters as f64),
            self.precision
        )?;
        writeln!(
            f,
            "a step       {} pairs, {} at a time; {} tokens, {}FLOP",
            self.pairs_per_step,
            self.pairs_at_a_time,
            short(self.tokens_per_step),
            short(self.flops_per_step)
        )?;
        let flops = self.flops_per_iteration;
        writeln!(
            f,
            "iterations   {}, of {} pairs and {} steps each; {}FLOP of generation, {}FLOP of reference, {}FLOP of training",
            self.iterations,
            self.pairs_per_iteration,
            self.steps_per_iteration,
            short(flops.generation),
            short(flops.reference),
            short(flops.training)
        )?;
        for note in &self.notes {
            writeln!(f, "             ({note})")?;
        }
        training(f, "training", &self.training, self.recompute)?;
        if let Some(memory) = &self.generation {
            generation(f, memory)?;
        }
        if let Some(memory) = &self.fine_tuning {
            training(f, "fine-tuning", memory, "none")?;
        }
        writeln!(f, "\n{}", self.verdict())?;
        elsewhere(f, &self.elsewhere)
    }
}

impl Plan {
    /// Whether it fits, in a sentence.
    pub fn verdict(&self) -> String {
        let peak = size(self.peak_bytes);
        match self.memory_bytes {
            None => {
                format!("It takes {peak}. The device's memory is not known; give --memory-gib.")
            }
            Some(memory) if self.peak_bytes > memory => format!(
                "It does NOT fit: {peak} of {}. {}.",
                size(memory),
                self.advice().join("; ")
            ),
            Some(memory) if self.peak_bytes as f64 * 1.15 > memory as f64 => format!(
                "It should fit: {peak} of {}, but the reckoning is good to 15 % only.",
                size(memory)
            ),
            Some(memory) => format!("It fits: {peak} of {}.", size(memory)),
        }
    }

    /// What would take less, the cheapest first.
    fn advice(&self) -> Vec<&'static str> {
        let mut advice = Vec::new();
        let too_large = |peak: u64| self.memory_bytes.is_some_and(|memory| peak > memory);
        if let Some(memory) = self.generation.filter(|g| too_large(g.peak)) {
            if self.generation_precision == "f32" {
                advice
                    .push("Generation: set generate.precision = \"bf16\" where the device has it");
            }
            if memory.cache > memory.weights / 8 {
                advice.push("Generation: lower generate.batch or set generate.cache_memory_mib");
            }
        }
        if self.fine_tuning.is_some_and(|t| too_large(t.peak)) {
            advice.push("Fine-tuning: lower sft.batch_size or sft.max_length");
        }
        if too_large(self.training.peak) {
            if self.recompute == "none" {
                advice.push("Training: set train.recompute = \"layer\"");
            }
            let t = &self.training;
            let fixed = t.weights + t.masters + t.optimizer + t.gradients;
            if self.pairs_at_a_time > 1 && !too_large(fixed) {
                advice.push("Training: set train.memory_mib");
            }
            if self.precision == "f32" {
                advice.push("Training: set train.precision = \"bf16\" where the device has it");
            }
            if self.trained_parameters >= self.parameters {
                advice.push("Training: train adapters, [train.lora]");
            }
        }
        if advice.is_empty() {
            advice.push("Shorten train.max_length, or take a smaller model or more memory");
        }
        advice
    }
}

fn training(
    f: &mut Formatter<'_>,
    name: &str,
    memory: &TrainingMemory,
    recompute: &str,
) -> fmt::Result {
    writeln!(f, "\nmemory of {name}, recompute {recompute}")?;
    let parts = [
        ("weights", memory.weights),
        ("f32 masters", memory.masters),
        ("optimizer state", memory.optimizer),
        ("gradients", memory.gradients),
        ("kept activations", memory.activations),
        ("a block backward", memory.block),
        ("chunk of logits", memory.logits),
        ("largest update", memory.update),
        ("peak", memory.peak),
    ];
    lines(f, &parts)
}

fn generation(f: &mut Formatter<'_>, memory: &GenerationMemory) -> fmt::Result {
    writeln!(f, "\nmemory of generation")?;
    let parts = [
        ("weights", memory.weights),
        ("keys and values", memory.cache),
        ("logits", memory.logits),
        ("peak", memory.peak),
    ];
    lines(f, &parts)
}

fn lines(f: &mut Formatter<'_>, parts: &[(&str, u64)]) -> fmt::Result {
    for (name, bytes) in parts.iter().filter(|(_, bytes)| *bytes > 0) {
        writeln!(f, "  {name:<18}{:>12}", size(*bytes))?;
    }
    Ok(())
}

fn elsewhere(f: &mut Formatter<'_>, fits: &[Fit]) -> fmt::Result {
    writeln!(
        f,
        "\ntraining in bf16 with recompute = \"layer\" on a card of"
    )?;
    let mut shown: Option<&str> = None;
    for fit in fits {
        if shown != Some(&fit.set_up) {
            shown = Some(&fit.set_up);
            writeln!(
                f,
                "  {}: {} for one pair",
                fit.set_up,
                size(fit.least_bytes)
            )?;
        }
        match fit.pairs_at_a_time {
            0 => writeln!(f, "    {:<7} does not fit", fit.card)?,
            pairs => writeln!(f, "    {:<7} fits, {pairs} at a time", fit.card)?,
        }
    }
    Ok(())
}
