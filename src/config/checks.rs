//! What no schema can say: values that must fit each other.

use std::collections::HashSet;

use super::finding::Finding;
use super::load::{Origins, is_loopback};
use super::{Config, Pipeline};
use crate::key::identity::check_namespace;

/// The bits of a mode that speak of everybody.
const EVERYBODY: u32 = 0o007;

/// Findings across fields.
pub(super) fn check(config: &Config, origins: &Origins) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut sockets = HashSet::new();
    for (at, pipeline) in config.pipelines.iter().enumerate() {
        let base = format!("/pipelines/{at}");
        if !sockets.insert(&pipeline.socket.path) {
            let value = pipeline.socket.path.display().to_string().into();
            let message = "is the socket of another pipeline as well".to_owned();
            findings.push(origins.finding(
                &format!("{base}/socket/path"),
                message,
                Some(&value),
                "give each pipeline a socket of its own",
            ));
        }
        check_pipeline(&base, pipeline, origins, &mut findings);
    }
    if let Some(admin) = config.admin.as_ref().filter(|admin| admin.tls.is_none() && !is_loopback(&admin.listen)) {
        let value = admin.listen.to_string().into();
        let message = "is not loopback, and there is no tls".to_owned();
        let help = "listen on 127.0.0.1, or add admin.tls with certFile, keyFile and clientCaFile";
        findings.push(origins.finding("/admin/listen", message, Some(&value), help));
    }
    findings
}

fn check_pipeline(base: &str, pipeline: &Pipeline, origins: &Origins, findings: &mut Vec<Finding>) {
    let crate::backend::Config::Transit(transit) = &pipeline.backend;
    let mut find = |key: &str, message: &str, value: serde_json::Value, help: &str| {
        findings.push(origins.finding(&format!("{base}/{key}"), message.to_owned(), Some(&value), help));
    };
    if let Err(error) = check_namespace(&transit.namespace) {
        find(
            "backend/transit/namespace",
            "is not in its canonical spelling",
            transit.namespace.clone().into(),
            &error.to_string(),
        );
    }
    let rotation = &pipeline.rotation;
    if rotation.activation_delay.get() < rotation.metadata_interval.get() * 2 {
        let help = "let activationDelay be at least twice metadataInterval, so that every node knows a version before it is used";
        find(
            "rotation/activationDelay",
            "is shorter than twice metadataInterval",
            rotation.activation_delay.to_string().into(),
            help,
        );
    }
    if rotation.metadata_interval.get().is_zero() {
        find("rotation/metadataInterval", "is zero", "0s".into(), "30s is a good value");
    }
    let deadline = &pipeline.layers.deadline;
    if deadline.unnamed > deadline.max {
        find(
            "layers/deadline/default",
            "is longer than max",
            deadline.unnamed.to_string().into(),
            "lower default or raise max",
        );
    }
    if deadline.unnamed.get().is_zero() {
        find("layers/deadline/default", "is zero", "0s".into(), "2500ms is a good value");
    }
    let path = &pipeline.socket.path;
    if path.components().any(|part| matches!(part, std::path::Component::ParentDir)) {
        find("socket/path", "contains `..`", path.display().to_string().into(), "write the path without it");
    }
    // Whoever connects can have any stored seed opened; a mode for everybody needs a list of who that may be.
    let (mode, peers) = (pipeline.socket.mode, &pipeline.socket.allow_peers);
    if mode.bits() & EVERYBODY != 0 && peers.uids.is_empty() && peers.gids.is_empty() {
        find(
            "socket/mode",
            "is open to every user, and allowPeers is empty",
            mode.to_string().into(),
            "end the mode in 0, as \"0660\" with a group does, or list who may connect under socket.allowPeers",
        );
    }
    for (key, file) in files(pipeline) {
        if !file.is_absolute() {
            find(
                key,
                "is a relative path",
                file.display().to_string().into(),
                "write an absolute path; a service has no folder of its own",
            );
        }
    }
}

/// The files that a pipeline names, with their keys.
fn files(pipeline: &Pipeline) -> Vec<(&'static str, &std::path::Path)> {
    let crate::backend::Config::Transit(transit) = &pipeline.backend;
    let mut files = match &pipeline.auth {
        crate::auth::Config::Jwt(jwt) => vec![("auth/jwt/file", jwt.file.as_path())],
        crate::auth::Config::Cert(cert) => {
            vec![("auth/cert/certFile", cert.cert_file.as_path()), ("auth/cert/keyFile", cert.key_file.as_path())]
        }
    };
    files.extend(transit.tls.ca_file.as_deref().map(|file| ("backend/transit/tls/caFile", file)));
    files
}
