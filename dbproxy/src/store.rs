//! The agent store: its rows, its reads, and its writes.

pub(crate) mod methods;
pub(crate) mod params;
mod querier;
pub(crate) mod rows;
mod send;

pub use params::*;
pub use querier::{DbError, Querier};
pub use rows::*;

use std::sync::Arc;

use crate::named::Named;

/// Returns the agent store's entries in the table of named writes.
pub(crate) fn writes() -> impl Iterator<Item = (String, Arc<dyn Named>)> {
    let sent: (String, Arc<dyn Named>) = (send::NAME.to_owned(), Arc::new(send::SendMessage));
    methods::METHODS.iter().map(|method| (method.name.to_owned(), Arc::new(method) as Arc<dyn Named>)).chain([sent])
}

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
