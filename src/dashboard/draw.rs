//! What stands where on the screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{
    Axis, Block, Cell, Chart, Dataset, GraphType, LineGauge, Paragraph, Row, Table, Wrap,
};
use sppo_training::self_play::{Judged, Progress, State, Step, Watched};
use sppo_training::shown::{digits, duration};

use crate::terminal::visible;

/// Lines of the log that are shown at most.
pub const MOST_LINES: usize = 8;
/// Seconds without a sign of life that are said.
const QUIET: f64 = 30.0;
/// A screen as high as this has room for the log.
const HIGH: u16 = 30;

const CHOSEN: Color = Color::Green;
const REJECTED: Color = Color::Red;
const ONE: Color = Color::Cyan;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, run: &Watched, lines: &[String], paused: bool) {
    let area = frame.area();
    let done = run.report.iterations.len().min(8) as u16;
    let log = match area.height >= HIGH && !lines.is_empty() {
        true => lines.len().min(MOST_LINES) as u16 + 2,
        false => 0,
    };
    let [head, stage, whole, charts, table, answers, log, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(3),
        Constraint::Length(3 + done.max(3)),
        Constraint::Fill(2),
        Constraint::Length(log),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(heading(run), head);
    if let Some(progress) = &run.progress {
        gauges(frame, progress, stage, whole);
    }
    curves(frame, run, charts);
    let [rates, numbers] =
        Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(table);
    frame.render_widget(win_rates(run), rates);
    frame.render_widget(numbers_of(run), numbers);
    judged(frame, &run.judged, answers);
    if log.height > 0 {
        let shown = lines.iter().map(|line| Line::from(plain(line)));
        let shown = Paragraph::new(shown.collect::<Vec<_>>());
        frame.render_widget(shown.block(Block::bordered().title(" log ")), log);
    }
    frame.render_widget(help(paused), foot);
    // A cursor that is seen, for a process that is killed cannot bring it back.
    let corner = Position::new(area.x, area.bottom().saturating_sub(1));
    frame.set_cursor_position(corner);
}

/// A line of the log without what colours it, and without anything that a terminal obeys.
fn plain(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => {
                letters.by_ref().find(char::is_ascii_alphabetic);
            }
            letter => shown.push(letter),
        }
    }
    one_line(&shown)
}

/// Text from outside in one line.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    visible(&words.join(" ")).into_owned()
}

fn heading(run: &Watched) -> Line<'static> {
    let mut parts = vec![
        Span::from(" sppo ").bold().reversed(),
        Span::from(format!(" {} ", one_line(&run.dir().display().to_string()))).bold(),
    ];
    let Some(progress) = &run.progress else {
        let text = match run.is_there() {
            true => "nothing is written down of where it stands",
            false => "waiting for a run to begin here",
        };
        parts.push(Span::from(text).yellow());
        return Line::from(parts);
    };
    parts.push(Span::from(match progress.iteration {
        0 => "before the first iteration ".to_string(),
        number => format!("iteration {number} of {} ", progress.iterations),
    }));
    let quiet = progress.age().filter(|age| *age > QUIET);
    parts.push(match (progress.state, quiet) {
        (State::Running, None) => Span::from("running").green(),
        (State::Running, Some(age)) => {
            Span::from(format!("no sign of life for {}", duration(age))).yellow()
        }
        (State::Finished, _) => Span::from("finished").green().bold(),
        (State::Interrupted, _) => Span::from("stopped; the same command goes on").yellow(),
        (State::Failed, _) => Span::from("failed").red().bold(),
    });
    Line::from(parts)
}

