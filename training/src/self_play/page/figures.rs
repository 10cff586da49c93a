//! The charts of a run.

use super::chart::{Axis, Chart, Labels, Shape, Span, smooth};
use super::folder::{Iteration, RunFolder};
use crate::data::PairProbabilities;
use crate::self_play::curves::Step;
use crate::self_play::report::IterationReport;
use crate::shown::digits;

/// Half of a 95 % interval, in standard errors.
pub(super) const Z: f64 = 1.96;
/// Bars of a histogram over 0..1.
const BINS: usize = 20;
/// Half widths of the ends of an interval and of a range.
const CAP: f64 = 5.0;

/// Colours, strokes and marks of series; `style.css` has them.
pub(super) const FIRST: &str = "s1";
pub(super) const SECOND: &str = "s2";

/// One run's points in a chart, with its class and name.
pub(super) struct Series<'a> {
    pub class: &'a str,
    pub name: &'a str,
    pub points: Vec<(f64, f64)>,
}

/// Class, name, and by iteration a percentage with half the width of its interval (0 where there is
/// none).
type Rates<'a> = (&'a str, &'a str, Vec<(f64, f64)>);

/// Win rates by iteration.
pub(super) fn win_rates(title: &str, series: &[Rates<'_>]) -> Chart {
    let most = series.iter().map(|(_, _, rates)| rates.len()).max();
    let names: Vec<String> = (1..=most.unwrap_or(0)).map(|i| i.to_string()).collect();
    let all = series.iter().flat_map(|(_, _, rates)| rates);
    let span = Span::of(all.flat_map(|(rate, half)| [rate - half, rate + half]));
    let span = span.unwrap_or(Span::new(40.0, 60.0)).and(50.0);
    let span = span.at_least(20.0).within(0.0, 100.0);
    let labels = Labels {
        title,
        x: "iteration",
        y: "win rate",
    };
    let mut chart = Chart::new(labels, Axis::Names(&names), Axis::Numbers(span, " %"));
    chart.across(50.0, "even", "");
    let mut words = Vec::new();
    for (place, (class, name, rates)) in series.iter().enumerate() {
        chart.key(Shape::Line, class, *name);
        // Beside each other, so that intervals do not hide each other.
        let shift = (place as f64 - (series.len() - 1) as f64 / 2.0) * 0.12;
        let at = |i: usize| i as f64 + shift;
        let points: Vec<_> = rates
            .iter()
            .enumerate()
            .map(|(i, r)| (at(i), r.0))
            .collect();
        chart.line(&points, class);
        for (i, &(rate, half)) in rates.iter().enumerate() {
            if half > 0.0 {
                chart.whisker(at(i), (rate - half, rate + half), CAP, class);
            }
            let tip = match half > 0.0 {
                true => format!("{name}, iteration {}: {rate:.1} % ± {half:.1}", i + 1),
                false => format!("{name}, iteration {}: {rate:.1} %", i + 1),
            };
            chart.dot(at(i), rate, class, tip);
        }
        let rates: Vec<_> = rates
            .iter()
            .map(|(rate, _)| format!("{rate:.1} %"))
            .collect();
        words.push(format!("{name}: {}", rates.join(", ")));
    }
    chart.describe(format!("{}; 50 % is even", words.join("; ")))
}

/// Rates against the first model and against the one before.
pub(super) fn win_rates_of(iterations: &[IterationReport]) -> Chart {
    let first = iterations.iter();
    let first = first.map(|e| (100.0 * e.win_rate, 100.0 * Z * e.win_rate_se));
    let before = iterations.iter().map(|e| {
        let against = &e.against_previous;
        (100.0 * against.win_rate, 100.0 * Z * against.win_rate_se)
    });
    win_rates(
        "Win rate on held-out prompts",
        &[
            (FIRST, "against the first model", first.collect()),
            (SECOND, "against the one before", before.collect()),
        ],
    )
}

/// Lengths of held-out answers: a box for each model, in ascending lengths.
pub(super) fn lengths(names: &[String], models: &[&[f64]]) -> Option<Chart> {
    let mean = |lengths: &[f64]| lengths.iter().sum::<f64>() / lengths.len() as f64;
    let shown = models
        .iter()
        .flat_map(|m| [quantile(m, 0.05), quantile(m, 0.95), mean(m)]);
    let span = Span::of(shown)?.and(0.0);
    let labels = Labels {
        title: "Length of held-out answers",
        x: "model",
        y: "characters",
    };
    let mut chart = Chart::new(labels, Axis::Names(names), Axis::Numbers(span, ""));
    let mut words = Vec::new();
    for (i, lengths) in models.iter().enumerate().filter(|(_, m)| !m.is_empty()) {
        let x = i as f64;
        let of = |part| quantile(lengths, part);
        let mean = mean(lengths);
        let name = &names[i];
        chart.whisker(x, (of(0.05), of(0.95)), CAP, FIRST);
        let tip = format!(
            "{name}: half of the answers have {} to {}",
            of(0.25),
            of(0.75)
        );
        chart.bar((x - 0.22, x + 0.22), (of(0.25), of(0.75)), "box", tip);
        chart.line(&[(x - 0.22, of(0.5)), (x + 0.22, of(0.5))], "median");
        chart.dot(x, mean, SECOND, format!("{name}: mean {mean:.1}"));
        words.push(format!("{name}: median {}, mean {mean:.0}", of(0.5)));
    }
    chart.key(Shape::Area, "box", "half of the answers, with their median");
    chart.key(Shape::Line, FIRST, "5 to 95 %");
    chart.key(Shape::Dot, SECOND, "mean");
    Some(chart.describe(words.join("; ")))
}

/// The value below which this part of ascending values lies.
pub(super) fn quantile(ascending: &[f64], part: f64) -> f64 {
    let last = ascending.len().saturating_sub(1);
    let place = (part * last as f64).round() as usize;
    ascending.get(place).copied().unwrap_or(f64::NAN)
}

/// How often win probabilities of better and worse responses lie in each twentieth of 0..1.
pub(super) fn probabilities(number: usize, pairs: &[PairProbabilities]) -> Option<Chart> {
    let all = |of: fn(&PairProbabilities) -> Option<f64>| -> Vec<f64> {
        pairs.iter().filter_map(of).collect()
    };
    let (chosen, rejected) = (all(|p| p.win), all(|p| p.lose));
    let title = format!("Win probabilities, iteration {number}");
    let labels = Labels {
        title: &title,
        x: "mean probability of beating the samples",
        y: "pairs",
    };
    let series = [
        (FIRST, "chosen", &chosen[..]),
        (SECOND, "rejected", &rejected),
    ];
    let chart = histogram(labels, &series)?;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    Some(chart.describe(format!(
        "{} pairs; the mean of the chosen responses is {:.2}, that of the rejected ones {:.2}",
        pairs.len(),
        mean(&chosen),
        mean(&rejected)
    )))
}

/// How often the judge gives an answer each probability of beating the first model's.
pub(super) fn beats_first(number: usize, iteration: &Iteration) -> Option<Chart> {
    let wins: Vec<f64> = iteration
        .answers
        .values()
        .map(|answer| answer.wins)
        .collect();
    let labels = Labels {
        title: &format!("How clearly iteration {number} wins"),
        x: "probability of beating the first",
        y: "prompts",
    };
    let even = wins
        .iter()
        .filter(|wins| (*wins - 0.5).abs() < 1e-9)
        .count();
    let name = format!("one answer a prompt, {even} of them even");
    let mut chart = histogram(labels, &[(FIRST, &name, &wins)])?;
    chart.down(0.5, "even", "");
    let above = wins.iter().filter(|wins| **wins > 0.5).count();
    Some(chart.describe(format!("{above} of {} are above one half", wins.len())))
}

/// Numbers in 0..1 counted in equal parts, series beside each other.
fn histogram(labels: Labels<'_>, series: &[(&str, &str, &[f64])]) -> Option<Chart> {
    let count = |values: &[f64]| {
        let mut bins = [0usize; BINS];
        for value in values {
            bins[((value * BINS as f64) as usize).min(BINS - 1)] += 1;
        }
        bins
    };
    let counted: Vec<_> = series.iter().map(|(_, _, values)| count(values)).collect();
    let most = counted.iter().flatten().max().copied().unwrap_or(0);
    if most == 0 {
        return None;
    }
    let x = Axis::Numbers(Span::new(0.0, 1.0), "");
    let y = Axis::Numbers(Span::new(0.0, most as f64), "");
    let mut chart = Chart::new(labels, x, y);
    let part = 1.0 / BINS as f64;
    let width = 0.9 * part / series.len() as f64;
    for (place, ((class, name, _), bins)) in series.iter().zip(&counted).enumerate() {
        chart.key(Shape::Area, class, *name);
        for (i, &count) in bins.iter().enumerate().filter(|(_, count)| **count > 0) {
            let from = i as f64 * part;
            let left = from + 0.05 * part + place as f64 * width;
            let tip = format!("{name}, {from:.2} to {:.2}: {count}", from + part);
            chart.bar((left, left + width), (0.0, count as f64), class, tip);
        }
    }
    Some(chart)
}

/// A number of each step.
type Of = fn(&Step) -> f64;

/// What a curve is of.
pub(super) struct Curve {
    pub title: &'static str,
    pub y: &'static str,
    of: Of,
    /// The axis holds this value, too.
    holds: Option<f64>,
}

/// The curves of a training on pairs, one series each; Δ has its own chart.
pub(super) const CURVES: [Curve; 4] = [
    Curve {
        title: "Loss",
        y: "loss",
        of: |step| step.loss,
        holds: Some(0.0),
    },
    Curve {
        title: "Reward margin",
        y: "β(Δ chosen − Δ rejected)",
        of: |step| step.margin,
        holds: Some(0.0),
    },
    Curve {
        title: "Accuracy",
        y: "part of the pairs",
        of: |step| step.accuracy,
        holds: Some(1.0),
    },
    Curve {
        title: "Gradient norm, before clipping",
        y: "norm",
        of: |step| step.grad_norm,
        holds: Some(0.0),
    },
];

/// All steps of a run, one iteration behind the other with a gap between, and where each begins.
pub(super) fn all_steps(iterations: &[Iteration], of: Of) -> (Vec<(f64, f64)>, Vec<f64>) {
    let (mut points, mut begins, mut count) = (Vec::new(), Vec::new(), 0.0);
    for iteration in iterations {
        let begin = count + 0.5;
        if !points.is_empty() {
            points.push((begin, f64::NAN));
        }
        begins.push(begin);
        for step in &iteration.steps {
            count += 1.0;
            points.push((count, of(step)));
        }
    }
    (points, begins)
}

/// A curve of one run, with its iterations apart; `None` where there is no such number.
pub(super) fn curve(run: &RunFolder, curve: &Curve) -> Option<Chart> {
    let (points, begins) = all_steps(&run.iterations, curve.of);
    let series = Series {
        class: FIRST,
        name: "",
        points,
    };
    let mut chart = curves(curve, vec![series])?;
    mark_iterations(&mut chart, &begins);
    Some(chart)
}

/// The same curve of runs.
pub(super) fn curve_of_runs(runs: &[(&str, &str, &RunFolder)], curve: &Curve) -> Option<Chart> {
    let series = runs.iter().map(|(class, name, run)| Series {
        class,
        name,
        points: all_steps(&run.iterations, curve.of).0,
    });
    curves(curve, series.collect())
}

fn curves(curve: &Curve, series: Vec<Series<'_>>) -> Option<Chart> {
    let labels = Labels {
        title: curve.title,
        x: "step",
        y: curve.y,
    };
    steps_chart(labels, curve.holds, series)
}

/// The loss of the fine-tuning.
pub(super) fn fine_tuning(steps: &[Step]) -> Option<Chart> {
    let points = steps.iter().enumerate();
    let points = points.map(|(i, step)| (i as f64 + 1.0, step.loss));
    let series = Series {
        class: FIRST,
        name: "",
        points: points.collect(),
    };
    let labels = Labels {
        title: "Loss of the fine-tuning",
        x: "step",
        y: "loss",
    };
    steps_chart(labels, Some(0.0), vec![series])
}

/// Δ of both responses against what the loss wants it to be.
pub(super) fn deltas(run: &RunFolder) -> Option<Chart> {
    let beta = run.beta()?;
    let delta = |of: Of| {
        let (points, begins) = all_steps(&run.iterations, of);
        let points = points.into_iter().map(|(x, y)| (x, y / beta));
        (points.collect::<Vec<_>>(), begins)
    };
    let (chosen, begins) = delta(|step| step.chosen);
    let (rejected, _) = delta(|step| step.rejected);
    let targets = run.targets();
    let wanted: Vec<f64> = targets
        .iter()
        .flatten()
        .flat_map(|(chosen, rejected)| [*chosen, *rejected])
        .collect();
    let span = Span::of(wanted.into_iter().chain([0.0]))?;
    let labels = Labels {
        title: "Δ = log π − log π_ref, against its target",
        x: "step",
        y: "nats",
    };
    let series = [(FIRST, "chosen", chosen), (SECOND, "rejected", rejected)];
    let series = series.map(|(class, name, points)| Series {
        class,
        name,
        points,
    });
    let mut chart = steps_chart_over(labels, Some(span), series.into())?;
    let ends = begins.iter().skip(1).copied().chain([f64::INFINITY]);
    let last = run.iterations.iter().map(|i| i.steps.len()).sum::<usize>() as f64 + 0.5;
    for ((begin, end), (chosen, rejected)) in begins.iter().zip(ends).zip(targets.iter().flatten())
    {
        let end = end.min(last);
        chart.line(&[(*begin, *chosen), (end, *chosen)], "s1 target");
        chart.line(&[(*begin, *rejected), (end, *rejected)], "s2 target");
    }
    if targets.is_some() {
        chart.key(Shape::Line, "s1 target", "target of chosen");
        chart.key(Shape::Line, "s2 target", "target of rejected");
    }
    mark_iterations(&mut chart, &begins);
    Some(chart)
}

fn mark_iterations(chart: &mut Chart, begins: &[f64]) {
    for (i, begin) in begins.iter().enumerate().filter(|_| begins.len() > 1) {
        chart.down(*begin, "begin", (i + 1).to_string());
    }
}

fn steps_chart(labels: Labels<'_>, holds: Option<f64>, series: Vec<Series<'_>>) -> Option<Chart> {
    steps_chart_over(labels, holds.map(|value| Span::new(value, value)), series)
}

/// Numbers by step: as they are, faint, and their mean over neighbours.
fn steps_chart_over(
    labels: Labels<'_>,
    holds: Option<Span>,
    series: Vec<Series<'_>>,
) -> Option<Chart> {
    let smoothed: Vec<_> = series
        .iter()
        .map(|s| smooth(&s.points, s.points.len() / 24))
        .collect();
    let mut span = Span::of(shown(&series, &smoothed))?;
    if let Some(holds) = holds {
        span = span.union(holds);
    }
    let longest = series.iter().filter_map(|s| s.points.last());
    let longest = longest.map(|(x, _)| *x).fold(1.0, f64::max);
    let x = Axis::Numbers(Span::new(0.0, longest), "");
    let title = labels.title.to_string();
    let mut chart = Chart::new(labels, x, Axis::Numbers(span, ""));
    let mut words = Vec::new();
    for (series, smoothed) in series.iter().zip(&smoothed) {
        chart.line(&series.points, &format!("{} faint", series.class));
        chart.line(smoothed, series.class);
        if !series.name.is_empty() {
            chart.key(Shape::Line, series.class, series.name);
        }
        let mut finite = smoothed.iter().filter(|(_, y)| y.is_finite());
        let (first, last) = (finite.clone().next(), finite.next_back());
        if let (Some((_, first)), Some((_, last))) = (first, last) {
            let name = if series.name.is_empty() {
                &title
            } else {
                series.name
            };
            words.push(format!(
                "{name}: from {} to {}",
                digits(*first),
                digits(*last)
            ));
        }
    }
    Some(chart.describe(words.join("; ")))
}

/// What decides the axis: means, and of the numbers themselves all but the wildest hundredth.
fn shown(series: &[Series<'_>], smoothed: &[Vec<(f64, f64)>]) -> Vec<f64> {
    let mut values = Vec::new();
    for (series, smoothed) in series.iter().zip(smoothed) {
        values.extend(smoothed.iter().map(|(_, y)| *y));
        let mut raw: Vec<f64> = series.points.iter().map(|(_, y)| *y).collect();
        raw.retain(|y| y.is_finite());
        raw.sort_by(f64::total_cmp);
        values.extend([quantile(&raw, 0.01), quantile(&raw, 0.99)]);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values() {
        let values: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.05), 5.0);
        assert_eq!(quantile(&values, 1.0), 100.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn no_pairs_no_histogram() {
        assert!(probabilities(1, &[]).is_none());
        let pair = PairProbabilities::new(1.0, 1.0, 0.0);
        assert!(probabilities(1, &[pair]).is_some());
    }
}
