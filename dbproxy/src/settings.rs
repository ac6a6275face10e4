//! How a workdir is run, where it is not run as usual: `settings.json` beside the database.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::journal::Retention;
use crate::schema::StoreError;
use crate::write::Durability;

/// The file's name; it stands beside the database.
pub const FILE: &str = "settings.json";

/// What may be set. The next primary to be elected reads it; one that was started with another durability writes it.
///
/// A key that is not known is an error: a misspelt one would be a setting that does nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How sure an acknowledged write is.
    pub durability: Durability,
    /// How much the journal keeps.
    #[serde(deserialize_with = "object")]
    pub journal: Retention,
}

/// Reads an object, and nothing else: serde would take a list, too, as the values of the keys in the order in which they stand here.
fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct Object<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map))
        }
    }
    deserializer.deserialize_map(Object(PhantomData))
}

fn read(text: &[u8]) -> serde_json::Result<Settings> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let settings = object(&mut reader)?;
    reader.end()?;
    Ok(settings)
}

impl Settings {
    /// Reads the settings of a database; a file that is not there sets nothing.
    pub fn of(database: &Path) -> Result<Self, StoreError> {
        let path = database.with_file_name(FILE);
        let failed = |why: String| StoreError::Settings { path: path.clone(), why };
        match fs::read(&path) {
            Ok(text) => read(&text).map_err(|why| failed(why.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// Writes the settings of a database, as a whole or not at all.
    pub(crate) fn write(&self, database: &Path) -> Result<(), StoreError> {
        let path = database.with_file_name(FILE);
        let failed = |why: String| StoreError::Settings { path: path.clone(), why };
        let text = serde_json::to_string_pretty(self).map_err(|why| failed(why.to_string()))? + "\n";
        let fresh = path.with_extension("json.new");
        let written = File::create(&fresh).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(path.with_file_name("."))?.sync_all()
        });
        written.map_err(|why| failed(why.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_as_usual_and_what_is_misspelt_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("pando.db");
        let read = |text: &str| {
            fs::write(dir.path().join(FILE), text).unwrap();
            Settings::of(&database)
        };
        assert_eq!(Settings::of(&database).unwrap(), Settings::default());
        assert_eq!(read("{}").unwrap(), Settings::default());
        let some = read(r#"{"journal": {"max_age_s": 60}}"#).unwrap();
        assert_eq!(some.journal, Retention { max_age_s: Some(60), ..Retention::default() });
        let other = Settings { durability: Durability::Os, ..some };
        other.write(&database).unwrap();
        assert_eq!(Settings::of(&database).unwrap(), other);
        let error = read(r#"{"journal": {"max_evnts": 60}}"#).unwrap_err().to_string();
        assert!(
            error.contains("settings.json") && error.contains("max_evnts") && error.contains("max_events"),
            "{error}"
        );
    }
    #[test]
    fn a_list_is_no_settings_however_well_it_would_fit() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["[]", r#"["os"]"#, r#"{"journal": [5]}"#, "7", "{} {}"] {
            fs::write(dir.path().join(FILE), text).unwrap();
            let error = Settings::of(&dir.path().join("pando.db")).unwrap_err().to_string();
            let why = if text == "{} {}" { "trailing characters" } else { "expected an object" };
            assert!(error.contains("settings.json") && error.contains(why), "{text}: {error}");
        }
    }
}
