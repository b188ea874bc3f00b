//! `config validate|show|schema|explain`.

use super::{Exit, Files, complain, say};
use crate::config;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say everything that is wrong with the configuration.
    #[command(
        after_help = "Example:\n  bao-kms-provider config validate --config base.yaml --config node.overlay.yaml"
    )]
    Validate {
        #[command(flatten)]
        files: Files,
        /// Findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print the resolved file with the origin of each value, and the fingerprint to pin.
    #[command(after_help = "Example:\n  bao-kms-provider config show --config /etc/bao-kms-provider/config.yaml")]
    Show(Files),
    /// Print the JSON Schema.
    #[command(after_help = "Example:\n  bao-kms-provider config schema --overlay")]
    Schema {
        /// That of overlays, in which nothing is required.
        #[arg(long)]
        overlay: bool,
    },
    /// Print each pipeline's stack with its settings and reasons.
    #[command(after_help = "Example:\n  bao-kms-provider config explain --config /etc/bao-kms-provider/config.yaml")]
    Explain(Files),
}

pub(super) fn run(command: Command) -> Exit {
    match command {
        Command::Validate { files, json } => validate(&files, json),
        Command::Show(files) => loaded(&files, |loaded| config::show(&loaded)),
        Command::Explain(files) => loaded(&files, |loaded| config::explain(&loaded.config)),
        Command::Schema { overlay } => {
            let schema = if overlay { config::schema::overlay() } else { config::schema::whole() };
            say(&config::schema::text(&schema))
        }
    }
}

fn validate(files: &Files, json: bool) -> Exit {
    match config::load(&files.files) {
        Ok(_) if json => say("[]\n"),
        Ok(_) => say("the configuration holds\n"),
        Err(findings) => {
            let text =
                if json { serde_json::to_string_pretty(&findings).unwrap_or_default() } else { findings.to_string() };
            say(&format!("{text}\n"));
            Exit::Configuration
        }
    }
}

fn loaded(files: &Files, print: impl FnOnce(config::Loaded) -> String) -> Exit {
    match config::load(&files.files) {
        Ok(loaded) => say(&print(loaded)),
        Err(findings) => {
            complain(findings);
            Exit::Configuration
        }
    }
}
