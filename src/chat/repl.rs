//! The conversation: lines in, answers out.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use super::ask::{Answer, ask_all};
use super::client::Client;
use super::columns::Columns;
use super::command::{Command, help};
use super::input::{Input, Lines};
use super::session::{Exchange, Session};
use crate::terminal::visible_lines;
use crate::{errors, interrupt, output};

/// Talks until the user leaves.
pub fn talk(clients: &[Arc<Client>], session: &mut Session) -> anyhow::Result<()> {
    let mut lines = Lines::new()?;
    let mut asked_to_leave = false;
    loop {
        let text = match lines.next()? {
            Input::Over => return Ok(()),
            Input::Interrupted if asked_to_leave => return Ok(()),
            Input::Interrupted => {
                asked_to_leave = true;
                output::print("(once more Ctrl-C, or Ctrl-D, leaves)\n")?;
                continue;
            }
            Input::Text(text) => text,
        };
        asked_to_leave = false;
        if text.trim().is_empty() {
            continue;
        }
        let question = match Command::parse(&text) {
            None => match text.strip_prefix("//") {
                Some(rest) => format!("/{rest}"),
                None => text,
            },
            Some(Ok(Command::Quit)) => return Ok(()),
            Some(command) => match command.map(|command| obey(command, session)) {
                Ok(Ok(Some(question))) => question,
                Ok(Ok(None)) => continue,
                Ok(Err(error)) => {
                    output::print(&errors::text(&error))?;
                    continue;
                }
                Err(problem) => {
                    output::print(&format!("{problem}\n"))?;
                    continue;
                }
            },
        };
        // Whoever stops an answer is not far from leaving.
        asked_to_leave = exchange(clients, session, question)?;
    }
}

/// Asks and keeps what was said; whether the user stopped it.
fn exchange(
    clients: &[Arc<Client>],
    session: &mut Session,
    question: String,
) -> anyhow::Result<bool> {
    let requests = (0..clients.len()).map(|model| session.request(model, &question));
    let mut screen = Screen::new(&session.models);
    screen.begin()?;
    let answers = ask_all(clients, requests.collect(), |model, text| {
        screen.show(model, text)
    });
    let stopped = interrupt::take();
    screen.end(&answers, stopped)?;
    let texts: Result<Vec<String>, ()> = answers
        .into_iter()
        .map(|answer| answer.map(|answer| answer.text).map_err(drop))
        .collect();
    match texts {
        Ok(answers) if answers.iter().all(|text| !text.is_empty()) => {
            (session.unanswered, session.retried) = (None, None);
            session.exchanges.push(Exchange { question, answers });
        }
        _ => {
            output::print("(not kept: there is no answer)\n")?;
            match session.retried.take() {
                Some(before) => session.exchanges.push(before),
                None => session.unanswered = Some(question),
            }
        }
    }
    Ok(stopped)
}

/// Does what a command says; gives the question that it asks again.
fn obey(command: Command, session: &mut Session) -> anyhow::Result<Option<String>> {
    let said = match command {
        Command::Reset => {
            session.exchanges.clear();
            session.unanswered = None;
            "the conversation begins anew".into()
        }
        Command::Undo => match session.exchanges.pop() {
            Some(last) => format!("forgotten: {}", last.question),
            None => "nothing was said yet".into(),
        },
        Command::Retry => match (session.unanswered.take(), session.exchanges.pop()) {
            (Some(question), last) => {
                session.exchanges.extend(last);
                return Ok(Some(question));
            }
            (None, Some(last)) => {
                session.retried = Some(last.clone());
                return Ok(Some(last.question));
            }
            (None, None) => "nothing was said yet".into(),
        },
        Command::System(text) => {
            session.system = text;
            match &session.system {
                Some(text) => format!("in front of the conversation: {text}"),
                None => "nothing in front of the conversation".into(),
            }
        }
        Command::Set(setting) => {
            if let Some(setting) = setting {
                session.set(setting);
            }
            let mut set = session
                .settings
                .iter()
                .map(|(key, value)| format!("{key}={value}"));
            match session.settings.is_empty() {
                true => "all parameters are the model's own".into(),
                false => set.by_ref().collect::<Vec<_>>().join(" "),
            }
        }
        Command::Save(path) => {
            session.save(&path)?;
            format!("written to {}", path.display())
        }
        Command::Load(path) => {
            session.load(&path)?;
            format!(
                "{} questions and answers from {}",
                session.exchanges.len(),
                path.display()
            )
        }
        Command::Help => help(),
        Command::Quit => return Ok(None),
    };
    output::print(&said)?;
    Ok(None)
}

