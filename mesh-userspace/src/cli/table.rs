//! Tables as `kubectl` prints them: no lines, columns apart by two spaces, colours where somebody looks.

use comfy_table::{Attribute, Cell, Color, Table, presets};

/// How a value is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Warn,
    Bad,
}

/// A table in the making.
pub(super) struct Rows {
    table: Table,
    columns: usize,
    colour: bool,
}

impl Rows {
    pub(super) fn new(header: &[&str], colour: bool) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        let bold = |name: &&str| {
            let cell = Cell::new(name);
            if colour { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(header.iter().map(bold).collect::<Vec<_>>());
        Self { table, columns: header.len(), colour }
    }

    /// Adds a row; cells beyond the header's columns are for a wider table and are left out.
    pub(super) fn add<const N: usize>(&mut self, cells: [(String, Tone); N]) {
        let colour = self.colour;
        self.table.add_row(cells.into_iter().take(self.columns).map(|(text, tone)| {
            let text = if text.is_empty() { "-".to_owned() } else { text };
            let cell = Cell::new(text);
            match tone {
                Tone::Plain => cell,
                _ if !colour => cell,
                Tone::Good => cell.fg(Color::Green),
                Tone::Warn => cell.fg(Color::Yellow),
                Tone::Bad => cell.fg(Color::Red),
            }
        }));
    }

    pub(super) fn render(mut self) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 3));
        }
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A cell without a tone.
#[expect(clippy::needless_pass_by_value, reason = "most callers have a value of their own")]
pub(super) fn plain(text: impl ToString) -> (String, Tone) {
    (text.to_string(), Tone::Plain)
}

/// `yes` or `no`.
pub(super) fn yes(value: bool) -> (String, Tone) {
    plain(if value { "yes" } else { "no" })
}

/// Values with commas between, or `-`.
pub(super) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> (String, Tone) {
    plain(values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(","))
}

/// A span of time as `kubectl` prints ages: the two largest units.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds % 86_400 / 3600);
    let (minutes, rest) = (seconds % 3600 / 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, 1..10) => format!("{minutes}m{rest}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let mut rows = Rows::new(&["NAME", "PORT"], false);
        rows.add([plain("reviews"), plain(9080)]);
        rows.add([plain("a"), plain("")]);
        assert_eq!(rows.render(), "NAME      PORT\nreviews   9080\na         -\n");
    }

    #[test]
    fn colours_are_there_when_asked_for() {
        for colour in [false, true] {
            let mut rows = Rows::new(&["STATE"], colour);
            rows.add([("failed".to_owned(), Tone::Bad)]);
            assert_eq!(rows.render().contains('\x1b'), colour);
        }
    }

    #[test]
    fn spans() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (3599, "59m"),
            (3661, "1h1m"),
            (86_400 * 2 + 3600, "2d1h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text);
        }
    }
}
