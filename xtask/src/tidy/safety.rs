//! Rules on `unsafe`: only in the places listed here, and with its reason above it. Clippy checks the reason too, but only for the
//! host's target; this rule also covers the kernel programs and the guests.

use super::Finding;
use super::source::Source;

/// Files, and folders ending in `/`, that may contain `unsafe`, each with what needs it.
const PLACES: [(&str, &str); 6] = [
    ("xfaas-common/src/map_layout.rs", "`Pod` for map values whose size is asserted"),
    ("xfaas-dataplane/src/sys/", "ring, shared memory, sockets, affinity"),
    ("xfaas-dataplane/tests/warm_path.rs", "an allocator that counts"),
    ("xfaas-ebpf/src/parse.rs", "packet bytes behind checked pointers"),
    ("xfaas-ebpf/src/maps.rs", "map lookups"),
    ("guests/sdk/src/sys.rs", "the host's imports, exports, scratch memory"),
];

/// Files that may have unsafe attributes (`#[unsafe(no_mangle)]`), but no unsafe block.
const ATTRIBUTE_PLACES: [(&str, &str); 1] = [("xfaas-ebpf/src/main.rs", "the licence section and entry points")];

/// How far above an `unsafe` its note may end, in lines: attributes and the beginning of the statement may stand between.
const NOTE_LINES_MAX: usize = 10;

pub fn places(source: &Source) -> Vec<Finding> {
    if PLACES.iter().any(|(place, _)| source.path == *place || (place.ends_with('/') && source.path.starts_with(place))) {
        return Vec::new();
    }
    let attributes_allowed = ATTRIBUTE_PLACES.iter().any(|(place, _)| source.path == *place);
    source
        .words("unsafe")
        .filter(|at| !(attributes_allowed && is_attribute(source, *at)))
        .map(|at| Finding::new(&source.path, source.line_of(at), "`unsafe` outside its places (xtask/src/tidy/safety.rs lists them)"))
        .collect()
}

/// Every unsafe block and implementation has `SAFETY:` in the comments right above.
pub fn notes(source: &Source) -> Vec<Finding> {
    let code = &source.masked.code;
    let needs_note = |at: &usize| {
        let rest = code[at + "unsafe".len()..].trim_start();
        rest.starts_with('{') || rest.strip_prefix("impl").is_some_and(|rest| rest.starts_with([' ', '<']))
    };
    let comments: Vec<&str> = source.masked.comments.lines().collect();
    source
        .words("unsafe")
        .filter(needs_note)
        .map(|at| source.line_of(at))
        .filter(|line| {
            let first = (line - 1).saturating_sub(NOTE_LINES_MAX);
            !comments[first..*line].iter().any(|comment| comment.contains("SAFETY:"))
        })
        .map(|line| Finding::new(&source.path, line, "`unsafe` without a `// SAFETY:` note above that says who upholds what"))
        .collect()
}

fn is_attribute(source: &Source, at: usize) -> bool {
    source.masked.code[..at].trim_end().ends_with("#[")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "fn f() {\n    unsafe { g() }\n}\n";

    #[test]
    fn a_block_is_allowed_in_its_places_only() {
        for place in PLACES {
            let path = if place.0.ends_with('/') { format!("{}x.rs", place.0) } else { place.0.to_owned() };
            assert!(places(&Source::new(&path, BLOCK)).is_empty(), "{path}");
        }
        for path in [
            "xfaas-dataplane/src/net/x.rs",
            "xfaas-dataplane/src/state/table.rs",
            "xfaas-ebpf/src/main.rs",
            "xfaas-dataplane/tests/http.rs",
        ] {
            let findings = places(&Source::new(path, BLOCK));
            assert_eq!(findings.first().map(|finding| finding.line), Some(2), "{path}");
        }
    }

    #[test]
    fn attributes_are_allowed_at_the_kernel_entry_points_only() {
        let text = "#[unsafe(no_mangle)]\nstatic L: [u8; 4] = *b\"GPL\\0\";\n";
        assert!(places(&Source::new("xfaas-ebpf/src/main.rs", text)).is_empty());
        assert_eq!(places(&Source::new("xfaas-ebpf/src/steer.rs", text)).len(), 1);
    }

    #[test]
    fn a_block_needs_its_note_right_above() {
        let with = "fn f() {\n    // SAFETY:\n    // - one;\n    // - two.\n    let a =\n        unsafe { g() };\n}\n";
        assert!(notes(&Source::new("a.rs", with)).is_empty());
        assert_eq!(notes(&Source::new("a.rs", BLOCK)).len(), 1);
        let far = format!("// SAFETY: far away\n{}{BLOCK}", "\n".repeat(12));
        assert_eq!(notes(&Source::new("a.rs", &far)).len(), 1);
        assert_eq!(notes(&Source::new("a.rs", "unsafe impl Send for X {}\n")).len(), 1);
        assert!(notes(&Source::new("a.rs", "unsafe extern \"C\" { fn f(); }\nunsafe fn g();\n")).is_empty());
    }

    #[test]
    fn the_word_in_a_comment_or_string_is_nothing() {
        assert!(places(&Source::new("a.rs", "// unsafe { }\nconst A: &str = \"unsafe { }\";\n#![deny(unsafe_code)]\n")).is_empty());
    }
}
