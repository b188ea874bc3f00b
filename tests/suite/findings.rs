//! What is wrong with a configuration: every mistake is said once, with its place and what to do, all of them at the same
//! time, and no secret with them.

use bao_kms_provider::config::Finding;

use super::config::{example, load, load_text, minimal};

/// The minimal example with one text in the place of another.
fn with(from: &str, to: &str) -> String {
    let text = minimal().replacen(from, to, 1);
    assert_ne!(text, minimal(), "{from} stands in the example");
    text
}

/// The minimal example with more in its pipeline.
fn pipeline(more: &str) -> String {
    with("    identity:", &format!("    {more}\n    identity:"))
}

/// The minimal example with more at its top.
fn top(more: &str) -> String {
    minimal() + more + "\n"
}

fn findings(text: &str) -> Vec<Finding> {
    load(text).expect_err(text)
}

#[test]
fn every_mistake_is_said_once_with_place_and_help() {
    let cases = [
        (with("socket: {", "sockte: {"), ":5:5: pipelines[workload-a].sockte: is no key of this section", "`socket`?"),
        (with("configVersion: v1\n", ""), "configVersion: is missing", "add `configVersion`"),
        (with("role: kms", "role: kms, role: b"), "duplicate", "every key may stand only once"),
        (with("group: openbao-kms-socket", "mode: 0660"), "socket.mode: has the wrong type", "\"0660\""),
        (
            with("group: openbao-kms-socket", "mode: \"660\""),
            "socket.mode: does not have the right form (found \"660\")",
            "\"0660\"",
        ),
        (
            with("group: openbao-kms-socket", "mode: \"0666\""),
            "socket.mode: is open to every user, and allowPeers is empty (found \"0666\")",
            "socket.allowPeers",
        ),
        (with("group: openbao-kms-socket", "mode: \"0661\""), "socket.mode: is open to every user", "\"0660\""),
        (top("admin: { listen: \"[::]:8081\" }"), "admin.listen: is not loopback", "clientCaFile"),
        (with("group: openbao-kms-socket", "group: 1001"), "socket.group: has the wrong type", "put it in quotes"),
        (with("keyLineageId: 01HXEXAMPLEKEYLINEAGEID", "keyLineageId: 20260101"), "keyLineageId", "put it in quotes"),
        (with("name: workload-a", "name: 1"), "pipelines[0].name: has the wrong type", "put it in quotes"),
        (with("- name: workload-a\n    socket", "- socket"), "pipelines[0].name: is missing", "overlays meet it"),
        (with("configVersion: v1", "configVersion: v2"), "configVersion: is no word of this key", "`v1`?"),
        (top("telemetry: { logs: { level: verbose } }"), "telemetry.logs.level: is no word", "`error`, `warn`, `info`"),
        (top("telemetry: { logs: { level: eror } }"), "telemetry.logs.level: is no word", "did you mean `error`?"),
        (
            with("https://bao.example:8200", "http://bao.example:8200"),
            "endpoints[0]: does not have the right form",
            "https",
        ),
        (with("/var/lib/openbao-kms/identity.jwt", "identity.jwt"), "jwt.file: is a relative path", "absolute path"),
        (pipeline("witness: { file: a.json }"), "witness.file: is a relative path", "absolute path"),
        (pipeline("witness: { file: /var/../a.json }"), "witness.file: contains `..`", "without it"),
        (
            pipeline("witness: { file: /var/lib/openbao-kms/identity.jwt }"),
            "witness.file: is another file of this configuration as well",
            "a file of its own",
        ),
        (
            pipeline("witness: { file: /run/openbao-kms/kms.sock }"),
            "witness.file: is another file of this configuration as well",
            "a file of its own",
        ),
        (pipeline("witness: {}"), "witness.file: is missing", ""),
        (with("https://bao.example:8200", "https://bao.example:99999"), "endpoints[0]: has a port", "1 to 65535"),
        (
            with("mount: transit", "mount: transit\n        redirectHosts: [ \"bao-1:8200\", \"bao-2:0\" ]"),
            "redirectHosts[1]: has a port",
            "1 to 65535",
        ),
        (
            with("mount: transit", "mount: transit\n        namespace: kms/.."),
            "namespace: is not in its canonical spelling",
            "canonical",
        ),
        (
            with("providerName: openbao-kms-workload-a", "providerName: \"a b\""),
            "providerName: does not have the right form",
            "A-Za-z0-9._-",
        ),
        (
            pipeline("rotation: { activationDelay: 30s, metadataInterval: 30s }"),
            "activationDelay: is shorter than twice",
            "at least twice",
        ),
        (pipeline("rotation: { activationDelay: 30 }"), "activationDelay: has the wrong type", "whole seconds"),
        (pipeline("rotation: { activationDelay: 90500ms }"), "activationDelay: does not have", "whole seconds"),
        (pipeline("rotation: { metadataInterval: \"2 fortnights\" }"), "metadataInterval: does not have", "2500ms"),
        (pipeline("layers: { retry: { maxAttempts: 0 } }"), "layers.retry.maxAttempts", "docs/configuration.md"),
        (pipeline("layers: { retry: { maxAttempts: \"3\" } }"), "maxAttempts: has the wrong type", "without quotes"),
        (pipeline("layers: { retry: { enabled: \"no\" } }"), "enabled: has the wrong type", "true or false"),
        (pipeline("layers: { limits: { maxCalls: 8192.5 } }"), "maxCalls: has the wrong type", ""),
        (pipeline("layers: 7"), "layers: has the wrong type", "`trace`, `limits`"),
        (pipeline("layers:"), "layers: has the wrong type", "take the key out"),
        (
            with("group: openbao-kms-socket", "allowPeers: { uids: [ 4294967296 ] }"),
            "uids[0]: must be <=4294967295",
            "docs/configuration.md",
        ),
        (top("admin: 5"), "admin: has the wrong type", "`listen`, `tls`"),
        (top("admin: { listen: \"localhost:1\" }"), "admin.listen: does not have", "127.0.0.1:8081"),
        (top("admin: { listen: \"999.0.0.1:99999\" }"), "admin.listen: does not have", "127.0.0.1:8081"),
        (top("admin: { listen: \"127.0.0.1:1\", tls: { certFile: /a, keyFile: /b } }"), "clientCaFile: is missing", ""),
        (
            top("admin: { listen: \"127.0.0.1:1\", tls: { certFile: /a, keyFile: b, clientCaFile: /c } }"),
            "admin.tls.keyFile: is a relative path",
            "absolute",
        ),
        (
            top("admin: { listen: \"127.0.0.1:1\", tls: { certFile: \"\", keyFile: /b, clientCaFile: /c } }"),
            "admin.tls.certFile: length must be >=1",
            "",
        ),
        (top("admin: { listen: \"0.0.0.0:8081\" }"), "admin.listen: is not loopback", "admin.tls"),
        (top("telemetry: { traces: { otlp: { endpoint: x } } }"), "otlp.endpoint: does not have the right form", ""),
        (
            top("telemetry: { traces: { otlp: { endpoint: \"https://c:1\", caFile: ca.pem } } }"),
            "otlp.caFile: is a relative path",
            "absolute",
        ),
        (
            top("telemetry: { traces: { otlp: { endpoint: \"https://c:1\", timeout: 0s } } }"),
            "otlp.timeout: is zero",
            "5s",
        ),
        (
            with("auth: { jwt: {", "auth: { cert: {}, jwt: {")
                .replace("cert: {}", "cert: { certFile: /a, keyFile: /b }"),
            "pipelines[workload-a].auth: is a choice of one",
            "`jwt`, `cert`",
        ),
        (with("auth: { jwt:", "auth: { jtw:"), "auth.jtw: is no key", "did you mean `jwt`?"),
        (with("pipelines:\n  - name: workload-a", "pipelines:\n  workload-a:"), "pipelines: is not a list", "- name"),
        (pipeline("layers: { deadline: { max: 1s } }"), "deadline.default: is longer than max", "raise max"),
        (pipeline("layers: { deadline: { default: 0s } }"), "deadline.default: is zero", "2500ms"),
        (pipeline("rotation: { metadataInterval: 0s }"), "metadataInterval: is zero", "30s"),
        (pipeline("health: { deepProbeInterval: 0s }"), "deepProbeInterval: is zero", "5m"),
        (with("/run/openbao-kms/kms.sock", "/run/../kms.sock"), "socket.path: contains `..`", "without it"),
        (
            with("/run/openbao-kms/kms.sock", &format!("/run/{}", "\u{fc}".repeat(48))),
            "socket.path: is longer than 100 bytes",
            "more than one byte",
        ),
    ];
    let mut wrong = Vec::new();
    for (text, place, help) in cases {
        let said: Vec<_> = findings(&text).iter().map(ToString::to_string).collect();
        if said.len() != 1 || !said[0].contains(place) || !said[0].contains(help) {
            wrong.push(format!("{place}, {help}: {said:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_unknown_key_is_sent_where_it_belongs() {
    let cases = [
        (pipeline("layers: { limits: { maxcalls: 9 } }"), "did you mean `maxCalls`?"),
        (with("configVersion", "configversion"), "did you mean `configVersion`?"),
        (pipeline("rotation: { tolerance: 1m }"), "`tolerance` belongs in pipelines[].health"),
        (pipeline("listen: 127.0.0.1:1"), "`listen` belongs in admin"),
        (pipeline("zebrafish: 1"), "`config schema` lists every key"),
        (top("\"a/b~c\": 1"), "`config schema` lists every key"),
    ];
    for (text, help) in cases {
        let said: Vec<_> = findings(&text).iter().map(ToString::to_string).collect();
        assert!(said.len() == 1 && said[0].contains(help), "{help}: {said:#?}");
    }
    let odd = findings(&top("\"a/b~c\": 1"));
    assert_eq!((odd[0].path.as_str(), odd[0].line, odd[0].column), ("a/b~c", 18, 1));
}

#[test]
fn secrets_stay_out_wherever_they_were_put() {
    let cases = [
        with("role: kms", "role: [ hunter2 ]"),
        with("mount: transit", "mount: transit\n        token: hunter2"),
        with("mount: transit", "mount: transit\n        tokens: { a: hunter2, b: [ hunter2 ] }"),
        with("mount: transit", "mount: [ hunter2 ]"),
        with("mount: transit", "mount: { token: hunter2 }"),
        with("auth: { jwt: { role: kms, file: /var/lib/openbao-kms/identity.jwt } }", "auth: hunter2"),
        with("auth: {", "auth: { token: hunter2,"),
        with("auth: {", "auth: { cert: { password: hunter2 },"),
        with("https://bao.example:8200", "https://user:hunter2@bao.example:8200"),
        with("https://bao.example:8200", "https://bao.example:8200/?token=hunter2"),
        with("- name: workload-a", "- name: workload-a\n    fingerprint: hunter2"),
        with("    identity:\n", "    identity:\n      fingerprint: hunter2\n"),
        pipeline("layers: hunter2"),
        top("token: hunter2"),
        top("admin: hunter2"),
        top("telemetry: [ hunter2 ]"),
        top("token: \"hunter2"),
        top("token: hunter2: hunter2"),
    ];
    for text in cases {
        let found = findings(&text);
        let printed: String = found.iter().map(ToString::to_string).collect();
        let json = serde_json::to_string(&found).expect("JSON");
        assert!(!printed.contains("hunter2") && !json.contains("hunter2"), "{printed}\n{json}");
    }
}

#[test]
fn no_step_hides_the_findings_of_another() {
    let text = with("socket: {", "socket: { mode: 7,")
        .replace("role: kms", "role: [ 1 ]")
        .replace("group:", "gruop:")
        .replace("    identity:", "    rotation: { activationDelay: 30s, tolerance: 1m }\n    identity:")
        .replace("configVersion: v1\n", "")
        + "admin: { listen: \"0.0.0.0:1\" }\n";
    let text = text.replace("    identity:", "    layers: { deadline: { max: 1s } }\n    identity:");
    let second = "  - name: workload-a\n    socket: { path: /run/../b.sock }\nadmin:";
    let found = findings(&text.replace("admin:", second));
    for path in [
        "configVersion",
        "pipelines[workload-a].socket.mode",
        "pipelines[workload-a].socket.gruop",
        "pipelines[workload-a].auth.jwt.role",
        "pipelines[workload-a].rotation.activationDelay",
        "pipelines[workload-a].rotation.tolerance",
        "pipelines[workload-a].layers.deadline.default",
        "pipelines[workload-a].name",
        "pipelines[1].socket.path",
        "pipelines[1].auth",
        "admin.listen",
    ] {
        assert_eq!(found.iter().filter(|finding| finding.path == path).count(), 1, "{path}: {found:#?}");
    }
    assert!(found.is_sorted_by_key(|finding| finding.line), "in the order of the file: {found:#?}");
}

#[test]
fn a_misspelt_partner_makes_no_second_finding() {
    let found = findings(&pipeline("rotation: { activationDelay: 45s, metadataIntervall: 20s }"));
    assert_eq!(found.len(), 1, "{found:#?}");
    let found = findings(&pipeline("rotation: { activationDelay: 45s, metadataInterval: 20 s }"));
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[test]
fn pipelines_do_not_share_a_name_a_socket_or_a_witness() {
    let two = std::fs::read_to_string(example("two-pipelines.yaml")).expect("the example");
    let found = findings(&two.replace("name: workload-b", "name: workload-a"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].line), ("pipelines[workload-a].name", 21), "{}", found[0]);
    assert!(found[0].message.contains("stands twice"), "{}", found[0]);
    let found = findings(&two.replace("workload-b.sock", "workload-a.sock"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].line), ("pipelines[workload-b].socket.path", 22));
    assert!(found[0].message.contains("socket of another pipeline"), "{}", found[0]);
    let found = findings(&two.replace("workload-b.witness", "workload-a.witness"));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].path.as_str(), found[0].line), ("pipelines[workload-b].witness.file", 37));
    assert!(found[0].message.contains("another file of this configuration"), "{}", found[0]);
}

