//! The results into the repository's own pages.

use std::fs;

use anyhow::{Context, Result};

use crate::repo;

const BEGIN: &str = "<!-- `cargo xtask bench services --write-docs` writes from here -->\n";
const END: &str = "<!-- to here -->\n";

/// Puts the table between the markers of docs/benchmarks.md, and the chart beside it.
pub(super) fn write(markdown: &str, chart: &str) -> Result<()> {
    let docs = repo::root().join("docs");
    let page = docs.join("benchmarks.md");
    let old = fs::read_to_string(&page).with_context(|| format!("read {}", page.display()))?;
    let new = replaced(&old, markdown).with_context(|| format!("{} has lost its markers", page.display()))?;
    repo::write_atomically(&page, new.as_bytes(), 0o644)?;
    repo::write_atomically(&docs.join("services.svg"), chart.as_bytes(), 0o644)
}

fn replaced(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{}\n\n{END}{after}", table.trim()))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, replaced};

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = format!("a\n{BEGIN}old\n{END}z\n");
        let new = replaced(&page, "new").expect("markers");
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n\n{END}z\n"));
        assert_eq!(replaced(&new, "new"), Some(new.clone()), "again is the same");
        assert_eq!(replaced("no markers", "new"), None);
    }

    #[test]
    fn the_page_has_the_markers() {
        let page = include_str!("../../../../docs/benchmarks.md");
        assert!(replaced(page, "x").is_some());
    }
}
