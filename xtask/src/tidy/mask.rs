//! Splits Rust source into code and comments, so that rules see neither text in strings nor code in comments. Both keep the source's
//! length and lines: what does not belong is blank. A scanner, not a parser: it needs no valid program and never fails.

/// The two halves of a source.
pub struct Masked {
    /// The source with comments and the contents of literals blank.
    pub code: String,
    /// The source with everything but comments blank.
    pub comments: String,
}

/// Splits `text`.
pub fn mask(text: &str) -> Masked {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0, code: blank(text), comments: blank(text) };
    while scanner.at < scanner.bytes.len() {
        scanner.step();
    }
    // Only whole tokens were copied, and what was not copied is ASCII, so both are text.
    Masked { code: String::from_utf8_lossy(&scanner.code).into_owned(), comments: String::from_utf8_lossy(&scanner.comments).into_owned() }
}

fn blank(text: &str) -> Vec<u8> {
    text.bytes().map(|byte| if byte == b'\n' { b'\n' } else { b' ' }).collect()
}

struct Scanner<'t> {
    bytes: &'t [u8],
    at: usize,
    code: Vec<u8>,
    comments: Vec<u8>,
}

impl Scanner<'_> {
    fn step(&mut self) {
        let rest = &self.bytes[self.at..];
        if rest.starts_with(b"//") {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            self.comment(end);
        } else if rest.starts_with(b"/*") {
            self.comment(block_comment_end(rest));
        } else if let Some((open, end)) = self.raw_string(rest) {
            self.literal(open, end);
        } else if rest[0] == b'"' {
            self.literal(1, string_end(rest));
        } else if rest[0] == b'\'' {
            // A lifetime has no closing quote and is code.
            match char_end(rest) {
                Some(end) => self.literal(1, end),
                None => self.keep(1),
            }
        } else {
            self.keep(1);
        }
    }

    fn keep(&mut self, length: usize) {
        let range = self.at..self.at + length;
        self.code[range.clone()].copy_from_slice(&self.bytes[range]);
        self.at += length;
    }

    fn comment(&mut self, length: usize) {
        let range = self.at..self.at + length;
        self.comments[range.clone()].copy_from_slice(&self.bytes[range]);
        self.at += length;
    }

    /// Keeps what opens the literal, and its last byte as the closing quote.
    fn literal(&mut self, open: usize, end: usize) {
        let start = self.at;
        self.keep(open.min(end));
        if end > open {
            self.code[start + end - 1] = b'"';
        }
        self.at = start + end;
    }

    /// Lengths of the opening and of the whole raw string that `rest` begins with.
    fn raw_string(&self, rest: &[u8]) -> Option<(usize, usize)> {
        let inside_word = self.at > 0 && is_word(self.bytes[self.at - 1]);
        let prefix = [&b"br"[..], b"cr", b"r"].into_iter().find(|prefix| rest.starts_with(prefix)).filter(|_| !inside_word)?;
        let hashes = rest[prefix.len()..].iter().take_while(|byte| **byte == b'#').count();
        let open = prefix.len() + hashes + 1;
        if rest.get(open - 1) != Some(&b'"') {
            return None;
        }
        let close = [b"\"", "#".repeat(hashes).as_bytes()].concat();
        let length = rest[open..].windows(close.len()).position(|window| window == close);
        Some((open, length.map_or(rest.len(), |length| open + length + close.len())))
    }
}

/// Whether the byte can be part of a name.
pub fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || byte >= 0x80
}

fn block_comment_end(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// The length of a character literal; `None` for a lifetime.
fn char_end(rest: &[u8]) -> Option<usize> {
    let first = *rest.get(1)?;
    if first == b'\\' {
        return rest.iter().skip(3).position(|byte| *byte == b'\'').map(|length| length + 4);
    }
    let character_bytes = match first {
        0..=0x7F => 1,
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        _ => 4,
    };
    (rest.get(1 + character_bytes) == Some(&b'\'')).then_some(character_bytes + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "let a = \"unsafe // x\"; // unsafe one\n/* unsafe /* two */ */ let b = 'u'; let c = '\\''; f::<'u>(r#\"un\"safe\"#)";
        let masked = mask(text);
        assert_eq!(masked.code.len(), text.len());
        assert_eq!(masked.comments.len(), text.len());
        assert!(!masked.code.contains("unsafe"), "{}", masked.code);
        assert!(!masked.code.contains("safe"), "{}", masked.code);
        assert!(masked.comments.contains("unsafe one") && masked.comments.contains("/* two */"), "{}", masked.comments);
        assert!(!masked.comments.contains("// x"), "{}", masked.comments);
        for part in ["let a = \"", "let b = '", "f::<'u>("] {
            assert!(masked.code.contains(part), "{part} in {}", masked.code);
        }
    }

    #[test]
    fn lines_stay_where_they_were() {
        let text = "a\n\"b\nc\"\n/* d\ne */ f\nr\"\n\" g";
        let masked = mask(text);
        assert_eq!(masked.code.lines().count(), text.lines().count());
        assert_eq!(masked.code.lines().nth(4).map(str::trim), Some("f"));
        assert_eq!(masked.code.lines().nth(6).map(|line| line.ends_with('g')), Some(true));
    }

    #[test]
    fn braces_in_characters_and_strings_do_not_count() {
        let masked = mask(r##"match c { '{' => b'}', '\u{7f}' => "{\"{", _ => br"{" }"##);
        assert_eq!(masked.code.matches('{').count(), 1);
        assert_eq!(masked.code.matches('}').count(), 1);
    }

    #[test]
    fn unfinished_source_is_scanned_to_its_end() {
        for text in ["\"abc", "/* abc", "r#\"abc", "'", "'\\", "\"abc\\", "b'", "r", "r#"] {
            assert_eq!(mask(text).code.len(), text.len(), "{text:?}");
        }
    }
}
