//! Bodies of requests: JSON, within bounds of size and time.

use std::error::Error;
use std::time::Duration;

use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::app::MOST_BYTES;
use super::error::ApiError;

/// Reads all of it. A body of another type is refused: pages of other sites can send those without
/// asking the browser.
pub async fn read(request: Request, timeout: Duration) -> Result<Bytes, ApiError> {
    check_type(request.headers())?;
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > MOST_BYTES as u64) {
        return Err(ApiError::too_large(MOST_BYTES));
    }
    let body = to_bytes(request.into_body(), MOST_BYTES);
    match tokio::time::timeout(timeout, body).await {
        Err(_) => Err(ApiError::slow_body(timeout.as_secs_f64())),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_too_large(&error) => Err(ApiError::too_large(MOST_BYTES)),
        Ok(Err(error)) => Err(ApiError::invalid(format!(
            "the body cannot be read: {error}"
        ))),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let cause = error.source().map(ToString::to_string);
    cause.is_some_and(|cause| cause.contains("length limit"))
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let found = headers
        .get(CONTENT_TYPE)
        .map(|value| value.to_str().unwrap_or("not ASCII"));
    let essence = found.and_then(|found| found.split(';').next());
    match essence
        .map(|essence| essence.trim().to_ascii_lowercase())
        .as_deref()
    {
        Some("application/json") => Ok(()),
        _ => Err(ApiError::wrong_type(found)),
    }
}
