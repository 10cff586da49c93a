//! A plan as text.

use std::fmt::{self, Display, Formatter};

use super::memory::{GenerationMemory, JudgingMemory, TrainingMemory};
use super::{Fit, Hours, Plan, Remedy};

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

/// The same before its unit.
fn of(number: f64, unit: &str) -> String {
    match short(number) {
        plain if number < 1e3 => format!("{plain} {unit}"),
        large => large + unit,
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
            "a step       {} pairs, {} at a time; {} tokens, {}",
            self.pairs_per_step,
            self.pairs_at_a_time,
            short(self.tokens_per_step),
            of(self.flops_per_step, "FLOP")
        )?;
        let flops = self.flops_per_iteration;
        writeln!(
            f,
            "iterations   {}, each of {} pairs, {} steps, {} of generation, {} of judging, {} of reference and {} of training",
            self.iterations,
            self.pairs_per_iteration,
            self.steps_per_iteration,
            of(flops.generation, "FLOP"),
            of(flops.judging, "FLOP"),
            of(flops.reference, "FLOP"),
            of(flops.training, "FLOP")
        )?;
        for note in &self.notes {
            writeln!(f, "             ({note})")?;
        }
        training(f, "training", &self.training, self.recompute)?;
        if let Some(memory) = &self.generation {
            generation(f, memory)?;
        }
        if let Some(memory) = &self.judging {
            judging(f, memory)?;
        }
        if let Some(memory) = &self.fine_tuning {
            training(f, "fine-tuning", memory, "none")?;
        }
        cluster(f, self)?;
        writeln!(f, "\n{}", self.verdict())?;
        elsewhere(f, &self.elsewhere)
    }
}

impl Plan {
    /// Whether it fits, in a sentence.
    pub fn verdict(&self) -> String {
        let fits = self.fit_in_words();
        match &self.refused {
            Some(refused) => format!("{fits}\nIt would be REFUSED: {refused}."),
            None => fits,
        }
    }

    fn fit_in_words(&self) -> String {
        let each = if self.cluster.ranks > 1 {
            " on each rank"
        } else {
            ""
        };
        let peak = size(self.peak_bytes);
        match self.memory_bytes {
            None => {
                format!(
                    "It takes {peak}{each}. The device's memory is not known; give --memory-gib."
                )
            }
            Some(memory) if self.peak_bytes > memory => format!(
                "It does NOT fit: {peak} of {}{each}. {}.",
                size(memory),
                self.advice().join("; ")
            ),
            Some(memory) if self.peak_bytes as f64 * 1.15 > memory as f64 => format!(
                "It should fit: {peak} of {}{each}, but the reckoning is good to 15 % only.",
                size(memory)
            ),
            Some(memory) => format!("It fits: {peak} of {}{each}.", size(memory)),
        }
    }

    /// Whether it is planned for a CPU.
    fn is_on_host(&self) -> bool {
        self.cluster.card == "CPU"
    }

    /// What would take less, the cheapest first.
    fn advice(&self) -> Vec<String> {
        let mut advice: Vec<String> = Vec::new();
        let too_large = |peak: u64| self.memory_bytes.is_some_and(|memory| peak > memory);
        if let Some(memory) = self.generation.filter(|g| too_large(g.peak)) {
            if self.generation_precision == "f32" {
                let bf16 = "Generation: set generate.precision = \"bf16\" where the device has it";
                advice.push(bf16.into());
            }
            if memory.cache > memory.weights / 8 {
                let cache = "Generation: lower generate.batch or set generate.cache_memory_mib";
                advice.push(cache.into());
            }
        }
        if self.judging.is_some_and(|j| too_large(j.peak)) {
            advice.push("Judging: lower judge.batch_tokens".into());
        }
        if self.fine_tuning.is_some_and(|t| too_large(t.peak)) {
            advice.push("Fine-tuning: lower sft.batch_size or sft.max_length".into());
        }
        if too_large(self.training.peak) {
            if self.recompute == "none" {
                advice.push("Training: set train.recompute = \"layer\"".into());
            }
            advice.extend(self.remedy.map(|remedy| self.remedy_in_words(&remedy)));
            if self.precision == "f32" {
                let bf16 = "Training: set train.precision = \"bf16\" where the device has it";
                advice.push(bf16.into());
            }
            if self.trained_parameters >= self.parameters {
                advice.push("Training: train adapters, [train.lora]".into());
            }
        }
        if advice.is_empty() {
            advice.push("Shorten train.max_length, or take a smaller model or more memory".into());
        }
        advice
    }

