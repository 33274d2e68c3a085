//! `[checkpoints]`: where sessions are kept that leave memory. Checked here; opened by `control`.

use super::{ConfigError, Environment};
use crate::durable::{S3Place, StorePlace};
use axum::http::Uri;
use object_store::path::Path as ObjectPath;
use reqwest::Url;
use serde::Deserialize;
use std::path::Path;

const FOLDER: &str = "checkpoints";
const S3_SCHEME: &str = "s3://";
const FILE_SCHEME: &str = "file://";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CheckpointsSection {
    /// `s3://bucket/prefix`, or the path of a folder; a relative one starts at the configuration file. Default: `checkpoints` in `state_dir`.
    pub url: Option<String>,
    /// Of an S3-compatible store: default Amazon's; `http://` only in networks that are trusted.
    pub endpoint: Option<String>,
    /// Default: `AWS_REGION`.
    pub region: Option<String>,
    /// Default: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
}

impl CheckpointsSection {
    pub(super) fn resolve(self, base: &Path, state_dir: &Path, environment: &Environment) -> Result<StorePlace, ConfigError> {
        let CheckpointsSection { url, endpoint, region, access_key_id, secret_access_key } = self;
        let Some(place) = url.as_deref().and_then(|url| url.strip_prefix(S3_SCHEME)) else {
            let others = [
                ("endpoint", &endpoint),
                ("region", &region),
                ("access_key_id", &access_key_id),
                ("secret_access_key", &secret_access_key),
            ];
            if let Some((key, _)) = others.iter().find(|(_, value)| value.is_some()) {
                return Err(ConfigError::NotABucket { key });
            }
            let folder = match url.as_deref().map(|url| url.strip_prefix(FILE_SCHEME).unwrap_or(url)) {
                None => state_dir.join(FOLDER),
                Some(path) if path.is_empty() || has_scheme(path) => return Err(ConfigError::BadStore { url: url.unwrap_or_default() }),
                Some(path) => base.join(path),
            };
            return Ok(StorePlace::Folder(super::paths::absolute("checkpoints.url", folder)?));
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() {
            return Err(ConfigError::BadStore { url: url.unwrap_or_default() });
        }
        if access_key_id.is_some() != secret_access_key.is_some() {
            return Err(ConfigError::HalfAKey);
        }
        let has_own = access_key_id.is_some();
        let aws = environment.aws.clone();
        let place = S3Place {
            bucket: check_bucket(bucket)?,
            prefix: check_prefix(prefix.trim_matches('/'))?,
            endpoint: either(
                ("`checkpoints.endpoint`", endpoint),
                ("AWS_ENDPOINT_URL of the environment", aws.endpoint_url),
                check_endpoint,
            )?,
            region: either(("`checkpoints.region`", region), ("AWS_REGION of the environment", aws.region), check_region)?,
            access_key_id: either(
                ("`checkpoints.access_key_id`", access_key_id),
                ("AWS_ACCESS_KEY_ID of the environment", aws.access_key_id),
                check_key,
            )?,
            secret_access_key: either(
                ("`checkpoints.secret_access_key`", secret_access_key),
                ("AWS_SECRET_ACCESS_KEY of the environment", aws.secret_access_key),
                check_secret,
            )?,
            session_token: either(("", None), ("AWS_SESSION_TOKEN of the environment", aws.session_token.filter(|_| !has_own)), check_key)?,
        };
        Ok(StorePlace::S3(place))
    }
}

// A request is made of these settings long after the start, and `object_store` panics where one does not fit: so each is checked here.

/// The file's value if it has one, else the environment's, checked by `check` under the name of its place.
fn either(
    (key, own): (&'static str, Option<String>),
    (variable, of_environment): (&'static str, Option<String>),
    check: fn(&'static str, String) -> Result<String, ConfigError>,
) -> Result<Option<String>, ConfigError> {
    match (own, of_environment) {
        (Some(own), _) => check(key, own).map(Some),
        (None, Some(text)) => check(variable, text).map(Some),
        (None, None) => Ok(None),
    }
}

/// A segment of a path in a URI as it is, RFC 3986 section 3.3. Some stores have `tenant:bucket`.
fn check_bucket(bucket: &str) -> Result<String, ConfigError> {
    let is_good = bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte));
    let is_step = matches!(bucket, "." | "..");
    if is_good && !is_step { Ok(bucket.to_owned()) } else { Err(ConfigError::BadBucket { bucket: bucket.to_owned() }) }
}

fn check_prefix(prefix: &str) -> Result<String, ConfigError> {
    match ObjectPath::parse(prefix) {
        Ok(_) => Ok(prefix.to_owned()),
        Err(_) => Err(ConfigError::BadPrefix { prefix: prefix.to_owned() }),
    }
}

/// Output: the URL in its one form, which everybody who reads it understands alike.
fn check_endpoint(place: &'static str, text: String) -> Result<String, ConfigError> {
    // A parser takes white space away, and gives a host its `//`.
    let is_plain = text.contains("://") && !text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\');
    let url = Url::parse(&text).ok().filter(|url| is_plain && matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(url) = url else { return Err(ConfigError::BadEndpoint { place, text: without_user(text) }) };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(ConfigError::EndpointWithUser { place });
    }
    let whole = url.as_str().trim_end_matches('/').to_owned();
    // What sends requests has a parser of its own.
    let is_good = url.query().is_none() && url.fragment().is_none() && whole.parse::<Uri>().is_ok();
    if is_good { Ok(whole) } else { Err(ConfigError::BadEndpoint { place, text: without_user(text) }) }
}

/// For messages: before an `@` there may be a password.
fn without_user(text: String) -> String {
    match text.rsplit_once('@') {
        Some((_, host)) => format!("...@{host}"),
        None => text,
    }
}

/// It is a part of the host's name where no endpoint is given.
fn check_region(place: &'static str, text: String) -> Result<String, ConfigError> {
    let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_good { Ok(text) } else { Err(ConfigError::BadRegion { place, text }) }
}

/// Goes in a header as it is.
fn check_key(place: &'static str, text: String) -> Result<String, ConfigError> {
    let is_good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good { Ok(text) } else { Err(ConfigError::BadKey { place }) }
}

/// Is in no request, but a line's end is no part of any.
fn check_secret(place: &'static str, text: String) -> Result<String, ConfigError> {
    let is_good = !text.is_empty() && !text.contains(char::is_control);
    if is_good { Ok(text) } else { Err(ConfigError::BadKey { place }) }
}

/// `gs://bucket`, or `S3://bucket`: nobody means a folder by that.
fn has_scheme(url: &str) -> bool {
    // RFC 3986 section 3.1.
    url.split_once("://").is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    })
}

