//! The `presnap` command.

fn main() -> std::process::ExitCode {
    presnap::cli::run()
}
