//! `[checkpoints]`: where sessions are kept that leave memory. Checked here; opened by `control`.

use super::{ConfigError, Environment};
use crate::durable::{S3Place, StorePlace};
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
        Ok(StorePlace::S3(S3Place {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: endpoint.or(aws.endpoint_url),
            region: region.or(aws.region),
            access_key_id: access_key_id.or(aws.access_key_id),
            secret_access_key: secret_access_key.or(aws.secret_access_key),
            session_token: aws.session_token.filter(|_| !has_own),
        }))
    }
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
    use super::*;

    fn resolve(text: &str) -> Result<StorePlace, ConfigError> {
        let environment = Environment { user_id: 0, xdg_state_home: None, home: None, aws: super::super::AwsEnvironment::default() };
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
}
