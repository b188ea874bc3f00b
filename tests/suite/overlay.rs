//! Several files, anchors and the environment: who has the last word, and what `config show` says of it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use bao_kms_provider::config::{self, Config, Findings};
use tempfile::TempDir;

use super::config::{example, load_text, minimal};

/// Files in a folder, in the order in which they are given.
struct Files {
    folder: TempDir,
    paths: Vec<PathBuf>,
}

// === impl Files ===

impl Files {
    fn of(texts: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |(at, text): (usize, &&str)| {
            let path = folder.path().join(format!("{at}.yaml"));
            std::fs::write(&path, text).expect("written");
            path
        };
        let paths = texts.iter().enumerate().map(write).collect();
        Self { folder, paths }
    }

    fn load(&self) -> Result<Config, Findings> {
        config::load(&self.paths).map(|loaded| loaded.config)
    }

    fn shown(&self) -> String {
        config::show(&config::load(&self.paths).unwrap_or_else(|findings| panic!("{findings}")))
    }

    /// `config show` as a process with these variables.
    fn show(&self, variables: &[(&str, &OsStr)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
        command.args(["config", "show"]).envs(variables.iter().copied());
        for path in &self.paths {
            command.arg("--config").arg(path);
        }
        command.output().expect("it runs")
    }
}

fn two() -> String {
    std::fs::read_to_string(example("two-pipelines.yaml")).expect("the example")
}

#[test]
fn an_overlay_of_another_login_replaces_the_one_below() {
    let overlay = "pipelines: [ { name: workload-a, auth: { cert: { certFile: /a.pem, keyFile: /a.key } } } ]";
    let config = Files::of(&[&minimal(), overlay]).load().expect("they merge");
    assert_eq!(config.pipelines[0].auth.name(), "cert");
}

#[test]
fn an_overlay_meets_the_pipeline_that_it_names_whatever_its_position() {
    let overlay = "pipelines: [ { name: workload-b, rotation: { activationDelay: 9m } } ]";
    let config = Files::of(&[&two(), overlay]).load().expect("they merge");
    let delays: Vec<_> =
        config.pipelines.iter().map(|one| (one.name.as_str(), one.rotation.activation_delay.to_string())).collect();
    assert_eq!(delays, [("workload-a", "2m".to_owned()), ("workload-b", "9m".to_owned())]);
}

#[test]
fn an_overlay_may_add_a_pipeline() {
    let more = minimal().replace("workload-a", "workload-z").replace("kms.sock", "z.sock");
    let config = Files::of(&[&two(), &more]).load().expect("they merge");
    assert_eq!(
        config.pipelines.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(),
        ["workload-a", "workload-b", "workload-z"]
    );
}

#[test]
fn a_shorter_list_in_an_overlay_replaces_the_list_whole() {
    let overlay = "pipelines: [ { name: workload-a, backend: { transit: { endpoints: [ \"https://near:1\" ] } } } ]";
    let config = Files::of(&[&two(), overlay]).load().expect("they merge");
    let bao_kms_provider::backend::Config::Transit(transit) = &config.pipelines[0].backend;
    assert_eq!(transit.endpoints, ["https://near:1"]);
}

#[test]
fn findings_name_the_file_that_has_the_last_word() {
    let unknown = "pipelines:\n  - name: workload-a\n    socket: { pth: /x }\n";
    let files = Files::of(&[&minimal(), unknown]);
    let findings = files.load().expect_err("an unknown key").0;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!((findings[0].file.as_str(), findings[0].line), (files.paths[1].to_str().expect("text"), 3));

    let wrong = "pipelines:\n  - name: workload-a\n    socket: { mode: 7 }\n";
    let files = Files::of(&[&minimal(), wrong, "telemetry: { logs: { level: debug } }"]);
    let findings = files.load().expect_err("a wrong value").0;
    assert_eq!((findings[0].file.as_str(), findings[0].line), (files.paths[1].to_str().expect("text"), 3));
}

#[test]
fn pipelines_that_are_no_list_do_not_wipe_those_of_the_base() {
    let files = Files::of(&[&minimal(), "pipelines: { workload-a: { rotation: {} } }"]);
    let findings = files.load().expect_err("a map").0;
    assert_eq!(findings.len(), 1, "{findings:#?}");
    assert_eq!((findings[0].path.as_str(), findings[0].line), ("pipelines", 1));
    assert_eq!(findings[0].file, files.paths[1].to_str().expect("text"));
}

#[test]
fn a_file_that_cannot_be_read_hides_nothing_and_misses_nothing() {
    let mut files = Files::of(&["pipelines: [ { name: a, rotation: { activationDelay: 1s } } ]\nadmn: 1\n"]);
    files.paths.push(files.folder.path().join("none.yaml"));
    let said = files.load().expect_err("three findings");
    assert_eq!(said.0.len(), 3, "{said}");
    let text = said.to_string();
    for wanted in ["cannot be read", "is shorter than twice", "did you mean `admin`?"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn what_show_prints_loads_again_as_the_same() {
    let loaded = config::load(&[example("base.yaml"), example("node.overlay.yaml")]).expect("loads");
    let shown = config::show(&loaded);
    assert!(shown.contains("node.overlay.yaml:6") && shown.contains("# default"), "{shown}");
    assert!(shown.starts_with("# fingerprint of workload-a: obf1."), "{shown}");
    assert_eq!(load_text(&shown).expect("loads again"), loaded.config);
}

#[test]
fn values_of_anchors_come_from_the_place_of_their_alias() {
    let text = two()
        .replacen("    identity:", "    rotation: &r { activationDelay: 4m, metadataInterval: 1m }\n    identity:", 1)
        .replace("workload-b.sock,", "workload-b.sock, mode: \"0600\",")
        .replace("  - name: workload-b\n", "  - name: workload-b\n    rotation: *r\n");
    let text = text.replace(
        "  - name: workload-b\n",
        "  - name: workload-b\n    layers:\n      deadline:\n        <<: { max: 9s }\n",
    );
    let files = Files::of(&[&text]);
    let shown = files.shown();
    let origin = |key: &str| {
        let line = shown.lines().rfind(|line| line.trim_start().starts_with(key)).expect(key);
        line.rsplit_once("# ").expect("an origin").1.replace(files.paths[0].to_str().expect("text"), "file")
    };
    let line = |wanted: &str| text.lines().position(|line| line.contains(wanted)).expect(wanted) + 1;
    assert_eq!(origin("activationDelay:"), format!("file:{}", line("rotation: *r")));
    assert_eq!(origin("max:"), format!("file:{}", line("deadline:")));
    assert_eq!(origin("default:"), "default");
    assert_eq!(origin("mode:"), format!("file:{}", line("0600")));
    assert_eq!(load_text(&shown).expect("loads again"), files.load().expect("loads"));
}

#[test]
fn the_environment_wins_over_every_file() {
    let text = minimal() + "telemetry: { logs: { level: error } }\nadmin: null\n";
    let files = Files::of(&[&text]);
    let variables = [("BAO_KMS_LOG_LEVEL", OsStr::new("debug")), ("BAO_KMS_ADMIN_LISTEN", OsStr::new("127.0.0.1:9"))];
    let output = files.show(&variables);
    let shown = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("level: \"debug\"  # $BAO_KMS_LOG_LEVEL\n"), "{shown}");
    assert!(shown.contains("listen: \"127.0.0.1:9\"  # $BAO_KMS_ADMIN_LISTEN\n"), "{shown}");
    let without = String::from_utf8(files.show(&[]).stdout).expect("text");
    assert!(without.contains("level: \"error\"") && !without.contains("admin:"), "{without}");
}

#[test]
fn a_bad_variable_is_a_finding_like_any_other() {
    let files = Files::of(&[&minimal()]);
    for (variable, value, wanted) in [
        ("BAO_KMS_LOG_LEVEL", OsStr::new("loud"), "$BAO_KMS_LOG_LEVEL: telemetry.logs.level: is no word"),
        ("BAO_KMS_LOG_LEVEL", OsStr::from_bytes(b"info\xff"), "$BAO_KMS_LOG_LEVEL: telemetry.logs.level: is not UTF-8"),
        ("BAO_KMS_ADMIN_LISTEN", OsStr::new("8081"), "$BAO_KMS_ADMIN_LISTEN: admin.listen: does not have the right"),
        ("BAO_KMS_ADMIN_LISTEN", OsStr::new("0.0.0.0:1"), "$BAO_KMS_ADMIN_LISTEN: admin.listen: is not loopback"),
    ] {
        let output = files.show(&[(variable, value)]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(wanted), "{said}");
    }
}
