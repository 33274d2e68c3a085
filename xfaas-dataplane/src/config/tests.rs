//! Tests of the configuration: defaults, overrides, and every refusal with its place.

use super::*;
use std::error::Error;

fn environment() -> Environment {
    Environment { user_id: 1000, xdg_state_home: None, home: Some(PathBuf::from("/nonexistent/home")), aws: AwsEnvironment::default() }
}

/// Loads `text` from a file in a fresh directory that also holds `echo.wasm`.
fn load_text(text: &str, overrides: Overrides) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("echo.wasm"), b"\0asm").unwrap();
    let path = directory.path().join("xfaas.toml");
    std::fs::write(&path, text).unwrap();
    load(Some(&path), overrides, &environment())
}

fn message(text: &str) -> String {
    let error = load_text(text, Overrides::default()).expect_err("refused");
    let source = error.source().map(|source| format!("\n{source}")).unwrap_or_default();
    format!("{error}{source}")
}

#[test]
fn empty_file_gives_the_documented_defaults() {
    let config = load_text("", Overrides::default()).unwrap();
    assert_eq!(config.http, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(config.udp, config.http);
    assert_eq!(config.admin, "127.0.0.1:9070".parse().unwrap());
    assert_eq!(config.rpc.port(), 9071);
    assert_eq!(config.session_header, "x-session-id");
    assert_eq!(config.cpus, allowed_cpus());
    assert_eq!(config.steering_mode, SteeringMode::Auto);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.state_dir, Path::new("/nonexistent/home/.local/state/xfaas"));
    assert!(config.shared_memory_dir.starts_with("/dev/shm"), "{:?}", config.shared_memory_dir);
}

#[test]
fn defaults_are_within_their_ranges() {
    Limits::default().check().unwrap();
}

#[test]
fn unknown_keys_are_refused_with_their_place() {
    let text = message("[listen]\nhttp = \"127.0.0.1:1\"\nhtp = 3\n");
    assert!(text.contains("line 3, column 1") && text.contains("htp"), "{text}");
    let text = message("[[function]]\nname = \"a\"\nwasm = \"echo.wasm\"\ndeadline_s = 3\n");
    assert!(text.contains("line 4") && text.contains("deadline_s"), "{text}");
    assert!(message("[limits]\nbody_mb = 1\n").contains("line 2"));
    assert!(message("colour = 1\n").contains("line 1"));
}

#[test]
fn bad_values_are_refused_with_what_to_do() {
    assert!(message("[listen]\nhttp = \"8080\"\n").contains("line 2"));
    assert!(message("[listen]\nhttp = \"127.0.0.1:0\"\n").contains("listen.http"));
    assert!(message("[listen]\nadmin = \"127.0.0.1:8080\"\n").contains("another port"));
    assert!(message("[listen]\nsession_header = \"a b\"\n").contains("header name"));
    for taken in ["Content-Length", "host", "x-session-token", "x-invocation-id", "x-xfaas-core"] {
        let text = message(&format!("[listen]\nsession_header = \"{taken}\"\n"));
        assert!(text.contains("`listen.session_header`") && text.contains("another name"), "{text}");
    }
    assert!(message("[shards]\ncpus = []\n").contains("at least one CPU"));
    assert!(message("[shards]\ncpus = [65535]\n").contains("CPU 65535"));
    let first = allowed_cpus()[0];
    assert!(message(&format!("[shards]\ncpus = [{first}, {first}]\n")).contains("twice"));
    assert!(message("[steering]\nmode = \"fast\"\n").contains("choose auto, xdp"));
    assert!(message("[steering]\nmode = \"xdp\"\n").contains("--iface"));
    assert!(message("[steering]\niface = \"a/b\"\n").contains("ip link"));
    for key in ["state_dir", "shared_memory_dir"] {
        assert!(message(&format!("{key} = \"\"\n")).contains(&format!("`{key}` is empty")));
    }
    assert!(message("[limits]\nbody_bytes_max = 5\n").contains("`limits.body_bytes_max` is 5: give a value in 1024..=67108864"));
    assert!(message("[limits]\nlock_wait_ms = 0\n").contains("1..=600000"));
    assert!(message("[limits]\nconnections_max = 16385\n").contains("1..=16384"));
}

#[test]
fn what_is_no_text_or_no_file_is_said_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.toml");
    let refused = || load(Some(&path), Overrides::default(), &environment()).unwrap_err().to_string();
    std::fs::write(&path, b"# \xFF\n").unwrap();
    assert!(refused().contains("not UTF-8 text at byte 2"), "{}", refused());
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0).unwrap();
    assert!(refused().contains("no regular file"), "{}", refused());
}

