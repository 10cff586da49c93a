//! The routes, and what all requests pass through: the key, the counting, the log.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::app::App;
use super::ask::Form;
use super::body::read;
use super::error::{ApiError, json_response};
use super::{answer, chat, completions, sse, tokenise};

const HEALTH: &str = "/health";

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completion))
        .route("/v1/chat/completions", post(conversation))
        .route("/v1/models", get(models))
        // Names of models may be paths.
        .route("/v1/models/{*name}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/v1/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/v1/detokenize", post(detokenize))
        .route("/tokenizer_info", get(tokenizer_info))
        .route(HEALTH, get(health))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), passage))
        .with_state(app)
}

/// What every request passes through.
async fn passage(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let opens = |key: &super::keys::ApiKey| key.opens(request.headers());
    let allowed = path == HEALTH || app.key.as_ref().is_none_or(opens);
    let mut response = match allowed {
        true => next.run(request).await,
        false => ApiError::no_key().into_response(),
    };
    let status = response.status();
    if status.is_client_error() || status.is_server_error() && path != HEALTH {
        app.metrics.refused(status.as_u16());
    }
    if app.life.is_draining() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    let path = super::fields::cut(&path);
    tracing::debug!(
        "{method} {path} {} {:.3} s",
        status.as_u16(),
        begun.elapsed().as_secs_f64()
    );
    response
}

async fn completion(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(generate(app, request, Form::Completion).await)
}

async fn conversation(State(app): State<Arc<App>>, request: Request) -> Response {
    respond(generate(app, request, Form::Chat).await)
}

fn respond(result: Result<Response, ApiError>) -> Response {
    result.unwrap_or_else(IntoResponse::into_response)
}

/// Answers a prompt or a conversation.
async fn generate(app: Arc<App>, request: Request, form: Form) -> Result<Response, ApiError> {
    app.life.check()?;
    let body = read(request, app.timeout).await?;
    let under_way = app.life.begin()?;
    let parsing = app.clone();
    let ask = aside(move || match form {
        Form::Completion => completions::ask(&body, &parsing),
        Form::Chat => chat::ask(&body, &parsing),
    })
    .await?;
    let events = app.submit(&ask)?;
    if ask.wishes.stream {
        return Ok(sse::streamed(app, ask, events, under_way));
    }
    let whole = answer::whole(&app, ask, events).await?;
    Ok(json_response(StatusCode::OK, &whole))
}

/// Runs what computes for a while where it holds nobody up.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::internal(
            "reading the request failed; the server's log says more",
        )),
    }
}

async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let body = read(request, app.timeout).await?;
        aside(move || tokenise::tokenize(&body, &app)).await
    };
    respond(work.await.map(ok))
}

async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    let work = async {
        let body = read(request, app.timeout).await?;
        aside(move || tokenise::detokenize(&body, &app)).await
    };
    respond(work.await.map(ok))
}

fn ok(body: Value) -> Response {
    json_response(StatusCode::OK, &body)
}

async fn tokenizer_info(State(app): State<Arc<App>>) -> Response {
    match &app.tokenizer_info {
        Some(text) => {
            let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
            (json, text.clone()).into_response()
        }
        None => {
            ApiError::not_found("/tokenizer_info is off; start the server with --tokenizer-info")
                .into_response()
        }
    }
}

async fn models(State(app): State<Arc<App>>) -> Response {
    ok(json!({"object": "list", "data": [card(&app)]}))
}

async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    match name.trim_start_matches('/') == app.served.name.trim_start_matches('/') {
        true => ok(card(&app)),
        false => {
            ApiError::unknown_model(&super::fields::cut(&name), &app.served.name).into_response()
        }
    }
}

fn card(app: &App) -> Value {
    let served = &app.served;
    json!({
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "sppo",
        "root": served.name,
        "parent": null,
        "max_model_len": served.context,
    })
}

async fn health(State(app): State<Arc<App>>) -> Response {
    respond(app.life.check().map(|()| ok(json!({"status": "ok"}))))
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.metrics.text();
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match text {
        Ok(text) => ([(CONTENT_TYPE, HeaderValue::from_static(format))], text).into_response(),
        Err(_) => ApiError::internal("the metrics cannot be written").into_response(),
    }
}

async fn version() -> Response {
    ok(json!({"version": env!("CARGO_PKG_VERSION")}))
}

async fn unknown_path(request: Request) -> Response {
    let path = super::fields::cut(request.uri().path());
    ApiError::not_found(format!(
        "there is no {path:?} here; this server has /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health, /metrics and /version"
    ))
    .into_response()
}

async fn wrong_method(request: Request) -> Response {
    let gets = [
        HEALTH,
        "/v1/models",
        "/tokenizer_info",
        "/metrics",
        "/version",
    ];
    let path = request.uri().path();
    let allowed = match gets.contains(&path) || path.starts_with("/v1/models/") {
        true => "GET",
        false => "POST",
    };
    ApiError::wrong_method(allowed).into_response()
}