fn gauges(frame: &mut Frame<'_>, progress: &Progress, stage: Rect, whole: Rect) {
    let mut spent: f64 = progress.stages.iter().map(|stage| stage.seconds).sum();
    if let Some(work) = &progress.work {
        spent += work.seconds;
        let left = work
            .seconds_left
            .map(|seconds| format!(", {} left", duration(seconds)));
        let note = match work.note.is_empty() {
            true => String::new(),
            false => format!(", {}", one_line(&work.note)),
        };
        let label = format!(
            " {} {}/{} {}{}{note}",
            one_line(&work.name),
            work.done,
            work.total,
            one_line(&work.unit),
            left.unwrap_or_default()
        );
        let ratio = work.done as f64 / work.total.max(1) as f64;
        frame.render_widget(gauge(label, ratio), stage);
    }
    let (label, ratio) = match (progress.seconds_left, progress.state) {
        (Some(left), _) => (
            format!(
                " the run: {} so far, about {} left",
                duration(spent),
                duration(left)
            ),
            spent / (spent + left).max(1e-9),
        ),
        (None, State::Finished) => (format!(" the run: {}", duration(spent)), 1.0),
        (None, _) => (format!(" the run: {} so far", duration(spent)), 0.0),
    };
    frame.render_widget(gauge(label, ratio), whole);
}

fn gauge(label: String, ratio: f64) -> LineGauge<'static> {
    LineGauge::default()
        .label(label)
        .ratio(ratio.clamp(0.0, 1.0))
        .filled_symbol("━")
        .unfilled_symbol("─")
        .filled_style(Style::new().fg(ONE).bold())
        .unfilled_style(Style::new().dark_gray())
}

/// A series of a chart: its points, colour, and whether it is a target.
struct Series {
    points: Vec<(f64, f64)>,
    colour: Color,
    is_target: bool,
}

fn series(steps: &[Step], width: u16, colour: Color, of: impl Fn(&Step) -> f64) -> Series {
    // Two dots a column; each is the mean of its steps.
    let each = steps.len().div_ceil(2 * usize::from(width.max(1))).max(1);
    let points = steps.chunks(each).enumerate().filter_map(|(i, part)| {
        let values = part.iter().map(&of).filter(|value| value.is_finite());
        let (count, sum) = values.fold((0.0, 0.0), |(n, sum), value| (n + 1.0, sum + value));
        (count > 0.0).then(|| ((i * each) as f64 + 1.0, sum / count))
    });
    Series {
        points: points.collect(),
        colour,
        is_target: false,
    }
}

fn curves(frame: &mut Frame<'_>, run: &Watched, area: Rect) {
    let of = match run.training {
        0 => "fine-tuning".to_string(),
        number => format!("iteration {number}"),
    };
    let width = area.width;
    let last = run.steps.last();
    let value = |of: fn(&Step) -> f64| last.map(of).filter(|value| value.is_finite());
    let loss = series(&run.steps, width, ONE, |step| step.loss);
    let title = titled(&format!("loss, {of}"), value(|step| step.loss));
    if run.training == 0 {
        return chart(frame, area, title, vec![loss]);
    }
    let count = if width >= 110 { 4 } else { 3 };
    let areas = Layout::horizontal(vec![Constraint::Fill(1); count]).split(area);
    chart(frame, areas[0], title, vec![loss]);
    let eta = run.eta;
    let mut deltas = vec![
        series(&run.steps, width, CHOSEN, |step| eta * step.chosen),
        series(&run.steps, width, REJECTED, |step| eta * step.rejected),
    ];
    if let Some((chosen, rejected)) = run.targets {
        for (target, colour) in [(chosen, CHOSEN), (rejected, REJECTED)] {
            let points = (1..=run.steps.len()).map(|step| (step as f64, target));
            deltas.push(Series {
                points: points.collect(),
                colour,
                is_target: true,
            });
        }
    }
    chart(frame, areas[1], " Δ and its targets ".into(), deltas);
    let accuracy = series(&run.steps, width, ONE, |step| step.accuracy);
    let title = titled("accuracy", value(|step| step.accuracy));
    chart_of_parts(frame, areas[2], title, accuracy);
    if count > 3 {
        let margin = series(&run.steps, width, ONE, |step| step.margin);
        let title = titled("reward margin", value(|step| step.margin));
        chart(frame, areas[3], title, vec![margin]);
    }
}

fn titled(name: &str, value: Option<f64>) -> String {
    match value {
        Some(value) => format!(" {name}: {} ", digits(value)),
        None => format!(" {name} "),
    }
}

