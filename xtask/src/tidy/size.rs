//! Rules on length: a file that fits in the head, a function that fits on a screen.

use super::Finding;
use super::source::Source;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

pub fn file_length(source: &Source) -> Vec<Finding> {
    let lines = source.text.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![Finding::new(&source.path, FILE_LINES_MAX + 1, format!("{lines} lines, at most {FILE_LINES_MAX}: split the file"))]
}

pub fn function_length(source: &Source) -> Vec<Finding> {
    let long = source.functions().into_iter().filter(|function| function.lines > FUNCTION_LINES_MAX);
    long.map(|function| {
        let message = format!("function `{}` has {} lines, at most {FUNCTION_LINES_MAX}: split it", function.name, function.lines);
        Finding::new(&source.path, function.line, message)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_600_lines_and_no_more() {
        assert!(file_length(&Source::new("a.rs", &"x\n".repeat(600))).is_empty());
        let findings = file_length(&Source::new("a.rs", &"x\n".repeat(601)));
        assert_eq!(findings[0].line, 601);
    }

    #[test]
    fn a_function_may_have_70_lines_and_no_more() {
        let function = |body_lines: usize| format!("// first\nfn f() {{\n{}}}\n", "    x();\n".repeat(body_lines));
        assert!(function_length(&Source::new("a.rs", &function(68))).is_empty());
        assert_eq!(function_length(&Source::new("a.rs", &function(69))).first().map(|finding| finding.line), Some(2));
    }
}
