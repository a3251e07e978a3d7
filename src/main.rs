//! The `presnap` command.

fn main() {}