#[test]
fn a_socket_path_of_a_hundred_bytes_is_short_enough() {
    let path = format!("/run/{}", "x".repeat(95));
    load_text(&with("/run/openbao-kms/kms.sock", &path)).expect("100 bytes");
    let said = load_text(&with("/run/openbao-kms/kms.sock", &format!("{path}x"))).expect_err("101 bytes");
    assert!(said.contains("socket.path"), "{said}");
}

#[test]
fn whole_numbers_may_be_written_as_floats() {
    let config = load_text(&pipeline("layers: { admit: { maxInFlight: 8.0 } }")).expect("it loads");
    assert_eq!(config.pipelines[0].layers.admit.max_in_flight, 8);
}

#[test]
fn what_is_no_configuration_file_is_refused_at_once() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let dir = tempfile::tempdir().expect("a folder");
    let said = |name: &str| {
        let findings = bao_kms_provider::config::load(&[dir.path().join(name)]).expect_err(name);
        findings.to_string()
    };
    mknodat(CWD, dir.path().join("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    assert!(said("pipe").contains("is not a regular file"), "{}", said("pipe"));
    assert!(said("").contains("is not a regular file"), "{}", said(""));
    assert!(said("none").contains("cannot be read") && said("none").contains("--config"), "{}", said("none"));
    std::fs::write(dir.path().join("large"), minimal() + "#" + &"x".repeat(1 << 20)).expect("written");
    assert!(said("large").contains("is larger than 1 MiB"), "{}", said("large"));
    std::fs::write(dir.path().join("list"), "- 1\n").expect("written");
    assert!(said("list").contains("is not a map of keys"), "{}", said("list"));
}
