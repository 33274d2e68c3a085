//! Tests of the record of moves: what a kill leaves is told from what damage leaves.

use super::*;

fn id(text: &str) -> SessionId {
    SessionId::new(text.as_bytes()).unwrap()
}

/// What a record says: where `a` and `b` are, and whose moves were not done.
type Meaning = (Option<CoreIndex>, Option<CoreIndex>, Vec<String>);

fn meaning(book: &PinBook) -> Meaning {
    let unfinished = book.unfinished().into_iter().map(|(_, session)| session.to_string()).collect();
    (book.core_of("shop", &id("a")), book.core_of("shop", &id("b")), unfinished)
}

/// What is read of a file with these bytes; `None`: it is damaged, or says nothing.
fn read_back(bytes: &[u8]) -> Option<Meaning> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PIN_BOOK);
    fs::write(&path, bytes).unwrap();
    let FoundBook::Whole(book) = PinBook::find(folder.path()).unwrap() else {
        assert_eq!(fs::read(&path).unwrap(), bytes, "it stays as it is");
        return None;
    };
    // What is read is written anew without its history, and means the same.
    let again = PinBook::open(folder.path()).unwrap();
    assert_eq!(meaning(&again), meaning(&book));
    Some(meaning(&book))
}

/// The file after each line of a history, and what it means then.
fn history() -> Vec<(Vec<u8>, Meaning)> {
    let folder = tempfile::tempdir().unwrap();
    let mut book = PinBook::open(folder.path()).unwrap();
    let mut states = Vec::new();
    let mut note = |book: &PinBook| states.push((fs::read(folder.path().join(PIN_BOOK)).unwrap(), meaning(book)));
    note(&book);
    for (session, core) in [("a", 3), ("b", 1)] {
        book.begin("shop", &id(session)).unwrap();
        note(&book);
        book.set("shop", &id(session), Some(CoreIndex(core))).unwrap();
        note(&book);
        book.end("shop", &id(session)).unwrap();
        note(&book);
    }
    book.begin("shop", &id("a")).unwrap();
    note(&book);
    book.set("shop", &id("a"), None).unwrap();
    note(&book);
    states
}

#[test]
fn what_was_written_is_there_after_a_kill_and_half_a_line_is_not() {
    let states = history();
    assert_eq!(states.last().unwrap().1, (None, Some(CoreIndex(1)), vec!["a".to_owned()]));
    for ((before, meant), (after, means)) in states.iter().zip(&states[1..]) {
        assert_eq!(read_back(before).as_ref(), Some(meant));
        // A kill on the way: the new line is there in part, or whole and not yet counted.
        for bytes in before.len()..=after.len() {
            let torn = [before, &after[before.len()..bytes]].concat();
            let expected = if bytes == after.len() { means } else { meant };
            assert_eq!(read_back(&torn).as_ref(), Some(expected), "{:?}", String::from_utf8_lossy(&torn));
        }
    }
}

#[test]
fn a_record_that_is_cut_anywhere_or_has_any_bit_flipped_is_damaged() {
    let (whole, _) = history().pop().unwrap();
    let is_damaged = |bytes: &[u8]| matches!(read(bytes), Err(Fault::Damage(_)));
    assert!(!is_damaged(&whole) && read_back(&whole[..whole.len() - 1]).is_none());
    for bytes in 0..whole.len() {
        assert!(is_damaged(&whole[..bytes]), "{bytes} bytes are left");
        let zeroed = [&whole[..bytes], &vec![0; whole.len() - bytes]].concat();
        assert!(is_damaged(&zeroed), "zeros from {bytes} on");
    }
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(is_damaged(&flipped), "{:?}", String::from_utf8_lossy(&flipped));
    }
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    for line in 0..lines.len() {
        let mut lost = lines.clone();
        lost.remove(line);
        assert!(is_damaged(&lost.concat()), "without line {line}");
        let mut doubled = lines.clone();
        doubled.insert(line, lines[line]);
        assert!(is_damaged(&doubled.concat()), "line {line} twice");
    }
    assert!(is_damaged(&whole.repeat(2)));
}

#[test]
fn a_record_of_an_earlier_build_is_read_and_one_of_a_later_build_is_refused() {
    let former = b"pin shop a 3\nbegin shop b\npin shop b 1\ndone shop b\nbegin shop a\nhome shop a\n";
    let states =
        [(None, None), (Some(3), None), (Some(3), None), (Some(3), Some(1)), (Some(3), Some(1)), (Some(3), Some(1)), (None, Some(1))];
    for bytes in 1..=former.len() {
        let lines = former[..bytes].iter().filter(|byte| **byte == b'\n').count();
        let read = read_back(&former[..bytes]).map(|(a, b, _)| (a.map(|core| core.0), b.map(|core| core.0)));
        assert_eq!(read, (lines > 0).then_some(states[lines]), "{bytes} bytes");
    }
    for bad in ["pin shop a\n", "pin shop a 64\n", "pin a/b a 1\n", "begin shop a b\n", "\n"] {
        assert_eq!(read_back(bad.as_bytes()), None, "{bad:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read_back(b"moves 3 0000000000\n"), None);
    let later = seal("moves 3 0000000000", 0).0;
    fs::write(folder.path().join(PIN_BOOK), later).unwrap();
    assert!(matches!(PinBook::find(folder.path()), Err(PinError::LaterFormat { format: 3, .. })));
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PIN_BOOK);
    let mut book = PinBook::open(folder.path()).unwrap();
    for i in 0..2 * HISTORY_LINES_MAX {
        book.begin("shop", &id("a")).unwrap();
        book.set("shop", &id("a"), (i % 2 == 0).then_some(CoreIndex(1))).unwrap();
        book.end("shop", &id("a")).unwrap();
    }
    let lines = fs::read_to_string(&path).unwrap().lines().count();
    assert!(lines <= HISTORY_LINES_MAX + 4, "{lines}");
    assert_eq!(read_back(&fs::read(&path).unwrap()), Some((None, None, vec![])));
}

#[test]
fn a_record_that_begins_anew_says_what_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(PIN_BOOK);
    assert!(matches!(PinBook::find(folder.path()).unwrap(), FoundBook::Nothing));
    fs::write(&path, "").unwrap();
    assert!(matches!(PinBook::find(folder.path()).unwrap(), FoundBook::Nothing));
    let displaced = |session, core, has_copies| Displaced { app: "shop".to_owned(), session: id(session), core, has_copies };
    let all = [displaced("a", Some(CoreIndex(2)), true), displaced("b", Some(CoreIndex(1)), false), displaced("c", None, true)];
    drop(PinBook::begin_anew(folder.path(), &all).unwrap());
    let meant = (Some(CoreIndex(2)), Some(CoreIndex(1)), vec!["a".to_owned(), "c".to_owned()]);
    assert_eq!(read_back(&fs::read(&path).unwrap()), Some(meant));
}