/// Where answers appear: as they come, or of two models in columns. Off a terminal, and on a narrow
/// one, two answers stand one below the other.
struct Screen<'a> {
    models: &'a [String],
    terminal: bool,
    columns: Option<Columns>,
    failed: Option<std::io::Error>,
}

impl<'a> Screen<'a> {
    fn new(models: &'a [String]) -> Self {
        let terminal = std::io::stdout().is_terminal();
        let width = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
        let columns = width.filter(|_| terminal && models.len() > 1);
        Self {
            models,
            terminal,
            columns: columns.and_then(|width| Columns::new(models.len(), width - 1)),
            failed: None,
        }
    }

    fn write(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }

    fn begin(&mut self) -> anyhow::Result<()> {
        match &self.columns {
            Some(columns) => output::print(&columns.head(self.models)),
            None => Ok(()),
        }
    }

    /// A piece of an answer, or its end.
    fn show(&mut self, model: usize, text: Option<&str>) {
        let text = text.map(|text| match self.terminal {
            true => visible_lines(text),
            false => text.into(),
        });
        if let Some(columns) = &mut self.columns {
            columns.push(model, text.as_deref());
            let rows = columns.rows();
            self.write(&rows);
        } else if let (Some(text), 1) = (text, self.models.len()) {
            self.write(&text);
        }
    }

    /// What is left to show, and how the answers ended.
    fn end(mut self, answers: &[Result<Answer, String>], stopped: bool) -> anyhow::Result<()> {
        if let Some(columns) = &mut self.columns {
            // Columns that were stopped are over too.
            (0..answers.len()).for_each(|model| columns.push(model, None));
            let rows = columns.rows();
            self.write(&rows);
        }
        let alone = answers.len() == 1;
        for (model, answer) in self.models.iter().zip(answers) {
            if !alone && self.columns.is_none() {
                let text = answer.as_ref().map_or("", |answer| &answer.text);
                output::print(&format!("[{model}]\n{text}\n"))?;
            }
        }
        if alone
            && answers[0]
                .as_ref()
                .is_ok_and(|answer| !answer.text.ends_with('\n'))
        {
            self.write("\n");
        }
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        for (model, answer) in self.models.iter().zip(answers) {
            let note = note(answer, stopped, self.terminal);
            match (note, alone) {
                (Some(note), true) => output::print(&format!("({note})\n"))?,
                (Some(note), false) => output::print(&format!("({model}: {note})\n"))?,
                (None, _) => {}
            }
        }
        Ok(())
    }
}

/// What there is to say of an answer beside its text.
fn note(answer: &Result<Answer, String>, stopped: bool, rate: bool) -> Option<String> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(problem) => return Some(format!("failed: {problem}")),
    };
    let Some(end) = &answer.end else {
        return stopped.then(|| "stopped".into());
    };
    let cut =
        (end.reason.as_deref() == Some("length")).then(|| "cut off at the most tokens".to_string());
    let rate = end.tokens.filter(|_| rate).map(|tokens| {
        let rate = tokens as f64 / answer.seconds.max(1e-3);
        format!("{tokens} tokens, {rate:.1} a second")
    });
    let parts: Vec<String> = cut.into_iter().chain(rate).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}
