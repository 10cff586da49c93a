//! The geometry of charts: numbers become places in a drawing, which `templates/chart.html` draws as
//! SVG. Colours are classes, so that the page decides them, by light and by dark.

use serde::Serialize;

/// Size of every drawing, in its own units; small enough for a phone's width.
const WIDTH: f64 = 350.0;
const HEIGHT: f64 = 230.0;
/// Where its plot lies.
const LEFT: f64 = 48.0;
const RIGHT: f64 = 332.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 188.0;
/// Points of a line that are drawn; more are averaged.
const MOST_POINTS: usize = 320;

/// A drawing, ready for the template.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Chart {
    pub title: String,
    /// What it shows, for those who do not see it.
    pub description: String,
    pub x_label: String,
    pub y_label: String,
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    legend: Vec<Key>,
    rules: Vec<Rule>,
    bars: Vec<Bar>,
    lines: Vec<Line>,
    whiskers: Vec<Whisker>,
    dots: Vec<Dot>,
    #[serde(skip)]
    x: Scale,
    #[serde(skip)]
    y: Scale,
}

#[derive(Clone, Debug, Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// What a colour stands for.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Key {
    class: String,
    name: String,
    shape: Shape,
}

/// What is drawn in that colour.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Shape {
    Line,
    Area,
    Dot,
}

/// A straight line across the plot.
#[derive(Clone, Debug, Serialize)]
struct Rule {
    x1: f64,
    x2: f64,
    y1: f64,
    y2: f64,
    class: String,
    label: String,
}

#[derive(Clone, Debug, Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    class: String,
    tip: String,
}

#[derive(Clone, Debug, Serialize)]
struct Line {
    points: String,
    class: String,
}

#[derive(Clone, Debug, Serialize)]
struct Whisker {
    x: f64,
    y1: f64,
    y2: f64,
    /// Half the width of its ends.
    cap: f64,
    class: String,
}

#[derive(Clone, Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    class: String,
    tip: String,
}

/// From numbers to places.
#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Within the plot; what lies outside is at its edge.
    fn place(&self, value: f64) -> f64 {
        let part = (value - self.low) / (self.high - self.low);
        round(self.from + part.clamp(0.0, 1.0) * (self.to - self.from))
    }
}

/// Enough digits for a place in a drawing.
fn round(place: f64) -> f64 {
    (place * 10.0).round() / 10.0
}

/// The values that an axis spans.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    low: f64,
    high: f64,
}

impl Span {
    pub fn new(low: f64, high: f64) -> Self {
        Self { low, high }
    }

    /// Of all finite values; `None` where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut span: Option<Self> = None;
        for value in values.into_iter().filter(|value| value.is_finite()) {
            let old = span.unwrap_or(Self::new(value, value));
            span = Some(Self::new(old.low.min(value), old.high.max(value)));
        }
        span
    }

    pub fn and(self, value: f64) -> Self {
        Self::new(self.low.min(value), self.high.max(value))
    }

    /// All that either spans.
    pub fn union(self, other: Self) -> Self {
        self.and(other.low).and(other.high)
    }

    /// At least this wide, to both sides.
    pub fn at_least(self, width: f64) -> Self {
        let lacks = (width - (self.high - self.low)).max(0.0) / 2.0;
        Self::new(self.low - lacks, self.high + lacks)
    }

    /// No further than these bounds.
    pub fn within(self, low: f64, high: f64) -> Self {
        Self::new(self.low.max(low), self.high.min(high))
    }
}

/// What a chart is of.
pub(super) struct Labels<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
}

