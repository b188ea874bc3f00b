//! `docs/install.md` by the page alone: its blocks are executed in order in one shell against real components, with those
//! of `docs/rotation.md` and `docs/recovery.md` between the installation and the way back. Blocks for a running systemd go
//! through stand-ins that read the installed units on a staged tree.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::apiserver::{ApiServer, TOKEN};
use crate::support::etcd::Etcd;
use crate::support::openbao::OpenBao;
use crate::support::process::Process;
use crate::support::wait::until;
use crate::support::{component, free_port};

/// Absolute paths of the page, which a test may not touch, in the order in which they are replaced.
const STAGED: &[&str] = &[
    "/etc/bao-kms-provider",
    "/etc/kubernetes",
    "/etc/systemd",
    "/var/lib/openbao-kms",
    "/run/openbao-kms",
    "/usr/bin/bao-kms-provider",
    "/usr/lib/systemd",
    "/usr/lib/sysusers.d",
    "/usr/lib/tmpfiles.d",
];

/// What takes a running systemd or another user, as scripts that work on `$STAGE`.
const STAND_INS: &[(&str, &str)] = &[
    ("chown", "exit 0"),
    // Every host of the page is this one.
    ("ssh", "while [ \"${1#root@}\" = \"$1\" ]; do shift; done; shift; exec sh -c \"$*\""),
    ("systemd-sysusers", "mkdir -p \"$STAGE/etc\"; exec /usr/bin/systemd-sysusers --root=\"$STAGE\" \"$@\""),
    (
        "systemd-tmpfiles",
        "[ \"$1\" = --create ]; grep '^d ' \"$STAGE/usr/lib/tmpfiles.d/$2\" | while read -r kind path mode user group rest; do
            grep -q \"^$user:\" \"$STAGE/etc/passwd\" /etc/passwd && grep -q \"^$group:\" \"$STAGE/etc/group\"
            mkdir -p \"$STAGE$path\" && chmod \"$mode\" \"$STAGE$path\"
        done",
    ),
    (
        "systemctl",
        "case \"$1 ${2-}\" in
            'daemon-reload ') ;;
            'enable --now')
                # A timer's first run is what it starts.
                case $3 in *.timer)
                    exec $(sed -n 's/^ExecStart=//p' \"$STAGE/etc/systemd/system/${3%.timer}.service\") ;;
                esac
                unit=$STAGE/usr/lib/systemd/system/$3
                command=$(sed -n 's/^ExecStart=//p' \"$unit\" | sed \"s#/usr/bin/bao#$STAGE&#; s#/etc/bao#$STAGE&#\")
                export STATE_DIRECTORY=\"$STAGE/var/lib/$(sed -n 's/^StateDirectory=//p' \"$unit\")\"
                setsid $command > \"$STAGE/$3.log\" 2>&1 < /dev/null &
                echo $! > \"$STAGE/$3.pid\"
                # As systemd does for Type=notify: back when the service is ready.
                until grep -q socket_ready \"$STAGE/$3.log\"; do kill -0 $!; sleep 0.1; done ;;
            'disable --now')
                pid=$(cat \"$STAGE/$3.pid\"); kill \"$pid\"
                while kill -0 \"$pid\" 2> /dev/null; do sleep 0.1; done; rm \"$STAGE/$3.pid\" ;;
            'restart bao-kms-provider.service') shift; systemctl disable --now \"$1\"; systemctl enable --now \"$1\" ;;
            *) echo \"systemctl $*: not known here\" >&2; exit 1 ;;
        esac",
    ),
];

/// A fenced block of shell: its tag, its page and first line there, its text.
struct Block {
    tag: String,
    place: String,
    text: String,
}

/// Where the page of the installation turns round.
const WAY_BACK: &str = "## The way back\n";

/// The blocks of every page that is executed, in the order in which an operator meets them.
fn story() -> Vec<Block> {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).expect("a page")
    };
    let install = read("install.md");
    let (there, back) = install.split_once(WAY_BACK).expect("the page has a way back");
    let mut story = blocks("install.md", 0, there);
    for page in ["rotation.md", "recovery.md"] {
        story.extend(blocks(page, 0, &read(page)));
    }
    story.extend(blocks("install.md", there.lines().count() + 1, back));
    story
}

/// The blocks of a part of a page, so many lines below its beginning.
fn blocks(page: &str, above: usize, text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        match &mut open {
            None if line.starts_with("```") => {
                let place = format!("{page} line {}", above + at + 2);
                open = Some(Block { tag: line[3..].to_owned(), place, text: String::new() });
            }
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => writeln!(block.text, "{line}").expect("a String takes it"),
            None => {}
        }
    }
    assert!(open.is_none(), "a block of the page has no end");
    blocks
}

/// The background service ends with the test, whatever the page came to.
struct Service(PathBuf);

impl Drop for Service {
    fn drop(&mut self) {
        let Ok(pid) = std::fs::read_to_string(&self.0) else { return };
        let _ = Command::new("kill").arg(pid.trim()).status();
    }
}

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("ours");
}