    fn remedy_in_words(&self, remedy: &Remedy) -> String {
        let Some(pairs) = remedy.batch_size else {
            return format!(
                "The weights ({} in {}) are whole on every rank, they are not sharded, and with the activations of one pair they do not fit: more ranks do not help",
                size(self.training.weights),
                self.precision
            );
        };
        let parts = remedy.gradient_accumulation.unwrap_or(1);
        let batch = format!("train.batch_size = {pairs} and train.gradient_accumulation = {parts}");
        match remedy.ranks {
            Some(ranks) => format!("Training: start {ranks} ranks (docs/cluster.md), with {batch}"),
            // Its bound is one process's.
            None if self.cluster.ranks == 1 => {
                format!("Training: set train.memory_mib, or {batch}")
            }
            None => format!("Training: set {batch}"),
        }
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
        ("gradient exchange", memory.exchange),
        ("kept activations", memory.activations),
        ("a block backward", memory.block),
        ("chunk of logits", memory.logits),
        ("largest update", memory.update),
        ("rest of pages", memory.pages),
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
        ("rest of pages", memory.pages),
        ("peak", memory.peak),
    ];
    lines(f, &parts)
}

fn judging(f: &mut Formatter<'_>, memory: &JudgingMemory) -> fmt::Result {
    writeln!(f, "\nmemory of judging")?;
    let parts = [
        ("weights", memory.weights),
        ("a batch", memory.batch),
        ("rest of pages", memory.pages),
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
    if fits.is_empty() {
        return Ok(());
    }
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

/// Traffic and time of each number of ranks. Of one CPU the times are too rough to be shown.
fn cluster(f: &mut Formatter<'_>, plan: &Plan) -> fmt::Result {
    let (cluster, host) = (&plan.cluster, plan.is_on_host());
    if host && cluster.ranks == 1 {
        return Ok(());
    }
    let format = match (host, plan.precision) {
        (true, _) => "",
        (false, "f32") => " in bf16 (f32 takes longer)",
        (false, _) => " in bf16",
    };
    writeln!(
        f,
        "\nassumed, not measured: {}, {} TFLOP/s of dense products{format} at {:.0} % (MFU), {} GB/s of its memory at 60 %; {} GB/s between ranks of a node, {} GB/s from a node to others",
        cluster.card,
        cluster.tflops,
        100.0 * cluster.mfu,
        cluster.memory_gbs,
        cluster.link_gbs,
        cluster.network_gbs
    )?;
    writeln!(
        f,
        "  ranks nodes  parts      fixed usual peak       peak    fits      sent    a step overlapped  an iteration"
    )?;
    for row in &cluster.by_ranks {
        let fits = match row.fits {
            _ if row.refused.is_some() => "refused",
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        writeln!(
            f,
            "  {:>5} {:>5} {:>6} {:>10} {:>10} {:>10} {fits:>7} {:>9} {:>9} {:>10}  {}",
            row.ranks,
            row.nodes,
            row.parts_per_rank,
            size(row.fixed_bytes),
            size(row.usual_peak_bytes),
            size(row.peak_bytes),
            of(row.bytes_sent_per_step, "B"),
            time(row.step_seconds),
            time(row.step_seconds_overlapped),
            times(&row.hours)
        )?;
    }
    writeln!(
        f,
        "  parts, bytes sent and time of a step are those of the busiest rank; usual peak: training on rows of usual length; overlapped: gradients travel while the backward pass goes on"
    )?;
    if let Some(roofline) = &plan.roofline {
        writeln!(
            f,
            "  a step on one card takes at least {} ({:.0} % MFU): {} of products at {:.0} % of the nominal rate, then {} of other kernels at {:.0} % of the memory's",
            time(roofline.step_seconds),
            100.0 * roofline.mfu,
            of(roofline.product_flops, "FLOP"),
            100.0 * roofline.products_reach,
            of(roofline.other_bytes, "B"),
            100.0 * roofline.memory_reach
        )?;
        let hours: f64 =
            plan.iterations as f64 * cluster.by_ranks.last().map_or(0.0, |row| row.hours.sum());
        writeln!(
            f,
            "  the whole run of {} iterations on {} ranks: {}",
            plan.iterations,
            cluster.ranks,
            time(3600.0 * hours)
        )?;
    }
    if let Some(row) = cluster.by_ranks.iter().find(|row| row.refused.is_some()) {
        let why = row.refused.as_deref().unwrap_or_default();
        writeln!(f, "  fewer parts than ranks are refused: {why}")?;
    }
    Ok(())
}

fn times(hours: &Hours) -> String {
    let time = |hours: f64| time(3600.0 * hours);
    format!(
        "{}: {} generation, {} judging, {} reference, {} training",
        time(hours.sum()),
        time(hours.generation),
        time(hours.judging),
        time(hours.reference),
        time(hours.training)
    )
}

fn time(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.1} ms", 1e3 * seconds),
        ..60.0 => format!("{seconds:.2} s"),
        ..3600.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.2} h", seconds / 3600.0),
    }
}