#[cfg(test)]
mod tests {
    use super::super::AwsEnvironment;
    use super::*;

    fn resolve(text: &str) -> Result<StorePlace, ConfigError> {
        resolve_with(text, AwsEnvironment::default())
    }

    fn resolve_with(text: &str, aws: AwsEnvironment) -> Result<StorePlace, ConfigError> {
        let environment = Environment { user_id: 0, xdg_state_home: None, home: None, aws };
        toml::from_str::<CheckpointsSection>(text).unwrap().resolve(Path::new("/etc"), Path::new("/var"), &environment)
    }

    #[test]
    fn a_folder_is_the_default_and_buckets_have_prefixes() {
        assert_eq!(resolve("").unwrap(), StorePlace::Folder("/var/checkpoints".into()));
        assert_eq!(resolve("url = \"x/y\"").unwrap(), StorePlace::Folder("/etc/x/y".into()));
        let place = resolve("url = \"s3://b/p/q/\"\nendpoint = \"http://h:1\"\naccess_key_id = \"a\"\nsecret_access_key = \"s\"").unwrap();
        let StorePlace::S3(place) = place else { panic!("{place:?}") };
        assert_eq!((place.bucket.as_str(), place.prefix.as_str(), place.endpoint.as_deref()), ("b", "p/q", Some("http://h:1")));
        assert_eq!(resolve("url = \"file:///x/y\"").unwrap(), StorePlace::Folder("/x/y".into()));
        for bad in ["s3:///p", "gs://x", "http://x/y", "S3://b/p", "file://", ""] {
            let refused = resolve(&format!("url = \"{bad}\"")).unwrap_err();
            assert!(matches!(&refused, ConfigError::BadStore { url } if url == bad), "{bad}: {refused}");
        }
        let lone = resolve("secret_access_key = \"s\"").unwrap_err();
        assert!(matches!(lone, ConfigError::NotABucket { key: "secret_access_key" }), "{lone}");
        assert!(matches!(resolve("url = \"s3://b\"\naccess_key_id = \"a\""), Err(ConfigError::HalfAKey)));
        assert!(matches!(resolve("endpoint = \"http://h\""), Err(ConfigError::NotABucket { key: "endpoint" })));
    }
    const KEYS: &str = "access_key_id = \"a\"\nsecret_access_key = \"s\"\n";

