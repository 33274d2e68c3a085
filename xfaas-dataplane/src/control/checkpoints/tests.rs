//! The checkpoints' thread with a folder, and with stores that panic.

use super::*;

#[test]
fn two_checkpoints_are_kept() {
    let numbers = |[number, latest, previous]: [CheckpointNumber; 3]| needless(number, latest, previous).collect::<Vec<_>>();
    let needless = |number, latest, previous| {
        let needless = numbers([number, latest, previous].map(|count| CheckpointNumber::new(count, 0)));
        needless.into_iter().map(CheckpointNumber::in_name).collect::<Vec<_>>()
    };
    assert_eq!(needless(1, 0, 0).len(), 0);
    assert_eq!(needless(2, 1, 0).len(), 0);
    assert_eq!(needless(3, 2, 1), [1]);
    assert_eq!(needless(7, 3, 2), [4, 5, 6, 2]);
    assert_eq!(needless(100, 3, 0).len(), LEFT_OVER_MAX as usize);
    let timed = CheckpointNumber::new;
    assert_eq!(numbers([timed(5, 8), timed(3, 7), timed(2, 6)]), [timed(4, 0), timed(4, 8), timed(2, 6)]);
}

#[test]
fn a_start_knows_two_of_a_sessions_checkpoints_and_deletes_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let place = StorePlace::Folder(folder.path().to_owned());
    let session = SessionId::new(b"s").unwrap();
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).unwrap();
    let store = CheckpointStore::open(&place).unwrap();
    for number in [3, 9, 1, 4] {
        let name = CheckpointName { app: "shop", session: &session, number };
        runtime.block_on(store.put(name, vec![0; 10])).unwrap();
    }
    let (told, waking) = std::sync::mpsc::channel();
    let told = Mutex::new(told);
    let wake = Arc::new(move |shard| told.lock().unwrap().send(shard).unwrap());
    let (doors, status) = start_checkpoints(place, 2, Box::new(|_, _| 1), wake).unwrap();
    assert!(status.wait_listed(Duration::from_secs(20)));
    assert!(status.ready().is_ok() && status.has("shop") && !status.has("other"));
    waking.recv_timeout(Duration::from_secs(20)).unwrap();
    let answers: Vec<_> = std::iter::from_fn(|| doors[1].answer()).collect();
    let [CheckpointAnswer::Listed(listed), CheckpointAnswer::ListedAll(apps)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((listed.len(), apps.len()), (1, 1));
    assert_eq!([listed[0].latest, listed[0].previous].map(CheckpointNumber::in_name), [9, 4]);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let mut numbers = Vec::new();
        runtime.block_on(store.list(|found| numbers.push(found.number))).unwrap();
        numbers.sort_unstable();
        if numbers == [4, 9] {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{numbers:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn with_one_checkpoint(folder: &std::path::Path) -> StorePlace {
    let place = StorePlace::Folder(folder.to_owned());
    let session = SessionId::new(b"s").unwrap();
    let runtime = tokio_uring::Runtime::new(&tokio_uring::builder()).unwrap();
    let store = CheckpointStore::open(&place).unwrap();
    let name = CheckpointName { app: "shop", session: &session, number: 3 };
    runtime.block_on(store.put(name, vec![0; 10])).unwrap();
    place
}

fn read_order(ticket: u32) -> CheckpointOrder {
    let work = CheckpointWork::Read { latest: CheckpointNumber::new(3, 0), previous: CheckpointNumber::default() };
    CheckpointOrder { ticket, app: "shop".into(), session: SessionId::new(b"s").unwrap(), work }
}

/// What `object_store` makes of settings that our own check lets pass by mistake.
#[test]
fn a_store_that_panics_is_a_store_that_fails() {
    let place = crate::durable::S3Place {
        bucket: "b".to_owned(),
        prefix: String::new(),
        endpoint: Some("localhost:9000".to_owned()),
        region: Some("r".to_owned()),
        access_key_id: Some("a".to_owned()),
        secret_access_key: Some("s".to_owned()),
        session_token: None,
    };
    let (doors, status) = start_checkpoints(StorePlace::S3(place), 1, Box::new(|_, _| 0), Arc::new(|_| ())).unwrap();
    until("it is told", || status.ready().is_err_and(|why| why.contains("panicked")));
    let failures = status.failures.load(Ordering::Relaxed);
    until("it is tried again", || status.failures.load(Ordering::Relaxed) > failures);
    assert!(doors[0].send(read_order(0)), "its thread is there");
}

#[test]
fn a_thread_that_panics_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = with_one_checkpoint(folder.path());
    let (asked, is_mended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let owner = {
        let (asked, is_mended) = (Arc::clone(&asked), Arc::clone(&is_mended));
        Box::new(move |_: &str, _: &SessionId| {
            asked.fetch_add(1, Ordering::Relaxed);
            assert!(is_mended.load(Ordering::Relaxed), "not yet");
            0
        })
    };
    let (doors, status) = start_checkpoints(place, 1, owner, Arc::new(|_| ())).unwrap();
    until("it is told", || status.ready().is_err_and(|why| why.contains("panicked: not yet")));
    is_mended.store(true, Ordering::Relaxed);
    assert!(status.wait_listed(Duration::from_secs(20)));
    until("it is over", || status.ready().is_ok());
    assert!(asked.load(Ordering::Relaxed) >= 2);
    assert!(doors[0].send(read_order(7)));
    let mut answers = Vec::new();
    until("it is read", || {
        answers.extend(std::iter::from_fn(|| doors[0].answer()));
        answers.len() >= 3
    });
    let [CheckpointAnswer::Listed(listed), CheckpointAnswer::ListedAll(_), CheckpointAnswer::Loaded { ticket: 7, .. }] = &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!(listed.len(), 1);
}
#[test]
fn an_order_that_is_dropped_is_answered() {
    let (sender, answers) = std::sync::mpsc::channel();
    let (place, status) = (StorePlace::Folder("nowhere".into()), Arc::default());
    let office = Arc::new(Office { place, answers: vec![Mutex::new(sender)], wake: Arc::new(|_| ()), status });
    let owed = |answer| Owed { office: Arc::clone(&office), shard: 0, answer: Some(answer) };
    drop(owed(refusal(&read_order(7))));
    assert!(matches!(answers.try_recv(), Ok(CheckpointAnswer::Loaded { ticket: 7, found: None })));
    owed(refusal(&read_order(8))).give(CheckpointAnswer::Loaded { ticket: 8, found: Some((1, Vec::new())) });
    assert!(matches!(answers.try_recv(), Ok(CheckpointAnswer::Loaded { ticket: 8, found: Some(_) })));
    assert!(answers.try_recv().is_err(), "once");
}

#[test]
fn what_a_store_answers_is_told_in_one_line_of_some_length() {
    let source = std::io::Error::other(format!("<html>\n{}</html>", "ü".repeat(5_000)));
    let text = in_words(&StoreFault::File { operation: "read", path: "x".into(), source });
    assert!(text.contains("cannot read x: <html> ü") && !text.contains('\n') && text.ends_with(" ..."), "{text}");
    assert!(text.chars().count() <= FAULT_CHARS_MAX + 4);
}