/// A chart of what lies in 0..1, on that scale.
fn chart_of_parts(frame: &mut Frame<'_>, area: Rect, title: String, series: Series) {
    chart_over(frame, area, title, vec![series], Some([0.0, 1.0]));
}

fn chart(frame: &mut Frame<'_>, area: Rect, title: String, series: Vec<Series>) {
    chart_over(frame, area, title, series, None);
}

/// A chart over these values of y, or as many as there are.
fn chart_over(
    frame: &mut Frame<'_>,
    area: Rect,
    title: String,
    series: Vec<Series>,
    bounds: Option<[f64; 2]>,
) {
    let block = Block::bordered().title(title);
    let all = || series.iter().flat_map(|series| &series.points);
    if all().next().is_none() {
        let text = Paragraph::new("no step yet").dark_gray().centered();
        return frame.render_widget(text.block(block), area);
    }
    let low = all().map(|(_, y)| *y).fold(f64::INFINITY, f64::min);
    let high = all().map(|(_, y)| *y).fold(f64::NEG_INFINITY, f64::max);
    let room = ((high - low) * 0.05).max(high.abs().max(1e-6) * 1e-3);
    let bounds = bounds.unwrap_or([low - room, high + room]);
    let last = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let sets = series.iter().map(|series| {
        let (marker, kind) = match series.is_target {
            true => (Marker::Dot, GraphType::Scatter),
            false => (Marker::Braille, GraphType::Line),
        };
        let style = match series.is_target {
            true => Style::new().fg(series.colour).dim(),
            false => Style::new().fg(series.colour),
        };
        let set = Dataset::default().marker(marker).graph_type(kind);
        set.style(style).data(&series.points)
    });
    let grey = Style::new().dark_gray();
    let x = Axis::default().style(grey).bounds([1.0, last.max(2.0)]);
    let y = Axis::default().style(grey).bounds(bounds);
    let chart = Chart::new(sets.collect())
        .block(block)
        .x_axis(x.labels(["1".to_string(), format!("{last}")]))
        .y_axis(y.labels([digits(bounds[0]), digits(bounds[1])]));
    frame.render_widget(chart, area);
}

fn win_rates(run: &Watched) -> Table<'static> {
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    let rows = run
        .report
        .iterations
        .iter()
        .rev()
        .take(8)
        .rev()
        .map(|entry| {
            Row::new([
                entry.iteration.to_string(),
                format!(
                    "{} ± {:.1}",
                    percent(entry.win_rate),
                    196.0 * entry.win_rate_se
                ),
                percent(entry.against_first.length_controlled_win_rate),
                percent(entry.win_rate_previous),
                format!("{:.0}", entry.mean_length),
            ])
        });
    let head = ["iter.", "vs first", "same length", "vs before", "chars"];
    let widths = [
        Constraint::Length(5),
        Constraint::Length(14),
        Constraint::Length(11),
        Constraint::Length(9),
        Constraint::Length(5),
    ];
    Table::new(rows, widths)
        .header(Row::new(head.map(Cell::from)).bold())
        .block(Block::bordered().title(" win rates on held-out prompts "))
}

fn numbers_of(run: &Watched) -> Paragraph<'static> {
    let mut lines = Vec::new();
    if let Some(step) = run.steps.last() {
        lines.push(format!(
            "step {}, {:.0} tokens/s",
            run.steps.len(),
            step.tokens_per_second
        ));
        let targets = run.targets.map(|(chosen, rejected)| [chosen, rejected]);
        let deltas = [("chosen", step.chosen), ("rejected", step.rejected)];
        for ((name, reward), target) in deltas.iter().zip(targets.iter().flatten()) {
            let delta = digits(run.eta * reward);
            lines.push(format!("Δ {name} {delta}, target {}", digits(*target)));
        }
    }
    if let Some(progress) = &run.progress {
        let mib = progress.peak_memory_bytes as f64 / f64::from(1 << 20);
        lines.push(match mib >= 10_240.0 {
            true => format!("memory {:.1} GiB at most", mib / 1024.0),
            false => format!("memory {mib:.0} MiB at most"),
        });
        lines.push(format!(
            "pid {} on {}",
            progress.pid,
            one_line(&progress.host)
        ));
    }
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    Paragraph::new(lines).block(Block::bordered().title(" now "))
}

