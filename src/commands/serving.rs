//! How `sppo serve` runs: it listens, loads the model, answers, and ends in order.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::json;
use sppo_model::generate::{CachePlan, Engine, EngineQueue, engine_queue};
use sppo_model::llama::lora::AdapterFolder;
use sppo_model::llama::{Decoder, activations_dtype, prefill_tokens};
use sppo_model::model_folder::ModelFolder;
use sppo_model::ops::{ModelOps, TrainingOps};
use sppo_training::config::Matmul;
use sppo_training::stages::StageError;

use super::args::refuse_bf16_flag;
use super::serve::Args;
use crate::backend::{WithBackend, dispatch};
use crate::errors::{OrUser, user};
use crate::serve::{
    ApiKey, App, Life, Metrics, Served, Server, TextOptions, UnknownKeys, open_folder,
    tokenizer_info,
};
use crate::{hub, interrupt, output};

/// Serves until it is told to stop.
pub fn run(args: Args, json: bool) -> anyhow::Result<()> {
    refuse_bf16_flag(args.precision, args.device.device)?;
    let key = args
        .api_key_file
        .as_deref()
        .map(ApiKey::from_file)
        .transpose()?;
    serve_until(&args, key, interrupt::flag(), |address, served| {
        interrupt::say("finishing what is under way");
        tracing::info!("listening on http://{address}; loading the model");
        if let Err(why) = &served.chat {
            tracing::warn!("chat is off: {why}");
        }
        match json {
            true => {
                let name = &served.name;
                output::json(&json!({"address": address.to_string(), "model": name}))
            }
            false => Ok(()),
        }
    })
}

/// Serves until `stop` is set, and then finishes what is under way; `listening` hears where, before
/// the model is loaded.
pub(super) fn serve_until(
    args: &Args,
    key: Option<ApiKey>,
    stop: &AtomicBool,
    listening: impl FnOnce(SocketAddr, &Served) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let addresses = addresses(args)?;
    let model = hub::model(&args.model)?;
    let adapter = args.adapter.as_deref().map(hub::model).transpose()?;
    let text = TextOptions {
        template: args.template.chat_template.as_deref(),
        date: args.date.date.map(|date| date.0),
    };
    let (folder, chats) = open_folder(&model, &text)?;
    let name = args
        .served_name
        .clone()
        .unwrap_or_else(|| args.model.clone());
    let served = Served::new(&folder, chats, name, args.strict_model, args.max_model_len)?;
    let (engine, queue) = engine_queue(args.max_queue);
    let app = Arc::new(App {
        served,
        life: Arc::new(Life::default()),
        metrics: Arc::new(Metrics::new(engine.clone())),
        engine,
        most_waiting: args.max_queue,
        key,
        tokenizer_info: match args.tokenizer_info {
            true => Some(tokenizer_info(&model)?),
            false => None,
        },
        timeout: Duration::from_secs(args.timeout.into()),
        unknown: UnknownKeys::default(),
    });
    let listener = listen(&addresses)?;
    let address = listener.local_addr().context("cannot listen")?;
    let server = Server::start(listener, app.clone())?;
    listening(address, &app.served)?;
    let serving = Serving {
        args,
        stop,
        folder: &folder,
        adapter: adapter.as_deref(),
        app: &app,
        server: &server,
        queue,
    };
    let ended = dispatch(args.device.device, Matmul::Auto, serving);
    app.life.drain();
    server.end();
    Ok(ended??)
}

/// Where to listen. Without a key nobody but this machine's users may reach it.
fn addresses(args: &Args) -> anyhow::Result<Vec<SocketAddr>> {
    let host = args.host.trim_start_matches('[').trim_end_matches(']');
    let found: Vec<SocketAddr> = (host, args.port)
        .to_socket_addrs()
        .with_context(|| format!("--host {host:?} is no address of this machine"))
        .or_user()?
        .collect();
    let open = |address: &SocketAddr| match address.ip() {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback(),
    };
    if args.api_key_file.is_none() && !args.no_key && found.iter().any(open) {
        return Err(user(format!(
            "--host {host} is reached from other machines, and there is no key: give one with \
             --api-key-file FILE (openssl rand -hex 32 > FILE), or let everybody in with --no-key"
        )));
    }
    Ok(found)
}

