//! The name of a write, by which a retry is recognised.

use std::fmt;

use uuid::Uuid;

/// Names a write for ever: sent again under it, the write applies once.
///
/// As text, `<client>-<counter>` is a counted one: `client` is a version 7 UUID in its usual form, less than a day old, `counter` a number from 0 that the client
/// never uses twice. Such a client says which of its writes have been answered, and an op id of it that the primary has forgotten is recognised as such.
/// Any other text is an op id, too: it is remembered for a while, and after that it is new again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OpId {
    /// One of a client that counts.
    Counted {
        /// The client's own id.
        client: Uuid,
        /// Which of its writes.
        counter: u64,
    },
    /// Any other.
    Named {
        /// Within which the text is unique; empty for everywhere.
        scope: String,
        /// The text.
        name: String,
    },
}

/// Bytes of a UUID in its usual form.
const UUID_BYTES: usize = 36;

impl OpId {
    /// Reads an op id from its text. There is none that does not read.
    pub fn parse(text: &str) -> Self {
        Self::counted(text).unwrap_or_else(|| Self::Named { scope: String::new(), name: text.to_owned() })
    }

    /// Returns one that nobody else has or ever will: for a write that is not sent again.
    pub fn fresh() -> Self {
        Self::Named { scope: String::new(), name: Uuid::now_v7().to_string() }
    }

    fn counted(text: &str) -> Option<Self> {
        let (client, digits) = text.split_at_checked(UUID_BYTES)?;
        let client = Uuid::try_parse(client).ok().filter(|client| client.get_version_num() == 7)?;
        // SQLite's integers have a sign.
        let counter = digits.strip_prefix('-')?.parse().ok().filter(|counter| i64::try_from(*counter).is_ok())?;
        let counted = Self::Counted { client, counter };
        // One text for one id: no leading zeros, signs or capitals.
        (counted.to_string() == text).then_some(counted)
    }

    /// Returns the op id as one of `scope` alone: clients of the documented format count their requests from 1, each for itself.
    #[must_use]
    pub fn within(self, scope: &str) -> Self {
        match self {
            Self::Named { name, .. } => Self::Named { scope: scope.to_owned(), name },
            counted @ Self::Counted { .. } => counted,
        }
    }

    /// Returns about how many bytes it takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Counted { .. } => UUID_BYTES,
            Self::Named { scope, name } => scope.len() + name.len(),
        }
    }
}

impl From<&str> for OpId {
    fn from(text: &str) -> Self {
        Self::parse(text)
    }
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Counted { client, counter } => write!(f, "{client}-{counter}"),
            Self::Named { name, .. } => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_ordered_client_and_a_plain_number_are_counted() {
        let client = Uuid::now_v7();
        let text = format!("{client}-17");
        assert_eq!(OpId::parse(&text), OpId::Counted { client, counter: 17 });
        assert_eq!(OpId::parse(&text).to_string(), text);
        let random = Uuid::new_v4();
        for other in [
            format!("{client}"),
            format!("{client}-"),
            format!("{client}-017"),
            format!("{client}-+1"),
            format!("{client}--1"),
            format!("{client}-9223372036854775808"),
            format!("{}-1", client.to_string().to_uppercase()),
            format!("{random}-1"),
            "req-1".to_owned(),
            "é".repeat(20),
        ] {
            assert_eq!(OpId::parse(&other), OpId::Named { scope: String::new(), name: other.clone() }, "{other}");
            assert_eq!(OpId::parse(&other).to_string(), other);
        }
        assert_ne!(OpId::parse("req-1").within("a"), OpId::parse("req-1").within("b"));
    }
}