/// How an axis is divided.
pub(super) enum Axis<'a> {
    /// By round numbers, with this behind each.
    Numbers(Span, &'a str),
    /// By names, each in the middle of its part.
    Names(&'a [String]),
}

impl Chart {
    pub fn new(labels: Labels<'_>, x: Axis<'_>, y: Axis<'_>) -> Self {
        let (x, x_ticks) = divide(&x, LEFT, RIGHT, 5.0);
        let (y, y_ticks) = divide(&y, BOTTOM, TOP, 5.0);
        Self {
            title: labels.title.into(),
            description: String::new(),
            x_label: labels.x.into(),
            y_label: labels.y.into(),
            width: WIDTH,
            height: HEIGHT,
            left: LEFT,
            right: RIGHT,
            top: TOP,
            bottom: BOTTOM,
            x_ticks,
            y_ticks,
            legend: Vec::new(),
            rules: Vec::new(),
            bars: Vec::new(),
            lines: Vec::new(),
            whiskers: Vec::new(),
            dots: Vec::new(),
            x,
            y,
        }
    }

    pub fn describe(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Says what a class stands for; such a class has a colour and a stroke of its own.
    pub fn key(&mut self, shape: Shape, class: &str, name: impl Into<String>) {
        self.legend.push(Key {
            class: class.into(),
            name: name.into(),
            shape,
        });
    }

    /// A line from one edge to the other at this value of y.
    pub fn across(&mut self, y: f64, class: &str, label: impl Into<String>) {
        let y = self.y.place(y);
        self.rules.push(Rule {
            x1: LEFT,
            x2: RIGHT,
            y1: y,
            y2: y,
            class: class.into(),
            label: label.into(),
        });
    }

    /// A line from bottom to top at this value of x, with its name at the top.
    pub fn down(&mut self, x: f64, class: &str, label: impl Into<String>) {
        let x = self.x.place(x);
        self.rules.push(Rule {
            x1: x,
            x2: x,
            y1: TOP,
            y2: BOTTOM,
            class: class.into(),
            label: label.into(),
        });
    }

    /// A line through points, of which many are averaged into few; a value that is not finite is a
    /// gap.
    pub fn line(&mut self, points: &[(f64, f64)], class: &str) {
        for part in points.split(|(_, y)| !y.is_finite()) {
            if part.is_empty() {
                continue;
            }
            let each = part.len().div_ceil(MOST_POINTS);
            let mut text = String::new();
            for bucket in part.chunks(each) {
                let count = bucket.len() as f64;
                let x = bucket.iter().map(|(x, _)| x).sum::<f64>() / count;
                let y = bucket.iter().map(|(_, y)| y).sum::<f64>() / count;
                if !text.is_empty() {
                    text.push(' ');
                }
                text += &format!("{},{}", self.x.place(x), self.y.place(y));
            }
            self.lines.push(Line {
                points: text,
                class: class.into(),
            });
        }
    }

    /// A mark, with a text that shows when it is pointed at.
    pub fn dot(&mut self, x: f64, y: f64, class: &str, tip: impl Into<String>) {
        if y.is_finite() {
            let (x, y) = (self.x.place(x), self.y.place(y));
            self.dots.push(Dot {
                x,
                y,
                class: class.into(),
                tip: tip.into(),
            });
        }
    }

    /// From one value of y to another, with ends of this half width.
    pub fn whisker(&mut self, x: f64, (low, high): (f64, f64), cap: f64, class: &str) {
        if low.is_finite() && high.is_finite() {
            self.whiskers.push(Whisker {
                x: self.x.place(x),
                y1: self.y.place(low),
                y2: self.y.place(high),
                cap,
                class: class.into(),
            });
        }
    }

    /// A rectangle between values of x and of y.
    pub fn bar(&mut self, x: (f64, f64), y: (f64, f64), class: &str, tip: impl Into<String>) {
        let (left, right) = (self.x.place(x.0), self.x.place(x.1));
        let (bottom, top) = (self.y.place(y.0), self.y.place(y.1));
        self.bars.push(Bar {
            x: left,
            y: top,
            width: round((right - left).max(0.5)),
            height: round((bottom - top).max(0.0)),
            class: class.into(),
            tip: tip.into(),
        });
    }
}

/// The scale and the ticks of an axis.
fn divide(axis: &Axis<'_>, from: f64, to: f64, parts: f64) -> (Scale, Vec<Tick>) {
    match axis {
        Axis::Names(names) => {
            let scale = Scale {
                low: -0.5,
                high: names.len().max(1) as f64 - 0.5,
                from,
                to,
            };
            let ticks = names.iter().enumerate().map(|(i, name)| Tick {
                at: scale.place(i as f64),
                label: name.clone(),
            });
            (scale, ticks.collect())
        }
        Axis::Numbers(span, unit) => {
            let step = round_step((span.high - span.low) / parts);
            let first = (span.low / step).floor();
            // Two ticks at least, for else there is no scale.
            let last = (span.high / step).ceil().max(first + 1.0);
            let scale = Scale {
                low: first * step,
                high: last * step,
                from,
                to,
            };
            let count = (last - first) as usize;
            let ticks = (0..=count.min(20)).map(|i| {
                let value = (first + i as f64) * step;
                Tick {
                    at: scale.place(value),
                    label: format!("{}{unit}", short(value, step)),
                }
            });
            (scale, ticks.collect())
        }
    }
}

/// 1, 2 or 5 times a power of ten, at least so much.
fn round_step(at_least: f64) -> f64 {
    if !at_least.is_finite() || at_least <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(at_least.log10().floor());
    let times = [1.0, 2.0, 5.0, 10.0];
    let times = times
        .iter()
        .find(|times| *times * power >= at_least * 0.999);
    times.unwrap_or(&10.0) * power
}

/// A number of an axis, with the digits that its steps need.
fn short(value: f64, step: f64) -> String {
    let value = if value.abs() < step / 1e6 { 0.0 } else { value };
    let size = value.abs().max(step);
    if !(1e-3..1e6).contains(&size) {
        if value == 0.0 {
            return "0".into();
        }
        let power = |value: f64| (value * 1.001).log10().floor();
        let places = (power(value.abs()) - power(step)).clamp(0.0, 6.0) as usize;
        return format!("{value:.places$e}");
    }
    if step >= 1000.0 {
        return format!("{}k", value / 1000.0);
    }
    let digits = (-step.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

/// The mean of each value and those before and after it, `window` in all; what is not finite stays
/// where it is, and no mean reaches across it.
pub(super) fn smooth(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let half = window / 2;
    let mut smoothed = Vec::with_capacity(points.len());
    for part in points.chunk_by(|a, b| a.1.is_finite() == b.1.is_finite()) {
        for (i, (x, _)) in part.iter().enumerate() {
            let around = &part[i.saturating_sub(half)..(i + half + 1).min(part.len())];
            let sum: f64 = around.iter().map(|(_, y)| y).sum();
            smoothed.push((*x, sum / around.len() as f64));
        }
    }
    smoothed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Labels<'static> {
        Labels {
            title: "t",
            x: "x",
            y: "y",
        }
    }

    fn tick_labels(span: Span) -> Vec<String> {
        let (_, ticks) = divide(&Axis::Numbers(span, ""), 0.0, 100.0, 5.0);
        ticks.into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn axes_are_divided_by_round_numbers() {
        assert_eq!(
            tick_labels(Span::new(0.0, 1.0)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        assert_eq!(
            tick_labels(Span::new(-3.0, 4.0)),
            ["-4", "-2", "0", "2", "4"]
        );
        assert_eq!(
            tick_labels(Span::new(0.0, 122_500.0)),
            ["0k", "50k", "100k", "150k"]
        );
        assert_eq!(tick_labels(Span::new(0.0, 4e-5))[1], "1e-5");
        assert_eq!(
            tick_labels(Span::new(0.0, 2e-4)),
            ["0", "5e-5", "1.0e-4", "1.5e-4", "2.0e-4"]
        );
        let large = tick_labels(Span::new(0.0, 2.2e6));
        assert!(large.contains(&"1.5e6".into()), "{large:?}");
        // One value alone still has a scale.
        assert_eq!(tick_labels(Span::new(7.0, 7.0)), ["7", "8"]);
        assert_eq!(tick_labels(Span::new(0.0, f64::MAX)).len(), 5);
    }

    #[test]
    fn values_are_within_the_plot() {
        let span = Span::of([0.0, f64::NAN, 10.0]).unwrap();
        assert_eq!(span, Span::new(0.0, 10.0));
        let mut chart = Chart::new(labels(), Axis::Numbers(span, ""), Axis::Numbers(span, ""));
        chart.line(&[(0.0, 0.0), (5.0, 5.0), (10.0, 1e9)], "a");
        assert_eq!(chart.lines[0].points, "48,188 190,98 332,8");
        assert!(Span::of([f64::NAN]).is_none());
    }

    #[test]
    fn what_is_not_finite_is_a_gap() {
        let span = Span::new(0.0, 4.0);
        let mut chart = Chart::new(labels(), Axis::Numbers(span, ""), Axis::Numbers(span, ""));
        let points = [
            (0.0, 1.0),
            (1.0, f64::NAN),
            (2.0, f64::INFINITY),
            (3.0, 2.0),
        ];
        chart.line(&points, "a");
        assert_eq!(chart.lines.len(), 2);
        let smoothed = smooth(&points, 3);
        assert!(!smoothed[1].1.is_finite() && smoothed[3].1 == 2.0);
        assert_eq!(smooth(&[(0.0, 1.0), (1.0, 3.0)], 3)[0].1, 2.0);
    }

    #[test]
    fn long_lines_are_averaged() {
        let points: Vec<(f64, f64)> = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        let x = Axis::Numbers(Span::new(0.0, 1e5), "");
        let mut chart = Chart::new(labels(), x, Axis::Numbers(Span::new(0.0, 2.0), ""));
        chart.line(&points, "a");
        assert!(chart.lines[0].points.split(' ').count() <= MOST_POINTS);
    }

    #[test]
    fn names_stand_in_the_middle_of_their_parts() {
        let names = ["a".to_string(), "b".to_string()];
        let chart = Chart::new(
            labels(),
            Axis::Names(&names),
            Axis::Numbers(Span::new(0.0, 1.0), " %"),
        );
        assert_eq!(chart.x_ticks[0].at, 119.0);
        assert_eq!(chart.y_ticks[0].label, "0.0 %");
    }
}
