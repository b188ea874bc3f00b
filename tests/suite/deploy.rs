//! What `deploy/` says about paths, users, ports and commands is what the program reads, writes and understands. Each
//! file is read as its consumer would read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Held against the program itself in `these_names_are_the_programs_the_examples_and_the_pages`.
const CONFIG: &str = "/etc/bao-kms-provider/config.yaml";
const RUN: &str = "/run/openbao-kms";
const STATE: &str = "/var/lib/openbao-kms";
const PROGRAM: &str = "/usr/bin/bao-kms-provider";

/// Section and key to the values in order, as systemd reads a unit: a key may come several times.
type Unit = BTreeMap<(String, String), Vec<String>>;

fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn unit(path: &str) -> Unit {
    let (mut unit, mut section) = (Unit::new(), String::new());
    for line in text(path).lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        } else {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{path}: {line}"));
            unit.entry((section.clone(), key.to_owned())).or_default().push(value.to_owned());
        }
    }
    unit
}

fn one<'a>(unit: &'a Unit, section: &str, key: &str) -> &'a str {
    match unit.get(&(section.to_owned(), key.to_owned())).map(Vec::as_slice) {
        Some([value]) => value,
        other => panic!("[{section}] {key}= should stand there once: {other:?}"),
    }
}

/// The lines of a sysusers.d or tmpfiles.d file, split into fields.
fn rows(path: &str) -> Vec<Vec<String>> {
    let text = text(path);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

fn pod() -> Value {
    serde_saphyr::from_str(&text("deploy/static-pod/bao-kms-provider.yaml")).expect("the manifest is YAML")
}

fn service() -> Unit {
    unit("deploy/systemd/bao-kms-provider.service")
}

/// A configuration of `config-examples/`, or the one that a page writes to its file.
fn config(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("the configuration is YAML")
}

fn written_by_the_page() -> Value {
    let page = text("docs/install.md");
    let rest = page.split_once(&format!("cat > {CONFIG} <<YAML\n")).expect("the page writes the file").1;
    config(&rest.split_once("\nYAML").expect("an end").0.replace("$BAO_ADDR", "https://bao-0.example.org:8200"))
}

#[test]
fn these_names_are_the_programs_the_examples_and_the_pages() {
    let mut help = std::process::Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
    let help = help.args(["serve", "--help"]).output().expect("it runs").stdout;
    let help = String::from_utf8(help).expect("text");
    assert!(help.contains(&format!("[default: {CONFIG}]")), "{help}");

    let (socket, service) = (unit("deploy/systemd/bao-kms-provider.socket"), service());
    for file in [config(&text("config-examples/minimal.yaml")), written_by_the_page()] {
        let pipeline = &file["pipelines"][0];
        assert_eq!(pipeline["socket"]["path"], one(&socket, "Socket", "ListenStream"));
        assert_eq!(pipeline["socket"]["group"], one(&socket, "Socket", "SocketGroup"));
        assert_eq!(pipeline["name"], one(&socket, "Socket", "FileDescriptorName"));
        let jwt = pipeline["auth"]["jwt"]["file"].as_str().expect("login with a JWT");
        assert_eq!(
            Path::new(jwt).parent(),
            Some(Path::new("/var/lib").join(one(&service, "Service", "StateDirectory")).as_path())
        );
    }
    for name in ["full", "certificate", "two-pipelines", "base"] {
        for pipeline in config(&text(&format!("config-examples/{name}.yaml")))["pipelines"].as_array().expect("a list")
        {
            let path = pipeline["socket"]["path"].as_str().expect("a path");
            assert_eq!(Path::new(path).parent(), Some(Path::new(RUN)), "{name}: {path}");
        }
    }
}

#[test]
fn the_page_puts_what_deploy_holds_where_deploy_says() {
    let page = text("docs/install.md");
    for (from, to) in [
        ("bao-kms-provider", PROGRAM),
        ("deploy/systemd/bao-kms-provider.service", "/usr/lib/systemd/system/bao-kms-provider.service"),
        ("deploy/systemd/bao-kms-provider.sysusers.conf", "/usr/lib/sysusers.d/bao-kms-provider.conf"),
        ("deploy/systemd/bao-kms-provider.tmpfiles.conf", "/usr/lib/tmpfiles.d/bao-kms-provider.conf"),
    ] {
        let line = |line: &&str| line.starts_with("install -D") && line.ends_with(&format!(" {from} {to}"));
        assert!(page.lines().any(|text| line(&text)), "{from} to {to}");
        assert!(to == PROGRAM || text(from).contains(to) || from.ends_with(".service"), "{from} says where it goes");
    }
    let user = service();
    assert!(page.contains(&format!("chown {}: {STATE}/", one(&user, "Service", "User"))), "the credential's owner");
    // A checkout is built as the image is.
    let image = text("deploy/container/Containerfile");
    let build = image.lines().find_map(|line| line.strip_prefix("RUN cargo build")).expect("a build");
    assert!(page.contains(&format!("`cargo build{build}`")), "cargo build{build}");
}

#[test]
fn the_images_build_is_sent_what_it_copies_and_nothing_else() {
    let rules = text(".dockerignore");
    let mut rules = rules.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "first nothing");
    let sent: std::collections::BTreeSet<_> =
        rules.map(|rule| rule.strip_prefix('!').expect("then only what is needed")).collect();
    let file = text("deploy/container/Containerfile");
    let copied = file.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let copied = copied.flat_map(|line| line.rsplit_once(' ').expect("a target").0.split(' ')).collect();
    assert_eq!(sent, copied);
}

