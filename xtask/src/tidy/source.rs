//! One Rust source as the rules see it: its code without comments and literals, its functions, and which lines are tests.

use super::mask::{Masked, is_word, mask};

/// One file.
pub struct Source {
    /// Relative to the repository's root, with `/`.
    pub path: String,
    pub text: String,
    pub masked: Masked,
    /// Byte ranges of `#[cfg(test)]` modules.
    test_modules: Vec<std::ops::Range<usize>>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// The line of `fn`, from 1.
    pub line: usize,
    /// From the line of `fn` to that of the closing brace.
    pub lines: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let masked = mask(text);
        let test_modules = test_modules(&masked.code);
        Source { path: path.to_owned(), text: text.to_owned(), masked, test_modules }
    }

    /// The line of a byte position, from 1.
    pub fn line_of(&self, at: usize) -> usize {
        self.text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
    }

    /// Byte positions of `word` as a whole word in the code.
    pub fn words<'s>(&'s self, word: &'s str) -> impl Iterator<Item = usize> + 's {
        whole_words(&self.masked.code, word)
    }

    /// Whether that position is in a test: a test or bench file, a fuzz target, or a `#[cfg(test)]` module.
    pub fn is_test(&self, at: usize) -> bool {
        self.is_test_file() || self.test_modules.iter().any(|module| module.contains(&at))
    }

    fn is_test_file(&self) -> bool {
        let mut folders: Vec<&str> = self.path.split('/').collect();
        let name = folders.pop().unwrap_or_default();
        folders.iter().any(|folder| matches!(*folder, "tests" | "benches" | "fuzz"))
            || matches!(name, "tests.rs" | "testing.rs")
            || name.ends_with("_tests.rs")
    }

    /// Every function that has a body.
    pub fn functions(&self) -> Vec<Function> {
        let code = self.masked.code.as_bytes();
        self.words("fn")
            .filter_map(|at| {
                let name_start = at + 2 + code[at + 2..].iter().position(|byte| !byte.is_ascii_whitespace())?;
                let name: String = self.masked.code[name_start..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let open = body_start(code, name_start)?;
                let (line, last) = (self.line_of(at), self.line_of(closing_brace(code, open)));
                // A function pointer's type has no name.
                (!name.is_empty()).then(|| Function { name, line, lines: last - line + 1 })
            })
            .collect()
    }
}

/// Byte positions of `word` in `text`, not as part of a longer name.
pub fn whole_words<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let bytes = text.as_bytes();
    let is_part = move |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(|byte| is_word(*byte));
    text.match_indices(word).map(|(at, _)| at).filter(move |at| !is_part(at.checked_sub(1)) && !is_part(Some(at + word.len())))
}

/// Where the body's brace opens; `None` when a `;` ends the declaration first.
fn body_start(code: &[u8], from: usize) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, byte) in code.iter().enumerate().skip(from) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(at),
            b';' if depth == 0 => return None,
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    None
}

/// The position of the brace that closes the one at `open`, or the end.
fn closing_brace(code: &[u8], open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn test_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let attribute = "#[cfg(test)]";
    let ranges = code.match_indices(attribute).filter_map(|(at, _)| {
        let open = body_start(code.as_bytes(), at + attribute.len())?;
        Some(at..closing_brace(code.as_bytes(), open))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_from_fn_to_the_closing_brace() {
        let text = "fn one() {}\n\npub const fn two(a: [u8; 2]) -> fn(u8) -> u8 {\n    if a { '}' } else { \"}\" }\n}\ntrait T { fn three(&self); }\n";
        let functions = Source::new("a.rs", text).functions();
        assert_eq!(functions, [Function { name: "one".into(), line: 1, lines: 1 }, Function { name: "two".into(), line: 3, lines: 3 }]);
    }

    #[test]
    fn nested_functions_are_measured_too() {
        let functions = Source::new("a.rs", "fn outer() {\n    fn inner() {\n    }\n}\n").functions();
        assert_eq!(functions.iter().map(|function| function.lines).collect::<Vec<_>>(), [4, 2]);
    }

    #[test]
    fn test_modules_and_test_files_are_tests() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        let source = Source::new("xfaas-common/src/a.rs", text);
        let at = |name: &str| text.find(name).expect("it is there");
        assert!(!source.is_test(at("fn a")));
        assert!(source.is_test(at("fn b")));
        assert!(!source.is_test(at("fn c")));
        for path in [
            "xfaas-dataplane/tests/http.rs",
            "bench/benches/fork.rs",
            "fuzz/fuzz_targets/p.rs",
            "xfaas-dataplane/src/config/tests.rs",
            "a/race_tests.rs",
        ] {
            assert!(Source::new(path, text).is_test(0), "{path}");
        }
    }

    #[test]
    fn a_test_module_in_another_file_hides_nothing_here() {
        let text = "#[cfg(test)]\nmod tests;\nfn a() {}\n";
        assert!(!Source::new("src/a.rs", text).is_test(text.find("fn a").expect("it is there")));
    }

    #[test]
    fn words_are_whole() {
        let positions: Vec<_> = whole_words("unsafe unsafe_code my_unsafe (unsafe)", "unsafe").collect();
        assert_eq!(positions, [0, 30]);
    }
}
