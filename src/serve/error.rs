//! What a client is told: OpenAI's error bodies, on every path.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// An answer that is an error.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    /// The key of the body that is wrong.
    param: Option<String>,
    message: String,
    header: Option<(&'static str, &'static str)>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: message.into(),
            header: None,
        }
    }

    /// 400: the request is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// 400: what this key holds is wrong.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        let mut error = Self::invalid(message);
        error.param = Some(param.into());
        error
    }

    /// 400 in the words by which clients know that they have to send less.
    pub fn too_long(param: &str, tokens: usize, context: usize) -> Self {
        let message = format!(
            "This model's maximum context length is {context} tokens, but the prompt has {tokens} tokens, which leaves no room for an answer. Please reduce the length of the prompt."
        );
        Self {
            code: Some("context_length_exceeded"),
            ..Self::param(param, message)
        }
    }

    /// 401.
    pub fn no_key() -> Self {
        Self {
            code: Some("invalid_api_key"),
            header: Some(("www-authenticate", "Bearer")),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "authentication_error",
                "the API key is missing or wrong: send the header `Authorization: Bearer KEY` with the key of this server",
            )
        }
    }

    /// 404: no such route, or one that is off.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// 404: another model's name under `--strict-model`.
    pub fn unknown_model(asked: &str, served: &str) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::not_found(format!(
                "the model {asked:?} is not served here; this server has {served:?}"
            ))
        }
    }

    /// 405.
    pub fn wrong_method(allowed: &'static str) -> Self {
        Self {
            header: Some(("allow", allowed)),
            ..Self::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "invalid_request_error",
                format!("this path takes {allowed} only"),
            )
        }
    }

    /// 408: a body that does not come.
    pub fn slow_body(seconds: f64) -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "invalid_request_error",
            format!("the body did not arrive within {seconds} seconds"),
        )
    }

    /// 413.
    pub fn too_large(most: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            format!("the body is larger than {} MiB", most >> 20),
        )
    }

    /// 415.
    pub fn wrong_type(found: Option<&str>) -> Self {
        let found = match found {
            Some(found) => format!("{found:?}"),
            None => "none".into(),
        };
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "invalid_request_error",
            format!("the body must be JSON: send `Content-Type: application/json` (found {found})"),
        )
    }

    /// 429: as many requests wait as may.
    pub fn full(most: usize) -> Self {
        Self {
            code: Some("queue_full"),
            header: Some(("retry-after", "1")),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                format!(
                    "{most} requests wait already, which is as many as may (--max-queue); try again later"
                ),
            )
        }
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self {
            header: Some(("retry-after", "5")),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable_error",
                message,
            )
        }
    }

    /// 500: what failed here.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        if let Some((name, value)) = self.header {
            let headers = response.headers_mut();
            headers.insert(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        response
    }
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