#[test]
fn the_service_starts_the_program_on_the_documented_file_and_reports_readiness() {
    let unit = service();
    assert_eq!(one(&unit, "Service", "ExecStart"), format!("{PROGRAM} serve --config {CONFIG}"));
    assert_eq!(one(&unit, "Service", "ExecReload"), "/bin/kill -HUP $MAINPID");
    assert_eq!(one(&unit, "Service", "Type"), "notify");
    assert_eq!(one(&unit, "Service", "NotifyAccess"), "main");
    assert!(unit.contains_key(&("Service".to_owned(), "WatchdogSec".to_owned())));
}

#[test]
fn the_service_comes_back_for_ever_and_stands_before_the_kubelet() {
    let unit = service();
    assert_eq!(one(&unit, "Service", "Restart"), "always");
    assert_eq!(one(&unit, "Unit", "StartLimitIntervalSec"), "0");
    assert_eq!(one(&unit, "Unit", "Before"), "kubelet.service");
    let waits = unit.keys().filter(|(_, key)| ["Requires", "Wants", "BindsTo", "Requisite"].contains(&key.as_str()));
    assert_eq!(waits.count(), 0, "it starts whatever else is there: the network comes later");
}

#[test]
fn a_stop_outlasts_the_longest_call() {
    let stop = |text: &str| text.trim_end_matches('s').parse::<u64>().expect("whole seconds");
    let longest = bao_kms_provider::layers::Config::default().deadline.max.get().as_secs();
    assert!(stop(one(&service(), "Service", "TimeoutStopSec")) > longest);
    assert!(pod()["spec"]["terminationGracePeriodSeconds"].as_u64().expect("a number") > longest);
}

#[test]
fn the_service_may_write_where_the_program_writes_and_nowhere_else() {
    let unit = service();
    assert_eq!(one(&unit, "Service", "ProtectSystem"), "strict");
    assert_eq!(one(&unit, "Service", "ReadWritePaths"), RUN);
    assert_eq!(format!("/var/lib/{}", one(&unit, "Service", "StateDirectory")), STATE);
    assert_eq!(one(&unit, "Service", "CapabilityBoundingSet"), "");
    assert_eq!(one(&unit, "Service", "NoNewPrivileges"), "yes");
    for family in ["AF_UNIX", "AF_INET", "AF_INET6"] {
        assert!(one(&unit, "Service", "RestrictAddressFamilies").split(' ').any(|word| word == family), "{family}");
    }
}

/// systemd removes a `RuntimeDirectory=` when the service stops and makes another at its start: an API server in a container
/// that has mounted the first one would look into an empty directory for ever.
#[test]
fn the_directory_of_the_socket_outlives_the_service() {
    let unit = service();
    let made = unit.keys().filter(|(_, key)| key.starts_with("RuntimeDirectory"));
    assert_eq!(made.collect::<Vec<_>>(), Vec::<&(String, String)>::new(), "tmpfiles.d makes it, once");
    let temporary = unit.keys().filter(|(_, key)| ["TemporaryFileSystem", "BindPaths"].contains(&key.as_str()));
    assert_eq!(temporary.count(), 0, "nothing of the service's own lies over {RUN}");
}

#[test]
fn the_socket_unit_is_the_documented_socket_of_the_documented_pipeline() {
    let unit = unit("deploy/systemd/bao-kms-provider.socket");
    assert_eq!(one(&unit, "Socket", "ListenStream"), format!("{RUN}/kms.sock"));
    assert_eq!(one(&unit, "Socket", "FileDescriptorName"), "workload-a");
    assert_eq!(one(&unit, "Socket", "Service"), "bao-kms-provider.service");
    assert_eq!(one(&unit, "Socket", "SocketMode"), "0660");
    assert_eq!(one(&unit, "Socket", "RemoveOnStop"), "no");
    let service = service();
    assert_eq!(one(&unit, "Socket", "SocketUser"), one(&service, "Service", "User"));
    assert_eq!(one(&unit, "Socket", "SocketGroup"), one(&service, "Service", "SupplementaryGroups"));
}

