//! What no schema can say: values that must fit each other. Each section is checked for itself, so that a mistake in one
//! does not hide the mistakes in another.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::finding::Finding;
use super::origins::Origins;
use super::pointer::join;
use crate::key::identity::check_namespace;
use crate::units::Span;
use crate::{auth, backend, front, host, key, layers, telemetry};

/// What the path of a socket may measure, in bytes: the kernel takes 107, and the name is longer while it is made.
const MAX_SOCKET_PATH: usize = 100;

/// The bits of a mode that speak of everybody.
const EVERYBODY: u32 = 0o007;

/// Findings across fields. The document need not hold: a section that does not is left to the schema.
pub(super) fn check(document: &Value, origins: &Origins) -> Vec<Finding> {
    let mut checks = Checks { origins, findings: Vec::new(), files: HashSet::new() };
    let mut sockets = HashSet::new();
    let pipelines = document.get("pipelines").and_then(Value::as_array);
    for (at, pipeline) in pipelines.into_iter().flatten().enumerate() {
        let base = format!("/pipelines/{at}");
        if let Some(socket) = section(pipeline, "/socket") {
            checks.socket(&join(&base, "socket"), &socket, &mut sockets);
        }
        if let Some(auth) = section(pipeline, "/auth") {
            checks.auth(&join(&base, "auth"), &auth);
        }
        if let Some(backend) = section(pipeline, "/backend") {
            checks.backend(&join(&base, "backend"), &backend);
        }
        if let Some(rotation) = section(pipeline, "/rotation") {
            checks.rotation(&join(&base, "rotation"), &rotation);
        }
        if let Some(health) = section::<key::config::HealthPolicy>(pipeline, "/health") {
            checks.not_zero(&format!("{base}/health/deepProbeInterval"), health.deep_probe_interval, "5m");
        }
        if let Some(layers) = section(pipeline, "/layers") {
            checks.layers(&join(&base, "layers"), &layers);
        }
    }
    if let Some(admin) = section(document, "/admin") {
        checks.admin(&admin);
    }
    if let Some(otlp) = section::<telemetry::config::Otlp>(document, "/telemetry/traces/otlp") {
        checks.not_zero("/telemetry/traces/otlp/timeout", otlp.timeout, "5s");
        checks.absolute("/telemetry/traces/otlp/caFile", otlp.ca_file.as_deref());
    }
    // Last, because it is the one file that is written: it must be none of those that are only read.
    for (at, pipeline) in pipelines.into_iter().flatten().enumerate() {
        if let Some(witness) = section(pipeline, "/witness") {
            checks.witness(&format!("/pipelines/{at}/witness/file"), &witness);
        }
    }
    checks.findings
}

/// A section that can be read by itself.
fn section<T: DeserializeOwned>(document: &Value, pointer: &str) -> Option<T> {
    serde_json::from_value(document.pointer(pointer)?.clone()).ok()
}

struct Checks<'a> {
    origins: &'a Origins,
    findings: Vec<Finding>,
    /// Every file that the document has named so far.
    files: HashSet<PathBuf>,
}

// === impl Checks ===

