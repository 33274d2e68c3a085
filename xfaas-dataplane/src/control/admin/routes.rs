//! What each path of the admin API does.

use super::Shared;
use super::permits::{Module, blocking, too_large};
use super::problem::ApiError;
use crate::control::addresses::{AddressError, Addresses};
use crate::control::api::{
    AliasInfo, AliasName, AliasesReply, DeployFlags, FunctionInfo, FunctionsReply, SessionsReply, StatsReply, TokenReply, TokenRequest,
    UndeployReply,
};
use crate::control::metrics::{CONTENT_TYPE, Samples};
use crate::control::moving::{MoveReply, MoveRequest};
use crate::control::shards::{SESSIONS_LIMIT_MAX, SessionsQuery};
use crate::control::trace::{TRACE_SECONDS_MAX, TraceReply};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use xfaas_common::limits::MODULE_BYTES_MAX;

const SESSIONS_LIMIT_DEFAULT: usize = 100;

pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/functions", get(functions))
        .route("/v1/functions/{name}", put(deploy).delete(undeploy))
        .route("/v1/sessions", get(sessions))
        .route("/v1/sessions/move", post(move_session))
        .route("/v1/aliases", get(aliases).put(map).delete(unmap))
        .route("/v1/tokens", post(token))
        .route("/v1/stats", get(stats))
        .route("/v1/steering", get(steering))
        .route("/v1/trace", get(trace))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "no_route", "there is no such path in the admin API"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "bad_method", "this path does not take that method")
        })
        .with_state(shared)
}

impl Shared {
    /// What is missing before the node serves.
    fn missing(&self) -> Option<String> {
        self.shards.ready().and_then(|()| self.deployer.ready()).err()
    }

    fn samples(&self) -> Samples {
        let mut samples = Samples { counters: self.shards.counters(), histograms: self.shards.histograms() };
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        samples.gauge("xfaas_build_info", "The version, as a label", version, 1.0);
        samples.gauge("xfaas_functions", "Functions that run", vec![], self.deployer.count_running() as f64);
        let (guest_memory, guest_memory_max) = self.deployer.guest_memory_bytes();
        samples.gauge("xfaas_guest_memory_bytes", "Sizes of all live workers' memories", vec![], guest_memory as f64);
        samples.gauge("xfaas_guest_memory_limit_bytes", "What they may take together", vec![], guest_memory_max as f64);
        samples.gauge("xfaas_shards", "Shards of this process", vec![], self.shards.count() as f64);
        samples.gauge("xfaas_uptime_seconds", "Since the control thread started", vec![], self.started_at.elapsed().as_secs_f64());
        samples.add_busy(&self.shards.busy_ns());
        samples.add_steering(&(self.steering)());
        samples
    }
}

async fn ready(State(shared): State<Shared>) -> Result<&'static str, ApiError> {
    match shared.missing() {
        None => Ok("ready\n"),
        Some(missing) => Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", missing)),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], shared.samples().to_text()).into_response()
}

async fn functions(State(shared): State<Shared>) -> Json<FunctionsReply> {
    Json(FunctionsReply { functions: shared.deployer.functions() })
}

async fn deploy(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<DeployFlags>, QueryRejection>,
    request: Request,
) -> Result<Json<FunctionInfo>, ApiError> {
    refuse_browsers(request.headers())?;
    refuse_large(request.headers())?;
    let Query(flags) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let name = function_name(name)?;
    let Module { wasm, memory } = shared.module_memory.read(request.into_body()).await?;
    let permit = shared.deployments.one().await?;
    let manifest = flags.into_manifest(&name);
    let work = move || {
        let _memory = memory;
        shared.deployer.deploy(&manifest, &wasm)
    };
    Ok(Json(blocking(permit, work).await??))
}

/// Errors: it cannot be one.
fn function_name(name: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    name.map(|Path(name)| name).map_err(|error| ApiError::bad_request(error.body_text()))
}

/// A body that says it is too long is refused before it is sent; one that does not say is stopped by `DefaultBodyLimit`.
fn refuse_large(headers: &HeaderMap) -> Result<(), ApiError> {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    if length.is_some_and(|bytes| bytes > MODULE_BYTES_MAX as u64) { Err(too_large()) } else { Ok(()) }
}

async fn undeploy(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<UndeployReply>, ApiError> {
    refuse_browsers(&headers)?;
    let name = function_name(name)?;
    let permit = shared.helpers.one().await?;
    Ok(Json(blocking(permit, move || shared.deployer.undeploy(&name)).await??))
}

fn refuse_browsers(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(header::ORIGIN) {
        let detail = "requests with an Origin header change nothing here: use `xfaas` or curl";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "browser", detail));
    }
    Ok(())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SessionsParameters {
    app: Option<String>,
    prefix: Option<String>,
    limit: Option<usize>,
}