#[test]
fn users_and_directories_are_those_of_the_service() {
    let service = service();
    let (user, group) = (one(&service, "Service", "User"), one(&service, "Service", "Group"));
    let peers = one(&service, "Service", "SupplementaryGroups");
    let users = rows("deploy/systemd/bao-kms-provider.sysusers.conf");
    assert!(users.iter().any(|row| row[0] == "u" && row[1] == user));
    assert!(users.iter().any(|row| row[0] == "g" && row[1] == peers));
    assert!(users.iter().any(|row| row[0] == "m" && row[1] == user && row[2] == peers));
    // systemd-sysusers gives a user a group of its own name.
    assert_eq!(user, group);

    let config = Path::new(CONFIG).parent().and_then(Path::to_str).expect("a directory");
    let expected = [(RUN, "0750", user, peers), (config, "0750", "root", group), (STATE, "0700", user, group)];
    let directories = rows("deploy/systemd/bao-kms-provider.tmpfiles.conf");
    for (path, mode, user, group) in expected {
        let row = directories.iter().find(|row| row[1] == path).unwrap_or_else(|| panic!("no row for {path}"));
        assert_eq!(row[0], "d", "{path}: made when absent, never emptied");
        assert_eq!((row[2].as_str(), row[3].as_str(), row[4].as_str()), (mode, user, group), "{path}");
    }
    assert_eq!(one(&service, "Service", "StateDirectoryMode"), "0700");
}

#[test]
fn the_static_pod_needs_nothing_of_the_cluster_it_protects() {
    let pod = pod();
    let spec = &pod["spec"];
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["dnsPolicy"], "Default");
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert!(spec.get("serviceAccountName").is_none());
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Never");
    assert!(container.get("env").is_none() && container.get("envFrom").is_none());
    for volume in spec["volumes"].as_array().expect("volumes") {
        let kind = volume["hostPath"]["type"].as_str().expect("only hostPath volumes");
        assert!(
            ["Directory", "DirectoryOrCreate"].contains(&kind),
            "a directory, as a file keeps its old inode: {volume}"
        );
        assert_eq!(volume.as_object().expect("a map").len(), 2, "{volume}");
    }
}

#[test]
fn the_static_pod_runs_the_same_command_on_the_same_directories() {
    let pod = pod();
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    let words: Vec<_> = [&container["command"], &container["args"]]
        .into_iter()
        .flat_map(|words| words.as_array().expect("words"))
        .map(|word| word.as_str().expect("a word"))
        .collect();
    assert_eq!(words.join(" "), one(&service(), "Service", "ExecStart"));

    let config = Path::new(CONFIG).parent().and_then(Path::to_str).expect("a directory");
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    for (path, read_only) in [(config, true), (STATE, false), (RUN, false)] {
        let mount =
            mounts.iter().find(|mount| mount["mountPath"] == path).unwrap_or_else(|| panic!("{path} is not mounted"));
        assert_eq!(mount.get("readOnly").is_some_and(|flag| flag == true), read_only, "{path}");
        let volumes = spec["volumes"].as_array().expect("volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("the mount's volume");
        assert_eq!(volume["hostPath"]["path"], path, "the same path on both sides, so that the file means the same");
    }
    assert_eq!(container["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
}

#[test]
fn the_kubelet_asks_for_life_on_loopback_and_never_for_readiness() {
    let pod = pod();
    let container = &pod["spec"]["containers"][0];
    let page = written_by_the_page();
    let admin: std::net::SocketAddr = page["admin"]["listen"].as_str().expect("admin").parse().expect("an address");
    for probe in ["livenessProbe", "startupProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["path"], "/livez", "{probe}");
        assert_eq!(get["host"], admin.ip().to_string(), "{probe}");
        assert_eq!(get["port"], admin.port(), "{probe}");
    }
    assert!(container.get("readinessProbe").is_none());
}

#[test]
fn the_image_holds_the_packaged_binary_and_the_build_sees_every_file_it_needs() {
    let file = text("deploy/container/Containerfile");
    assert!(file.contains("--profile dist --no-default-features"));
    let last = file.rsplit("\nFROM ").next().expect("a last stage");
    assert!(last.starts_with("scratch\n"), "nothing but the program in the image");
    assert!(last.contains(&format!("ENTRYPOINT [\"{PROGRAM}\"]")));
    assert!(last.contains(&format!("CMD [\"serve\", \"--config\", \"{CONFIG}\"]")));
    let copied: Vec<_> = file
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|line| !line.starts_with("--from"))
        .flat_map(|line| line.split(' ').map(|word| word.trim_start_matches("./").to_owned()))
        .collect();
    for needed in included(&checkout().join("src")) {
        let top = needed.components().next().expect("a path").as_os_str().to_string_lossy().into_owned();
        assert!(copied.contains(&top), "{} is compiled in, but the image's build does not see it", needed.display());
    }
}

/// The files below the checkout that the sources name in `include_str!` and `include_bytes!`.
fn included(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() {
            found.extend(included(&entry));
        } else if entry.to_str().is_some_and(|path| path.ends_with(".rs") && !path.ends_with("tests.rs")) {
            let source = std::fs::read_to_string(&entry).expect("a source");
            let shipped = source.split("#[cfg(test)]").next().unwrap_or_default();
            for call in ["include_str!(\"", "include_bytes!(\""] {
                for rest in shipped.split(call).skip(1) {
                    let named = rest.split('"').next().unwrap_or_default();
                    let path = entry.parent().expect("a folder").join(named);
                    let path = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    found.push(path.strip_prefix(checkout()).expect("inside the checkout").to_owned());
                }
            }
        }
    }
    found
}
