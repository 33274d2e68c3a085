//! One run as one page of HTML: no scripts, no fonts, nothing from elsewhere. The pictures are in it as SVG.

use super::figure::{Figure, Table};
use super::report::{Failure, PaperReport, comparison_table};
use super::{EVALUATION, command_of};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const STYLE: &str = include_str!("report.css");

/// `pictures`: SVG by figure.
pub(super) fn html(report: &PaperReport, pictures: &BTreeMap<&str, String>) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>xfaas: the paper's evaluation</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>The paper's evaluation, measured with xfaas</h1>\n"
    );
    page += &facts(report);
    page += "<nav><ul>\n";
    for figure in &report.figures {
        line(&mut page, format_args!("<li><a href=\"#{0}\">{1}</a></li>", escaped(&figure.id), escaped(&figure.title)));
    }
    for Failure { id, .. } in &report.failures {
        line(&mut page, format_args!("<li><a href=\"#{0}\">{0}: not measured</a></li>", escaped(id)));
    }
    page += "</ul></nav>\n";
    if let Some(summary) = report.summary() {
        page += &format!("<section id=\"summary\">\n<h2>The paper's values beside ours</h2>\n{}</section>\n", table(&summary));
    }
    for figure in &report.figures {
        page += &section(figure, pictures.get(figure.id.as_str()));
    }
    for Failure { id, reason } in &report.failures {
        line(
            &mut page,
            format_args!("<section id=\"{0}\" class=\"failed\">\n<h2>{0}: not measured</h2>\n<p>{1}</p>", escaped(id), escaped(reason)),
        );
        page += &command(id);
    }
    page + "</body>\n</html>\n"
}

fn facts(report: &PaperReport) -> String {
    let mut text = String::from("<div class=\"scroll\"><table class=\"facts\">\n");
    for fact in &report.facts {
        line(&mut text, format_args!("<tr><th>{}</th><td>{}</td></tr>", escaped(fact.name), escaped(&fact.text)));
    }
    for (name, command) in [("this run", report.command.as_str()), ("all figures", EVALUATION)] {
        line(&mut text, format_args!("<tr><th>{name}</th><td><code>{}</code></td></tr>", escaped(command)));
    }
    text + "</table></div>\n"
}

fn section(figure: &Figure, picture: Option<&String>) -> String {
    let mut text = String::new();
    line(
        &mut text,
        format_args!("<section id=\"{}\">\n<h2>{}</h2>\n<p>{}</p>", escaped(&figure.id), escaped(&figure.title), escaped(&figure.method)),
    );
    if let Some(svg) = picture {
        // What is before the element is for files of their own.
        let svg = svg.find("<svg").map_or("", |at| &svg[at..]);
        line(&mut text, format_args!("<figure role=\"img\" aria-label=\"{}\">\n{}\n</figure>", escaped(&figure.title), svg.trim_end()));
    }
    text += &table(&figure.table);
    if !figure.comparisons.is_empty() {
        text += "<h3>Beside the paper</h3>\n";
        text += &table(&comparison_table(&figure.comparisons));
    }
    for note in &figure.notes {
        line(&mut text, format_args!("<p class=\"note\">{}</p>", escaped(note)));
    }
    text + &command(&figure.id)
}

/// The end of a section: how to make it again.
fn command(id: &str) -> String {
    format!("<p class=\"command\">This one alone: <code>{}</code></p>\n</section>\n", escaped(&command_of(id)))
}

fn table(table: &Table) -> String {
    let mut text = String::from("<div class=\"scroll\"><table>\n");
    let cells = |row: &[String], tag: &str| row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect::<String>();
    line(&mut text, format_args!("<tr>{}</tr>", cells(&table.columns, "th")));
    for row in &table.rows {
        line(&mut text, format_args!("<tr>{}</tr>", cells(row, "td")));
    }
    text + "</table></div>\n"
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a String takes all");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::report::sample;
    use super::*;

    #[test]
    fn the_page_has_all_and_needs_nothing_else() {
        let report = sample();
        let svg = "<?xml version=\"1.0\"?>\n<svg width=\"10\"><text>RO</text></svg>\n".to_owned();
        let page = html(&report, &BTreeMap::from([("fig7", svg)]));
        for part in [
            "id=\"fig7\"",
            "Fig. 7: &lt;access&gt;",
            "One client &amp; more",
            "<svg width=\"10\">",
            "~3000 ns",
            "id=\"fig9\"",
            "redis is not there",
            "6.18",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        for part in ["<script", "src=", "@import", "url(", "<link", "<?xml", "<access>"] {
            assert!(!page.contains(part), "{part} in\n{page}");
        }
        let count = |tag: &str| (page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count());
        for tag in ["section", "table", "figure", "div", "ul", "body"] {
            assert_eq!(count(tag).0, count(tag).1, "{tag}");
        }
    }
}
