//! Connections: accepted within bounds, served, and ended in order.

use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::sync::watch::{Receiver, Sender, channel};

use super::app::App;
use super::routes::router;
use super::socket::Socket;

/// Connections at a time, below the open files that systems usually grant; more wait to be accepted.
const MOST_CONNECTIONS: u32 = 800;
/// Headers of a request, and bytes of all of them.
const MOST_HEADERS: usize = 100;
const HEADER_BYTES: usize = 64 << 10;
/// Until connections have sent what they hold, at the end.
const LAST_WORDS: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Serving,
    /// No more connections; those that are open get answers.
    Draining,
    /// Open connections end with the answer that they are at.
    Ending,
}

/// The HTTP side, on threads of its own.
pub struct Server {
    runtime: Runtime,
    stage: Sender<Stage>,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Begins to serve.
    pub fn start(listener: TcpListener, app: Arc<App>) -> anyhow::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(4)
            .thread_name("sppo-http")
            .enable_all()
            .build()
            .context("cannot start the threads of the HTTP server")?;
        listener.set_nonblocking(true).context("cannot listen")?;
        let (stage, watch) = channel(Stage::Serving);
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
        let accepting = accept(listener, app, watch, connections.clone());
        runtime.spawn(accepting);
        Ok(Self {
            runtime,
            stage,
            connections,
        })
    }

    /// Accepts no more connections.
    pub fn drain(&self) {
        self.stage.send_replace(Stage::Draining);
    }

    /// Ends when all connections have sent what they hold, or after a moment.
    pub fn end(self) {
        self.stage.send_replace(Stage::Ending);
        let all = self.connections.acquire_many(MOST_CONNECTIONS);
        let _ = self
            .runtime
            .block_on(async { tokio::time::timeout(LAST_WORDS, all).await });
        self.runtime.shutdown_timeout(Duration::from_millis(100));
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    app: Arc<App>,
    stage: Receiver<Stage>,
    connections: Arc<Semaphore>,
) {
    let router = router(app.clone());
    let mut until = stage.clone();
    let draining = async move {
        let _ = until
            .wait_for(|stage| *stage > Stage::Serving)
            .await
            .is_ok();
    };
    let mut draining = pin!(draining);
    loop {
        let next = async {
            let permit = connections.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut draining => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, _)) => {
                let one = serve(stream, router.clone(), stage.clone(), app.timeout);
                tokio::spawn(async move {
                    one.await;
                    drop(permit);
                });
            }
            // Too many open files, or a connection that was gone at once.
            Err(error) => {
                tracing::debug!("accepting a connection: {error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, router: Router, mut stage: Receiver<Stage>, patience: Duration) {
    // Tokens are small and are to arrive at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Socket::new(stream, patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MOST_HEADERS)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ending = async {
        let _ = stage
            .wait_for(|stage| *stage == Stage::Ending)
            .await
            .is_ok();
    };
    tokio::select! {
        ended = connection.as_mut() => return note(ended),
        () = ending => {}
    }
    connection.as_mut().graceful_shutdown();
    note(connection.await);
}

/// Clients go as they like; it matters to nobody else.
fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!("a connection ended: {error}");
    }
}
