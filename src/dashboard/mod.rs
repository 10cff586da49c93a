//! The dashboard: a run in the whole terminal, drawn from its files, so that one of this process and
//! one of another machine look the same.

mod draw;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use sppo_training::self_play::Watched;

use crate::{interrupt, screen};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(500);
/// How long a key waits at most.
const KEY: Duration = Duration::from_millis(100);

/// Whether there is a terminal for it.
pub fn has_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Shows the run in `dir` until somebody leaves.
pub fn watch(dir: &Path) -> anyhow::Result<()> {
    let screen = Screen::take()?;
    let leave = AtomicBool::new(false);
    let shown = show(Watched::new(dir), Of::Another, &leave);
    drop(screen);
    shown
}

/// A dashboard of a run of this process, in a thread of its own; it leaves with this.
pub struct Live {
    leave: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Live {
    /// Shows the run that is about to begin in `dir`.
    pub fn start(dir: PathBuf) -> anyhow::Result<Self> {
        let screen = Screen::take()?;
        let leave = Arc::new(AtomicBool::new(false));
        let told = leave.clone();
        let thread = std::thread::Builder::new().name("dashboard".into());
        let thread = thread.spawn(move || {
            let shown = show(Watched::new(&dir), Of::This, &told);
            drop(screen);
            if let Err(error) = shown {
                tracing::warn!("the dashboard ended, the run goes on: {error:#}");
            }
        });
        Ok(Self {
            leave,
            thread: Some(thread.context("cannot start the dashboard")?),
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.leave.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The terminal, from here to the end of this.
struct Screen;

impl Screen {
    fn take() -> anyhow::Result<Self> {
        enable_raw_mode().context("cannot take the terminal")?;
        screen::take(restore);
        execute!(io::stderr(), EnterAlternateScreen).context("cannot take the terminal")?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        screen::give_back();
    }
}

fn restore() {
    let _ = execute!(
        io::stderr(),
        LeaveAlternateScreen,
        ratatui::crossterm::cursor::Show
    );
    let _ = disable_raw_mode();
}

/// Whose run it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    This,
    Another,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Leave,
    Pause,
    Stop,
    Nothing,
}

fn asked(key: KeyEvent) -> Ask {
    if key.kind != KeyEventKind::Press {
        return Ask::Nothing;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Ask::Stop,
        KeyCode::Char('q') => Ask::Leave,
        KeyCode::Char('p') => Ask::Pause,
        _ => Ask::Nothing,
    }
}

/// Draws until somebody leaves: by a key, or through `leave`.
fn show(mut watched: Watched, of: Of, leave: &AtomicBool) -> anyhow::Result<()> {
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stderr()))?;
    let mut paused = false;
    let mut looked: Option<Instant> = None;
    while !leave.load(Ordering::Relaxed) && screen::is_taken() {
        let mut due = false;
        if event::poll(KEY)? {
            match event::read()? {
                Event::Key(key) => match asked(key) {
                    Ask::Leave => break,
                    Ask::Stop if of == Of::Another => break,
                    // As ever: the first saves and stops, another one ends at once.
                    Ask::Stop => interrupt::ask(),
                    Ask::Pause => {
                        paused = !paused;
                        due = true;
                    }
                    Ask::Nothing => {}
                },
                Event::Resize(..) => due = true,
                _ => {}
            }
        }
        if of == Of::Another && interrupt::flag().load(Ordering::Relaxed) {
            break;
        }
        // Paused, the screen stays as it is, so that text can be marked.
        if !paused && looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            watched.look()?;
            looked = Some(Instant::now());
            due = true;
        }
        if due {
            let lines = screen::last_lines(draw::MOST_LINES);
            terminal.draw(|frame| draw::draw(frame, &watched, &lines, paused))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let key = |code, modifiers| asked(KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Ask::Leave);
        assert_eq!(key(KeyCode::Char('p'), KeyModifiers::NONE), Ask::Pause);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Ask::Stop);
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), Ask::Nothing);
    }
}
