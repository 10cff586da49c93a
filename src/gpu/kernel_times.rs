//! Kernels by the time that they take, as CubeCL's profiler sees them.
//!
//! With its profiler on, CubeCL lets each kernel run alone and tells the crate `log` how long it took:
//! on Vulkan by the device's timestamps where there are any, on CUDA by the host's clock from one wait
//! to the next. The latter holds the driver's calls; what the probe's product takes, which computes
//! next to nothing, is taken off. There a kernel's first launch, which may compile it, is left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cubecl::Runtime;
use cubecl::config::CubeClRuntimeConfig;
use cubecl::config::profiling::ProfilingLogLevel;
use cubecl::profile::TimingMethod;

use super::probe;

/// Lines of the table; what is left is one more.
const LINES: usize = 20;

/// Characters of a kernel's name.
const NAME: usize = 72;

/// Launches of the probe's product, whose least time counts.
const PROBES: usize = 16;

/// The probe's kernel, as [`short`] has it.
const PROBE: &str = "Product";

/// How long the profiler's thread is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the launches of one kernel came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    launches: u32,
    time: Duration,
}

#[derive(Debug)]
struct Times {
    /// Kernels that were launched before, by all that CubeCL says of them.
    seen: BTreeSet<String>,
    by_name: BTreeMap<String, Sum>,
    probes: usize,
    least_probe: Option<Duration>,
}

/// Hears what CubeCL logs.
struct Listener {
    times: Mutex<Times>,
    probed: Condvar,
}

static LISTENER: Listener = Listener {
    times: Mutex::new(Times {
        seen: BTreeSet::new(),
        by_name: BTreeMap::new(),
        probes: 0,
        least_probe: None,
    }),
    probed: Condvar::new(),
};

impl Times {
    /// Takes a line of the profiler's: `| 1.25ms | NAME`, with `: SETTINGS` where it says all.
    fn hear(&mut self, line: &str) {
        let fields = line
            .strip_prefix("| ")
            .and_then(|rest| rest.split_once('|'));
        // It also logs tables of its own.
        let Some((time, kernel)) = fields.and_then(|(time, kernel)| Some((parse(time)?, kernel)))
        else {
            return;
        };
        let (name, settings) = match kernel.split_once(": ") {
            Some((name, settings)) => (short(name), settings),
            None => (short(kernel), ""),
        };
        if !settings.is_empty() && self.seen.insert(kernel.to_owned()) {
            return;
        }
        if name == PROBE {
            self.probes += 1;
            self.least_probe = Some(self.least_probe.map_or(time, |least| least.min(time)));
            return;
        }
        let sum = self.by_name.entry(name).or_default();
        sum.launches += 1;
        sum.time += time;
    }

    /// A Markdown table; `none` is what a launch of nothing takes.
    fn table(&self, none: Duration) -> String {
        let net = |sum: &Sum| sum.time.saturating_sub(none * sum.launches);
        let mut rows: Vec<(&str, u32, Duration)> = (self.by_name.iter())
            .map(|(name, sum)| (name.as_str(), sum.launches, net(sum)))
            .collect();
        rows.sort_by(|a, b| b.2.cmp(&a.2).then(a.0.cmp(b.0)));
        let add = |rows: &[(&str, u32, Duration)]| {
            let launches = rows.iter().map(|row| row.1).sum::<u32>();
            (launches, rows.iter().map(|row| row.2).sum::<Duration>())
        };
        let all = add(&rows);
        let others = rows.split_off(LINES.min(rows.len()));
        let name = format!("{} others", others.len());
        if !others.is_empty() {
            let (launches, time) = add(&others);
            rows.push((&name, launches, time));
        }
        rows.push(("all", all.0, all.1));
        let mut table = String::from(
            "| kernel | launches | ms | share | mean µs |\n| --- | ---: | ---: | ---: | ---: |\n",
        );
        for (name, launches, time) in rows {
            let seconds = time.as_secs_f64();
            let share = 100.0 * seconds / all.1.as_secs_f64().max(f64::MIN_POSITIVE);
            let mean = 1e6 * seconds / f64::from(launches.max(1));
            let _ = writeln!(
                table,
                "| {name} | {launches} | {:.3} | {share:.1} % | {mean:.1} |",
                1e3 * seconds
            );
        }
        table
    }
}

impl Listener {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl log::Log for Listener {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("cubecl")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.times().hear(&record.args().to_string());
            self.probed.notify_all();
        }
    }

    fn flush(&self) {}
}

/// A duration as `{:?}` writes it.
fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let number = text.trim_end_matches(|c: char| c.is_alphabetic());
    let unit = match &text[number.len()..] {
        "ns" => 1e-9,
        "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit).ok()
}

