//! Arguments to command, command to exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    bao_kms_provider::cli::main()
}
