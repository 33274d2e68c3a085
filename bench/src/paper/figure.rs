//! What one figure of the evaluation says: what was measured, charts, a table, and the paper's own values beside ours. Data only: whoever
//! measures makes one, the report prints it, the pictures draw it.

use serde::Serialize;

/// One figure or table of the paper, measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figure {
    /// As `--only` takes it, such as `fig7`.
    pub id: String,
    pub title: String,
    /// What was measured and how: sentences, without line ends.
    pub method: String,
    pub charts: Vec<Chart>,
    pub table: Table,
    pub comparisons: Vec<Comparison>,
    /// What must be known beside the figures, such as what was left out and why.
    pub notes: Vec<String>,
}

impl Figure {
    /// Without any result yet. `id`: one of the registry.
    pub fn new(id: &str, title: &str, method: &str) -> Figure {
        Figure { id: id.to_owned(), title: title.to_owned(), method: method.to_owned(), ..Figure::default() }
    }

    /// The figure as one line of JSON, without a line end.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers and names are always JSON")
    }
}

/// One value of the paper, and ours. Both are text with their units; empty: not known.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    pub what: String,
    pub paper: String,
    pub ours: String,
}

impl Comparison {
    pub fn new(what: impl Into<String>, paper: impl Into<String>, ours: impl Into<String>) -> Comparison {
        Comparison { what: what.into(), paper: paper.into(), ours: ours.into() }
    }
}

/// Text in rows. The first column is a name; the others are aligned to the right.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const COLUMNS: usize>(columns: [&str; COLUMNS]) -> Table {
        Table { columns: columns.map(str::to_owned).to_vec(), rows: Vec::new() }
    }

    /// Adds a row. It has as many cells as there are columns.
    pub fn push(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    #[default]
    Linear,
    /// Powers of ten; values that are not above zero are not drawn.
    Log,
}

/// `label` has the unit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Axis {
    pub label: String,
    pub scale: Scale,
}

impl Axis {
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Linear }
    }

    pub fn log(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Log }
    }
}

/// A panel of a figure's picture. Panels stand side by side, two in a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Chart {
    Lines(LineChart),
    Bars(BarChart),
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LineChart {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    pub name: String,
    /// In the order in which they are joined.
    pub points: Vec<(f64, f64)>,
    /// Each point gets a mark: for few that were measured, not for curves of many.
    pub has_marks: bool,
}

impl Line {
    /// Few points, each with a mark.
    pub fn marked(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.into(), points, has_marks: true }
    }

    /// A curve.
    pub fn curve(name: impl Into<String>, points: Vec<(f64, f64)>) -> Line {
        Line { name: name.into(), points, has_marks: false }
    }
}

/// Groups of bars side by side: each group has a bar of each series.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BarChart {
    pub title: String,
    pub y: Axis,
    /// Under the groups, from the left: short.
    pub groups: Vec<String>,
    pub series: Vec<BarSeries>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BarSeries {
    pub name: String,
    /// One for each group; none: there is no bar.
    pub values: Vec<Option<f64>>,
}

impl BarSeries {
    pub fn new(name: impl Into<String>, values: Vec<Option<f64>>) -> BarSeries {
        BarSeries { name: name.into(), values }
    }
}
