//! The `presnap` command.

mod serve;

pub use serve::{CoreList, LogLevel, ServeOptions};
