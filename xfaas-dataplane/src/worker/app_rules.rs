//! What a manifest says about its app as a whole: all functions of an app must say the same. CONTRACT.md section 4.
//! Read from JSON, TOML and flags; holds no behaviour.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Path segments that `path:N` can name: `N` is below it.
pub const PATH_SEGMENTS_MAX: u8 = 32;
/// Bytes of a header's, cookie's or query parameter's name in a hint.
const HINT_NAME_BYTES_MAX: usize = 64;

/// The rules of one app. The default is what an app without any of these keys has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AppRules {
    /// How a request names its session.
    #[serde(skip_serializing_if = "Hint::is_default")]
    pub hint: Hint,
    /// A hook that runs longer is stopped; `None`: the default. Milliseconds, 1..=1_000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook_deadline_ms: Option<u32>,
    /// Requests must carry a token for their session.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tokens: bool,
    /// Requests of one namespace in a second, 1..=1_000_000; `None`: as many as come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<u32>,
    /// Of a core, for one namespace, while others want it; `None`: as much as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_share: Option<CpuShare>,
    /// How it is decided when a session at rest leaves memory.
    #[serde(skip_serializing_if = "KeepAliveRule::is_default")]
    pub keep_alive: KeepAliveRule,
    /// A session that was not used for so long is checkpointed and leaves memory, 1..=86_400 s; `None`: with `fixed` it stays, with `hybrid` the
    /// default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_s: Option<u32>,
    /// With durability `checkpoint`: how old a session's checkpoint may be, 1..=86_400 s; `None`: the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_every_s: Option<u32>,
}

impl AppRules {
    /// True when a request's head alone may show that it must not run.
    pub fn may_refuse_a_head(&self) -> bool {
        match self.hint {
            Hint::Hook => false, // it sees the body too
            Hint::SessionHeader => self.tokens,
            _ => true,
        }
    }

    /// True when sessions at rest may leave memory.
    pub fn lets_sleep(&self) -> bool {
        self.keep_alive_s.is_some() || self.keep_alive != KeepAliveRule::Fixed
    }

    /// The first key in which two functions of one app differ.
    pub fn difference(&self, other: &AppRules) -> Option<&'static str> {
        let AppRules { hint, hook_deadline_ms, tokens, requests_per_s, cpu_share, keep_alive, keep_alive_s, checkpoint_every_s } = self;
        let differs = [
            ("hint", *hint != other.hint),
            ("hook_deadline_ms", *hook_deadline_ms != other.hook_deadline_ms),
            ("tokens", *tokens != other.tokens),
            ("requests_per_s", *requests_per_s != other.requests_per_s),
            ("cpu_share", *cpu_share != other.cpu_share),
            ("keep_alive", *keep_alive != other.keep_alive),
            ("keep_alive_s", *keep_alive_s != other.keep_alive_s),
            ("checkpoint_every_s", *checkpoint_every_s != other.checkpoint_every_s),
        ];
        differs.iter().find(|(_, differs)| *differs).map(|(key, _)| *key)
    }
}

/// How long sessions at rest stay in memory: the policies of `session::KeepAlivePolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepAliveRule {
    /// For `keep_alive_s`.
    #[default]
    Fixed,
    /// As the idle times of the app's sessions say, and for `keep_alive_s` while they say too little.
    Hybrid,
    /// Until memory is short.
    Unbounded,
}

impl KeepAliveRule {
    /// Errors: there is none of that name.
    pub fn parse(text: &str) -> Result<KeepAliveRule, String> {
        let all = [KeepAliveRule::Fixed, KeepAliveRule::Hybrid, KeepAliveRule::Unbounded];
        let named = all.into_iter().find(|rule| rule.name() == text);
        named.ok_or_else(|| "choose fixed, hybrid or unbounded".to_owned())
    }

    pub const fn name(self) -> &'static str {
        match self {
            KeepAliveRule::Fixed => "fixed",
            KeepAliveRule::Hybrid => "hybrid",
            KeepAliveRule::Unbounded => "unbounded",
        }
    }

    /// The default is not written down.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    fn is_default(&self) -> bool {
        *self == KeepAliveRule::Fixed
    }
}

/// A part of one core, 0.01..=1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "f64", try_from = "f64")]
pub struct CpuShare {
    thousandths: u16,
}

impl CpuShare {
    /// Time of the wall clock in which this share of a core comes to `ran_ns`.
    pub fn wall_ns(self, ran_ns: u64) -> u64 {
        ran_ns.saturating_mul(1_000) / u64::from(self.thousandths)
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("`cpu_share` is {text}: give a part of a core in 0.01..=1.0")]
pub struct BadShare {
    text: String,
}

impl TryFrom<f64> for CpuShare {
    type Error = BadShare;

    fn try_from(share: f64) -> Result<CpuShare, BadShare> {
        if !(0.01..=1.0).contains(&share) {
            return Err(BadShare { text: share.to_string() });
        }
        Ok(CpuShare { thousandths: (share * 1_000.0).round() as u16 })
    }
}

impl From<CpuShare> for f64 {
    fn from(share: CpuShare) -> f64 {
        f64::from(share.thousandths) / 1_000.0
    }
}

impl FromStr for CpuShare {
    type Err = BadShare;

