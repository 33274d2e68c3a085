//! The terminal that `xfaas top` draws on. Called by `top.rs`. Leaves the terminal as it found it, whatever happens.

use super::layout::{Line, Size, Style};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::Write;

/// The other screen, no cursor, and lines that end at the edge (ECMA-48 and xterm's private modes, which all terminals of today know).
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[2K";
const ERASE_BELOW: &str = "\x1b[J";
const REVERSE: &str = "\x1b[7m";
const BOLD: &str = "\x1b[1m";
const NORMAL: &str = "\x1b[m";

/// What a terminal that does not say its size has.
const SIZE_DEFAULT: Size = Size { columns: 80, rows: 24 };

/// A terminal while it shows the live view.
pub(super) struct Screen<'a> {
    out: &'a mut dyn Write,
    /// How stdin was, if it is a terminal.
    modes: Option<Termios>,
    is_entered: bool,
}

impl<'a> Screen<'a> {
    pub fn enter(out: &'a mut dyn Write) -> std::io::Result<Screen<'a>> {
        let mut screen = Screen { out, modes: None, is_entered: false };
        screen.resume()?;
        Ok(screen)
    }

    /// Enters again after `leave`.
    pub fn resume(&mut self) -> std::io::Result<()> {
        self.is_entered = true;
        // Keys that nobody asks for would be drawn over the figures. Without a terminal there are none.
        self.modes = tcgetattr(std::io::stdin()).ok();
        if let Some(modes) = &self.modes {
            let mut silent = modes.clone();
            silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON);
            tcsetattr(std::io::stdin(), OptionalActions::Now, &silent)?;
        }
        self.out.write_all(ENTER.as_bytes())?;
        self.out.flush()
    }

    /// Does what it can, also when a part of it fails; the first failure is told.
    pub fn leave(&mut self) -> std::io::Result<()> {
        if !self.is_entered {
            return Ok(());
        }
        self.is_entered = false;
        // What was typed meanwhile is not for the shell.
        let restored = self.modes.as_ref().map_or(Ok(()), |modes| tcsetattr(std::io::stdin(), OptionalActions::Flush, modes));
        self.out.write_all(LEAVE.as_bytes())?;
        self.out.flush()?;
        Ok(restored?)
    }

    pub fn size(&self) -> Size {
        match tcgetwinsize(std::io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { columns: size.ws_col.into(), rows: size.ws_row.into() },
            _ => SIZE_DEFAULT,
        }
    }

    /// In one write, so that nobody sees half of it.
    pub fn draw(&mut self, lines: &[Line]) -> std::io::Result<()> {
        let text = drawn(lines, self.size());
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Writes lines that stay, after `leave`.
    pub fn print(&mut self, lines: &[Line]) -> std::io::Result<()> {
        lines.iter().try_for_each(|line| writeln!(self.out, "{}", line.text))
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // The error that brought us here is the one to tell.
        self.leave().ok();
    }
}

fn drawn(lines: &[Line], size: Size) -> String {
    let mut text = HOME.to_owned();
    for (row, line) in lines.iter().enumerate() {
        // No end of line after the lowest row: it would scroll.
        text.push_str(if row == 0 { "" } else { "\r\n" });
        // Before the text: after one that fills the line it would take the last character away.
        text.push_str(ERASE_LINE);
        match line.style {
            Style::Plain => text.push_str(&line.text),
            Style::Names => text.push_str(&format!("{REVERSE}{:<width$}{NORMAL}", line.text, width = size.columns)),
            Style::Alarm => text.push_str(&format!("{BOLD}{}{NORMAL}", line.text)),
        }
    }
    if lines.len() < size.rows {
        text.push_str("\r\n");
        text.push_str(ERASE_BELOW);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_screen_does_not_scroll_and_a_short_one_is_cleared_below() {
        let line = |text: &str, style| Line { text: text.to_owned(), style };
        let lines = [line("one", Style::Names), line("two", Style::Plain)];
        let full = drawn(&lines, Size { columns: 5, rows: 2 });
        assert_eq!(full, "\x1b[H\x1b[2K\x1b[7mone  \x1b[m\r\n\x1b[2Ktwo");
        assert_eq!(drawn(&lines, Size { columns: 5, rows: 3 }), full + "\r\n\x1b[J");
    }

    #[test]
    fn the_terminal_is_left_as_it_was_also_when_an_error_ends_the_view() {
        let mut out = Vec::new();
        let screen = Screen::enter(&mut out).unwrap();
        drop(screen);
        assert_eq!(String::from_utf8(out).unwrap(), format!("{ENTER}{LEAVE}"));
    }
}