    #[track_caller]
    fn assert_refused(text: &str, aws: AwsEnvironment, said: &[&str]) {
        let refused = resolve_with(text, aws).expect_err(text).to_string();
        assert!(said.iter().all(|part| refused.contains(part)), "{text}: {refused}");
    }

    #[test]
    fn an_endpoint_is_the_url_of_a_server() {
        let bad = [
            "localhost:9000",
            "127.0.0.1:9000",
            "foo",
            "",
            "http://[::1",
            "http:/h",
            "http:h:9000",
            "http://",
            "ftp://h",
            "s3://h",
            "http://h:99999",
            "http://two words",
            "http://h\\n",
            "http://h/?x",
            "http://h/#x",
            "http://a{b}",
        ];
        for bad in bad {
            assert_refused(
                &format!("url = \"s3://b\"\nendpoint = \"{bad}\"\n{KEYS}"),
                AwsEnvironment::default(),
                &["`checkpoints.endpoint`", "http://"],
            );
        }
        let aws = AwsEnvironment { endpoint_url: Some("minio:9000".to_owned()), ..AwsEnvironment::default() };
        assert_refused("url = \"s3://b\"", aws.clone(), &["AWS_ENDPOINT_URL", "environment", "minio:9000"]);
        assert!(resolve_with("url = \"s3://b\"\nendpoint = \"http://h\"", aws.clone()).is_ok(), "the environment's is not used");
        assert!(resolve_with("url = \"folder\"", aws).is_ok());
        let with_password = format!("url = \"s3://b\"\nendpoint = \"http://me:hidden@h\"\n{KEYS}");
        let refused = resolve(&with_password).unwrap_err().to_string();
        assert!(refused.contains("`checkpoints.endpoint`") && !refused.contains("hidden"), "{refused}");
        for (good, taken) in [
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
            ("HTTPS://Minio.example:9000/", "https://minio.example:9000"),
            ("http://[::1]:9000/below/it/", "http://[::1]:9000/below/it"),
            ("http://a_b", "http://a_b"),
        ] {
            let place = resolve(&format!("url = \"s3://b\"\nendpoint = \"{good}\"\n{KEYS}")).unwrap();
            let StorePlace::S3(place) = place else { panic!("{place:?}") };
            assert_eq!(place.endpoint.as_deref(), Some(taken));
        }
    }

    #[test]
    fn what_no_request_can_carry_is_refused_by_its_name() {
        let none = AwsEnvironment::default;
        for bad in ["s3://my bucket/c", "s3://b?x/c", "s3://b#x", "s3://../c", "s3://b\\n/c", "s3://ü/c", "s3://b%20/c"] {
            assert_refused(&format!("url = \"{bad}\"\n{KEYS}"), none(), &["`checkpoints.url`", "bucket"]);
        }
        for bad in ["s3://b/a//c", "s3://b/../c", "s3://b/a/./c", "s3://b/a\\nc"] {
            assert_refused(&format!("url = \"{bad}\"\n{KEYS}"), none(), &["`checkpoints.url`", "prefix"]);
        }
        for bad in ["r\\n", "", "two words", "r/x", "ü"] {
            assert_refused(&format!("url = \"s3://b\"\nregion = \"{bad}\"\n{KEYS}"), none(), &["`checkpoints.region`"]);
        }
        let keys = |id: &str, secret: &str| format!("url = \"s3://b\"\naccess_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"");
        for bad in ["hidden\\n", "", " hidden", "hiddün"] {
            assert_refused(&keys(bad, "s"), none(), &["`checkpoints.access_key_id`"]);
            let aws = AwsEnvironment { session_token: Some(bad.replace("\\n", "\n")), ..none() };
            assert_refused("url = \"s3://b\"", aws.clone(), &["AWS_SESSION_TOKEN"]);
            assert!(resolve_with(&keys("a", "s"), aws.clone()).is_ok(), "a token of the environment goes with its keys");
            assert!(!resolve_with("url = \"s3://b\"", aws).unwrap_err().to_string().contains("hidd"));
        }
        for bad in ["hidden\\n", ""] {
            assert_refused(&keys("a", bad), none(), &["`checkpoints.secret_access_key`"]);
        }
        for text in ["url = \"s3://tenant:b_1.x/p/ü q/\"", "url = \"s3://b\"\nregion = \"eu-central_1.x\""] {
            assert!(resolve(&format!("{text}\n{KEYS}")).is_ok(), "{text}");
        }
    }
}
