//! The command line: exit codes, help, manual page and what the commands print, run as an operator runs them.

use std::process::{Command, Output, Stdio};

use bao_kms_provider::{auth, backend, layers, telemetry};
use serde_json::Value;

use super::config::{example, minimal};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bao-kms-provider")).args(arguments).env("NO_COLOR", "1").output().expect("it runs")
}

/// What a command prints that works.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn exit_codes_are_a_contract() {
    let good = example("minimal.yaml");
    let good = good.to_str().expect("text");
    let dir = tempfile::tempdir().expect("a folder");
    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, "configVersion: v9").expect("written");
    let bad = bad.to_str().expect("text");
    let cases: [(&[&str], i32); 12] = [
        (&["config", "validate", "--config", good], 0),
        (&["config", "explain", "--config", good], 0),
        (&["plugins", "list", "--json"], 0),
        (&["version"], 0),
        (&["man"], 0),
        (&["config", "validate", "--config", bad], 3),
        (&["config", "show", "--config", bad], 3),
        (&["config", "explain", "--config", bad], 3),
        (&["serve", "--config", "/nonexistent/config.yaml"], 3),
        (&["nonsense"], 2),
        (&["man", "config", "nonsense"], 2),
        (&["probe", "--socket", "/nonexistent/kms.sock"], 4),
    ];
    for (arguments, code) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn exit_codes_hold_when_nobody_reads_what_is_said() {
    for (arguments, code) in [(["config", "show"], 3), (["config", "validate"], 3)] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.args(arguments).args(["--config", "/nonexistent/config.yaml"]);
        let status = command.stdout(Stdio::null()).stderr(writer).status().expect("it runs");
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn validate_prints_findings_for_people_and_for_programs() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, minimal().replace("socket: {", "socket: { mode: 7, ")).expect("written");
    let file = file.to_str().expect("text");
    let output = run(&["config", "validate", "--json", "--config", file]);
    let findings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let finding = &findings[0];
    assert_eq!((&finding["file"], &finding["line"], &finding["value"]), (&file.into(), &5.into(), &"7".into()));
    assert_eq!(finding["path"], "pipelines[workload-a].socket.mode");
    let text = String::from_utf8(run(&["config", "validate", "--config", file]).stdout).expect("text");
    assert!(text.contains(&format!("{file}:5:")) && text.contains("\n  help: "), "{text}");
}

#[test]
fn explain_shows_the_stack_with_effective_settings_and_reasons() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("config.yaml");
    let settings = "    layers: { admit: { maxInFlight: 8 }, coalesce: { enabled: false }, batch: { maxItems: 1 } }\n    identity:";
    std::fs::write(&file, minimal().replacen("    identity:", settings, 1)).expect("written");
    let text = printed(&["config", "explain", "--config", file.to_str().expect("text")]);
    let order =
        ["trace", "limits", "deadline", "aad", "coalesce", "retry", "batch", "admit", "transit", "token", "endpoint"];
    let places: Vec<_> = order.iter().map(|name| text.find(&format!("\n    {name} ")).expect(name)).collect();
    assert!(places.is_sorted(), "{text}");
    let row = |name: &str| text.lines().find(|line| line.starts_with(&format!("    {name} "))).expect(name);
    assert!(row("admit").contains("maxInFlight 8, maxQueued 1024"), "{}", row("admit"));
    for name in ["coalesce", "batch"] {
        assert!(row(name).ends_with("[off]"), "{}", row(name));
    }
    assert_eq!(text.matches("[off]").count(), 2, "{text}");
    assert!(row("transit").contains("key k8s-workload-a-etcd at transit, login by jwt"), "{text}");
    for layer in layers::TABLE {
        let below = text.lines().skip_while(|line| !line.starts_with(&format!("    {} ", layer.name))).nth(1);
        assert_eq!(below.map(str::trim), Some(layer.why), "{}", layer.name);
    }
}

#[test]
fn plugins_list_prints_the_tables() {
    let tables = [auth::Config::TABLE, layers::TABLE, backend::Config::TABLE, telemetry::TABLE].concat();
    let rows: Value = serde_json::from_str(&printed(&["plugins", "list", "--json"])).expect("JSON");
    let rows = rows.as_array().expect("rows");
    let text = printed(&["plugins", "list"]);
    assert_eq!((rows.len(), text.lines().count()), (tables.len(), tables.len()));
    for ((plugin, row), line) in tables.iter().zip(rows).zip(text.lines()) {
        let told = ["room", "name", "summary", "why"].map(|key| row[key].as_str().expect(key));
        assert_eq!(told, [plugin.room, plugin.name, plugin.summary, plugin.why]);
        let words: Vec<_> = line.split_whitespace().take(2).collect();
        assert_eq!(words, [plugin.room, plugin.name]);
        assert!(line.ends_with(plugin.summary), "{line}");
    }
}

/// Every command without commands below it, from what `--help` lists.
fn commands(above: &[String], out: &mut Vec<Vec<String>>) {
    let mut arguments: Vec<&str> = above.iter().map(String::as_str).collect();
    arguments.push("--help");
    let text = printed(&arguments);
    let Some((_, list)) = text.split_once("\nCommands:\n") else {
        out.push(above.to_vec());
        return;
    };
    for line in list.lines().take_while(|line| !line.is_empty()) {
        // A description that goes on in the next line is indented further than a name.
        let name =
            line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.split(' ').next());
        if let Some(name) = name.filter(|name| *name != "help") {
            commands(&[above, &[name.to_owned()]].concat(), out);
        }
    }
}

#[test]
fn every_command_has_an_example_and_the_manual_page_names_it() {
    let mut all = Vec::new();
    commands(&[], &mut all);
    assert!(all.len() >= 10, "{all:?}");
    let manual = printed(&["man"]);
    for command in all {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let own = printed(&[&["man"], &*words].concat());
        assert!(own.contains(&format!("bao\\-kms\\-provider\\-{}", words.join("\\-"))), "{own}");
        assert!(own.contains("Example:"), "{own}");
        let mut arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        arguments.push("--help");
        let text = printed(&arguments);
        assert!(text.contains(&format!("Example:\n  bao-kms-provider {}", command.join(" "))), "{text}");
        let page = format!("bao\\-kms\\-provider\\-{}(1)", command[0]);
        assert!(manual.contains(&page), "{page} in {manual}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(printed(&["completions", shell]).contains("bao-kms-provider"), "{shell}");
    }
}

#[test]
fn there_is_no_colour_where_none_is_wanted() {
    let said = |variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.arg("nonsense").env_remove("NO_COLOR").env("TERM", "xterm-256color").envs(variables.iter().copied());
        String::from_utf8(command.output().expect("it runs").stderr).expect("text")
    };
    assert!(said(&[("CLICOLOR_FORCE", "1")]).contains('\u{1b}'), "otherwise the next line says nothing");
    assert!(!said(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\u{1b}'));
}

#[cfg(feature = "dev")]
#[test]
fn the_quick_start_tells_its_story_and_ends() {
    let text = printed(&["dev", "--once"]);
    for wanted in ["EncryptionConfiguration", "obk2.", "under key version 1", "under version 2", "kms.sock"] {
        assert!(text.contains(wanted), "{wanted}:\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");
}