#[tokio::test]
async fn the_page_leads_from_a_fresh_openbao_to_encrypted_secrets_and_back() {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = story();

    let folder = tempfile::tempdir().expect("a folder");
    let stage = folder.path().join("stage");
    for path in ["etc/kubernetes/encryption", "etc/systemd/system", "home", "checkout", "stand-ins", "usr/bin"] {
        std::fs::create_dir_all(stage.join(path)).expect("a folder");
    }
    for (name, body) in STAND_INS {
        executable(&stage.join("stand-ins").join(name), &format!("#!/bin/bash\nset -eu\n{body}\n"));
    }
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bao-kms-provider"), stage.join("checkout/bao-kms-provider"))
        .expect("a link");
    std::os::unix::fs::symlink(checkout.join("deploy"), stage.join("checkout/deploy")).expect("a link");

    // A cluster as it is before: two API servers that store in clear, and one Secret.
    let bao = OpenBao::dev(folder.path()).await;
    let etcd = Etcd::start(folder.path()).await;
    let encryption = stage.join("etc/kubernetes/encryption/config.yaml");
    let clear = "{\"apiVersion\":\"apiserver.config.k8s.io/v1\",\"kind\":\"EncryptionConfiguration\",\
                 \"resources\":[{\"resources\":[\"secrets\"],\"providers\":[{\"identity\":{}}]}]}";
    std::fs::write(&encryption, clear).expect("a file");
    let first = ApiServer::start(folder.path(), &etcd, &encryption).await;
    let second = ApiServer::start(folder.path(), &etcd, &encryption).await;
    first.store("from-before", "kept").await;
    let kubeconfig = folder.path().join("kubeconfig");
    let cluster = format!("{{\"server\":\"{}\",\"insecure-skip-tls-verify\":true}}", first.url);
    let text = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Config\",\"current-context\":\"c\",\
         \"clusters\":[{{\"name\":\"c\",\"cluster\":{cluster}}}],\
         \"users\":[{{\"name\":\"c\",\"user\":{{\"token\":\"{TOKEN}\"}}}}],\
         \"contexts\":[{{\"name\":\"c\",\"context\":{{\"cluster\":\"c\",\"user\":\"c\"}}}}]}}"
    );
    std::fs::write(&kubeconfig, text).expect("a file");

    let apiservers = format!("{} {}", first.url, second.url);
    let given = [
        ("BAO_ADDR", bao.url.clone()),
        ("BAO_CACERT", bao.ca.display().to_string()),
        ("BAO_TOKEN", bao.root.clone()),
        ("KUBECONFIG", kubeconfig.display().to_string()),
        ("APISERVERS", apiservers),
        ("ETCDCTL_ENDPOINTS", etcd.url.clone()),
    ];
    let admin = format!("127.0.0.1:{}", free_port());
    let group = Command::new("id").arg("-gn").output().expect("id").stdout;
    let group = String::from_utf8(group).expect("a name");
    let mut script = "set -eu\n".to_owned();
    let mut executed = 0;
    for block in &blocks {
        match block.tag.as_str() {
            "sh env" => {
                for name in block.text.lines().filter_map(|line| line.strip_prefix("export ")?.split('=').next()) {
                    // The test's etcd has no TLS, so that nothing stands in for its three files.
                    let tls = name.starts_with("ETCDCTL_") && name != "ETCDCTL_ENDPOINTS";
                    assert!(tls || given.iter().any(|(given, _)| *given == name), "the test does not give {name}");
                }
            }
            "sh run" | "sh systemd" => {
                let mut text = block.text.clone();
                for path in STAGED {
                    text = text.replace(path, &format!("{}{path}", stage.display()));
                }
                let text = text.replace("127.0.0.1:8081", &admin);
                // The user and group of the service exist on the staged tree only.
                let text = text.replace("group: openbao-kms-socket", &format!("group: {}", group.trim()));
                writeln!(script, "echo '## at {}'\n{text}", block.place).expect("a String takes it");
                executed += 1;
            }
            other => assert_eq!(other, "yaml", "{}: a block with a tag that the test does not know", block.place),
        }
    }
    assert!(executed > 30, "the pages have their steps as blocks");

    let path =
        [stage.join("stand-ins"), component("bao").parent().expect("a folder").to_owned(), stage.join("usr/bin")];
    let path: Vec<_> = path.iter().map(|path| path.display().to_string()).collect();
    let mut command = Command::new("bash");
    command.args(["-c", &script]).current_dir(stage.join("checkout")).env_remove("BASH_ENV");
    command.env("PATH", format!("{}:{}", path.join(":"), std::env::var("PATH").expect("a PATH")));
    command.env("HOME", stage.join("home")).env("STAGE", &stage);
    command.envs(given);
    let service = Service(stage.join("bao-kms-provider.service.pid"));
    let mut shell = Process::start_with_environment("page", folder.path(), &mut command);
    let status = until("the end of the page", Duration::from_secs(1_500), async || {
        shell.ended().ok_or_else(|| shell.log().lines().last().unwrap_or("nothing yet").to_owned())
    })
    .await;
    let said = std::fs::read_to_string(stage.join("bao-kms-provider.service.log")).unwrap_or_default();
    assert!(status.success(), "the page ends with {status}; the program said:\n{said}");

    let log = shell.log();
    let step = |text: &str| {
        let at =
            blocks.iter().find(|block| block.text.contains(text)).unwrap_or_else(|| panic!("no block with {text}"));
        let start = log.split(&format!("## at {}\n", at.place)).nth(1).expect("it was executed");
        start.split("## at ").next().expect("a text").trim().to_owned()
    };
    assert_eq!(step("clear | wc -l").lines().last(), Some("0"), "nothing was left in clear");
    assert!(step("create secret generic kms-check").ends_with("hello-from-the-page"));
    assert!(step("--json | jq").starts_with("obk2."));
    assert_eq!(first.value("from-before").await.as_deref(), Ok("kept"));
    assert!(!etcd.secret("kms-check").await.starts_with(b"k8s:enc:"), "the way back ends in clear");
    drop(service);
}
