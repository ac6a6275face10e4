//! A line for each event, in a shape that the user chose.

use std::str::FromStr;

use pando_ipc::Envelope;

use super::select::{at, check_path, plain, tree};

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Path(String),
}

/// Text with places for what an event has, such as `{seq} {payload.id}`; `{{` and `}}` are braces, `\t` and `\n` what they are elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template(Vec<Part>);

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let (mut parts, mut plain) = (Vec::new(), String::new());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '{' | '}' if chars.peek() == Some(&c) => {
                    chars.next();
                    plain.push(c);
                }
                '{' => {
                    let path: String = chars.by_ref().take_while(|c| *c != '}').collect();
                    if path.is_empty() || path.contains('{') {
                        return Err("a place is written {PATH}, such as {seq} or {payload.id}".to_owned());
                    }
                    check_path(&path)?;
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Path(path));
                }
                '}' => return Err("a brace of its own is written '}}'".to_owned()),
                c => plain.push(c),
            }
        }
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }
}

impl Template {
    /// Returns the text for an event; what the event does not have is empty.
    pub(super) fn fill(&self, event: &Envelope) -> String {
        let event = tree(event);
        let fill = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Path(path) => at(&event, path).map(plain).unwrap_or_default(),
        };
        self.0.iter().map(fill).collect()
    }
}

#[cfg(test)]
mod tests {
    use pando_ipc::Topic;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_fills(template: &str, expected: &str) {
        let mut event = Envelope::new("inst-A", Topic::known("note.made"), json!({"id": "n1", "tags": ["a"]}));
        event.seq = Some(7);
        assert_eq!(template.parse::<Template>().unwrap().fill(&event), expected, "{template}");
    }

    #[test]
    fn places_are_filled_and_all_else_stays() {
        check_fills("{seq}: {topic} {payload.id}", "7: note.made n1");
        check_fills("{payload.tags}\\t{payload.none}.", "[\"a\"]\t.");
        check_fills("{{{seq}}}", "{7}");
        check_fills("", "");
    }

    #[test]
    fn a_template_that_cannot_be_says_why() {
        assert!("{}".parse::<Template>().is_err());
        assert!("a } b".parse::<Template>().is_err());
        assert!("{a{b}}".parse::<Template>().is_err());
        assert!("{id}".parse::<Template>().unwrap_err().contains("payload.id"));
    }
}