#[test]
fn functions_take_defaults_and_paths_start_at_the_file() {
    let config = load_text("[[function]]\nname = \"echo\"\nwasm = \"echo.wasm\"\nread_only = true\n", Overrides::default()).unwrap();
    let function = &config.functions[0];
    assert_eq!(function.manifest.app, "echo");
    assert!(function.manifest.read_only);
    assert_eq!(function.manifest.deadline_ms, 1_000);
    assert_eq!(function.manifest.workers_max, 10);
    assert!(function.wasm.ends_with("echo.wasm") && function.wasm.is_absolute());
    assert!(function.manifest.rules.hint.is_default() && function.hook.is_none());
    for hint in ["", "hint = \"hook\"\n"] {
        let text = format!("[[function]]\nname = \"a\"\nwasm = \"echo.wasm\"\nhook = \"echo.wasm\"\n{hint}");
        let config = load_text(&text, Overrides::default()).unwrap();
        assert_eq!(
            (&config.functions[0].manifest.rules.hint, config.functions[0].hook.as_ref()),
            (&Hint::Hook, Some(&config.functions[0].wasm))
        );
    }
}

#[test]
fn bad_functions_are_refused() {
    assert!(message("[[function]]\nname = \"a/b\"\nwasm = \"echo.wasm\"\n").contains("a/b"));
    assert!(message("[[function]]\nname = \"a\"\nwasm = \"none.wasm\"\n").contains("none.wasm"));
    let entry = "[[function]]\nname = \"a\"\nwasm = \"echo.wasm\"\n";
    assert!(message(&format!("{entry}hook = \"none.wasm\"\n")).contains("correct `hook`"));
    assert!(message(&format!("{entry}hook = \"echo.wasm\"\nhint = \"path:0\"\n")).contains("the hint `path:0`"));
    assert!(message(&format!("{entry}{entry}")).contains("two [[function]]"));
    assert!(message(&format!("{entry}deadline_ms = 0\n")).contains("deadline_ms"));
    let two = |a: &str, b: &str| {
        message(&format!("{}name = {a}\n{}name = {b}\n", "[[function]]\nwasm = \"echo.wasm\"\n", "[[function]]\nwasm = \"echo.wasm\"\n"))
    };
    let text = two("\"costarring\"", "\"liquid\"");
    assert!(text.contains("do not go together") && text.contains("hash") && text.contains("costarring"), "{text}");
    let text = two("\"a\"\napp = \"x\"\ntokens = true", "\"b\"\napp = \"x\"");
    assert!(text.contains("do not go together") && text.contains("`tokens`"), "{text}");
    assert!(message(&format!("[limits]\nmemory_mib_max = 64\n{entry}memory_mib = 65\n")).contains("memory_mib"));
}

#[test]
fn flags_override_the_file() {
    let overrides = Overrides {
        http: Some("127.0.0.1:9999".parse().unwrap()),
        steering_mode: Some(SteeringMode::Off),
        state_dir: Some(PathBuf::from("/nonexistent/state")),
        ..Overrides::default()
    };
    let config = load_text("state_dir = \"s\"\n[listen]\nhttp = \"127.0.0.1:1\"\n[steering]\nmode = \"xdp\"\n", overrides).unwrap();
    assert_eq!(config.http.port(), 9999);
    assert_eq!(config.udp, config.http);
    assert_eq!(config.steering_mode, SteeringMode::Off);
    assert_eq!(config.state_dir, Path::new("/nonexistent/state"));
}

#[test]
fn state_dir_follows_the_user() {
    let root = Environment { user_id: 0, xdg_state_home: Some(PathBuf::from("/x")), home: None, aws: AwsEnvironment::default() };
    assert_eq!(root.state_dir(), Some(PathBuf::from("/var/lib/xfaas")));
    let xdg = Environment {
        user_id: 1,
        xdg_state_home: Some(PathBuf::from("/nonexistent/x")),
        home: Some(PathBuf::from("/h")),
        aws: AwsEnvironment::default(),
    };
    assert_eq!(xdg.state_dir(), Some(PathBuf::from("/nonexistent/x/xfaas")));
    let nobody = Environment { user_id: 1, xdg_state_home: None, home: None, aws: AwsEnvironment::default() };
    assert_eq!(nobody.state_dir(), None);
    assert_ne!(root.shared_memory_dir(Path::new("/a")), root.shared_memory_dir(Path::new("/b")));
}

#[test]
fn one_directory_has_one_name() {
    let directory = tempfile::tempdir().unwrap();
    let real = directory.path().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, directory.path().join("link")).unwrap();
    let through_link = paths::absolute("state_dir", directory.path().join("link/new")).unwrap();
    assert_eq!(through_link, paths::absolute("state_dir", real.join("new")).unwrap());
}
