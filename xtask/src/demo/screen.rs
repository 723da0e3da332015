//! What the user sees: steps, the commands that are run, what they print, and what is right about it.

use std::{
    fmt::Display,
    io::{IsTerminal as _, stdout},
};

/// Most lines of a command's output that are shown.
const LINES: usize = 24;

/// Where it is written. Colours where somebody looks and has not asked for none.
pub(super) struct Screen {
    colour: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && stdout().is_terminal() }
    }

    /// A step begins.
    pub(super) fn step(&self, number: usize, of: usize, title: &str) {
        println!("\n{}", self.in_colour("1", &format!("{number}/{of}  {title}")));
    }

    /// What is about to happen, or what there is to know about it.
    #[expect(clippy::unused_self, reason = "all that is written goes through the screen")]
    pub(super) fn say(&self, text: impl Display) {
        for line in text.to_string().lines() {
            println!("  {line}");
        }
    }

    /// A command that is run.
    pub(super) fn command(&self, command: impl Display) {
        println!("  {} {}", self.in_colour("2", "$"), self.in_colour("36", &command.to_string()));
    }

    /// What a command printed; the first lines of it.
    pub(super) fn output(&self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(LINES) {
            println!("    {line}");
        }
        if let Some(more) = lines.len().checked_sub(LINES).filter(|more| *more > 0) {
            println!("    {}", self.in_colour("2", &format!("({more} more lines)")));
        }
    }

    /// Something was asserted, and holds.
    pub(super) fn good(&self, text: impl Display) {
        println!("  {} {text}", self.in_colour("32", "ok"));
    }

    /// The end.
    pub(super) fn end(&self, text: impl Display) {
        println!("\n{}", self.in_colour("1", &text.to_string()));
    }

    fn in_colour(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
