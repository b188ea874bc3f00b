//! Commands that only print: plugins, version, completions, manual page.

use serde_json::json;

use super::{Exit, complain, say};
use crate::plugin::Plugin;
use crate::{auth, backend, layers, telemetry};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Plugins {
    /// Every plugin with what it does.
    #[command(after_help = "Example:\n  bao-kms-provider plugins list --json")]
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// The rows of all tables.
fn tables() -> impl Iterator<Item = &'static Plugin> {
    auth::Config::TABLE.iter().chain(layers::TABLE).chain(backend::Config::TABLE).chain(telemetry::TABLE)
}

pub(super) fn plugins(Plugins::List { json }: &Plugins) -> Exit {
    if *json {
        let rows: Vec<_> = tables()
            .map(|row| json!({ "room": row.room, "name": row.name, "summary": row.summary, "why": row.why }))
            .collect();
        return say(&format!("{:#}\n", serde_json::Value::from(rows)));
    }
    say(&tables().map(|row| format!("{:<18} {:<10}  {}\n", row.room, row.name, row.summary)).collect::<String>())
}

pub(super) fn version(json: bool) -> Exit {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        let features: &[&str] = if cfg!(feature = "dev") { &["dev"] } else { &[] };
        return say(&format!("{}\n", json!({ "name": "bao-kms-provider", "version": version, "features": features })));
    }
    say(&format!("bao-kms-provider {version}\n"))
}

pub(super) fn completions(shell: clap_complete::Shell, mut command: clap::Command) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "bao-kms-provider", &mut script);
    say(&String::from_utf8_lossy(&script))
}

pub(super) fn man(mut program: clap::Command, words: &[String]) -> Exit {
    program.build();
    let mut command = &program;
    for word in words {
        let Some(found) = command.find_subcommand(word) else {
            let known: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            complain(format_args!("error: `{word}` is no command here; there are: {known}"));
            return Exit::Usage;
        };
        command = found;
    }
    let mut page = Vec::new();
    match clap_mangen::Man::new(command.clone()).render(&mut page) {
        Ok(()) => say(&String::from_utf8_lossy(&page)),
        Err(_) => Exit::Unexpected,
    }
}