    fn from_str(text: &str) -> Result<CpuShare, BadShare> {
        text.parse::<f64>().map_err(|_| BadShare { text: text.to_owned() })?.try_into()
    }
}

/// Where an HTTP request of an app names its session. Datagrams carry theirs in their own header.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Hint {
    /// The node's session header.
    #[default]
    SessionHeader,
    /// Another header, lower case.
    Header(String),
    Cookie(String),
    /// A segment of the path after the function's name, counted from 0.
    Path(u8),
    Query(String),
    /// What the function's `hook` says.
    Hook,
}

impl Hint {
    pub fn is_default(&self) -> bool {
        *self == Hint::SessionHeader
    }

    /// Whoever gives a hook means it to be used. Output: false when the hint is another one already.
    pub fn set_hook(&mut self) -> bool {
        if self.is_default() {
            *self = Hint::Hook;
        }
        *self == Hint::Hook
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hint is {text:?}: give header:NAME, cookie:NAME, query:NAME, hook or path:N with N in 0..={}; a name has 1 to 64 of A-Z a-z 0-9 and -._~", PATH_SEGMENTS_MAX - 1)]
pub struct BadHint {
    text: String,
}

impl FromStr for Hint {
    type Err = BadHint;

    fn from_str(text: &str) -> Result<Hint, BadHint> {
        let bad = || BadHint { text: text.to_owned() };
        if text == "hook" {
            return Ok(Hint::Hook);
        }
        let (kind, value) = text.split_once(':').ok_or_else(bad)?;
        let is_name = (1..=HINT_NAME_BYTES_MAX).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'));
        match kind {
            "header" if is_name => Ok(Hint::Header(value.to_ascii_lowercase())),
            "cookie" if is_name => Ok(Hint::Cookie(value.to_owned())),
            "query" if is_name => Ok(Hint::Query(value.to_owned())),
            "path" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                let index = value.parse().ok().filter(|index| *index < PATH_SEGMENTS_MAX);
                index.map(Hint::Path).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for Hint {
    type Error = BadHint;

    fn try_from(text: String) -> Result<Hint, BadHint> {
        text.parse()
    }
}

impl fmt::Display for Hint {
    /// As it is written in a manifest; nothing for the default, which is written by leaving it out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::SessionHeader => Ok(()),
            Hint::Header(name) => write!(f, "header:{name}"),
            Hint::Cookie(name) => write!(f, "cookie:{name}"),
            Hint::Path(index) => write!(f, "path:{index}"),
            Hint::Hook => f.write_str("hook"),
            Hint::Query(name) => write!(f, "query:{name}"),
        }
    }
}

impl From<Hint> for String {
    fn from(hint: Hint) -> String {
        hint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_come_back_as_they_were_written() {
        for text in ["header:x-cart", "cookie:sid", "path:0", "path:31", "query:sid", "hook"] {
            assert_eq!(text.parse::<Hint>().unwrap().to_string(), text);
        }
        assert_eq!("header:X-Cart".parse::<Hint>(), Ok(Hint::Header("x-cart".to_owned())));
        for bad in
            ["", "header", "header:", "header:a b", "cookie:a=b", "path:", "path:32", "path:-1", "path:+1", "path:256", "query:&", "Path:0"]
        {
            let error = bad.parse::<Hint>().unwrap_err();
            assert!(error.to_string().contains("cookie:NAME"), "{error}");
        }
    }

    #[test]
    fn shares_are_parts_of_a_core() {
        for (text, thousandths) in [("0.01", 10), ("0.1", 100), ("1", 1_000), ("1.0", 1_000), ("0.333", 333)] {
            assert_eq!(text.parse::<CpuShare>(), Ok(CpuShare { thousandths }));
        }
        for bad in ["0", "0.009", "1.01", "-1", "NaN", "inf", "x", ""] {
            assert!(bad.parse::<CpuShare>().is_err(), "{bad}");
        }
        assert_eq!("0.1".parse::<CpuShare>().unwrap().wall_ns(5), 50);
    }

    #[test]
    fn policies_are_chosen_by_name() {
        for name in ["fixed", "hybrid", "unbounded"] {
            let rule = KeepAliveRule::parse(name).unwrap();
            assert_eq!((rule.name(), serde_json::to_string(&rule).unwrap()), (name, format!("\"{name}\"")));
            assert_eq!(AppRules { keep_alive: rule, ..AppRules::default() }.lets_sleep(), name != "fixed");
        }
        for bad in ["", "Fixed", "lru", "hybrid "] {
            assert!(KeepAliveRule::parse(bad).unwrap_err().contains("hybrid"));
        }
    }

    #[test]
    fn the_first_key_that_differs_is_named() {
        let rules = AppRules { hint: Hint::Path(0), tokens: true, ..AppRules::default() };
        assert_eq!(rules.difference(&rules.clone()), None);
        assert_eq!(rules.difference(&AppRules::default()), Some("hint"));
        assert_eq!(rules.difference(&AppRules { tokens: false, ..rules.clone() }), Some("tokens"));
    }
}
