//! The language of scripts: a socket's name, a call, its arguments.

use std::fmt;

use anyhow::{Context as _, Result};

/// The socket that is meant when none is named.
const UNNAMED: &str = "";

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// The socket's name.
    pub(crate) socket: String,
    /// What to call.
    pub(crate) call: String,
    /// With what.
    pub(crate) args: Vec<String>,
}

impl Statement {
    /// The argument at a position.
    pub(crate) fn arg(&self, index: usize) -> Result<&str> {
        self.args.get(index).map(String::as_str).context("an argument is missing")
    }

    /// The value of an argument `KEY=VALUE`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.args.iter().find_map(|arg| arg.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether a word is among the arguments.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.args.iter().any(|arg| arg == word)
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.socket.is_empty() {
            write!(f, "{}: ", self.socket)?;
        }
        f.write_str(&self.call)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// The calls of a script.
pub(crate) fn statements(script: &str) -> Vec<Statement> {
    let parse = |text: &str| {
        let mut words = text.split_whitespace().map(str::to_owned).peekable();
        let named = words.next_if(|word| word.ends_with(':') && word.len() > 1);
        let socket = named.map_or(UNNAMED.to_owned(), |word| word.trim_end_matches(':').to_owned());
        Some(Statement { socket, call: words.next()?, args: words.collect() })
    };
    script.split([';', '\n']).filter_map(parse).collect()
}

/// The bytes that a word stands for: `#N` for N bytes that differ from each other, itself otherwise.
pub(crate) fn payload(word: &str) -> Result<Vec<u8>> {
    match word.strip_prefix('#') {
        Some(length) => {
            let length = length.parse().with_context(|| format!("{word} is no length"))?;
            let mut bytes = vec![0; length];
            fastrand::Rng::with_seed(length as u64).fill(&mut bytes);
            Ok(bytes)
        }
        None => Ok(word.as_bytes().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_a_socket_a_call_and_its_arguments() {
        let all = statements("socket udp;; y: sendto udp.a #100\n y: recv from=x ;");
        let text: Vec<String> = all.iter().map(Statement::to_string).collect();
        assert_eq!(text, ["socket udp", "y: sendto udp.a #100", "y: recv from=x"]);
        assert_eq!((all[0].socket.as_str(), all[1].socket.as_str()), ("", "y"));
        assert_eq!((all[2].value("from"), all[1].has("#100")), (Some("x"), true));
        assert_eq!(payload("#100").map(|bytes| bytes.len()).ok(), Some(100));
        assert!(payload("#x").is_err());
    }
}
