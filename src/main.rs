//! The binary `sppo`: self-play preference optimization of Llama models.

mod backend;
#[cfg(feature = "serve")]
mod chat;
mod commands;
mod cublaslt;
#[cfg(feature = "dashboard")]
mod dashboard;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod device_memory;
mod devices;
mod errors;
mod fault;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod gpu;
mod hub;
mod interrupt;
mod job;
mod logging;
mod memory;
mod nccl;
mod output;
mod profile;
mod progress;
mod screen;
#[cfg(feature = "serve")]
mod serve;
#[cfg(any(feature = "cuda", all(test, target_os = "linux")))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "tests load NCCL"))]
mod shared_library;
mod start;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

/// Self-Play Preference Optimization of Llama models: sample, judge, train, evaluate.
#[derive(Parser)]
#[command(version, about, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    /// Shows more of what happens; twice shows everything.
    #[arg(short, long, global = true, display_order = 901, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Shows warnings and errors only.
    #[arg(
        short,
        long,
        global = true,
        display_order = 902,
        conflicts_with = "verbose"
    )]
    quiet: bool,
    /// Ends with one line of JSON for programs.
    #[arg(long, global = true, display_order = 900)]
    json: bool,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    memory::keep_freed_memory();
    if let Some(commit) = option_env!("SPPO_COMMIT") {
        sppo_training::files::set_commit(commit);
    }
    fault::guard(run)
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and versions are the same for all ranks.
        Err(error) if job::follows() && !error.use_stderr() => return ExitCode::SUCCESS,
        Err(error) => {
            job::let_lead_speak();
            return errors::report_usage(&error);
        }
    };
    let result = logging::init(cli.verbose, cli.quiet)
        .and_then(|()| profile::wanted())
        .and_then(|_| interrupt::install())
        .and_then(|()| cli.command.refuse_ranks())
        .and_then(|()| job::join())
        .and_then(|()| cli.command.run(cli.json));
    match result {
        Ok(()) => {
            job::leave();
            ExitCode::SUCCESS
        }
        Err(error) => {
            let code = errors::exit_code(&error);
            job::say(&errors::text(&error));
            job::fail(code);
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
