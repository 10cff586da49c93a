//! How `sppo chat` runs: models are loaded behind servers of this process, on loopback and with a key
//! that nobody else has, so that they are talked to as any other server is.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use super::args::refuse_bf16_flag;
use super::chat::Args;
use super::serve;
use super::serving::serve_until;
use crate::chat::{Answer, Client, Session, ask_all, setting, talk};
use crate::errors::{Interrupted, user};
use crate::serve::{ApiKey, key_of_file};
use crate::{hub, interrupt, output};

/// Models of one conversation; the terminal has room for no more beside each other.
const MOST_MODELS: usize = 2;

/// Talks until the user leaves, or answers `--message`.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    refuse_bf16_flag(args.precision, args.device.device)?;
    let count = args.model.len() + args.url.len();
    if count > MOST_MODELS {
        return Err(user(format!(
            "{count} models are given; chat is with one or with two"
        )));
    }
    if json && args.message.is_none() {
        return Err(user("--json is for one answer: give --message TEXT"));
    }
    let settings = args.set.iter().map(|text| setting(text).map_err(user));
    let settings = settings.collect::<anyhow::Result<Vec<_>>>()?;
    let key = args.api_key_file.as_deref().map(key_of_file).transpose()?;
    interrupt::converse();
    for name in args.model.iter().chain(&args.adapter) {
        hub::model(name)?;
    }
    let mut locals = Vec::new();
    let mut clients = Vec::new();
    for (index, name) in args.model.iter().enumerate() {
        let adapter = args
            .adapter
            .as_ref()
            .filter(|_| index + 1 == args.model.len());
        let local = Local::start(name, adapter, &args)?;
        clients.push(local.client(name)?);
        locals.push(local);
    }
    for url in &args.url {
        let mut client = Client::new(url, key.clone(), args.name.clone()).map_err(user)?;
        client.find_model().map_err(anyhow::Error::msg)?;
        clients.push(client);
    }
    for (local, client) in locals.iter_mut().zip(&clients) {
        local.wait(client)?;
    }
    let mut session = Session::new(names(&args, &clients));
    session.system = args.system;
    settings
        .into_iter()
        .for_each(|setting| session.set(setting));
    let clients: Vec<Arc<Client>> = clients.into_iter().map(Arc::new).collect();
    let done = match &args.message {
        Some(message) => answer(&clients, &session, message, json),
        None => talk(&clients, &mut session),
    };
    locals.into_iter().try_for_each(Local::end)?;
    done
}

/// What the models are called: as they were given, with what tells two of one name apart.
fn names(args: &Args, clients: &[Client]) -> Vec<String> {
    let mut names: Vec<String> = clients.iter().map(|client| client.model.clone()).collect();
    let last = args.model.len().checked_sub(1);
    if let (Some(adapter), Some(last)) = (&args.adapter, last) {
        names[last] = format!("{} + {adapter}", names[last]);
    }
    if let [first, second] = &mut names[..]
        && first == second
    {
        first.push_str(" (1)");
        second.push_str(" (2)");
    }
    names
}

/// One answer of each model, for scripts: the text alone of one model, headed by the names of two.
fn answer(
    clients: &[Arc<Client>],
    session: &Session,
    message: &str,
    json: bool,
) -> anyhow::Result<()> {
    let requests = (0..clients.len()).map(|model| session.request(model, message));
    let answers = ask_all(clients, requests.collect(), |_, _| {});
    let stopped = interrupt::take();
    let answers = answers.into_iter().collect::<Result<Vec<Answer>, _>>();
    let answers = answers.map_err(anyhow::Error::msg)?;
    let named = session.models.iter().zip(&answers);
    if json {
        let answers = named.map(|(model, answer)| {
            let end = answer.end.clone().unwrap_or_default();
            json!({
                "model": model,
                "text": answer.text,
                "finish_reason": end.reason,
                "tokens": end.tokens,
            })
        });
        output::json(&json!({ "answers": answers.collect::<Vec<_>>() }))?;
    } else {
        for (model, answer) in named {
            match answers.len() {
                1 => output::print(&answer.text)?,
                _ => output::print(&format!("[{model}]\n{}\n", answer.text))?,
            }
        }
    }
    match stopped {
        true => Err(Interrupted.into()),
        false => Ok(()),
    }
}

/// A model behind a server of this process.
struct Local {
    address: SocketAddr,
    key: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// As the command line of `sppo serve` has it.
#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    args: serve::Args,
}

impl Local {
    /// Begins to load the model.
    fn start(model: &str, adapter: Option<&String>, args: &Args) -> anyhow::Result<Self> {
        // A question that was stopped may still be in the engine when the next one comes.
        let mut line = vec!["chat", "--model", model, "--port", "0", "--batch", "2"];
        if let Some(adapter) = adapter {
            line.extend(["--adapter", adapter.as_str()]);
        }
        let Serve { args: mut serving } = Serve::try_parse_from(line)?;
        serving.precision = args.precision;
        serving
            .template
            .chat_template
            .clone_from(&args.template.chat_template);
        serving.date.date = args.date.date;
        serving.device.device = args.device.device;
        serving.drain_seconds = 0.0;
        let (key, stop) = (fresh_key(), Arc::new(AtomicBool::new(false)));
        let (sender, listening) = channel();
        let api_key = ApiKey::new(&key);
        let told = stop.clone();
        let serve = move || {
            serve_until(&serving, Some(api_key), &told, |address, served| {
                if let Err(why) = &served.chat {
                    return Err(user(why.clone()));
                }
                let _ = sender.send(address);
                Ok(())
            })
        };
        // As much stack as the main thread has.
        let thread = std::thread::Builder::new()
            .name("sppo-model".into())
            .stack_size(8 << 20)
            .spawn(serve)?;
        let mut local = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            key,
            stop,
            thread: Some(thread),
        };
        match listening.recv() {
            Ok(address) => local.address = address,
            // It ended before it listened.
            Err(_) => local.failure()?,
        }
        Ok(local)
    }

    fn client(&self, name: &str) -> anyhow::Result<Client> {
        let url = format!("http://{}", self.address);
        Client::new(&url, Some(self.key.clone()), Some(name.into())).map_err(user)
    }

    /// Until the model is loaded.
    fn wait(&mut self, client: &Client) -> anyhow::Result<()> {
        while !client.is_ready() {
            if interrupt::flag().load(Ordering::SeqCst) {
                return Err(Interrupted.into());
            }
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                return self.failure();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Why the server ended by itself.
    fn failure(&mut self) -> anyhow::Result<()> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => Err(error),
            _ => Err(anyhow::anyhow!("the model's thread ended")),
        }
    }

    /// Ends the server.
    fn end(mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            _ => Ok(()),
        }
    }
}

/// Of the randomness that the standard library has from the system.
fn fresh_key() -> String {
    let state = RandomState::new();
    let part = |number: u64| {
        let mut hasher = state.build_hasher();
        hasher.write_u64(number);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_of_a_conversation_is_described_as_any_other() {
        let line = ["chat", "--model", "m", "--port", "0", "--batch", "2"];
        let serving = Serve::try_parse_from(line)
            .map(|serve| serve.args)
            .ok()
            .unwrap();
        assert_eq!((serving.port, serving.host.as_str()), (0, "127.0.0.1"));
        assert_ne!(fresh_key(), fresh_key());
        assert_eq!(fresh_key().len(), 64);
    }
}
