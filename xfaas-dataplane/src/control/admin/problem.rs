//! Errors of the admin API as `application/problem+json`, RFC 9457.

use crate::control::addresses::AddressError;
use crate::control::api::Problem;
use crate::control::catalog::CatalogError;
use crate::control::deploy::DeployError;
use crate::control::describe;
use crate::control::moving::MoveError;
use crate::control::shards::ShardsError;
use crate::shard::MoveRefusal;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// One refused or failed request.
#[derive(Debug)]
pub(super) struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub detail: String,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> ApiError {
        ApiError { status, code, detail: detail.into() }
    }

    pub fn bad_request(detail: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_request", detail)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let problem = Problem {
            kind: "about:blank".to_owned(),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail,
        };
        let body = serde_json::to_string(&problem).expect("strings and a number become JSON");
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

/// Of a body that should be a small document.
impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> ApiError {
        match rejection.status() {
            status @ StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(status, "body_too_large", rejection.body_text()),
            // axum tells more apart than the contract does: no JSON, other JSON, another content type.
            _ => ApiError::bad_request(rejection.body_text()),
        }
    }
}

impl From<DeployError> for ApiError {
    fn from(error: DeployError) -> ApiError {
        let (status, code) = match &error {
            DeployError::Manifest(_) => (StatusCode::BAD_REQUEST, "bad_manifest"),
            DeployError::Catalog(CatalogError::WrongApp { .. }) => (StatusCode::CONFLICT, "wrong_app"),
            DeployError::Catalog(CatalogError::RulesDiffer { .. } | CatalogError::OtherDurability { .. }) => {
                (StatusCode::CONFLICT, "rules_differ")
            }
            DeployError::Catalog(CatalogError::HashClash { .. }) => (StatusCode::CONFLICT, "name_clash"),
            DeployError::Catalog(CatalogError::TooManyFunctions) => (StatusCode::CONFLICT, "too_many_functions"),
            DeployError::Catalog(CatalogError::TooManyApps) => (StatusCode::CONFLICT, "too_many_apps"),
            DeployError::Module { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "bad_module"),
            DeployError::IsContainer => (StatusCode::CONFLICT, "container"),
            DeployError::Unknown { .. } => (StatusCode::NOT_FOUND, "no_function"),
            DeployError::Overtaken { .. } => (StatusCode::CONFLICT, "overtaken"),
            DeployError::StaysAway { .. } => (StatusCode::CONFLICT, "busy"),
            DeployError::Shards { .. } => (StatusCode::SERVICE_UNAVAILABLE, "shards"),
            DeployError::Read { .. } | DeployError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "store"),
        };
        ApiError::new(status, code, describe(&error))
    }
}

impl From<AddressError> for ApiError {
    fn from(error: AddressError) -> ApiError {
        let (status, code) = match &error {
            AddressError::BadSession { .. } | AddressError::BadTtl { .. } | AddressError::BadApp { .. } | AddressError::Itself { .. } => {
                (StatusCode::BAD_REQUEST, "bad_request")
            }
            AddressError::IsContainer => (StatusCode::CONFLICT, "container"),
            AddressError::UnknownApp { .. } => (StatusCode::NOT_FOUND, "no_app"),
            AddressError::UnknownAlias { .. } => (StatusCode::NOT_FOUND, "no_alias"),
            AddressError::TooManyAliases => (StatusCode::CONFLICT, "too_many_aliases"),
            AddressError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "store"),
            AddressError::Shards { .. } => (StatusCode::SERVICE_UNAVAILABLE, "shards"),
            AddressError::NoTokens { .. } => (StatusCode::CONFLICT, "no_tokens"),
        };
        ApiError::new(status, code, describe(&error))
    }
}

impl From<MoveError> for ApiError {
    fn from(error: MoveError) -> ApiError {
        let (status, code) = match &error {
            MoveError::BadSession { .. } => (StatusCode::BAD_REQUEST, "bad_request"),
            MoveError::UnknownCore { .. } => (StatusCode::BAD_REQUEST, "no_core"),
            MoveError::UnknownApp { .. } | MoveError::Refused { refusal: MoveRefusal::NoFunction } => (StatusCode::NOT_FOUND, "no_app"),
            MoveError::Refused { refusal: MoveRefusal::UnknownSession } => (StatusCode::NOT_FOUND, "no_session"),
            MoveError::SameCore { .. } => (StatusCode::CONFLICT, "same_core"),
            MoveError::Containers { .. } => (StatusCode::CONFLICT, "containers"),
            MoveError::IsContainer => (StatusCode::CONFLICT, "container"),
            MoveError::Refused { refusal: MoveRefusal::Durable } => (StatusCode::CONFLICT, "durable"),
            MoveError::Refused { refusal: MoveRefusal::NoRoom } => (StatusCode::INSUFFICIENT_STORAGE, "no_room"),
            MoveError::Refused { refusal: MoveRefusal::Record } => (StatusCode::INTERNAL_SERVER_ERROR, "store"),
            MoveError::UnderWay | MoveError::Refused { .. } => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            MoveError::Shards(_) => (StatusCode::SERVICE_UNAVAILABLE, "shards"),
        };
        ApiError::new(status, code, describe(&error))
    }
}

impl From<ShardsError> for ApiError {
    fn from(error: ShardsError) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shards", describe(&error))
    }
}
