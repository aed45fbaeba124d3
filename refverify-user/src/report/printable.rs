//! Strings that come over the feed, made safe for a terminal.

use std::fmt::{self, Write};

/// Shows a string with its control characters escaped: one line stays one line, and no
/// escape sequence reaches a terminal.
pub(super) struct Printable<'a>(pub(super) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Printable;

    #[test]
    fn an_escape_sequence_does_not_reach_the_terminal() {
        let shown = Printable("/dev/\x1b[2Jsdb\n\u{9b}é").to_string();
        assert_eq!(shown, "/dev/\\u{1b}[2Jsdb\\n\\u{9b}é");
    }
}
