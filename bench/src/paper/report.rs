//! One run as text, as JSON and as a folder of files. Formats and writes only.

use super::figure::{Comparison, Figure, Table};
use super::html::html;
use super::machine::Fact;
use super::plot::FigurePicture;
use super::{EVALUATION, SOURCES, command_of};
use crate::picture::{PictureError, save};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Columns of running text.
const TEXT_COLUMNS: usize = 120;

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{operation} {}", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// A figure that could not be measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Failure {
    pub id: String,
    pub reason: String,
}

/// All of one run.
#[derive(Clone, Debug, Serialize)]
pub struct PaperReport {
    pub facts: Vec<Fact>,
    /// The command that was run.
    pub command: String,
    pub figures: Vec<Figure>,
    pub failures: Vec<Failure>,
}

impl PaperReport {
    /// The report's file names without their ends: `report` of a whole run. One of some figures has their names in its own, or it would take the
    /// place of a report that has all of them.
    fn name(&self) -> String {
        let ids = || self.figures.iter().map(|figure| figure.id.as_str()).chain(self.failures.iter().map(|failure| failure.id.as_str()));
        if SOURCES.iter().all(|source| ids().any(|id| id == source.id)) {
            return "report".to_owned();
        }
        let some: Vec<&str> = SOURCES.iter().map(|source| source.id).filter(|source| ids().any(|id| id == *source)).collect();
        format!("report-{}", if some.is_empty() { "none".to_owned() } else { some.join("-") })
    }

    /// Writes the report as HTML, text and JSON, and each figure's picture as `ID.svg` and `ID.png` into `folder`, which is made.
    /// Output: the path of the HTML.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, ReportError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ReportError::File { operation, path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed("make", folder))?;
        let mut pictures = BTreeMap::new();
        for figure in self.figures.iter().filter(|figure| !figure.charts.is_empty()) {
            let svg = folder.join(format!("{}.svg", figure.id));
            save(&FigurePicture(&figure.charts), &svg)?;
            pictures.insert(figure.id.as_str(), std::fs::read_to_string(&svg).map_err(failed("read", &svg))?);
        }
        let path = |end: &str| folder.join(format!("{}.{end}", self.name()));
        for (end, text) in [("html", html(self, &pictures)), ("txt", self.text()), ("json", self.to_json())] {
            std::fs::write(path(end), text).map_err(failed("write", &path(end)))?;
        }
        Ok(path("html"))
    }

    /// The whole report as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }

    /// All values of the paper that are known beside ours. None: there are none in these figures.
    pub(super) fn summary(&self) -> Option<Table> {
        let mut table = Table::new(["", "figure", "the paper", "here"]);
        for figure in &self.figures {
            for row in &figure.comparisons {
                table.push(vec![row.what.clone(), figure.id.clone(), known(&row.paper), known(&row.ours)]);
            }
        }
        (!table.rows.is_empty()).then_some(table)
    }

    pub fn text(&self) -> String {
        let mut text = String::from("The paper's evaluation, measured with xfaas\n\n");
        for fact in &self.facts {
            writeln!(text, "{:<14}{}", fact.name, fact.text).expect("a String takes all");
        }
        writeln!(text, "{:<14}{}\n{:<14}{EVALUATION}", "this run", self.command, "all figures").expect("a String takes all");
        if let Some(table) = self.summary() {
            write!(text, "\n{}", table_text(&table)).expect("a String takes all");
        }
        for figure in &self.figures {
            writeln!(text, "\n{}\n{}", figure.title, "=".repeat(figure.title.chars().count())).expect("a String takes all");
            text += &wrapped(&figure.method);
            text += &format!("\n{}", table_text(&figure.table));
            if !figure.comparisons.is_empty() {
                text += &format!("\n{}", table_text(&comparison_table(&figure.comparisons)));
            }
            figure.notes.iter().for_each(|note| text += &wrapped(&format!("Note: {note}")));
            writeln!(text, "Alone: {}", command_of(&figure.id)).expect("a String takes all");
        }
        for Failure { id, reason } in &self.failures {
            write!(text, "\n{id} WAS NOT MEASURED: {reason}\nAlone: {}\n", command_of(id)).expect("a String takes all");
        }
        text
    }
}