async fn sessions(
    State(shared): State<Shared>,
    query: Result<Query<SessionsParameters>, QueryRejection>,
) -> Result<Json<SessionsReply>, ApiError> {
    let Query(SessionsParameters { app, prefix, limit }) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let limit = limit.unwrap_or(SESSIONS_LIMIT_DEFAULT);
    if !(1..=SESSIONS_LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(format!("`limit` is {limit}: give a value in 1..={SESSIONS_LIMIT_MAX}")));
    }
    let permit = shared.helpers.one().await?;
    // One more than is shown tells whether there are more.
    let query = SessionsQuery { app, prefix, limit: limit + 1 };
    let mut sessions = blocking(permit, move || shared.shards.sessions(&query)).await??;
    sessions.sort_by(|a, b| (&a.app, &a.session).cmp(&(&b.app, &b.session)));
    let truncated = sessions.len() > limit;
    sessions.truncate(limit);
    Ok(Json(SessionsReply { truncated, sessions }))
}

async fn move_session(
    State(shared): State<Shared>,
    headers: HeaderMap,
    request: Result<Json<MoveRequest>, JsonRejection>,
) -> Result<Json<MoveReply>, ApiError> {
    refuse_browsers(&headers)?;
    let Json(request) = request?;
    let permit = shared.helpers.one().await?;
    Ok(Json(blocking(permit, move || shared.shards.move_session(&request)).await??))
}

async fn aliases(State(shared): State<Shared>) -> Result<Json<AliasesReply>, ApiError> {
    let permit = shared.helpers.one().await?;
    let aliases = blocking(permit, move || Ok::<_, ApiError>(addresses(&shared)?.aliases())).await??;
    Ok(Json(AliasesReply { aliases }))
}

async fn map(
    State(shared): State<Shared>,
    headers: HeaderMap,
    alias: Result<Json<AliasInfo>, JsonRejection>,
) -> Result<Json<AliasInfo>, ApiError> {
    refuse_browsers(&headers)?;
    let Json(alias) = alias?;
    let permit = shared.helpers.one().await?;
    let work = move || {
        addresses(&shared)?.alias(&*shared.shards, alias.app.as_deref(), &alias.key, Some(&alias.session))?;
        Ok::<_, ApiError>(Json(alias))
    };
    blocking(permit, work).await?
}

async fn unmap(
    State(shared): State<Shared>,
    headers: HeaderMap,
    name: Result<Query<AliasName>, QueryRejection>,
) -> Result<Json<AliasName>, ApiError> {
    refuse_browsers(&headers)?;
    let Query(name) = name.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let permit = shared.helpers.one().await?;
    let work = move || {
        addresses(&shared)?.alias(&*shared.shards, name.app.as_deref(), &name.key, None)?;
        Ok::<_, ApiError>(Json(name))
    };
    blocking(permit, work).await?
}

/// Quick enough for this thread: it reads no file and asks no shard.
async fn token(
    State(shared): State<Shared>,
    headers: HeaderMap,
    request: Result<Json<TokenRequest>, JsonRejection>,
) -> Result<Json<TokenReply>, ApiError> {
    refuse_browsers(&headers)?;
    let Json(request) = request?;
    Ok(Json(addresses(&shared)?.token(&shared.deployer, request)?))
}

/// Errors: this is a container, which knows neither tokens nor aliases.
fn addresses(shared: &Shared) -> Result<&Addresses, ApiError> {
    Ok(shared.addresses.as_deref().ok_or(AddressError::IsContainer)?)
}

async fn stats(State(shared): State<Shared>) -> Json<StatsReply> {
    Json(StatsReply {
        uptime_s: shared.started_at.elapsed().as_secs(),
        shards: shared.shards.count(),
        functions: shared.deployer.count_running(),
        not_ready: shared.missing(),
        steering: (shared.steering)().map_or_else(|error| format!("unreadable: {error}"), |report| report.mode),
        metrics: shared.samples().to_json(),
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TraceParameters {
    seconds: u32,
}

async fn trace(State(shared): State<Shared>, query: Result<Query<TraceParameters>, QueryRejection>) -> Result<Json<TraceReply>, ApiError> {
    let Query(TraceParameters { seconds }) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    if !(1..=TRACE_SECONDS_MAX).contains(&seconds) {
        return Err(ApiError::bad_request(format!("`seconds` is {seconds}: give a value in 1..={TRACE_SECONDS_MAX}")));
    }
    let busy = |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "busy", "another trace is under way: try again when it is over");
    let _permit = shared.tracer.try_acquire().map_err(busy)?;
    Ok(Json(crate::control::trace::trace(&*shared.shards, seconds).await))
}

async fn steering(State(shared): State<Shared>) -> Result<Json<serde_json::Value>, ApiError> {
    let report = (shared.steering)().map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "steering", error))?;
    let object =
        |pairs: &[(&'static str, u64)]| pairs.iter().map(|(key, count)| (*key, *count)).collect::<std::collections::BTreeMap<_, _>>();
    Ok(Json(serde_json::json!({ "mode": report.mode, "verdicts": object(&report.verdicts), "drops": object(&report.drops) })))
}