/// The last judged answers, with their scores.
fn judged(frame: &mut Frame<'_>, judged: &[Judged], area: Rect) {
    let mut lines = Vec::new();
    for row in judged {
        lines.push(Line::from(one_line(&row.prompt)).bold());
        for ((text, score), colour) in [(&row.best, CHOSEN), (&row.worst, REJECTED)] {
            let score = Span::from(format!("{score:7.2} ")).fg(colour);
            lines.push(Line::from(vec![score, Span::from(one_line(text))]));
        }
    }
    if lines.is_empty() {
        lines.push(Line::from("nothing is judged yet").dark_gray());
    }
    let block = Block::bordered().title(" last judged: best and worst answer, with scores ");
    // Each answer has its line; a higher screen shows all of it.
    let mut shown = Paragraph::new(lines).block(block);
    if area.height > 12 {
        shown = shown.wrap(Wrap { trim: false });
    }
    frame.render_widget(shown, area);
}

fn help(paused: bool) -> Line<'static> {
    let pause = if paused {
        "p goes on drawing"
    } else {
        "p pauses"
    };
    let mut parts = vec![Span::from(format!(
        "  q leaves the run alone · {pause} · Ctrl-C stops "
    ))];
    if paused {
        parts.push(Span::from(" paused ").reversed());
    }
    Line::from(parts).dark_gray()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use sppo_training::self_play::{Watched, Work};

    fn screen(run: &Watched, width: u16, height: u16) -> String {
        let lines = ["\u{1b}[2m12:00\u{1b}[0m INFO judging".to_string()];
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal
            .draw(|frame| draw(frame, run, &lines, true))
            .unwrap();
        terminal.backend().to_string()
    }

    fn run() -> Watched {
        let mut run = Watched::new(std::path::Path::new("runs/\u{202e}x"));
        run.training = 1;
        run.eta = 30.0;
        run.targets = Some((6.0, -6.0));
        run.steps = (0..100)
            .map(|i| Step {
                loss: 60.0 - f64::from(i) * 0.3,
                grad_norm: f64::NAN,
                chosen: 0.01,
                rejected: -0.02,
                margin: 0.03,
                accuracy: 0.75,
                tokens_per_second: 1234.0,
            })
            .collect();
        run.judged = vec![Judged {
            prompt: "Why?\u{1b}[2J".into(),
            best: ("Because.\nTwo".into(), 1.5),
            worst: ("No.".into(), -2.0),
        }];
        run.progress = Some(Progress {
            iteration: 1,
            iterations: 3,
            work: Some(Work {
                name: "training".into(),
                unit: "steps".into(),
                done: 100,
                total: 200,
                seconds_left: Some(125.0),
                ..Work::default()
            }),
            seconds_left: Some(7300.0),
            ..Progress::default()
        });
        run
    }

    #[test]
    fn all_is_on_the_smallest_screen() {
        let shown = screen(&run(), 80, 24);
        for part in [
            "iteration 1 of 3",
            "training 100/200 steps, 2 min 05 s left",
            "about 2 h 01 min left",
            "loss, iteration 1: 30.3",
            "accuracy: 0.750",
            "vs first",
            "1234 tokens/s",
            "Because. Two",
            "Why?\\u{1b}[2J",
            "paused",
            "\\u{202e}",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert!(!shown.contains('\u{1b}') && !shown.contains("INFO"));
    }

    #[test]
    fn a_high_screen_has_the_log_and_any_size_is_drawn() {
        let shown = screen(&run(), 200, 50);
        assert!(
            shown.contains("12:00 INFO judging") && shown.contains("reward margin"),
            "{shown}"
        );
        for (width, height) in [(1, 1), (20, 5), (300, 100), (80, 3)] {
            screen(&run(), width, height);
            screen(&Watched::new(std::path::Path::new("x")), width, height);
        }
    }
}