fn known(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// The paper's values beside ours.
pub(super) fn comparison_table(comparisons: &[Comparison]) -> Table {
    let mut table = Table::new(["", "the paper", "here"]);
    comparisons.iter().for_each(|row| table.push(vec![row.what.clone(), known(&row.paper), known(&row.ours)]));
    table
}

/// Columns that are as wide as their widest cell, names at the left.
fn table_text(table: &Table) -> String {
    let rows = || std::iter::once(&table.columns).chain(&table.rows);
    let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cell =
            |(i, (cell, width)): (usize, (&String, &usize))| if i == 0 { format!("{cell:<width$}") } else { format!("   {cell:>width$}") };
        let line: String = cells.map(cell).collect();
        format!("{}\n", line.trim_end())
    };
    rows().map(line).collect()
}

/// Lines of whole words.
fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut columns = 0;
    for word in text.split_whitespace() {
        let letters = word.chars().count();
        if columns > 0 && columns + 1 + letters > TEXT_COLUMNS {
            lines.push('\n');
            columns = 0;
        } else if columns > 0 {
            lines.push(' ');
            columns += 1;
        }
        lines.push_str(word);
        columns += letters;
    }
    lines + "\n"
}

#[cfg(test)]
pub(super) use self::tests::sample;

#[cfg(test)]
mod tests {
    use super::super::figure::{Axis, Chart, Line, LineChart};
    use super::*;

    pub(in crate::paper) fn sample() -> PaperReport {
        let mut figure = Figure::new("fig7", "Fig. 7: <access>", "One client & more, each of them asks.");
        figure.table = Table::new(["clients", "us"]);
        figure.table.push(vec!["one".to_owned(), "3.5".to_owned()]);
        figure.comparisons = vec![Comparison::new("memory access", "~3000 ns", "")];
        figure.notes = vec!["no object store".to_owned()];
        let (x, y) = (Axis::linear("clients"), Axis::log("us"));
        let lines = vec![Line::marked("session", vec![(1.0, 3.5), (5.0, 9.0)])];
        figure.charts = vec![Chart::Lines(LineChart { title: "RO".to_owned(), x, y, lines })];
        PaperReport {
            facts: vec![Fact { name: "kernel", text: "Linux version 6.18".to_owned() }],
            command: "paper --only fig7".to_owned(),
            figures: vec![figure],
            failures: vec![Failure { id: "fig9".to_owned(), reason: "redis is not there".to_owned() }],
        }
    }

    #[test]
    fn the_text_has_what_was_measured_and_what_was_not() {
        let text = sample().text();
        for part in [
            "kernel        Linux version 6.18",
            "clients    us\none       3.5\n",
            "memory access    ~3000 ns      -\n",
            "memory access     fig7    ~3000 ns      -\n",
            "Note: no object store\n",
            "Alone: cargo xtask bench paper --only fig7\n",
            "fig9 WAS NOT MEASURED: redis is not there",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(wrapped(&"word ".repeat(100)).lines().all(|line| line.len() <= TEXT_COLUMNS));
    }

    #[test]
    fn only_a_run_of_all_figures_is_the_report() {
        let mut report = sample();
        let others = SOURCES.iter().filter(|source| !["fig7", "fig9"].contains(&source.id));
        report.failures.extend(others.map(|source| Failure { id: source.id.to_owned(), reason: String::new() }));
        assert_eq!(report.name(), "report");
        report.failures.pop();
        assert_eq!(report.name(), "report-fig1-fig2-fig5-fig7-fig9-fig10-fig11");
        (report.figures, report.failures) = (Vec::new(), Vec::new());
        assert_eq!(report.name(), "report-none");
    }

    #[test]
    fn all_files_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("deep/paper");
        let page = sample().save(&folder).unwrap();
        assert_eq!(page, folder.join("report-fig7-fig9.html"));
        for name in ["report-fig7-fig9.html", "report-fig7-fig9.txt", "report-fig7-fig9.json", "fig7.svg", "fig7.png"] {
            assert!(std::fs::metadata(folder.join(name)).unwrap().len() > 100, "{name}");
        }
        assert!(!folder.join("report.html").exists());
        let json: serde_json::Value = serde_json::from_str(&sample().to_json()).unwrap();
        assert_eq!(json["figures"][0]["charts"][0]["kind"], "lines");
        assert_eq!(json["failures"][0]["id"], "fig9");
        assert!(sample().save(Path::new("/proc/nowhere")).is_err());
    }
}