/// A kernel's type without the paths, and without the types that all kernels have.
fn short(name: &str) -> String {
    let words = name.split(['<', '>', ',', '|', ' ']).map(|word| {
        let word = word.rsplit("::").next().unwrap_or(word);
        word.trim_end_matches([';', ')', ']'])
    });
    let says = |word: &&str| {
        let common = word.starts_with("__") || word.starts_with("Dynamic") || *word == "TensorArgs";
        let other = word.ends_with("Runtime") || !word.contains(char::is_alphabetic);
        !common && !other
    };
    let words: Vec<&str> = words.filter(says).collect();
    let name = words.join(" ");
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// Lets CubeCL time its kernels and tell; before its first use in this process. `all`: it tells which
/// kernel exactly, so that first launches can be left out; on Vulkan that would turn on layers that
/// debug.
pub fn enable(config: &mut CubeClRuntimeConfig, all: bool) {
    config.profiling.logger.level = match all {
        true => ProfilingLogLevel::Full,
        false => ProfilingLogLevel::Basic,
    };
    config.profiling.logger.log = Some(Default::default());
    // Nobody else listens: the program's own log is `tracing`.
    if log::set_logger(&LISTENER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// What the kernels of this process took; what fails is said in its place.
pub fn table<R: Runtime>(device: &R::Device) -> String {
    let probes = LISTENER.times().probes;
    for _ in 0..PROBES {
        if let Err(message) = probe::computes::<R>(device) {
            return format!("kernels could not be timed: {message}\n");
        }
    }
    // Messages come in the order of the launches, so those of all kernels are there by now.
    let waited = LISTENER
        .probed
        .wait_timeout_while(LISTENER.times(), PATIENCE, |times| {
            times.probes < probes + PROBES
        });
    let (times, late) = waited.unwrap_or_else(PoisonError::into_inner);
    if late.timed_out() {
        return "kernels could not be timed: CubeCL's profiler does not answer\n".into();
    }
    let none = times.least_probe.unwrap_or_default();
    match R::client(device).properties().timing_method {
        TimingMethod::Device => {
            let table = times.table(Duration::ZERO);
            format!("Kernels, each run alone, by the device's clock:\n\n{table}")
        }
        TimingMethod::System => format!(
            "Kernels, each run alone, by the host's clock, less the {:.1} µs that a launch of nothing \
             takes:\n\n{}",
            1e6 * none.as_secs_f64(),
            times.table(none)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Times {
        Times {
            seen: BTreeSet::new(),
            by_name: BTreeMap::new(),
            probes: 0,
            least_probe: None,
        }
    }

    #[test]
    fn names_are_short() {
        let long = "burn_cubecl::kernel::KernelBinop<burn_cubecl::AddOp, cubecl_cuda::CudaRuntime>";
        assert_eq!(short(long), "KernelBinop AddOp");
        assert_eq!(
            short("KernelBinop | AddOp | WgpuRuntime"),
            "KernelBinop AddOp"
        );
        assert_eq!(
            short("MatmulEntry | TensorArgs | __Lhs | DynamicSize"),
            "MatmulEntry"
        );
        assert_eq!(short(&"é".repeat(100)), format!("{}…", "é".repeat(NAME)));
        assert_eq!(
            short("sppo::gpu::probe::product::Product<cubecl_cuda::CudaRuntime>"),
            PROBE
        );
    }

    #[test]
    fn durations_are_read_as_they_are_written() {
        for nanoseconds in [0, 17, 1_500, 1_234_567, 61_000_000_001] {
            let time = Duration::from_nanos(nanoseconds);
            assert_eq!(parse(&format!(" {time:<10?} ")), Some(time));
        }
        assert_eq!(parse("Duration"), None);
    }

    #[test]
    fn first_launches_are_left_out_where_kernels_are_told_apart() {
        let mut times = nothing();
        for line in [
            "| 2ms | a::B: (1,)",
            "| 3ms | a::B: (1,)",
            "| 9ms | a::B: (2,)",
            "| 4ms | C",
        ] {
            times.hear(line);
        }
        times.hear("| Name | Duration |\n");
        times.hear("|⎺⎺⎺|");
        let sum = |launches, ms| Sum {
            launches,
            time: Duration::from_millis(ms),
        };
        assert_eq!(
            times.by_name,
            [("B".into(), sum(1, 3)), ("C".into(), sum(1, 4))].into()
        );
    }

    #[test]
    fn the_slowest_come_first_and_the_rest_is_one_line() {
        let mut times = nothing();
        for kernel in 0..LINES + 2 {
            times.hear(&format!("| {}ms | K{kernel:02}", kernel + 1));
        }
        times.hear("| 1ms | Product");
        let table = times.table(times.least_probe.unwrap());
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines.len(), LINES + 2);
        assert_eq!(lines[0], "| K21 | 1 | 21.000 | 9.1 % | 21000.0 |");
        assert_eq!(lines[LINES], "| 2 others | 2 | 1.000 | 0.4 % | 500.0 |");
        assert_eq!(
            lines[LINES + 1],
            "| all | 22 | 231.000 | 100.0 % | 10500.0 |"
        );
    }
}
