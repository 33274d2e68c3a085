//! Parts of the request path, each by itself: decode, find a session, lock, guest call; state access is in `state`. `cargo bench -p xfaas-bench`; with `-- --test` each runs once.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use xfaas_bench::guest::Guest;
use xfaas_bench::servers::scratch_directory;
use xfaas_bench::settings::built_beside;
use xfaas_common::ids::{FunctionHash, SessionId};
use xfaas_common::wire::{Header, KIND_INVOKE};
use xfaas_dataplane::net::{ConnectionHeader, Http1Decoder, Http1Event, HttpLimits, ReplyHead, Request};
use xfaas_dataplane::net::{decode_datagram, encode_reply, http_date};
use xfaas_dataplane::state::{Acquire, CallToken, LockKey, LockTable, Region, RegionOptions};

fn session() -> SessionId {
    SessionId::new(b"session-of-16-by").expect("16 visible bytes")
}

fn decode_request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode/request");
    let limits = HttpLimits { body_bytes_max: 8 << 20, session_header: b"x-session-id".to_vec() };
    for body_bytes in [0_usize, 1_024] {
        let mut input = format!("POST /f/counter-rmw HTTP/1.1\r\nhost: 127.0.0.1:8080\r\nx-session-id: {}\r\n", session()).into_bytes();
        input.extend_from_slice(format!("content-length: {body_bytes}\r\n\r\n").as_bytes());
        input.resize(input.len() + body_bytes, b'b');
        let mut decoder = Http1Decoder::new();
        let mut request = Request::default();
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(format!("{body_bytes}B"), |bencher| {
            bencher.iter(|| {
                let mut rest = black_box(input.as_slice());
                loop {
                    let (bytes, event) = decoder.decode(&limits, rest, &mut request);
                    rest = &rest[bytes..];
                    match event {
                        Http1Event::Complete => break,
                        Http1Event::Head { .. } => {}
                        other => panic!("a good request is refused: {other:?}"),
                    }
                }
                assert_eq!(request.body().len(), body_bytes);
            });
        });
    }
    group.finish();
}

fn decode_datagrams(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode/datagram");
    for payload_bytes in [0_usize, 1_024] {
        let header = Header::new(KIND_INVOKE, 0, &session(), 7, FunctionHash::of(b"echo"), payload_bytes as u32);
        let mut input = header.to_bytes().to_vec();
        input.extend_from_slice(session().as_bytes());
        input.resize(input.len() + payload_bytes, b'p');
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(format!("{payload_bytes}B"), |bencher| {
            bencher.iter(|| decode_datagram(black_box(&input)).expect("a good datagram").1.len());
        });
    }
    group.finish();
}

fn encode_replies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode/reply");
    let (date, session) = (http_date(1_800_000_000), session());
    for body_bytes in [5_usize, 1_024] {
        let body = vec![b'1'; body_bytes];
        let head = ReplyHead {
            status: 200,
            content_type: b"application/octet-stream",
            session_header: b"x-session-id",
            session: &session,
            invocation_id: 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF,
            date: &date,
            connection: ConnectionHeader::None,
            extra: b"",
        };
        let mut out = Vec::with_capacity(4_096);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{body_bytes}B"), |bencher| {
            bencher.iter(|| {
                out.clear();
                encode_reply(&mut out, black_box(&head), &body, false);
                out.len()
            });
        });
    }
    group.finish();
}

fn find(criterion: &mut Criterion) {
    let directory = scratch_directory("state").expect("a directory for the region");
    let options = RegionOptions { app: "bench", shard: 0, bytes_max: 64 << 20, hash_tag: 0 };
    let mut region = Region::open_or_create(&directory.path().join("bench.region"), &options).expect("a new region");
    let mut group = criterion.benchmark_group("state/find");
    for sessions in [1_u32, 10_000] {
        let id = |i: u32| SessionId::new(format!("session-{i:08}").as_bytes()).expect("16 visible bytes");
        for i in 0..sessions {
            region.find_or_create(&id(i), i.wrapping_mul(0x9E37_79B9)).expect("room for a session");
        }
        let mut i = 0;
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{sessions}_sessions"), |bencher| {
            bencher.iter(|| {
                i = (i + 7_919) % sessions;
                region.find(&id(i), i.wrapping_mul(0x9E37_79B9)).expect("made above")
            });
        });
    }
    group.finish();
}

fn locks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("state/lock");
    let (mut locks, mut granted, session) = (LockTable::new(), Vec::new(), session());
    let key = LockKey { app: 0, session: &session, key: b"n" };
    group.throughput(Throughput::Elements(1));
    group.bench_function("uncontended", |bencher| {
        bencher.iter(|| {
            assert!(matches!(locks.acquire(black_box(&key), CallToken(1)), Acquire::Granted));
            locks.release(&key, CallToken(1), &mut granted);
        });
    });
    group.finish();
}

fn guests(criterion: &mut Criterion) {
    let files = built_beside();
    for function in ["echo", "counter-read", "counter-rmw", "counter-rmw-linear"] {
        let module = files.guest(function).unwrap_or_else(|error| panic!("{error}"));
        let mut guest = Guest::load(&module).unwrap_or_else(|error| panic!("{function}: {error}"));
        let mut worker = guest.fork().unwrap_or_else(|error| panic!("{function}: {error}"));
        let mut group = criterion.benchmark_group("guest/call");
        group.throughput(Throughput::Elements(1));
        group.bench_function(function, |bencher| {
            bencher.iter(|| guest.call(&mut worker).unwrap_or_else(|error| panic!("{function}: {error}")));
        });
        group.finish();
        drop(worker);
        if function == "echo" {
            let mut group = criterion.benchmark_group("guest/fork");
            group.throughput(Throughput::Elements(1));
            group.bench_function(function, |bencher| {
                bencher.iter(|| {
                    let mut worker = guest.fork().unwrap_or_else(|error| panic!("{function}: {error}"));
                    guest.call(&mut worker).unwrap_or_else(|error| panic!("{function}: {error}"))
                });
            });
            group.finish();
        }
    }
}

criterion_group!(benches, decode_request, decode_datagrams, encode_replies, find, locks, guests);
criterion_main!(benches);