impl Checks<'_> {
    fn find(&mut self, pointer: &str, message: &str, value: impl Into<Value>, help: &str) {
        self.findings.push(self.origins.finding(pointer, message.to_owned(), Some(&value.into()), help));
    }

    fn not_zero(&mut self, pointer: &str, span: Span, good: &str) {
        if span.get().is_zero() {
            self.find(pointer, "is zero", span.to_string(), &format!("{good} is a good value"));
        }
    }

    fn absolute(&mut self, pointer: &str, file: Option<&Path>) {
        self.files.extend(file.map(Path::to_owned));
        // What is empty has been refused by the schema.
        if let Some(file) = file.filter(|file| !file.is_absolute() && !file.as_os_str().is_empty()) {
            let help = "write an absolute path; a service has no folder of its own";
            self.find(pointer, "is a relative path", file.display().to_string(), help);
        }
    }

    fn port(&mut self, pointer: &str, address: &str) {
        let written = address.trim_end_matches('/').rsplit_once(':').map(|(_, port)| port);
        // What are no digits is the end of another thing; the schema knows what an address looks like.
        let written = written.filter(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
        if written.is_some_and(|port| !matches!(port.parse::<u16>(), Ok(1..))) {
            self.find(
                pointer,
                "has a port that does not exist",
                address,
                "ports go from 1 to 65535; OpenBao's is 8200",
            );
        }
    }

    fn socket(&mut self, base: &str, socket: &front::Config, others: &mut HashSet<PathBuf>) {
        let (pointer, path) = (join(base, "path"), &socket.path);
        let shown = path.display().to_string();
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let help = "the kernel takes no longer one; a letter outside ASCII is more than one byte";
            self.find(&pointer, "is longer than 100 bytes", shown.clone(), help);
        }
        self.straight(&pointer, path);
        self.files.insert(path.clone());
        if !others.insert(path.clone()) {
            let help = "give each pipeline a socket of its own";
            self.find(&pointer, "is the socket of another pipeline as well", shown, help);
        }
        // Whoever connects can have any stored seed opened; a mode for everybody needs a list of who that may be.
        let (mode, peers) = (socket.mode, &socket.allow_peers);
        if mode.bits() & EVERYBODY != 0 && peers.uids.is_empty() && peers.gids.is_empty() {
            let help =
                "end the mode in 0, as \"0660\" with a group does, or list who may connect under socket.allowPeers";
            let message = "is open to every user, and allowPeers is empty";
            self.find(&join(base, "mode"), message, mode.to_string(), help);
        }
    }

    fn auth(&mut self, base: &str, auth: &auth::Config) {
        for (key, file) in auth.chosen().files() {
            self.absolute(&format!("{base}/{}/{key}", auth.name()), Some(file));
        }
    }

    fn backend(&mut self, base: &str, backend: &backend::Config) {
        let backend::Config::Transit(transit) = backend;
        self.absolute(&format!("{base}/transit/tls/caFile"), transit.tls.ca_file.as_deref());
        for (key, addresses) in [("endpoints", &transit.endpoints), ("redirectHosts", &transit.redirect_hosts)] {
            for (at, address) in addresses.iter().enumerate() {
                self.port(&format!("{base}/transit/{key}/{at}"), address);
            }
        }
        if let Err(error) = check_namespace(&transit.namespace) {
            let message = "is not in its canonical spelling";
            self.find(&format!("{base}/transit/namespace"), message, transit.namespace.clone(), &error.to_string());
        }
    }

    fn rotation(&mut self, base: &str, rotation: &key::config::Rotation) {
        self.not_zero(&join(base, "metadataInterval"), rotation.metadata_interval, "30s");
        let delay = rotation.activation_delay;
        if delay.get() < rotation.metadata_interval.get() * 2 {
            let help = "let activationDelay be at least twice metadataInterval, so that every node knows a version before it is used";
            let message = "is shorter than twice metadataInterval";
            self.find(&join(base, "activationDelay"), message, delay.to_string(), help);
        }
    }

    /// Without `..`, so that two paths that differ lead to two files.
    fn straight(&mut self, pointer: &str, path: &Path) {
        if path.components().any(|part| matches!(part, Component::ParentDir)) {
            self.find(pointer, "contains `..`", path.display().to_string(), "write the path without it");
        }
    }

    fn witness(&mut self, pointer: &str, witness: &host::witness::Config) {
        let file = &witness.file;
        let taken = self.files.contains(file);
        self.absolute(pointer, Some(file));
        self.straight(pointer, file);
        if taken {
            let help = "give it a file of its own, such as the name of the pipeline with .witness.json behind it";
            self.find(pointer, "is another file of this configuration as well", file.display().to_string(), help);
        }
    }

    fn layers(&mut self, base: &str, layers: &layers::Config) {
        let deadline = &layers.deadline;
        let pointer = format!("{base}/deadline/default");
        self.not_zero(&format!("{base}/deadline/max"), deadline.max, "30s");
        self.not_zero(&pointer, deadline.unnamed, "2500ms");
        if deadline.unnamed > deadline.max {
            self.find(&pointer, "is longer than max", deadline.unnamed.to_string(), "lower default or raise max");
        }
    }

    fn admin(&mut self, admin: &host::admin::Config) {
        match &admin.tls {
            None if !admin.listen.ip().is_loopback() => {
                let help = "listen on 127.0.0.1, or add admin.tls with certFile, keyFile and clientCaFile";
                let message = "is not loopback, and there is no tls";
                self.find("/admin/listen", message, admin.listen.to_string(), help);
            }
            None => {}
            Some(tls) => {
                self.absolute("/admin/tls/certFile", Some(&tls.cert_file));
                self.absolute("/admin/tls/keyFile", Some(&tls.key_file));
                self.absolute("/admin/tls/clientCaFile", Some(&tls.client_ca_file));
            }
        }
    }
}
