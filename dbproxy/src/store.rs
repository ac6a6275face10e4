//! The agent store: its rows, its reads, and its 21 writes.

pub(crate) mod methods;
mod params;
mod querier;
mod rows;

pub use params::*;
pub use querier::{DbError, Querier};
pub use rows::*;

/// Makes a struct whose fields are columns of the agent store.
macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub struct $name {
            $(
                #[doc = concat!("Column `", stringify!($field), "`.")]
                pub $field: $kind,
            )*
        }
    };
}
use record;
