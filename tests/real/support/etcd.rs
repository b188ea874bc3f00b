//! A real etcd on loopback, and raw reads of what the API server stored in it.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::process::Process;
use super::wait::{LONG, until};
use super::{client, component, free_port};

/// A running etcd.
pub struct Etcd {
    _process: Process,
    client: reqwest::Client,
    pub url: String,
}

impl Etcd {
    pub async fn start(folder: &Path) -> Self {
        let url = format!("http://127.0.0.1:{}", free_port());
        let mut command = Command::new(component("etcd"));
        command.arg("--data-dir").arg(folder.join("etcd"));
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        // The data dies with the test: syncing it to disk would only cost time.
        command.args(["--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync", "--log-level", "warn"]);
        let mut process = Process::start("etcd", folder, &mut command);
        let client = client();
        until("etcd", LONG, async || {
            process.check()?;
            let reply = client.get(format!("{url}/health")).send().await.map_err(|error| error.to_string())?;
            reply.error_for_status().map(drop).map_err(|error| error.to_string())
        })
        .await;
        Self { _process: process, client, url }
    }

    /// The raw value at a key.
    pub async fn raw(&self, key: &str) -> Vec<u8> {
        let body = json!({ "key": STANDARD.encode(key) }).to_string();
        let reply =
            self.client.post(format!("{}/v3/kv/range", self.url)).body(body).send().await.expect("etcd answers");
        let reply: Value = serde_json::from_str(&reply.text().await.expect("a body")).expect("JSON");
        let value = reply["kvs"][0]["value"].as_str().unwrap_or_else(|| panic!("nothing at {key}: {reply}"));
        STANDARD.decode(value).expect("base64")
    }

    /// The raw value of a Secret in the namespace `default`.
    pub async fn secret(&self, name: &str) -> Vec<u8> {
        self.raw(&format!("/registry/secrets/default/{name}")).await
    }
}
