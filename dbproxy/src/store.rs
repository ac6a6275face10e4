//! The agent store: its rows, its reads, and its 21 writes.

pub(crate) mod methods;
pub mod params;
mod querier;
pub mod rows;

pub use querier::{DbError, Querier};

/// Makes a struct whose fields are columns of the agent store.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name {
            $(
                #[doc = concat!("Column `", stringify!($field), "`.")]
                pub $field: $kind,
            )*
        }
    };
}
use record;