fn listen(addresses: &[SocketAddr]) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addresses).map_err(|error| {
        let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let shown = shown.join(", ");
        match error.kind() {
            std::io::ErrorKind::AddrInUse => user(format!(
                "{shown} is in use; give another port with --port (0 takes a free one)"
            )),
            _ => user(format!(
                "cannot listen on {shown}: {error}; check --host and --port"
            )),
        }
    })
}

/// What runs on the thread that computes.
struct Serving<'a> {
    args: &'a Args,
    stop: &'a AtomicBool,
    folder: &'a ModelFolder,
    adapter: Option<&'a Path>,
    app: &'a Arc<App>,
    server: &'a Server,
    queue: EngineQueue,
}

impl WithBackend for Serving<'_> {
    type Output = Result<(), StageError>;

    fn run<B: TrainingOps>(self, device: B::Device) -> Self::Output {
        self.serve::<B::InnerBackend>(&device)
    }
}

impl Serving<'_> {
    fn serve<B: ModelOps>(self, device: &B::Device) -> Result<(), StageError> {
        let (config, dtype) = (self.folder.config(), self.args.precision.dtype());
        let plan = self.plan::<B>()?;
        let begun = Instant::now();
        let mut model = self.folder.load::<B>(dtype, device)?;
        if let Some(adapter) = self.adapter {
            let adapter = AdapterFolder::open(adapter, self.folder.path(), config)?;
            model = model.with_saved_adapters(&adapter)?;
        }
        let decoder = Arc::new(Decoder::new(model, config));
        let kept = (self.args.prefix_memory_mib as u64) << 20;
        let engine =
            Engine::new(decoder, plan, Some(self.app.served.tokenizer.clone())).keep_prefixes(kept);
        self.app.life.loaded();
        tracing::info!(
            "ready after {:.1} s: {} sequences at a time of up to {} tokens",
            begun.elapsed().as_secs_f64(),
            plan.slots,
            plan.tokens
        );
        self.answer(engine)
    }

    /// Answers until a signal came and what was under way is finished, or had its time.
    fn answer<B: ModelOps>(self, engine: Engine<B>) -> Result<(), StageError> {
        let (app, server, told) = (self.app, self.server, self.stop);
        let seconds = self.args.drain_seconds;
        let most = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let drained = Cell::new(None::<Instant>);
        let stop = || {
            if !told.load(Ordering::SeqCst) {
                return false;
            }
            let since = drained.get().unwrap_or_else(|| {
                app.life.drain();
                server.drain();
                if app.life.under_way() > 0 {
                    tracing::info!("finishing {} requests", app.life.under_way());
                }
                Instant::now()
            });
            drained.set(Some(since));
            let left = app.life.under_way();
            let late = since.elapsed() >= most;
            if left > 0 && late {
                tracing::warn!("{left} requests are cut off after {seconds} s");
            }
            left == 0 || late
        };
        Ok(self.queue.run(engine, stop)?)
    }

    /// As many slots as are wanted and fit, one worker a core on a CPU.
    fn plan<B: ModelOps>(&self) -> Result<CachePlan, StageError> {
        let args = self.args;
        let cores = match B::ON_HOST {
            true => rayon::current_num_threads(),
            false => 1,
        };
        let workers = CachePlan::workers_for(cores, args.batch);
        let budget = args.cache_memory_mib.map(|mib| (mib as u64) << 20);
        let plan = CachePlan::new(
            self.folder.config(),
            activations_dtype(B::ON_HOST, args.precision.dtype()),
            args.batch,
            workers,
            self.app.served.context,
            prefill_tokens(B::ON_HOST),
            budget,
        )?;
        if plan.slots < args.batch {
            tracing::warn!(
                "--cache-memory-mib has room for {} of --batch {} sequences of {} tokens",
                plan.slots,
                args.batch,
                plan.tokens
            );
        }
        Ok(plan)
    }
}
