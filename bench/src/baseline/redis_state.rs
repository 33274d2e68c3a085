//! State in redis: a key for each key of a session, and a lock that is a key with its holder's token and an end. One connection carries everybody's
//! commands; one that broke is made anew for the next command.
//!
//! A strong read-modify-write is two round trips: the lock and the value, then the write and the release. Both ends of the section are checked
//! against the token, so a holder whose lock ran out writes nothing.

use super::outside::{LockToken, StateFault, StateKey};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::TcpSettings;
use redis::{Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, ServerErrorKind, cmd, pipe};
use std::time::Duration;

const CONNECT_WAIT: Duration = Duration::from_secs(1);
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// A lock whose holder is gone is free after this; longer than anybody waits for one.
const LOCK_MS: u64 = 10_000;
const STATE: &str = "state";
const LOCK: &str = "lock";

const RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";
const WRITE_AND_RELEASE: &str = "if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end \
                                 redis.call('set', KEYS[2], ARGV[2]) return redis.call('del', KEYS[1])";

/// A script, and the name that redis gave it.
struct Script {
    text: &'static str,
    hash: String,
}

pub struct RedisState {
    connection: ConnectionManager,
    release: Script,
    write_and_release: Script,
}

impl RedisState {
    /// `url`: `redis://HOST:PORT`. Inside a tokio runtime with its timers and network on.
    /// Errors: not such a URL, or no redis there.
    pub async fn connect(url: &str) -> Result<RedisState, StateFault> {
        let failed = StateFault::store::<RedisError>;
        let info = url.into_connection_info().map_err(failed("understand the URL"))?;
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(failed("understand the URL"))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_WAIT))
            .set_response_timeout(Some(ANSWER_WAIT))
            .set_number_of_retries(0);
        let connection = ConnectionManager::new_with_config(client, config).await.map_err(failed("connect"))?;
        let load = async |text| Ok(Script { text, hash: load_script(&connection, text).await.map_err(failed("load a script"))? });
        Ok(RedisState { release: load(RELEASE).await?, write_and_release: load(WRITE_AND_RELEASE).await?, connection: connection.clone() })
    }

    pub(super) async fn read(&self, key: &StateKey) -> Result<Option<Vec<u8>>, StateFault> {
        self.ask(cmd("GET").arg(key.name(STATE))).await.map_err(StateFault::store("read"))
    }

    pub(super) async fn write(&self, key: &StateKey, value: &[u8]) -> Result<(), StateFault> {
        self.ask(cmd("SET").arg(key.name(STATE)).arg(value)).await.map_err(StateFault::store("write"))
    }

    /// `None`: the lock is somebody's.
    pub(super) async fn try_lock(&self, key: &StateKey, token: &LockToken, reads: bool) -> Result<Option<Option<Vec<u8>>>, StateFault> {
        let mut commands = pipe();
        commands.cmd("SET").arg(key.name(LOCK)).arg(token.as_str()).arg("NX").arg("PX").arg(LOCK_MS);
        if reads {
            commands.cmd("GET").arg(key.name(STATE));
        }
        let mut connection = self.connection.clone();
        let failed = StateFault::store("lock");
        // SET with NX answers nothing when the key is there.
        let answered: Result<(Option<String>, Option<Vec<u8>>), RedisError> = match reads {
            true => commands.query_async(&mut connection).await,
            false => commands.query_async(&mut connection).await.map(|(taken,)| (taken, None)),
        };
        let (taken, value) = answered.map_err(failed)?;
        Ok(taken.map(|_| value))
    }

    pub(super) async fn write_and_release(&self, key: &StateKey, value: &[u8], token: &LockToken) -> Result<(), StateFault> {
        let released: u64 = self
            .run(&self.write_and_release, |command| command.arg(2).arg(key.name(LOCK)).arg(key.name(STATE)).arg(token.as_str()).arg(value))
            .await
            .map_err(StateFault::store("write and release"))?;
        if released == 1 { Ok(()) } else { Err(StateFault::LockLost) }
    }

    pub(super) async fn release(&self, key: &StateKey, token: &LockToken) -> Result<(), StateFault> {
        let run = self.run(&self.release, |command| command.arg(1).arg(key.name(LOCK)).arg(token.as_str()));
        run.await.map(|_: u64| ()).map_err(StateFault::store("release"))
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        command.query_async(&mut self.connection.clone()).await
    }

    /// A redis that was started anew has forgotten its scripts: then it is told again.
    async fn run<T: FromRedisValue>(&self, script: &Script, arguments: impl Fn(&mut Cmd) -> &mut Cmd) -> Result<T, RedisError> {
        let mut command = cmd("EVALSHA");
        arguments(command.arg(&script.hash));
        match self.ask(&command).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                load_script(&self.connection, script.text).await?;
                self.ask(&command).await
            }
            answered => answered,
        }
    }
}

async fn load_script(connection: &ConnectionManager, text: &str) -> Result<String, RedisError> {
    cmd("SCRIPT").arg("LOAD").arg(text).query_async(&mut connection.clone()).await
}
